"""One door for all formats: guess which it is, read it, report what could not be read with its line."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from etude.errors import DataError
from etude.page.records import PaperRecord

Format = Literal["saved-page", "arxiv-atom", "hf-daily", "bibtex", "scholar"]
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Unreadable:
    """A piece of the import that is no paper, never dropped silently."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What an import holds."""

    format: Format
    records: tuple[PaperRecord, ...]
    unreadable: tuple[Unreadable, ...] = ()


def decode(raw: bytes | str) -> str:
    """Text of an upload: UTF-8 with or without BOM, UTF-16 with BOM, else Latin-1; line ends made `\\n`.

    Raises
    ------
    DataError
        If it is empty, binary or larger than 64 MiB.
    """
    if isinstance(raw, bytes):
        if len(raw) > MAX_BYTES:
            raise DataError(f"the import has {len(raw) / 2**20:.0f} MiB, at most 64 are taken: split it")
        text = _characters(raw)
    else:
        text = raw
    if len(text) > MAX_BYTES:
        raise DataError("the import has more than 64 MiB: split it")
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise DataError("the import is empty: paste a papers page, an Atom feed, daily-papers JSON or BibTeX")
    if text.count("\x00") > 0:
        raise DataError("the import is not text: give a text dump, an Atom feed, JSON or BibTeX")
    return text


def _characters(raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def guess(text: str) -> Format:
    """The format by its first characters."""
    start = text.lstrip()[:2000]
    if start.startswith("<"):
        return "arxiv-atom"
    if start[0] in "[{":
        return "hf-daily"
    lines = (line.strip() for line in start.splitlines())
    return "bibtex" if any(line.startswith("@") and "{" in line for line in lines) else "saved-page"


def read(raw: bytes | str, *, format: Format | None = None, now: int | None = None) -> Reading:
    """Read an import.

    Parameters
    ----------
    raw
        The upload or the pasted text.
    format
        None: guessed.
    now
        The time by which a date without a year is completed (seconds since 1970); None: the clock.

    Raises
    ------
    DataError
        If nothing in it can be a paper; the message says what to do.
    """
    from etude.page.importers import arxiv_atom, bibtex, hf_daily, saved_page

    text = decode(raw)
    readers: dict[str, Callable[[str, int], Reading]] = {
        "saved-page": saved_page.parse, "arxiv-atom": arxiv_atom.parse, "hf-daily": hf_daily.parse,
        "bibtex": bibtex.parse,
    }  # fmt: skip
    name = format or guess(text)
    if name not in readers:
        raise DataError(f"unknown import format {name!r}: choose one of {', '.join(readers)}")
    return readers[name](text, int(datetime.now(UTC).timestamp()) if now is None else now)

"""A saved papers page: blocks between blank lines, a title then its abstract, with the page's furniture between.

A state machine over classified blocks. Two titles in a row, or an abstract without a title, are reported with their
line; furniture (counts, names of submitters, dates) is attached to the current paper or skipped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from etude.errors import DataError
from etude.page.identity import arxiv_id
from etude.page.importers.latex import decode_accents
from etude.page.importers.reading import Reading, Unreadable
from etude.page.records import PaperRecord, make_record

Kind = Literal["title", "abstract", "date", "arxiv", "count", "people", "header"]
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DATE = re.compile(r"(?:[Pp]ublished (?:on )?)?([A-Z][a-z]{2})[a-z]*\.? (\d{1,2})(?:, ?(\d{4}))?$")
_HEADER = re.compile(
    r"new|hot|trending( papers)?|daily papers|subscribe|get trending papers in your email inbox!?|"
    r"by ?ak and the research community|upvote|papers|view all.*",
    re.IGNORECASE,
)
_PEOPLE = re.compile(
    r"(submitted by\b.*|\d[\d,]* (?:authors?|comments?)|· ?\d+.*|authors?:?)", re.IGNORECASE | re.DOTALL
)
_BY = re.compile(r"submitted by:?", re.IGNORECASE)  # then the name stands in the block after it
_NAME_WORDS = 4
_COUNT = re.compile(r"\d[\d,.]{0,14}k?", re.IGNORECASE)


class Block(NamedTuple):
    """A paragraph and the line it starts on."""

    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """Paragraphs of a text, lines inside one joined by newlines."""
    start = 0
    lines: list[str] = []
    for number, raw in enumerate([*text.split("\n"), ""], 1):
        line = raw.strip()
        if line:
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield Block("\n".join(lines), start)
            lines = []


def classify(text: str) -> Kind:
    """What a block is, by its form alone."""
    one_line, words = "\n" not in text, text.split()
    if one_line and _HEADER.fullmatch(text):
        return "header"
    date = _DATE.fullmatch(text) if one_line else None
    if date is not None and date.group(1).lower() in MONTHS:
        return "date"
    if one_line and _COUNT.fullmatch(text):
        return "count"
    if arxiv_id(text) is not None:
        return "arxiv"
    if _PEOPLE.fullmatch(text):
        return "people"
    if len(text) > 300 or len(words) > 40 or (len(text) > 200 and text.endswith(".")):
        return "abstract"
    return "title" if one_line and 1 <= len(words) <= 40 and not text.endswith(".") else "abstract"


def _number(text: str) -> int:
    """A count as a page writes it: "37", "1,204", "1.2k"."""
    if text.lower().endswith("k"):
        return round(1000 * float(text[:-1].replace(",", ".").rstrip(".") or 0)) if text.count(".") < 2 else 0
    return int(re.sub(r"\D", "", text) or 0)


def complete_date(text: str, now: int) -> tuple[int, bool]:
    """Noon UTC of a date; without a year the latest such day that is not in the future, and True."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no date")
    month, day = MONTHS.index(match.group(1).lower()) + 1, int(match.group(2))
    if match.group(3):
        return int(datetime(int(match.group(3)), month, day, 12, tzinfo=UTC).timestamp()), False
    today = datetime.fromtimestamp(now, UTC)
    for year in range(today.year, today.year - 9, -1):  # 29 February: up to eight years back
        try:
            when = datetime(year, month, day, tzinfo=UTC)
        except ValueError:
            continue
        if when <= today + timedelta(hours=14):  # it is tomorrow somewhere
            return int(when.timestamp()) + 12 * 3600, True
    raise ValueError(f"{text!r} is no date")


@dataclass
class _Current:
    title: Block
    abstract: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    arxiv: str | None = None
    day: tuple[int, bool] | None = None


def parse(text: str, now: int) -> Reading:
    """Read a saved page.

    Raises
    ------
    DataError
        If it is one paragraph (blank lines lost in copying), or holds no paper at all.
    """
    found = list(blocks(text))
    if len(found) == 1 and len(found[0].text) > 600:
        raise DataError(
            "the text is one single paragraph, so titles and abstracts cannot be told apart: "
            "copy the page again with its blank lines, or save it as text"
        )
    records: list[PaperRecord] = []
    bad: list[Unreadable] = []
    current: _Current | None = None
    day: tuple[int, bool] | None = None

    def close() -> None:
        nonlocal current
        if current is None:
            return
        if current.abstract:
            records.append(_record(current, current.day or day))
        else:
            bad.append(Unreadable(current.title.line, current.title.text[:200], "a title without an abstract"))
        current = None

    kinds = [classify(block.text) for block in found]
    for i, block in enumerate(found):
        kind = kinds[i]
        if kind == "title" and current is not None and _is_name(found, kinds, i, bool(current.abstract)):
            kind = "people"
        if kind == "title":
            close()
            current = _Current(block)
        elif kind == "abstract" and current is not None and not current.abstract:
            current.abstract = block.text.replace("\n", " ")
        elif kind == "abstract":
            bad.append(Unreadable(block.line, block.text[:200], "an abstract without a title"))
        elif kind == "date":
            try:
                date = complete_date(block.text, now)
            except ValueError as error:
                bad.append(Unreadable(block.line, block.text, str(error)))
                continue
            if current is not None and current.day is None:
                current.day = date
            else:  # the head of a list, which holds until the next one
                close()
                day = date
        elif current is not None and kind == "count":
            current.extra.setdefault("hf_upvotes", _number(block.text))
        elif current is not None and kind == "people":
            current.extra.setdefault("people", []).append(block.text[:200])
        elif current is not None and kind == "arxiv":
            current.arxiv = current.arxiv or block.text
    close()
    if not records:
        raise DataError("no paper was found: expected a title, a blank line, its abstract, and so on")
    return Reading("saved-page", tuple(records), tuple(bad))


def _is_name(found: list[Block], kinds: list[Kind], i: int, complete: bool) -> bool:
    """Whether a block with the form of a title is the name after "Submitted by": it is short, and no abstract follows
    that needs a title (`complete`: the current paper has its own)."""
    if i == 0 or not _BY.fullmatch(found[i - 1].text) or len(found[i].text.split()) > _NAME_WORDS:
        return False
    following = next((kind for kind in kinds[i + 1 :] if kind in ("title", "abstract")), None)
    return not (complete and following == "abstract")


def _record(current: _Current, day: tuple[int, bool] | None) -> PaperRecord:
    return make_record(
        title=decode_accents(current.title.text), abstract=decode_accents(current.abstract), arxiv_id=current.arxiv,
        published_at=day[0] if day else None, published_inferred=bool(day and day[1]), extra=current.extra,
        where=f"line {current.title.line}",
    )  # fmt: skip

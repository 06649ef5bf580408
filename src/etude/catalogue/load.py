"""Reading the cards: one TOML file a paper, checked against the schema, cached for the process."""

import difflib
import tomllib
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from pydantic import ValidationError

from etude.catalogue.card import Paper
from etude.errors import EtudeError, UsageError


class CatalogueError(EtudeError):
    """A card cannot be read: the message names the file, the field and what is wrong with it."""

    exit_code = 3


def _folder() -> Traversable:
    return files("etude.catalogue") / "papers"


def _slugs() -> tuple[str, ...]:
    folder = _folder()
    if not folder.is_dir():
        return ()
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def _place(loc: tuple[int | str, ...], document: Any) -> str:
    """A field path a reader finds in the file: ``claims[T1a].arms.method``."""
    path = ""
    for part in loc:
        document = _step(document, part)
        if isinstance(part, int):
            name = document.get("id") if isinstance(document, dict) else None
            path += f"[{name if isinstance(name, str) else part}]"
        else:
            path += f".{part}" if path else part
    return path or "card"


def _step(document: Any, part: int | str) -> Any:
    try:
        return document[part]
    except (KeyError, IndexError, TypeError):
        return None


def parse_card(text: str, *, name: str) -> Paper:
    """The paper of one card. Line breaks inside `summary` and the paper's `notes` become blanks.

    Parameters
    ----------
    text : str
        The TOML document.
    name : str
        File name, used in messages; its stem must equal the card's slug.

    Raises
    ------
    CatalogueError
        Broken TOML (with its line), a field that breaks the schema (one line each), or a slug that is not
        the file's stem.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{name}: not valid TOML: {error}") from error
    for field in ("summary", "notes"):  # wrapped in the file, one paragraph for the reader
        if isinstance(document.get(field), str):
            document[field] = " ".join(document[field].split())
    try:
        paper = Paper.model_validate(document)
    except ValidationError as error:
        lines = [
            f"{name}: {_place(e['loc'], document)}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_url=False)
        ]
        raise CatalogueError("\n".join(lines)) from error
    stem = name.removesuffix(".toml")
    if paper.slug != stem:
        raise CatalogueError(f"{name}: slug: {paper.slug!r} must equal the file's stem {stem!r}")
    return paper


@cache
def _read(slug: str) -> Paper:
    file = _folder() / f"{slug}.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{slug}.toml: cannot be read as UTF-8 text: {error}") from error
    return parse_card(text, name=f"{slug}.toml")


@cache
def papers() -> tuple[Paper, ...]:
    """Every paper of the catalogue, sorted by slug; read once a process.

    Raises
    ------
    CatalogueError
        At least one card is broken; the message has one line for every fault of every card.
    """
    found: list[Paper] = []
    faults: list[str] = []
    for slug in _slugs():
        try:
            found.append(_read(slug))
        except CatalogueError as error:
            faults.append(str(error))
    if faults:
        raise CatalogueError("\n".join(faults))
    return tuple(found)


def load(slug: str) -> Paper:
    """One paper by its slug; the other cards are not read.

    Raises
    ------
    UsageError
        No card has this slug; the message names the nearest ones.
    CatalogueError
        The card is broken.
    """
    slugs = _slugs()
    if slug in slugs:
        return _read(slug)
    near = difflib.get_close_matches(str(slug).lower().replace("_", "-"), slugs, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "etude papers (in Python: etude.papers()) lists them all"
    raise UsageError(f"no paper has the slug {slug!r}; {hint}")


def json_schema() -> dict[str, Any]:
    """JSON schema of a card, for editors and for other programs; `docs/card.schema.json` is a copy."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Paper.model_json_schema()}

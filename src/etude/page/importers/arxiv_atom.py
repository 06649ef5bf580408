"""arXiv's Atom answers, old and new identifiers, versions; parsed with entity expansion forbidden."""

from datetime import UTC, datetime
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from etude.errors import DataError, MissingExtra
from etude.page.identity import arxiv_id
from etude.page.importers.reading import Reading, Unreadable
from etude.page.records import PaperRecord, make_record

ATOM, ARXIV = "{http://www.w3.org/2005/Atom}", "{http://arxiv.org/schemas/atom}"


def timestamp(text: str | None) -> int | None:
    """Seconds since 1970 of an ISO time; None when there is none or it cannot be read."""
    try:
        when = datetime.fromisoformat((text or "").strip().replace("Z", "+00:00"))
    except ValueError:
        return None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())


def _text(entry: Element, name: str) -> str:
    return (entry.findtext(name) or "").strip()


def _entry(entry: Element) -> PaperRecord:
    found = arxiv_id(_text(entry, f"{ATOM}id"))
    if found is None:
        raise ValueError(f"{_text(entry, f'{ATOM}id')[:80]!r} is no arXiv identifier")
    links = {link.get("title") or link.get("rel"): link.get("href") for link in entry.iterfind(f"{ATOM}link")}
    primary = entry.find(f"{ARXIV}primary_category")
    tags = [c.get("term", "") for c in entry.iterfind(f"{ATOM}category")]
    extra: dict[str, Any] = {
        "category": primary.get("term") if primary is not None else None, "comment": _text(entry, f"{ARXIV}comment"),
        "updated": timestamp(_text(entry, f"{ATOM}updated")), "pdf": links.get("pdf"),
    }  # fmt: skip
    return make_record(
        title=_text(entry, f"{ATOM}title"), abstract=_text(entry, f"{ATOM}summary"),
        authors=[_text(a, f"{ATOM}name") for a in entry.iterfind(f"{ATOM}author")],
        arxiv_id=found.id, arxiv_version=found.version, doi=_text(entry, f"{ARXIV}doi"),
        venue=_text(entry, f"{ARXIV}journal_ref") or None, url=f"https://arxiv.org/abs/{found.id}",
        published_at=timestamp(_text(entry, f"{ATOM}published")), tags=tags,
        extra={k: v for k, v in extra.items() if v},
    )  # fmt: skip


def parse(text: str, now: int) -> Reading:
    """Read a feed; an entry that cannot be read is reported by its number.

    Raises
    ------
    DataError
        If it is not XML, declares entities, is no Atom feed, or is arXiv's own error answer.
    """
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise MissingExtra("defusedxml", "web", "reading Atom feeds") from error
    try:
        root = fromstring(text.encode(), forbid_dtd=True)
    except ParseError as error:
        raise DataError(f"the feed is not well-formed XML: {error}; save it again") from error
    except DefusedXmlException as error:
        raise DataError(f"the feed declares entities or a document type, which is refused: {error}") from error
    entries = [root] if root.tag == f"{ATOM}entry" else list(root.iterfind(f"{ATOM}entry"))
    if root.tag not in (f"{ATOM}feed", f"{ATOM}entry"):
        raise DataError(f"the document is <{root.tag[:60]}>, not an Atom feed")
    if len(entries) == 1 and _text(entries[0], f"{ATOM}title") == "Error":
        raise DataError(f"arXiv answered with an error: {_text(entries[0], f'{ATOM}summary')[:200]}")
    records: list[PaperRecord] = []
    bad: list[Unreadable] = []
    for number, entry in enumerate(entries, 1):
        try:
            records.append(_entry(entry))
        except ValueError as error:
            bad.append(Unreadable(number, _text(entry, f"{ATOM}title")[:200], f"entry {number}: {error}"))
    return Reading("arxiv-atom", tuple(records), tuple(bad))

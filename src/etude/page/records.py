"""A paper as the importers read it, before it is ours."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from etude.page.identity import arxiv_id, clean, doi, norm_hash

EARLIEST, LATEST = -30_610_224_000, 253_370_764_799  # 1 January 1000 to 31 December 9998
MAX_TITLE, MAX_ABSTRACT, MAX_AUTHORS, MAX_NAME = 1000, 20_000, 5000, 200


@dataclass(frozen=True)
class PaperRecord:
    """One paper of an import: text only, markup never trusted, lengths bounded."""

    title: str
    abstract: str = ""
    authors: tuple[str, ...] = ()
    venue: str | None = None
    published_at: int | None = None
    published_inferred: bool = False
    arxiv_id: str | None = None
    arxiv_version: int | None = None
    doi: str | None = None
    url: str | None = None
    code_url: str | None = None
    license: str | None = None
    lang: str | None = None
    room: str | None = None
    tags: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    slug: str | None = None
    where: str = ""
    """Where in the imported text it stood ("line 12"), for the preview."""

    @cached_property
    def norm_hash(self) -> str:
        return norm_hash(self.title)

    def columns(self) -> dict[str, Any]:
        """The columns of the table `paper` that an import may set."""
        skip = ("tags", "where", "slug")
        out = {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in skip}
        return out | {"authors": [{"name": n} for n in self.authors], "norm_hash": self.norm_hash}


def web_address(text: str | None) -> str | None:
    """An http(s) address, or None: no other scheme ever becomes a link."""
    value = clean(text or "").replace("\n", "")
    return value if value.lower().startswith(("http://", "https://")) and " " not in value else None


def check_identifiers(values: dict[str, Any]) -> None:
    """What a person typed is either read or refused, never dropped without a word.

    Raises
    ------
    ValueError
        For an arXiv id, a DOI or an address that is none; the message names it.
    """
    for name, given in ((k, str(values.get(k) or "").strip()) for k in ("arxiv_id", "doi", "url", "code_url")):
        fine = {"arxiv_id": arxiv_id, "doi": doi}.get(name, web_address)
        if given and fine(given) is None:
            raise ValueError(f"{given[:80]!r} cannot be used as {name.replace('_', ' ')}")


def make_record(**values: Any) -> PaperRecord:
    """A record from whatever an importer or a form read: cleaned, bounded, identifiers canonical.

    Raises
    ------
    ValueError
        If there is no title.
    """
    title = clean(str(values.pop("title", "") or "")).replace("\n", " ")[:MAX_TITLE]
    if not any(ch.isalnum() for ch in title):
        raise ValueError("a paper needs a title")
    abstract = clean(str(values.pop("abstract", "") or ""))[:MAX_ABSTRACT]
    names = [clean(str(n)).replace("\n", " ")[:MAX_NAME] for n in values.pop("authors", ()) or ()]
    arxiv = arxiv_id(str(values.pop("arxiv_id", "") or ""))
    said = str(values.pop("doi", "") or "")
    object_id = doi(said)
    if object_id and (minted := arxiv_id(said)):  # arXiv's own DOI says no more than its id; a journal's does
        arxiv, object_id = arxiv or minted, None
    version = values.pop("arxiv_version", None)
    tags = [clean(str(t)).lower()[:80] for t in values.pop("tags", ()) or ()]
    texts: dict[str, Any] = {
        k: clean(str(values.pop(k)))[:500] or None for k in ("venue", "license", "lang", "room") if values.get(k)
    }
    at = values.pop("published_at", None)
    return PaperRecord(
        title=title, abstract=abstract, authors=tuple(n for n in names if n)[:MAX_AUTHORS],
        published_at=at if at is not None and EARLIEST <= at <= LATEST else None,
        arxiv_id=arxiv.id if arxiv else None, arxiv_version=(arxiv.version if arxiv else None) or version,
        doi=object_id, url=web_address(values.pop("url", None)),
        code_url=web_address(values.pop("code_url", None)), tags=tuple(dict.fromkeys(t for t in tags if t)),
        **texts, **values,
    )  # fmt: skip

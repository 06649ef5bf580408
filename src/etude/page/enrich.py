"""What other hosts know of our papers: OpenAlex, Semantic Scholar, stars of the code. Off unless `ETUDE_FETCH=1`.

Each source has a pause of its own between requests, and its answer about a paper is kept and not asked for again
before it is old. Only gaps are filled: nothing that stands here is overwritten.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from etude.errors import DataError, SourceUnavailable, UsageError
from etude.page import heat as h
from etude.page import store
from etude.page import tables as t
from etude.page.database import Database
from etude.page.fetch import Fetcher, repository_of
from etude.page.importers.reading import Reading, Unreadable
from etude.page.listing import by_heat
from etude.page.records import PaperRecord, make_record

DAY = 86_400
Record = dict[str, Any]
MOST_WORDS = 10_000


def ordered(index: Any) -> str:
    """The text of an inverted index, ``{"word": [places]}``.

    Raises
    ------
    DataError
        If it is none, or claims more than 10,000 words.
    """
    if not isinstance(index, dict) or not all(isinstance(v, list) for v in index.values()):
        raise DataError("the inverted index of an abstract must be words with their places")
    places = [(place, word) for word, found in index.items() for place in found if isinstance(place, int)]
    if len(places) > MOST_WORDS:
        raise DataError(f"an abstract of {len(places)} words is refused")
    return " ".join(word for _, word in sorted(places))


def _arxiv_or_doi(row: Record, arxiv: str, doi: str) -> str | None:
    if row["arxiv_id"]:
        return arxiv + quote(row["arxiv_id"], safe="/.")
    return doi + quote(row["doi"], safe="/.()") if row["doi"] else None


def _openalex(row: Record) -> str | None:
    known = _arxiv_or_doi(row, "10.48550/arxiv.", "")
    return f"/works/doi:{known}?select=abstract_inverted_index,cited_by_count,primary_location" if known else None


def _of_openalex(said: Record) -> Record:
    place = ((said.get("primary_location") or {}).get("source") or {}).get("display_name")
    index = said.get("abstract_inverted_index")
    return {"abstract": ordered(index) if index else None, "venue": place, "citations": said.get("cited_by_count")}


def _scholar(row: Record) -> str | None:
    known = _arxiv_or_doi(row, "arXiv:", "DOI:")
    return f"/graph/v1/paper/{known}?fields=abstract,venue,citationCount" if known else None


def _of_scholar(said: Record) -> Record:
    return {"abstract": said.get("abstract"), "venue": said.get("venue"), "citations": said.get("citationCount")}


def _github(row: Record) -> str | None:
    found = repository_of(row["code_url"] or "")
    return "/repos/{}/{}".format(*found) if found else None


def _of_github(said: Record) -> Record:
    stars = said.get("stargazers_count")
    if not isinstance(stars, int) or isinstance(stars, bool):
        raise DataError("the repository's answer names no number of stars")
    return {"stars": stars}


@dataclass(frozen=True)
class Source:
    """A host, what to ask it about a paper, and how to read the answer."""

    host: str
    path: Callable[[Record], str | None]
    read: Callable[[Record], Record]
    fresh: int
    """Seconds for which an answer is good."""


SOURCES = {
    "openalex": Source("api.openalex.org", _openalex, _of_openalex, 30 * DAY),
    "scholar": Source("api.semanticscholar.org", _scholar, _of_scholar, 30 * DAY),
    "github": Source("api.github.com", _github, _of_github, DAY),
}


def _said(raw: bytes) -> Record:
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the answer is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise DataError("the answer is no object")
    return said


def enrich(db: Database, name: str, *, most: int = 50, now: int, fetcher: Fetcher | None = None) -> dict[str, int]:
    """Ask one source about papers whose answer is missing or old, the hottest first.

    Returns
    -------
    dict
        How many were asked about, filled, and not known there.

    Raises
    ------
    UsageError
        For an unknown source.
    """
    if name not in SOURCES:
        raise UsageError(f"unknown source {name!r}: choose {', '.join(SOURCES)}")
    source, p, e = SOURCES[name], t.paper.c, t.enriched.c
    old = sa.select(e.paper_id).where(e.source == name, e.at > now - source.fresh)
    named = p.code_url.is_not(None) if name == "github" else sa.or_(p.arxiv_id.is_not(None), p.doi.is_not(None))
    query = sa.select(t.paper).where(named, p.hidden.is_(False), p.id.not_in(old)).order_by(*by_heat())
    counts, fetcher = {"asked": 0, "filled": 0, "unknown": 0}, fetcher or Fetcher()
    try:
        for row in db.rows(query.limit(most)):
            path = source.path(row)
            if path is None:
                continue
            counts["asked"] += 1
            try:
                record = source.read(_said(fetcher.get(source.host, path)))
            except (SourceUnavailable, DataError):
                counts["unknown"] += 1
                record = {}
            with db.begin() as c:
                counts["filled"] += _keep(c, row, name, record, now)
    finally:
        fetcher.close()
    return counts


def _keep(c: sa.Connection, row: Record, name: str, record: Record, now: int) -> bool:
    """Store an answer; True when it filled a gap or brought new stars."""
    e = t.enriched.c
    mine = sa.and_(e.paper_id == row["id"], e.source == name)
    before = c.execute(sa.select(e.record).where(mine)).scalar_one_or_none() or {}
    c.execute(sa.delete(t.enriched).where(mine))
    kept = {k: v for k, v in record.items() if k != "abstract"}
    c.execute(sa.insert(t.enriched).values(paper_id=row["id"], source=name, record=kept or before, at=now))
    if name == "github":
        new = record.get("stars", 0) - before["stars"] if "stars" in before else 0
        if new <= 0:
            return False
        key = f"stars:{row['id']}:{now // DAY}"
        return store.happened(c, row["id"], "stars", h.code_stars(new), now=now, key=key)
    try:
        clean = make_record(title=row["title"], abstract=record.get("abstract"), venue=record.get("venue"))
    except ValueError:
        return False
    changes = {k: getattr(clean, k) for k in ("abstract", "venue") if getattr(clean, k) and not row[k]}
    if changes:
        from etude.page.search.lexical import reindex

        store.edit(c, row["id"], changes, expected=row["version"], by=name, now=now)
        reindex(c, [row["id"]])
    return bool(changes)


def recommendations(
    positive: Iterable[str], negative: Iterable[str] = (), *, most: int = 50, fetcher: Fetcher | None = None
) -> Reading:
    """Papers that Semantic Scholar recommends to somebody who likes some arXiv papers and dislikes others.

    Raises
    ------
    UsageError
        Without a liked paper.
    """
    liked = [f"ArXiv:{i}" for i in positive][:100]
    if not liked:
        raise UsageError("recommendations need at least one paper with an arXiv id that you like")
    body = {"positivePaperIds": liked, "negativePaperIds": [f"ArXiv:{i}" for i in negative][:100]}
    path = f"/recommendations/v1/papers?limit={most}&fields=title,abstract,authors,externalIds,venue"
    fetcher = fetcher or Fetcher()
    try:
        said = _said(fetcher.post("api.semanticscholar.org", path, json.dumps(body).encode()))
    finally:
        fetcher.close()
    items = said.get("recommendedPapers")
    if not isinstance(items, list):
        raise DataError("the answer names no recommended papers")
    records: list[PaperRecord] = []
    bad: list[Unreadable] = []
    for number, item in enumerate(items[:most], 1):
        try:
            known = item.get("externalIds") or {}
            records.append(make_record(
                title=item.get("title"), abstract=item.get("abstract"), venue=item.get("venue"),
                authors=[a.get("name", "") for a in item.get("authors") or []],
                arxiv_id=known.get("ArXiv") or "", doi=known.get("DOI") or "",
            ))  # fmt: skip
        except (ValueError, TypeError, AttributeError) as error:
            bad.append(Unreadable(number, str(item)[:200], f"item {number}: {error}"))
    return Reading("scholar", tuple(records), tuple(bad))


def known_elsewhere(db: Database, paper_id: int) -> dict[str, Record]:
    """What sources said of a paper, by source: shown beside its name, never counted as ours."""
    e = t.enriched.c
    rows = db.rows(sa.select(e.source, e.record, e.at).where(e.paper_id == paper_id).order_by(e.source))
    return {r["source"]: r["record"] | {"at": r["at"]} for r in rows if r["record"]}

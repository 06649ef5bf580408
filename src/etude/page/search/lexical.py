"""Words: BM25 over titles, tags, authors and abstracts, with trigrams of titles for typos and parts of words."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.records import PaperRecord
from etude.page.search.query import Query, fts5
from etude.page.store import Match

DEPTH = 200
COMMON = 2000  # papers that hold all words, from which on not all of them are ranked
FEW = 20
AT_ONCE = 5000  # ids in one question; SQLite takes 32,766
# Weights of bm25(): title, tags, authors, abstract.
WEIGHTS = "5.0, 3.0, 2.0, 1.0"
_INSERT = "INSERT INTO fts(rowid, title, tags, authors, abstract) VALUES (:id, :title, :tags, :authors, :abstract)"
_INSERT_PG = (
    "INSERT INTO fts(rowid, title, tags, authors, abstract, document) VALUES (:id, :title, :tags, :authors, :abstract, "
    "setweight(to_tsvector('english', :title), 'A') || setweight(to_tsvector('english', :tags), 'B') || "
    "setweight(to_tsvector('simple', :authors), 'C') || setweight(to_tsvector('english', :abstract), 'D'))"
)


def document(row: dict[str, Any], tags: list[str]) -> dict[str, Any]:
    """What the index holds of a paper."""
    authors = ", ".join(a["name"] for a in row["authors"])
    title = f"{row['title']} {row['slug'].replace('-', ' ')}" if row["source"] == "catalogue" else row["title"]
    return {"id": row["id"], "title": title, "tags": " ".join(tags), "authors": authors, "abstract": row["abstract"]}


def index(c: sa.Connection, documents: list[dict[str, Any]], *, new: bool = False) -> None:
    """Put papers into the index, replacing what it held of them (`new`: it holds nothing of them yet)."""
    if not documents:
        return
    sqlite = c.dialect.name == "sqlite"
    if not new:
        for table in ("fts", "fts_title") if sqlite else ("fts",):
            c.execute(sa.text(f"DELETE FROM {table} WHERE rowid = :id"), [{"id": d["id"]} for d in documents])
    c.execute(sa.text(_INSERT if sqlite else _INSERT_PG), documents)
    if sqlite:
        c.execute(sa.text("INSERT INTO fts_title(rowid, title) VALUES (:id, :title)"), documents)


def reindex(c: sa.Connection, paper_ids: list[int]) -> None:
    """Read papers and index them anew."""
    for start in range(0, len(paper_ids), AT_ONCE):
        part = paper_ids[start : start + AT_ONCE]
        rows = c.execute(sa.select(t.paper).where(t.paper.c.id.in_(part))).mappings().all()
        tags: dict[int, list[str]] = {}
        for r in c.execute(sa.select(t.paper_tag).where(t.paper_tag.c.paper_id.in_(part))):
            tags.setdefault(r.paper_id, []).append(r.tag)
        index(c, [document(dict(r), tags.get(r["id"], [])) for r in rows])


def rank(c: sa.Connection, query: Query, *, depth: int = DEPTH) -> list[int]:
    """Paper ids by relevance, best first; typos are looked for when few papers hold all words."""
    if not (query.words or query.phrases):
        return []
    hits = _words_sqlite(c, query, depth) if c.dialect.name == "sqlite" else _words_postgres(c, query, depth)
    if len(hits) < 5 and query.words and c.dialect.name == "sqlite":
        hits += [i for i in _trigrams(c, query, depth) if i not in set(hits)]
    return hits[:depth]


def _words_sqlite(c: sa.Connection, query: Query, depth: int) -> list[int]:
    hits = _ranked(c, fts5(query, prefix=False), depth)
    if len(hits) < FEW:  # the last word may be the beginning of one
        hits += [i for i in _ranked(c, fts5(query), depth) if i not in set(hits)]
    if not hits and len(query.words) > 1:  # no paper holds all words: take those that hold most of them
        hits = _ranked(c, " OR ".join(f'"{w}"' for w in query.words), depth)
    return hits


def _ranked(c: sa.Connection, match: str, depth: int) -> list[int]:
    """Papers of an FTS5 query by BM25.

    BM25 costs some microseconds a paper that matches. Words that more than 2,000 papers hold tell papers apart hardly
    at all, so then only papers with the words in title or tags are ranked, the newest 2,000 of them, and after these
    the newest that hold the words anywhere.
    """
    if not match:
        return []
    if _from(c, match) is None:
        return _bm25(c, match, depth, 0)
    hits: list[int] = []
    for part in (f"{{title tags}} : ({match})" if " NOT " not in match else match, match):
        if len(hits) < depth:
            hits += [i for i in _bm25(c, part, depth, _from(c, part) or 0) if i not in set(hits)]
    return hits[:depth]


def _from(c: sa.Connection, match: str) -> int | None:
    """Id from which on 2,000 papers match, counted from the newest; None when fewer do."""
    sql = "SELECT rowid FROM fts WHERE fts MATCH :q ORDER BY rowid DESC LIMIT 1 OFFSET :n"
    found: int | None = c.execute(sa.text(sql), {"q": match, "n": COMMON}).scalar()
    return found


def _bm25(c: sa.Connection, match: str, depth: int, low: int) -> list[int]:
    sql = f"SELECT rowid FROM fts WHERE fts MATCH :q AND rowid >= :low ORDER BY bm25(fts, {WEIGHTS}), rowid LIMIT :n"
    return list(c.execute(sa.text(sql), {"q": match, "n": depth, "low": low}).scalars())


def _words_postgres(c: sa.Connection, query: Query, depth: int) -> list[int]:
    words = " & ".join(f"{w}:*" for w in query.words)
    sql = (
        "SELECT rowid FROM fts, to_tsquery('english', :q) q WHERE document @@ q "
        "ORDER BY ts_rank('{0.1, 0.2, 0.4, 1.0}', document, q) DESC, rowid LIMIT :n"
    )
    if query.phrases:
        words = " & ".join([w for w in [words] if w] + ["(" + " <-> ".join(p.split()) + ")" for p in query.phrases])
    if query.excluded:
        words += "".join(f" & !({' <-> '.join(w.split())})" for w in query.excluded)
    return list(c.execute(sa.text(sql), {"q": words, "n": depth}).scalars())


def trigrams(text: str) -> set[str]:
    """All runs of three characters of the words of a text."""
    return {w[i : i + 3] for w in text.lower().split() for i in range(len(w) - 2)}


def _trigrams(c: sa.Connection, query: Query, depth: int) -> list[int]:
    """Titles by the share of the query's trigrams that they hold (blanks ignored, so "autognn" finds "Auto-GNN")."""
    wanted = set().union(*(trigrams(w) for w in query.words)) if query.words else set()
    if not wanted:
        return []
    match = " OR ".join('"' + g.replace('"', '""') + '"' for g in sorted(wanted))
    sql = "SELECT rowid, title FROM fts_title WHERE fts_title MATCH :q LIMIT 2000"
    scored = []
    for rowid, title in c.execute(sa.text(sql), {"q": match}):
        letters = "".join(filter(str.isalnum, title.lower()))
        share = sum(g in letters for g in wanted) / len(wanted)
        if share >= 0.5:
            scored.append((-share, len(title), rowid))
    return [rowid for _, _, rowid in sorted(scored)[:depth]]


def index_matches(c: sa.Connection, matches: Sequence[Match]) -> None:
    """Index what an import has added or changed; what is new is taken as it was read."""
    added = [m for m in matches if m.status == "new" and m.paper_id is not None]
    once = {m.paper_id: m.record for m in added}
    again = {m.paper_id for m in matches if m.status == "changed" and m.paper_id is not None}
    index(c, [_document(i, r) for i, r in once.items() if i not in again], new=True)  # type: ignore[arg-type]
    reindex(c, sorted(again))


def _document(paper_id: int, record: PaperRecord) -> dict[str, Any]:
    authors = [{"name": name} for name in record.authors]
    row = {"id": paper_id, "title": record.title, "authors": authors, "abstract": record.abstract, "source": "import"}
    return document(row, list(record.tags))

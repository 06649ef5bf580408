"""Words: BM25 over titles, tags, authors and abstracts, with trigrams of titles for typos and parts of words."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.heat import rank as rank_by_heat
from etude.page.records import PaperRecord
from etude.page.search.query import Query, fts5
from etude.page.store import Match

DEPTH = 200
COMMON = 2000  # papers that hold all words, from which on not all of them are ranked
FEW = 20
ALIKE = 0.5  # share of a query's trigrams that a title must hold
AT_ONCE = 5000  # ids in one question; SQLite takes 32,766
# Weights of bm25(): title, tags, authors, abstract.
WEIGHTS = "5.0, 3.0, 2.0, 1.0"
Within = sa.Select[Any] | None
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


def rank(c: sa.Connection, query: Query, *, depth: int = DEPTH, within: Within = None) -> list[int]:
    """Paper ids by relevance, best first; typos are looked for when few papers hold all words.

    `within`: a select of the ids that may be found (None: all).
    """
    if not (query.words or query.phrases):
        return []
    found = _words_sqlite if c.dialect.name == "sqlite" else _words_postgres
    hits = found(c, query, depth, within)
    if len(hits) < 5 and query.words:
        alike = _alike_sqlite if c.dialect.name == "sqlite" else _alike_postgres
        wanted = sorted(set().union(*(trigrams(w) for w in query.words)))
        more = keeping(c, query, alike(c, wanted, depth, within)) if wanted else []
        hits += [i for i in more if i not in set(hits)]
    return hits[:depth]


def keeping(c: sa.Connection, query: Query, ids: list[int]) -> list[int]:
    """Of papers that were found in another way, those that hold every phrase and no excluded word of the query."""
    listed = ",".join(str(int(i)) for i in ids)

    def held(words: Sequence[str]) -> set[int]:
        found = holding(c.dialect.name, words).where(sa.text(f"+rowid IN ({listed})"))
        return set(c.execute(found).scalars())

    for phrase in query.phrases if ids else ():
        having = held([phrase])
        ids = [i for i in ids if i in having]
    if query.excluded and ids:
        having = held(query.excluded)
        ids = [i for i in ids if i not in having]
    return ids


def holding(dialect: str, words: Sequence[str]) -> sa.Select[Any]:
    """Ids of the papers that hold any of these words and phrases."""
    if dialect == "sqlite":
        asked, unwanted = "fts MATCH :unwanted", " OR ".join(f'"{w}"' for w in words)
    else:
        asked = "document @@ to_tsquery('english', :unwanted)"
        unwanted = " | ".join(f"({' <-> '.join(w.split())})" for w in words)
    held = sa.text(asked).bindparams(unwanted=unwanted)
    return sa.select(sa.literal_column("rowid", sa.Integer)).select_from(sa.text("fts")).where(held)


def _words_sqlite(c: sa.Connection, query: Query, depth: int, within: Within) -> list[int]:
    hits = _ranked(c, fts5(query, prefix=False), depth, within)
    if len(hits) < FEW:  # the last word may be the beginning of one
        hits += [i for i in _ranked(c, fts5(query), depth, within) if i not in set(hits)]
    if not hits and len(query.words) > 1:  # no paper holds all words: take those that hold most of them
        hits = keeping(c, query, _ranked(c, " OR ".join(f'"{w}"' for w in query.words), depth, within))
    return hits


def _ranked(c: sa.Connection, match: str, depth: int, within: Within) -> list[int]:
    """Papers of an FTS5 query by BM25.

    BM25 costs some microseconds a paper that matches. Words that more than 2,000 papers hold tell papers apart hardly
    at all, so then only papers with the words in title or tags are ranked, the newest 2,000 of them, and after these
    the newest that hold the words anywhere.
    """
    if not match:
        return []
    if _from(c, match, within) is None:
        return _bm25(c, match, depth, 0, within)
    hits: list[int] = []
    for part in (f"{{title tags}} : ({match})" if " NOT " not in match else match, match):
        if len(hits) < depth:
            hits += [i for i in _bm25(c, part, depth, _from(c, part, within) or 0, within) if i not in set(hits)]
    return hits[:depth]


def _select(columns: str, tables: str, match: str, within: Within) -> sa.Select[Any]:
    """A question to the index. The plus keeps SQLite from asking the index once for each id that may be found."""
    query = sa.select(sa.text(columns)).select_from(sa.text(tables)).where(sa.text(match))
    return query if within is None else query.where(sa.literal_column("+rowid").in_(within))


def _from(c: sa.Connection, match: str, within: Within) -> int | None:
    """Id from which on 2,000 papers match, counted from the newest; None when fewer do."""
    query = _select("rowid", "fts", "fts MATCH :q", within).order_by(sa.text("rowid DESC")).limit(1).offset(COMMON)
    found: int | None = c.execute(query, {"q": match}).scalar()
    return found


def _bm25(c: sa.Connection, match: str, depth: int, low: int, within: Within) -> list[int]:
    query = _select(f"rowid, -bm25(fts, {WEIGHTS}) AS score", "fts", "fts MATCH :q AND rowid >= :low", within)
    query = query.order_by(sa.text("score DESC, rowid")).limit(depth)
    return best_first(c, dict(c.execute(query, {"q": match, "low": low}).tuples().all()))


def _words_postgres(c: sa.Connection, query: Query, depth: int, within: Within) -> list[int]:
    words = " & ".join(f"{w}:*" for w in query.words)
    score = "ts_rank('{0.1, 0.2, 0.4, 1.0}', document, q)"
    asked = _select(f"rowid, {score} AS score", "fts, to_tsquery('english', :q) q", "document @@ q", within)
    asked = asked.order_by(sa.text("score DESC, rowid")).limit(depth)
    if query.phrases:
        words = " & ".join([w for w in [words] if w] + ["(" + " <-> ".join(p.split()) + ")" for p in query.phrases])
    if query.excluded:
        words += "".join(f" & !({' <-> '.join(w.split())})" for w in query.excluded)
    return best_first(c, dict(c.execute(asked, {"q": words}).tuples().all()))


def best_first(c: sa.Connection, scores: dict[int, float]) -> list[int]:
    """Papers by their score, the warmer one first among equals; what heat says decides nothing else."""
    many = Counter(scores.values())
    equal = [i for i, score in scores.items() if many[score] > 1]
    p = t.paper.c
    warmth: dict[int, tuple[float, int, int]] = {}
    if equal:
        listed = sa.text(f"paper.id IN ({','.join(str(int(i)) for i in equal)})")  # quicker than parameters
        rows = c.execute(sa.select(p.id, p.heat_72, p.submitted_at).where(listed)).mappings()
        warmth = {r["id"]: rank_by_heat(dict(r)) for r in rows}
    return sorted(scores, key=lambda i: (-scores[i], warmth.get(i, (0.0, 0, i))))


def trigrams(text: str) -> set[str]:
    """All runs of three characters of the words of a text."""
    return {w[i : i + 3] for w in text.lower().split() for i in range(len(w) - 2)}


def _alike_sqlite(c: sa.Connection, wanted: Sequence[str], depth: int, within: Within) -> list[int]:
    """Titles by the share of these trigrams that they hold (blanks ignored, so "autognn" finds "Auto-GNN").

    Only titles with one of the rare trigrams are looked at, where there are any: the others tell titles apart hardly.
    """
    quoted = {g: '"' + g.replace('"', '""') + '"' for g in wanted}
    some = sa.text("SELECT count(*) FROM (SELECT 1 FROM fts_title WHERE fts_title MATCH :q LIMIT :n)")
    held = {g: c.execute(some, {"q": q, "n": COMMON}).scalar_one() for g, q in quoted.items()}
    rare = [g for g, n in held.items() if 0 < n < COMMON] or wanted
    asked = _select("rowid, title", "fts_title", "fts_title MATCH :q", within).limit(10 * COMMON)
    scored = []
    for rowid, title in c.execute(asked, {"q": " OR ".join(quoted[g] for g in rare)}):
        letters = "".join(filter(str.isalnum, title.lower()))
        share = sum(g in letters for g in wanted) / len(wanted)
        if share >= ALIKE:
            scored.append((-share, len(title), rowid))
    return [rowid for _, _, rowid in sorted(scored)[:depth]]


def _alike_postgres(c: sa.Connection, wanted: Sequence[str], depth: int, within: Within) -> list[int]:
    """As `_alike_sqlite`, by one look at every title: PostgreSQL's own trigrams are an extension."""
    letters = "lower(regexp_replace(title, '[^[:alnum:]]', '', 'g'))"
    share = "+".join(f"(position(:g{i} in letters) > 0)::int" for i in range(len(wanted)))
    table = f"(SELECT rowid, title, {letters} AS letters FROM fts) AS titles"
    asked = _select("rowid", table, f"{share} >= :least", within).order_by(
        sa.text(f"{share} DESC, length(title), rowid")
    )
    values: dict[str, Any] = {f"g{i}": g for i, g in enumerate(wanted)}
    return list(c.execute(asked.limit(depth), values | {"least": ALIKE * len(wanted)}).scalars())


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

"""Search as a reader means it: words and meaning fused by rank, exact titles first, with the reasons."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.database import Database
from etude.page.identity import norm_hash
from etude.page.listing import Filters, by_ids, condition
from etude.page.search import lexical
from etude.page.search.query import Query

RRF = 60
DEPTH = 200
NARROWED_DEPTH = 5000  # by meaning, where filters let only a part through
COMMON = frozenset(("a", "an", "and", "by", "for", "from", "in", "is", "of", "on", "or", "that", "the", "to", "with"))


class Meaning(Protocol):
    """Something that ranks papers by the meaning of a text, best first."""

    def rank(self, text: str, depth: int) -> list[int]: ...


@dataclass(frozen=True)
class Hit:
    """A paper and why it was found."""

    row: dict[str, Any]
    words: tuple[str, ...]
    similar: bool

    @property
    def reason(self) -> str:
        parts = [f"matches {', '.join(self.words)}"] if self.words else []
        return "; ".join(parts + (["similar meaning"] if self.similar else []))


def fuse(lists: Sequence[Sequence[int]], k: int = RRF) -> dict[int, float]:
    """Reciprocal rank fusion: the sum of 1 / (k + rank) of every item."""
    score: dict[int, float] = {}
    for ranking in lists:
        for place, item in enumerate(ranking, 1):
            score[item] = score.get(item, 0.0) + 1.0 / (k + place)
    return score


def search(
    db: Database, query: Query, *, filters: Filters | None = None, meaning: Meaning | None = None, limit: int = 50
) -> list[Hit]:
    """Papers for a query; an identifier gives its paper alone."""
    if query.jump:
        kind, value = query.jump
        alias = sa.select(t.alias.c.paper_id).where(t.alias.c.kind == kind, t.alias.c.value == value)
        ids = [r["paper_id"] for r in db.rows(alias)]
        return [Hit(row, (value,), False) for row in by_ids(db, ids, filters)]
    narrowed = Filters.of(query, filters)
    with db.engine.connect() as c:
        within = None if narrowed == Filters() else sa.select(t.paper.c.id).where(condition(narrowed))
        words = lexical.rank(c, query, depth=DEPTH, within=within)
    similar = []
    if meaning is not None and query.text:
        similar = meaning.rank(query.text, DEPTH if within is None else NARROWED_DEPTH)
        if within is not None:
            similar = _let_through(db, similar, narrowed)[:DEPTH]
    with db.engine.connect() as c:
        similar = lexical.keeping(c, query, similar)
        ranked = lexical.best_first(c, fuse([words, similar]))
    if ranked:
        named = sa.select(t.paper.c.id).where(t.paper.c.norm_hash == norm_hash(query.text))
        exact = {r["id"] for r in db.rows(named)}
        ranked.sort(key=lambda i: i not in exact)
    close = set(similar[:50])
    return [
        Hit(r, matching(r, query), r["id"] in close) for r in by_ids(db, _let_through(db, ranked, narrowed)[:limit])
    ]


def _let_through(db: Database, ids: Sequence[int], filters: Filters) -> list[int]:
    """The papers that the filters let through, in the order of `ids`."""
    if not ids:
        return []
    p = t.paper.c
    if filters == Filters():  # then it is quicker to ask which few papers must not show
        hidden = {r["id"] for r in db.rows(sa.select(p.id).where(p.hidden))}
        return [i for i in ids if i not in hidden]
    listed = sa.text(f"paper.id IN ({','.join(str(int(i)) for i in ids)})")  # plain numbers: quicker than parameters
    kept = {r["id"] for r in db.rows(sa.select(p.id).where(listed, condition(filters)))}
    return [i for i in ids if i in kept]


def matching(row: dict[str, Any], query: Query) -> tuple[str, ...]:
    """The query's words and phrases that stand in a paper's title, abstract or authors."""
    said = [w for w in query.words if w.lower() not in COMMON]
    wanted = {w: w.lower()[:12] for w in (*said, *query.phrases)}
    if not wanted:
        return ()
    text = f"{row['title']} {row['abstract']} {' '.join(a['name'] for a in row['authors'])}".lower()
    longest_first = sorted(set(wanted.values()), key=len, reverse=True)  # so that one look at the text is enough
    found = set(re.findall(rf"\b(?:{'|'.join(map(re.escape, longest_first))})", text))
    return tuple(w for w, start in wanted.items() if any(f.startswith(start) for f in found))

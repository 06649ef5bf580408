"""Lists of papers: trending, new, top of a window; filters; cursors that stay put while papers arrive."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from etude.errors import UsageError
from etude.page import heat as h
from etude.page import tables as t
from etude.page.database import Database
from etude.page.following import Follow, any_of
from etude.page.search.query import Query, years_of

Sort = Literal["trending", "hot", "slow", "new", "top", "random"]
Window = Literal["day", "week", "month", "all"]
SECONDS = {"day": 86_400, "week": 7 * 86_400, "month": 30 * 86_400}
COLUMN = {"trending": "heat_72", "hot": "heat_12", "slow": "heat_720"}
SHUFFLE = 999_983  # a prime: places of the random order
HALF_LIFE = {"trending": 72.0, "hot": 12.0, "slow": 720.0}


@dataclass(frozen=True)
class Filters:
    """What a list is narrowed to. `slugs` is the set of papers that run, or hold a verdict."""

    room: str | None = None
    tag: str | None = None
    year: tuple[int | None, int | None] = (None, None)
    author: str | None = None
    venue: str | None = None
    slugs: frozenset[str] | None = None
    since: int | None = None
    until: int | None = None
    followed: tuple[Follow, ...] | None = None
    rooms: tuple[str, ...] = ()
    """Any of these, as with `tags` and `authors` (parts of names)."""
    tags: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    """Rooms, tags, authors and venues that must hold too, where a query names several of a kind."""
    barred: tuple["Filters", ...] = ()
    """None of these may hold."""

    @classmethod
    def of(cls, query: Query, base: "Filters | None" = None) -> "Filters":
        """The filters inside a query, on top of `base`: all of them hold."""
        filters = base or cls()
        found: dict[str, Any] = {}
        more: list[tuple[str, str]] = []
        for kind in ("room", "tag", "author", "venue"):
            wanted = [v for v in (getattr(filters, kind), *query.filters.get(kind, ())) if v]
            found[kind] = wanted[0] if wanted else None
            more += [(kind, v) for v in wanted[1:]]
        year = query.years if any(query.years) else filters.year
        barred = [
            cls(year=years_of(value) or (None, None)) if kind == "year" else cls(**{kind: value})  # type: ignore[arg-type]
            for kind, value in query.barred
            if kind not in ("has", "verdict")  # which papers these are is for the site to say
        ]
        return replace(filters, year=year, more=(*filters.more, *more), barred=(*filters.barred, *barred), **found)


def condition(f: Filters) -> sa.ColumnElement[bool]:
    """The filters as SQL; hidden papers never show."""
    p = t.paper.c
    parts: list[Any] = [p.hidden.is_(False)]
    if f.room:
        parts.append(p.room == f.room)
    if f.rooms:
        parts.append(p.room.in_(f.rooms))
    for tags in ((f.tag,), f.tags):
        if any(tags):
            parts.append(p.id.in_(sa.select(t.paper_tag.c.paper_id).where(t.paper_tag.c.tag.in_(tags))))
    for names in ((f.author,), f.authors):
        # LIKE is blind to the case of plain letters only; the others are escapes in the stored text
        cases = dict.fromkeys(case for name in names if name for case in (name, name.lower(), name.title()))
        said = [_like(json.dumps(case)[1:-1]) for case in cases]
        if said:
            names_alone = sa.func.replace(sa.cast(p.authors, sa.Text), '"name": ', "")
            parts.append(sa.or_(*(names_alone.ilike(name, escape="\\") for name in said)))
    if f.venue:
        parts.append(p.venue.ilike(_like(f.venue), escape="\\"))
    stated = p.extra["year"].as_integer()  # of a card, which knows no day
    for year, after in ((f.year[0], True), (f.year[1], False)):
        if year is not None:
            at = _year_start(year if after else year + 1)
            dated = p.published_at >= at if after else p.published_at < at
            parts.append(sa.case((stated.is_not(None), stated >= year if after else stated <= year), else_=dated))
    if f.slugs is not None:
        parts.append(p.slug.in_(sorted(f.slugs)))
    if f.followed is not None:
        parts.append(any_of(f.followed))
    parts += [condition(Filters(**{kind: value})) for kind, value in f.more]  # type: ignore[arg-type]
    parts += [sa.not_(sa.func.coalesce(condition(barred), sa.false())) for barred in f.barred]  # what is unknown is not
    if f.since is not None:
        parts.append(p.submitted_at >= f.since)
    if f.until is not None:
        parts.append(p.submitted_at < f.until)
    return sa.and_(*parts)


def _like(text: str) -> str:
    for mark in ("\\", "%", "_"):
        text = text.replace(mark, "\\" + mark)
    return f"%{text}%"


def _year_start(year: int) -> int:
    return int(datetime(min(9998, max(1, year)), 1, 1, tzinfo=UTC).timestamp())


@dataclass(frozen=True)
class Page:
    """A part of a list and the cursor to the next one."""

    rows: list[dict[str, Any]]
    cursor: str | None


def encode_cursor(values: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(values)).encode()).decode().rstrip("=")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63


def decode_cursor(text: str, length: int = 2) -> list[Any]:
    """The values of a cursor, as many as its order has keys.

    Raises
    ------
    UsageError
        If it is not one of ours.
    """
    try:
        value = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if isinstance(value, list) and len(value) == length and all(_is_number(v) for v in value):
            return value
    except ValueError:
        pass
    raise UsageError("the cursor is not valid: start again from the first page")


def by_heat(column: str = "heat_72") -> list[sa.UnaryExpression[Any]]:
    """The ranking at every moment: warmest first, then the latest to come, then as they stood in their import.

    `heat.rank` is the same of rows that are read already. Each column has an index in this order.
    """
    p = t.paper.c
    return [p[column].desc(), p.submitted_at.desc(), p.id.asc()]


def _behind(order: Sequence[sa.UnaryExpression[Any]], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Rows that come after one with these values. That the first key is no better lets the index begin there."""
    keys = [clause.element for clause in order]
    falling = [clause.modifier is sa.sql.operators.desc_op for clause in order]
    after: sa.ColumnElement[bool] = sa.false()
    for key, falls, value in reversed(list(zip(keys, falling, values, strict=True))):
        after = sa.or_(key < value if falls else key > value, sa.and_(key == value, after))
    return sa.and_(keys[0] <= values[0] if falling[0] else keys[0] >= values[0], after)


def listing(
    db: Database, *, sort: Sort = "trending", window: Window = "all", filters: Filters | None = None, limit: int = 25,
    cursor: str | None = None, now: int, seed: int | None = None, without: sa.Select[Any] | None = None,
) -> Page:  # fmt: skip
    """Papers in order, pinned ones first on the first page, as far as they leave room there; the others in their place.

    `seed` (None: another one every day) fixes the random order, so that its pages follow one another.
    `without`: ids of papers that are left out.

    Raises
    ------
    UsageError
        For an unknown sort or window, or a broken cursor.
    """
    p = t.paper.c
    if sort not in (*COLUMN, "new", "top", "random"):
        raise UsageError(f"unknown order {sort!r}: choose trending, hot, slow, new, top or random")
    if window not in (*SECONDS, "all"):
        raise UsageError(f"unknown window {window!r}: choose day, week, month or all")
    key: Any = p[COLUMN[sort]] if sort in COLUMN else p.submitted_at
    query = sa.select(t.paper)
    if sort == "random":
        key = _place(p.id, now // 86_400 if seed is None else seed)
        query = query.add_columns(key.label("place"))
    if sort == "top" and window == "all":  # papers without a vote come last, the newest of them first
        key = p.votes
        query = query.add_columns(key.label("window_votes"))
    elif sort == "top":
        v = t.vote.c
        recent = sa.select(v.paper_id, sa.func.count().label("n")).group_by(v.paper_id)
        counted = recent.where(v.at > now - SECONDS[window]).subquery()
        query = query.join(counted, counted.c.paper_id == p.id)
        key = counted.c.n
        query = query.add_columns(key.label("window_votes"))
    elif window != "all":
        filters = filters or Filters()
        filters = replace(filters, since=max(filters.since or 0, now - SECONDS[window]))
    query = query.where(condition(filters or Filters()))
    if without is not None:
        query = query.where(p.id.not_in(without))
    order = by_heat(COLUMN[sort]) if sort in COLUMN else [key.desc(), p.id.desc()]
    if sort == "top":  # ties by time
        order.insert(1, p.submitted_at.desc())
    query = query.order_by(*order)
    pinned = db.rows(query.where(p.pinned).limit(limit - 1))  # on later pages too, to know which were first
    if pinned:
        query = query.where(p.id.not_in([r["id"] for r in pinned]))
    if cursor:
        *values, last = decode_cursor(cursor, len(order))
        query, pinned = query.where(_behind(order, [*values, int(last)])), []
    limit -= len(pinned)
    rows = db.rows(query.limit(limit + 1))
    following = None
    if len(rows) > limit:
        rows = rows[:limit]
        first = {"top": ["window_votes", "submitted_at"], "random": ["place"]}.get(sort, ["submitted_at"])
        keys = [COLUMN[sort], "submitted_at"] if sort in COLUMN else first
        following = encode_cursor([rows[-1][k] for k in (*keys, "id")])
    return Page([*pinned, *rows], following)


def _place(number: Any, seed: int) -> Any:
    """Where a paper stands in the order of a seed: its number, mixed twice so that neighbours part."""
    factor = 1 + (seed * 7919 + 104_729) % (SHUFFLE - 1)
    once = (sa.cast(number, sa.BigInteger) * factor + seed % SHUFFLE) % SHUFFLE
    return (once * once + factor * once) % SHUFFLE


def by_ids(db: Database, ids: Sequence[int], filters: Filters | None = None) -> list[dict[str, Any]]:
    """Papers by id, in the order asked for, those that the filters let through."""
    if not ids:
        return []
    query = sa.select(t.paper).where(t.paper.c.id.in_(list(ids)), condition(filters or Filters()))
    found = {r["id"]: r for r in db.rows(query)}
    return [found[i] for i in ids if i in found]


def by_slugs(db: Database, slugs: Sequence[str]) -> list[dict[str, Any]]:
    """Papers by their names in addresses, in the order asked for; hidden ones do not show."""
    found = {r["slug"]: r for r in db.rows(sa.select(t.paper).where(t.paper.c.slug.in_(slugs), condition(Filters())))}
    return [found[slug] for slug in slugs if slug in found]


def spread(rows: list[dict[str, Any]], *, per_group: int = 3, within: int = 10) -> list[dict[str, Any]]:
    """Display order only: at most 3 neighbours of one room or submitter among any 10; nothing is dropped."""
    out: list[dict[str, Any]] = []
    waiting = list(rows)
    while waiting:
        recent = out[-(within - 1) :]

        def crowded(row: dict[str, Any], recent: list[dict[str, Any]] = recent) -> bool:
            return any(
                row[k] is not None and sum(r[k] == row[k] for r in recent) >= per_group
                for k in ("room", "submitted_by")
            )

        chosen = next((i for i, row in enumerate(waiting) if not crowded(row)), 0)
        out.append(waiting.pop(chosen))
    return out


def why(db: Database, paper_id: int, now: int) -> list[dict[str, Any]]:
    """The parts of a paper's trending score: kind, how many, what they are worth now."""
    rows = db.rows(sa.select(t.event.c.kind, t.event.c.weight, t.event.c.at).where(t.event.c.paper_id == paper_id))
    parts: dict[str, list[float]] = {}
    for r in rows:
        worth = h.score(h.term(r["weight"], min(r["at"], now), 72.0), now) if r["weight"] else 0.0
        parts.setdefault(r["kind"], []).append(worth)
    table = [{"kind": kind, "count": len(v), "worth": sum(v)} for kind, v in parts.items()]
    return sorted(table, key=lambda row: -row["worth"])

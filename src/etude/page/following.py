"""Following authors, rooms and tags: what of them is new, in one list, one feed and, if wanted, the digest."""

import json
from collections.abc import Collection

import sqlalchemy as sa

from etude import ROOMS
from etude.errors import UsageError
from etude.page import tables as t
from etude.page.citations import person
from etude.page.database import Database
from etude.page.identity import clean

KINDS = ("author", "room", "tag")
MOST, LONGEST = 200, 120
Follow = tuple[str, str]
"""What is followed: its kind and its name; authors as they write themselves, tags in lower case."""


def tidy(kind: str, value: str) -> Follow:
    """A follow in its one form.

    Raises
    ------
    UsageError
        For another kind, no name, or a room that does not exist.
    """
    name = clean(value).replace("\n", " ")[:LONGEST].strip()
    name = person(name) if kind == "author" else name
    if kind not in KINDS:
        raise UsageError(f"{kind!r} cannot be followed: {', '.join(KINDS)}")
    if kind == "room" and name not in ROOMS:
        raise UsageError(f"there is no room {name!r}")
    if not name:
        raise UsageError(f"say which {kind} to follow")
    return kind, name.lower() if kind == "tag" else name


def follow(c: sa.Connection, account: int, kind: str, value: str, wanted: bool, now: int) -> None:
    """Begin to follow, or stop; saying it twice is the same.

    Raises
    ------
    UsageError
        For what cannot be followed, or more than 200 of them.
    """
    kind, name = tidy(kind, value)
    f = t.follow.c
    mine = sa.and_(f.account_id == account, f.kind == kind, f.value.in_((name, value)))  # as it was once kept, too
    there = c.execute(sa.select(f.at).where(mine)).first() is not None
    if there and not wanted:
        c.execute(sa.delete(t.follow).where(mine))
    elif wanted and not there:
        count = sa.select(sa.func.count()).select_from(t.follow).where(f.account_id == account)
        if c.execute(count).scalar_one() >= MOST:
            raise UsageError(f"up to {MOST} authors, rooms and tags can be followed: stop following some first")
        c.execute(sa.insert(t.follow).values(account_id=account, kind=kind, value=name, at=now))


def follows_of(db: Database, account: int) -> list[Follow]:
    """What somebody follows, in the order of kind and name."""
    f = t.follow.c
    rows = db.rows(sa.select(f.kind, f.value).where(f.account_id == account).order_by(f.kind, f.value))
    return [(r["kind"], r["value"]) for r in rows]


def any_of(follows: Collection[Follow]) -> sa.ColumnElement[bool]:
    """Papers of any of them, as SQL; of nothing followed, none. An author's name must be the whole name."""
    p = t.paper.c
    named = {kind: [value for k, value in follows if k == kind] for kind in KINDS}
    parts: list[sa.ColumnElement[bool]] = [sa.false()]
    for name in named["author"]:
        for whole in (person(name) + others for others in ("", " et al.", ", et al.")):
            said = f'"name": {json.dumps(whole)}'
            parts.append(sa.cast(p.authors, sa.Text).contains(said, autoescape=True))
    if named["room"]:
        parts.append(p.room.in_(named["room"]))
    if named["tag"]:
        parts.append(p.id.in_(sa.select(t.paper_tag.c.paper_id).where(t.paper_tag.c.tag.in_(named["tag"]))))
    return sa.or_(*parts)

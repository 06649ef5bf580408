"""What a reader keeps: papers with tags, a private note and a read mark; searches; papers not to be suggested again."""

from typing import Any

import sqlalchemy as sa

from etude.errors import UsageError
from etude.page import heat as h
from etude.page import store
from etude.page import tables as t
from etude.page.database import Database
from etude.page.identity import clean, clean_lines

MAX_TAGS, MAX_TAG, MAX_NOTE, MAX_SEARCHES = 20, 40, 5000, 200


def tidy_tags(words: list[str]) -> list[str]:
    """Tags in one form: lower case, each once, bounded."""
    return sorted({clean(w).lower()[:MAX_TAG] for w in words if clean(w)})[:MAX_TAGS]


def keep(c: sa.Connection, paper_id: int, account: int, *, tags: list[str], note: str, read: bool, now: int) -> None:
    """Put a paper into a library, or change what stands there about it; the first time warms the paper."""
    lib = t.library.c
    mine = sa.and_(lib.paper_id == paper_id, lib.account_id == account)
    values = {"tags": tidy_tags(tags), "note": clean_lines(note)[:MAX_NOTE], "read": read}
    if c.execute(sa.select(lib.at).where(mine)).first() is not None:
        c.execute(sa.update(t.library).where(mine).values(**values))
        return
    c.execute(sa.insert(t.library).values(paper_id=paper_id, account_id=account, at=now, **values))
    key = f"save:{paper_id}:{account}"
    store.happened(c, paper_id, "save", h.WEIGHTS["save"], now=now, account=account, key=key)


def take_out(c: sa.Connection, paper_id: int, account: int) -> None:
    """Take a paper out of a library, and its warmth with it."""
    lib = t.library.c
    c.execute(sa.delete(t.library).where(lib.paper_id == paper_id, lib.account_id == account))
    store.undone(c, paper_id, f"save:{paper_id}:{account}")


def saved_of(db: Database, paper_id: int, account: int | None) -> dict[str, Any] | None:
    """What a reader noted about a paper, None if it is not in the library."""
    lib = t.library.c
    rows = db.rows(sa.select(t.library).where(lib.paper_id == paper_id, lib.account_id == account))
    return rows[0] if rows else None


def shelf(
    db: Database, account: int, *, words: str = "", tag: str | None = None, read: bool | None = None
) -> list[dict[str, Any]]:
    """The papers of a library, newest first, each with what was noted as `saved`.

    `words` must all stand in title, authors, abstract, tags or note, in any case.
    """
    lib = t.library.c
    saved = {r["paper_id"]: r for r in db.rows(sa.select(t.library).where(lib.account_id == account))}
    own = sa.select(lib.paper_id).where(lib.account_id == account)
    rows = db.rows(sa.select(t.paper).where(t.paper.c.id.in_(own), t.paper.c.hidden.is_(False)))
    wanted = words.casefold().split()
    out = []
    for row in rows:
        mine = saved[row["id"]]
        if (tag is not None and tag not in mine["tags"]) or (read is not None and mine["read"] != read):
            continue
        names = " ".join(a["name"] for a in row["authors"])
        text = " ".join((row["title"], names, row["abstract"], *mine["tags"], mine["note"])).casefold()
        if all(w in text for w in wanted):
            out.append(row | {"saved": mine})
    return sorted(out, key=lambda r: (-r["saved"]["at"], -r["id"]))


def tags_of(db: Database, account: int) -> list[str]:
    """All tags of a library."""
    rows = db.rows(sa.select(t.library.c.tags).where(t.library.c.account_id == account))
    return sorted({tag for r in rows for tag in r["tags"]})


def save_search(c: sa.Connection, account: int, name: str, query: str, now: int) -> bool:
    """Remember a search; the same search again only changes its name. True when it is new.

    Raises
    ------
    UsageError
        For an empty search, or beyond 200.
    """
    text, label = clean(query)[:500], clean(name).replace("\n", " ")[:120]
    if not text:
        raise UsageError("an empty search cannot be saved")
    k = t.saved_search.c
    mine = sa.and_(k.account_id == account, k.query == text)
    if c.execute(sa.update(t.saved_search).where(mine).values(name=label or text[:120])).rowcount:
        return False
    if c.execute(sa.select(sa.func.count()).where(k.account_id == account)).scalar_one() >= MAX_SEARCHES:
        raise UsageError(f"{MAX_SEARCHES} searches are the most: forget one first")
    c.execute(sa.insert(t.saved_search).values(account_id=account, name=label or text[:120], query=text, at=now))
    return True


def searches_of(db: Database, account: int) -> list[dict[str, Any]]:
    """The searches that a reader saved."""
    k = t.saved_search.c
    return db.rows(sa.select(t.saved_search).where(k.account_id == account).order_by(k.name, k.id))


def forget_search(c: sa.Connection, account: int, search_id: int) -> None:
    """Forget one's own search; others' are left alone."""
    k = t.saved_search.c
    c.execute(sa.delete(t.saved_search).where(k.id == search_id, k.account_id == account))


def dismiss(c: sa.Connection, paper_id: int, account: int, wanted: bool, now: int) -> None:
    """Have a paper suggested no more, or again."""
    d = t.dismissal.c
    mine = sa.and_(d.paper_id == paper_id, d.account_id == account)
    there = c.execute(sa.select(d.at).where(mine)).first() is not None
    if wanted and not there:
        c.execute(sa.insert(t.dismissal).values(paper_id=paper_id, account_id=account, at=now))
    elif there and not wanted:
        c.execute(sa.delete(t.dismissal).where(mine))

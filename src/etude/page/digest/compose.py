"""What goes into a mail: papers by heat inside the window and the filters, and the verdicts that changed."""

import logging
from typing import Any

import sqlalchemy as sa

from etude import ROOMS
from etude.page import tables as t
from etude.page.accounts import address_hash
from etude.page.database import Database
from etude.page.digest import mail
from etude.page.digest.schedule import next_run, period, window
from etude.page.digest.subscribe import unsubscribe_token
from etude.page.following import Follow, follows_of
from etude.page.heat import rank
from etude.page.listing import Filters, listing
from etude.page.search.finding import find
from etude.page.search.query import parse
from etude.page.search.taste import Shelf
from etude.page.settings import Settings

_log = logging.getLogger(__name__)
MOST = 10
NARROWING = {"rooms", "tags", "authors", "q"}  # filters of papers; the others order them, or name what is followed


def clean_filters(raw: dict[str, Any]) -> dict[str, Any]:
    """Only filters that exist: rooms, tags, authors, a search, and the order of one's own taste."""
    out: dict[str, Any] = {}
    rooms = [r for r in raw.get("rooms", []) if r in ROOMS]
    tags = [str(x).strip().lower()[:80] for x in raw.get("tags", []) if str(x).strip()]
    if rooms:
        out["rooms"] = rooms
    if tags:
        out["tags"] = tags[:20]
    names = [str(x).strip()[:120] for x in raw.get("authors", []) if str(x).strip()]
    if names:
        out["authors"] = names[:20]
    for own in ("for_you", "following"):
        if raw.get(own):
            out[own] = True
    if raw.get("q"):
        out["q"] = str(raw["q"])[:300]
    return out


def _with_verdict(db: Database, verdict: str) -> frozenset[str]:
    """Papers of which some claim has this verdict, by the newest entries of the history."""
    log = t.verdict_log.c
    newest = sa.select(sa.func.max(log.id)).where(log.protocol != "user")
    last = newest.group_by(log.slug, log.claim, log.protocol, log.tier)
    return frozenset(r["slug"] for r in db.rows(sa.select(log.slug).where(log.id.in_(last), log.verdict == verdict)))


def _candidates(
    db: Database, filters: dict[str, Any], since: int | None, now: int, followed: tuple[Follow, ...] | None,
    slugs: frozenset[str] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    rooms, tags, names = (tuple(filters.get(k, ())) for k in ("rooms", "tags", "authors"))
    narrowed = Filters(since=since, followed=followed, rooms=rooms, tags=tags, authors=names, slugs=slugs)
    if filters.get("q"):
        hits = find(db, parse(filters["q"]), narrowed, with_verdict=lambda w: _with_verdict(db, w), now=now, limit=200)
        return sorted((h.row for h in hits), key=rank)
    return listing(db, filters=narrowed, limit=500, now=now).rows


def reader_of(db: Database, settings: Settings, row: dict[str, Any]) -> int | None:
    """The account whose taste a subscriber's mail may follow: theirs, with "for you" switched on; None for none."""
    found = _account_of(db, settings, row)
    return found["id"] if found is not None and found["for_you"] else None


def _account_of(db: Database, settings: Settings, row: dict[str, Any]) -> dict[str, Any] | None:
    """The account that a subscription belongs to, unless it is closed."""
    a = t.account.c
    mine = sa.or_(a.id == row["account_id"], a.email_hash == address_hash(settings, row["email"]))
    found = db.rows(
        sa.select(a.id, a.for_you).where(mine, a.role != "banned").order_by(a.for_you.desc(), a.id).limit(1)
    )
    return found[0] if found else None


def contents(
    db: Database, row: dict[str, Any], at: int, settings: Settings | None = None, shelf: Shelf | None = None,
    due_at: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Papers and verdict changes of a subscriber's mail made at a moment; papers sent before never come again.

    `due_at` is when it was due (None: now): a mail that is late looks back as far as one in time.
    """
    item, log, sent = t.sent_item.c, t.verdict_log.c, t.sent.c
    before = {r["paper_id"] for r in db.rows(sa.select(item.paper_id).where(item.subscriber_id == row["id"]))}
    since = window(due_at or at, row["frequency"], row["zone"], row["hour"])
    filters = row["filters"] or {}
    followed = None
    if settings is not None and filters.get("following"):
        owner = _account_of(db, settings, row)
        followed = tuple(follows_of(db, owner["id"])) if owner is not None else ()
    rows = [r for r in _candidates(db, filters, since, at, followed) if r["id"] not in before]
    who = reader_of(db, settings, row) if settings is not None and filters.get("for_you") else None
    if who is not None:
        rows = (shelf or Shelf(db)).in_order(rows, who)
    rows = rows[:MOST]
    papers = [
        {"id": r["id"], "slug": r["slug"], "title": r["title"], "short": _short(r["abstract"]),
         "names": ", ".join(a["name"] for a in r["authors"][:4])}
        for r in rows
    ]  # fmt: skip
    last = db.rows(sa.select(sa.func.max(sent.at).label("at")).where(sent.subscriber_id == row["id"]))[0]["at"]
    newer = sa.and_(log.at > (last or row["confirmed_at"] or since), log.at <= at)
    changed = db.rows(
        sa.select(t.verdict_log).where(newer, log.protocol != "user", log.tier != "quick").order_by(log.id.desc())
    )
    if changed and (followed is not None or filters.keys() & NARROWING):
        slugs = frozenset(r["slug"] for r in changed)
        wanted = {r["slug"] for r in _candidates(db, filters, None, at, followed, slugs)}
        changed = [r for r in changed if r["slug"] in wanted]
    return papers, changed


def _short(text: str, most: int = 280) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most].rsplit(" ", 1)[0] + " ..."


def preview(db: Database, settings: Settings, row: dict[str, Any], at: int) -> mail.Mail | None:
    """The mail that would go out, or None when there is nothing to say."""
    papers, changes = contents(db, row, at, settings)
    if not papers and not changes:
        return None
    name = period(at, row["frequency"], row["zone"])
    token = unsubscribe_token(settings, row["id"], row["created_at"])
    return _fitting(settings, row, papers, changes, token, name, at)[0]


def _fitting(
    settings: Settings, row: dict[str, Any], papers: list[dict[str, Any]], changes: list[dict[str, Any]], token: str,
    name: str, now: int,
) -> tuple[mail.Mail, list[dict[str, Any]]]:  # fmt: skip
    """A mail that is not cut by mail programs, and the papers that found room in it: the others can come next time."""
    made = mail.digest(settings, row, papers, changes, token=token, period=name, now=now)
    while len(made.raw.encode()) > mail.MAX_BYTES and len(papers) > 1:
        papers = papers[:-1]
        made = mail.digest(settings, row, papers, changes, token=token, period=name, now=now)
    return made, papers


def due(db: Database, settings: Settings, now: int) -> int:
    """Queue every mail that is due. Idempotent: a (subscriber, period) is composed once, in one transaction.

    Returns
    -------
    int
        Mails queued.
    """
    s = t.subscriber.c
    queued, shelf = 0, Shelf(db)
    for row in db.rows(sa.select(t.subscriber).where(s.status == "active", s.next_at <= now).order_by(s.id)):
        at = row["next_at"]
        name = period(at, row["frequency"], row["zone"])
        try:
            papers, changes = contents(db, row, now, settings, shelf, at)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception:  # of one reader's wishes: the others get their mails
            _log.exception("the digest of subscriber %s cannot be made", row["id"])
            continue
        with db.begin() as c:
            current = c.execute(sa.select(s.next_at, s.status).where(s.id == row["id"]).with_for_update()).first()
            if current is None or current.status != "active" or current.next_at != at:
                continue  # another process was quicker, or the subscriber has left
            following = next_run(max(now, at), row["frequency"], row["zone"], row["hour"])
            c.execute(sa.update(t.subscriber).where(s.id == row["id"]).values(next_at=following))
            seen = sa.and_(t.sent.c.subscriber_id == row["id"], t.sent.c.period == name)
            if (not papers and not changes) or c.execute(sa.select(t.sent.c.at).where(seen)).first():
                continue
            token = unsubscribe_token(settings, row["id"], row["created_at"])
            made, papers = _fitting(settings, row, papers, changes, token, name, now)
            c.execute(sa.insert(t.sent).values(subscriber_id=row["id"], period=name, at=now))
            if papers:
                items = [{"subscriber_id": row["id"], "paper_id": p["id"]} for p in papers]
                c.execute(sa.insert(t.sent_item), items)
            queued += mail.queue(c, made, now=now)
    return queued

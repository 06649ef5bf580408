"""The catalogue's papers as papers of the page, and the ledger's verdicts as its history."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from etude import catalogue
from etude.catalogue import Paper
from etude.lab.judge import Verdict
from etude.lab.queue import Queue
from etude.lab.verdicts import plain_record
from etude.page import heat as h
from etude.page import store
from etude.page import tables as t
from etude.page.database import Database
from etude.page.records import PaperRecord, make_record
from etude.page.search.lexical import reindex

SOURCE = "catalogue"


def record_of(paper: Paper) -> PaperRecord:
    """A card as a record of the page."""
    return make_record(
        title=paper.title, abstract=paper.summary, authors=[a.strip() for a in paper.authors.split(",")],
        venue=paper.venue, arxiv_id=paper.arxiv, doi=paper.doi,
        url=paper.url or (f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None),
        code_url=f"https://github.com/{paper.official_code}" if paper.official_code else None, room=paper.room,
        tags=[*paper.tags, paper.kind], extra={"year": paper.year, "source": SOURCE}, slug=paper.slug,
    )  # fmt: skip


def sync_catalogue(db: Database, now: int) -> int:
    """Add the cards that are not here yet, and bring papers up to their cards. Returns how many are new.

    A paper imported before becomes the card's.
    """
    new: list[int] = []
    with db.begin(alone=True) as c:
        known = dict(
            c.execute(sa.select(t.alias.c.value, t.alias.c.paper_id).where(t.alias.c.kind == "slug")).tuples().all()
        )
        written = _written(c)
        changed: list[int] = []
        for card in catalogue.papers():
            record = record_of(card)
            if card.slug in known:
                if _follow_card(c, known[card.slug], record, written, now):
                    changed.append(known[card.slug])
                continue
            match = store.add(c, record, source=SOURCE, now=now, by=SOURCE, weight=h.NEW_BULK)
            assert match.paper_id is not None
            if match.status != "new":  # it was imported before its card existed
                adopt = {"room": card.room, "source": SOURCE, "slug": card.slug}
                c.execute(sa.update(t.paper).where(t.paper.c.id == match.paper_id).values(**adopt))
            c.execute(sa.insert(t.alias).values(kind="slug", value=card.slug, paper_id=match.paper_id))
            new.append(match.paper_id)
        reindex(c, new + changed)
    return len(new)


def _written(c: sa.Connection) -> dict[int, dict[str, Any]]:
    """What a card said last of each paper, as its versions tell."""
    v = t.paper_version.c
    query = sa.select(v.paper_id, v.record).where(v.by == SOURCE).order_by(v.n)
    return dict(c.execute(query).tuples().all())


def _follow_card(
    c: sa.Connection, paper_id: int, record: PaperRecord, written: dict[int, dict[str, Any]], now: int
) -> bool:
    """Take over what a card says anew, but for what somebody else has changed since. True when there was something."""
    said = written.get(paper_id)
    if said is None:
        return False
    row = c.execute(sa.select(t.paper).where(t.paper.c.id == paper_id)).mappings().one()
    new = record.columns()
    changes = {k: new[k] for k in store.MERGED if new[k] and new[k] != row[k] and row[k] == said.get(k)}
    if changes:
        store.edit(c, paper_id, changes, expected=row["version"], by=SOURCE, now=now)
    return bool(changes)


def sync_studies(db: Database, queue: Queue, now: int) -> int:
    """Warm the papers whose studies readers ran to the end, once for every reader and study. Returns how many."""
    a, warmed = t.account.c, 0
    done = [r for r in queue.recent(limit=200) if r["state"] == "done" and r["asked_by"]]
    if not done:
        return 0
    with db.begin() as c:
        people = dict(c.execute(sa.select(a.handle, a.id)).tuples().all())
        slugs = sa.select(t.alias.c.value, t.alias.c.paper_id).where(t.alias.c.kind == "slug")
        ids = dict(c.execute(slugs).tuples().all())
        for r in done:
            who, paper = people.get(r["asked_by"]), ids.get(r["slug"])
            if who is None or paper is None:
                continue
            at, key = min(now, int(r["ended"] or now)), f"study:{paper}:{who}"
            warmed += store.happened(c, paper, "study", h.WEIGHTS["study"], now=at, account=who, key=key)
    return warmed


def sync_verdicts(db: Database, current: Iterable[Verdict], now: int) -> int:
    """Log every verdict that is new or has changed, and warm its paper. Returns how many."""
    log = t.verdict_log.c
    changed = 0
    with db.begin(alone=True) as c:
        ids = dict(
            c.execute(sa.select(t.alias.c.value, t.alias.c.paper_id).where(t.alias.c.kind == "slug")).tuples().all()
        )
        latest: dict[tuple[str, ...], tuple[str | None, str]] = {}
        for row in c.execute(sa.select(t.verdict_log).order_by(log.id)).mappings():
            latest[(row["slug"], row["claim"], row["protocol"], row["tier"])] = (row["verdict"], row["run"])
        for v in current:
            key = (v.slug, v.claim, v.protocol, v.tier)
            if key in latest and (latest[key][0] == v.verdict or latest[key][1] == v.run):
                continue
            values: dict[str, Any] = dict(zip(("slug", "claim", "protocol", "tier"), key, strict=True))
            record = plain_record(v)
            c.execute(
                sa.insert(t.verdict_log).values(**values, verdict=v.verdict, record=record, run=v.run or "", at=now)
            )
            changed += 1
            if v.slug in ids and v.tier != "quick":
                mark = f"verdict:{v.run}:{v.slug}"  # one event a run, however many claims it settles
                store.happened(c, ids[v.slug], "verdict", h.WEIGHTS["verdict"], now=now, key=mark)
    return changed

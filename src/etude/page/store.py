"""Papers of the page: adding and merging them, versions, what happened to them, votes.

Every function takes the time as an argument, so tests and imports of old data need no clock.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from etude.errors import EtudeError
from etude.page import heat as h
from etude.page import tables as t
from etude.page.citations import person, year_of
from etude.page.database import Database
from etude.page.identity import norm_hash, same_abstract, slugify, title_key
from etude.page.records import PaperRecord

Status = Literal["new", "duplicate", "changed"]
MayChange = Callable[[dict[str, Any]], bool]  # whether whoever adds may change this paper that is here already
TOGETHER = 1000  # records looked up at once


class EditConflict(EtudeError):
    """Somebody else changed the paper since it was read."""


@dataclass(frozen=True)
class Match:
    """What an import would do with a record."""

    record: PaperRecord
    status: Status
    paper_id: int | None = None
    changes: tuple[str, ...] = ()


def _aliases(record: PaperRecord) -> list[tuple[str, str]]:
    found = [("arxiv", record.arxiv_id), ("doi", record.doi)]
    return [(kind, value) for kind, value in found if value]


def _agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two papers of one title are the same one: by their abstracts, else by first author or year.

    A preprint may be a year older than its venue. What only one of them states says nothing.
    """
    if a["abstract"] and b["abstract"]:
        return same_abstract(a["abstract"], b["abstract"])
    said = []
    names = [person(p["authors"][0]["name"]).split() if p["authors"] else [] for p in (a, b)]
    first = [title_key(words[-1]) if words else "" for words in names]
    if all(first):
        said.append(first[0] == first[1])
    years = [None if p["published_inferred"] else year_of(p) for p in (a, b)]
    if years[0] is not None and years[1] is not None:
        said.append(abs(years[0] - years[1]) <= 1)
    return not said or any(said)


def find_existing(c: sa.Connection, record: PaperRecord) -> dict[str, Any] | None:
    """The paper that a record is: by arXiv id, DOI, then the same title with an agreeing abstract, author or year."""
    for kind, value in _aliases(record):
        query = sa.select(t.paper).join(t.alias).where(t.alias.c.kind == kind, t.alias.c.value == value)
        row = c.execute(query).mappings().first()
        if row:
            return dict(row)
    same_title = sa.select(t.paper).where(t.paper.c.norm_hash == record.norm_hash).order_by(t.paper.c.id)
    for row in c.execute(same_title).mappings():
        conflict = any(row[k] and v and row[k] != v for k, v in (("arxiv_id", record.arxiv_id), ("doi", record.doi)))
        own_words = "catalogue" in (row["source"], record.extra.get("source"))  # a card's summary is no abstract
        if not conflict and (own_words or _agree(dict(row), record.columns())):
            return dict(row)
    return None


MERGED = (
    "title", "abstract", "authors", "venue", "published_at", "arxiv_id", "arxiv_version", "doi", "url", "code_url",
    "license", "lang", "room",
)  # fmt: skip


def changed_fields(row: dict[str, Any], record: PaperRecord, *, again: bool = False) -> dict[str, Any]:
    """What a re-import would change: never a value into nothing, never a newer version into an older one.

    A paper that came `again` in the same import fills gaps only, unless it is a newer version: else the two would
    overwrite each other whenever the file is imported.
    """
    new = record.columns()
    if len(row["authors"]) > len(record.authors) > 0 and person(record.authors[-1]) != record.authors[-1]:
        new["authors"] = row["authors"]  # "et al." says less than the names that stand here
    newer = (record.arxiv_version or 0) - (row["arxiv_version"] or 0)
    if newer < 0 or (again and newer == 0):
        return {k: new[k] for k in MERGED if new[k] and not row[k]}
    if row["source"] == "catalogue":  # our own cards know better; only gaps are filled, and not by a day inferred
        inferred = ("published_at",) if record.published_inferred else ()
        return {k: new[k] for k in MERGED if new[k] and not row[k] and k not in inferred}
    return {k: new[k] for k in MERGED if new[k] and new[k] != row[k]}


def _changes(
    row: dict[str, Any], record: PaperRecord, may_change: MayChange | None, met: set[int] | None = None
) -> dict[str, Any]:
    """`changed_fields` where changes are allowed; `met` are the papers that this import has met, and this one joins."""
    met = set() if met is None else met
    changes = changed_fields(row, record, again=row["id"] in met)
    met.add(row["id"])
    return changes if changes and (may_change is None or may_change(row)) else {}


def preview(db: Database, records: Iterable[PaperRecord], may_change: MayChange | None = None) -> list[Match]:
    """What `add_all` would do; nothing is written. A record twice in the same import is a duplicate of itself."""
    out: list[Match] = []
    fresh: dict[str, list[PaperRecord]] = {}
    met: set[int] = set()
    keys: dict[tuple[str, str], None] = {}
    with db.engine.connect() as c:
        for record in records:
            row = find_existing(c, record)
            if row is not None:
                changes = tuple(_changes(row, record, may_change, met))
                out.append(Match(record, "changed" if changes else "duplicate", row["id"], changes))
            elif any(k in keys for k in _aliases(record)) or any(
                _agree(f.columns(), record.columns()) for f in fresh.get(record.norm_hash, ())
            ):
                out.append(Match(record, "duplicate"))
            else:
                keys |= dict.fromkeys(_aliases(record))
                fresh.setdefault(record.norm_hash, []).append(record)
                out.append(Match(record, "new"))
    return out


def add(
    c: sa.Connection, record: PaperRecord, *, source: str, now: int, by: str = "import", account: int | None = None,
    weight: float = h.NEW, taken: set[str] | None = None, may_change: MayChange | None = None,
    met: set[int] | None = None,
) -> Match:  # fmt: skip
    """Store one record: new, merged into what we have (as a new version), or nothing to do.

    A paper that is here and that `may_change` says no to stays as it is (None: everyone may change every paper).
    """
    row = find_existing(c, record)
    if row is not None:
        changes = _changes(row, record, may_change, met)
        if changes:
            edit(c, row["id"], changes, expected=row["version"], by=by, now=now)
        return Match(record, "changed" if changes else "duplicate", row["id"], tuple(changes))
    slug = record.slug or slugify(record.title, _Taken(c) if taken is None else taken)  # type: ignore[arg-type]
    if taken is not None:
        taken.add(slug)
    first = h.Event(weight, now)
    values = record.columns() | {
        "slug": slug, "source": source, "submitted_at": now, "submitted_by": account, "updated_at": now,
        "votes": 0, "version": 1, "hidden": False, "pinned": False, **h.heats([first]),
    }  # fmt: skip
    paper_id = int(c.execute(sa.insert(t.paper).values(**values)).inserted_primary_key[0])  # type: ignore[index]
    for kind, value in _aliases(record):
        c.execute(sa.insert(t.alias).values(kind=kind, value=value, paper_id=paper_id))
    if record.tags:
        c.execute(sa.insert(t.paper_tag), [{"paper_id": paper_id, "tag": tag} for tag in record.tags])
    new = {"paper_id": paper_id, "kind": "new", "weight": weight, "at": now, "key": f"new:{paper_id}"}
    c.execute(sa.insert(t.event).values(**new))
    c.execute(sa.insert(t.paper_version).values(paper_id=paper_id, n=1, record=record.columns(), at=now, by=by))
    return Match(record, "new", paper_id)


class _Taken:
    """Slugs in use, asked one by one."""

    def __init__(self, c: sa.Connection) -> None:
        self._c = c

    def __contains__(self, slug: object) -> bool:
        return self._c.execute(sa.select(t.paper.c.id).where(t.paper.c.slug == slug)).first() is not None


def add_all(
    db: Database,
    records: Sequence[PaperRecord],
    *,
    source: str,
    now: int,
    by: str = "import",
    weight: float = h.NEW_BULK,
    after: Callable[[sa.Connection, list[Match]], None] | None = None,
    may_change: MayChange | None = None,
) -> list[Match]:
    """Import many records in one transaction, with what `after` adds to it (the index of words): all or none.

    Records that nothing here can be the same as are stored together, the others one by one, in their order.
    """
    with db.begin() as c:
        taken = set(c.execute(sa.select(t.paper.c.slug)).scalars())
        matches: list[Match] = []
        met: set[int] = set()
        for start in range(0, len(records), TOGETHER):
            part = records[start : start + TOGETHER]
            seen = _known(c, part)
            fresh: list[PaperRecord] = []
            for record in part:
                keys = _keys(record)
                if keys & seen:
                    matches += _add_new(c, fresh, source=source, now=now, by=by, weight=weight, taken=taken)
                    fresh = []
                    met |= {m.paper_id for m in matches if m.paper_id is not None}
                    more: dict[str, Any] = {"weight": weight, "taken": taken, "may_change": may_change, "met": met}
                    matches.append(add(c, record, source=source, now=now, by=by, **more))
                else:
                    fresh.append(record)
                seen |= keys
            matches += _add_new(c, fresh, source=source, now=now, by=by, weight=weight, taken=taken)
        if after is not None:
            after(c, matches)
    return matches


def _keys(record: PaperRecord) -> set[tuple[str, str]]:
    """Whatever another record must share to be the same paper."""
    return {("norm", record.norm_hash), *_aliases(record)}


def _known(c: sa.Connection, records: Sequence[PaperRecord]) -> set[tuple[str, str]]:
    """Those keys of some records that papers have already."""
    wanted = {key for record in records for key in _keys(record)}
    hashes = [value for kind, value in wanted if kind == "norm"]
    norm, a = t.paper.c.norm_hash, t.alias.c
    found = {("norm", v) for v in c.execute(sa.select(norm).where(norm.in_(hashes))).scalars()}
    values = [value for kind, value in wanted if kind != "norm"]
    return found | set(c.execute(sa.select(a.kind, a.value).where(a.value.in_(values))).tuples())


def _add_new(
    c: sa.Connection, records: Sequence[PaperRecord], *, source: str, now: int, by: str, weight: float, taken: set[str]
) -> list[Match]:
    """`add` for records that are new for certain: the same rows, written a table at a time."""
    if not records:
        return []
    common = {
        "source": source, "submitted_at": now, "submitted_by": None, "updated_at": now, "votes": 0, "version": 1,
        "hidden": False, "pinned": False, **h.heats([h.Event(weight, now)]),
    }  # fmt: skip
    columns = [r.columns() for r in records]
    slugs: list[str] = []
    for record in records:
        slugs.append(record.slug or slugify(record.title, taken))
        taken.add(slugs[-1])
    c.execute(sa.insert(t.paper), [v | common | {"slug": slug} for v, slug in zip(columns, slugs, strict=True)])
    by_slug = dict(c.execute(sa.select(t.paper.c.slug, t.paper.c.id).where(t.paper.c.slug.in_(slugs))).tuples().all())
    ids = [by_slug[slug] for slug in slugs]
    pairs = list(zip(ids, records, strict=True))
    rows: dict[sa.Table, list[dict[str, Any]]] = {
        t.alias: [{"kind": k, "value": v, "paper_id": i} for i, r in pairs for k, v in _aliases(r)],
        t.paper_tag: [{"paper_id": i, "tag": tag} for i, r in pairs for tag in r.tags],
        t.event: [{"paper_id": i, "kind": "new", "weight": weight, "at": now, "key": f"new:{i}"} for i in ids],
        t.paper_version: [
            {"paper_id": i, "n": 1, "record": v, "at": now, "by": by} for i, v in zip(ids, columns, strict=True)
        ],
    }
    for table, values in rows.items():
        if values:
            c.execute(sa.insert(table), values)
    return [Match(r, "new", i) for i, r in pairs]


def edit(c: sa.Connection, paper_id: int, changes: dict[str, Any], *, expected: int, by: str, now: int) -> int:
    """Change a paper and keep the version before; returns the new version number.

    Raises
    ------
    EditConflict
        If the paper is no longer at version `expected`: nothing is overwritten.
    """
    paper = t.paper.c
    if "title" in changes:
        changes = changes | {"norm_hash": norm_hash(changes["title"])}
    values = changes | {"version": expected + 1, "updated_at": now}
    done = c.execute(sa.update(t.paper).where(paper.id == paper_id, paper.version == expected).values(**values))
    if done.rowcount != 1:
        raise EditConflict("this paper was changed by somebody else meanwhile: read it again and repeat your edit")
    row = dict(c.execute(sa.select(t.paper).where(paper.id == paper_id)).mappings().one())
    for kind, column in (("arxiv", "arxiv_id"), ("doi", "doi")):
        if changes.get(column):
            here = sa.select(t.alias.c.paper_id).where(t.alias.c.kind == kind, t.alias.c.value == changes[column])
            if c.execute(here).first() is None:
                c.execute(sa.insert(t.alias).values(kind=kind, value=changes[column], paper_id=paper_id))
    record = {k: row[k] for k in (*MERGED, "norm_hash", "extra")}
    c.execute(sa.insert(t.paper_version).values(paper_id=paper_id, n=expected + 1, record=record, at=now, by=by))
    return expected + 1


def happened(
    c: sa.Connection, paper_id: int, kind: str, weight: float, *, now: int, account: int | None = None,
    key: str | None = None, network: str | None = None,
) -> bool:  # fmt: skip
    """Record an event and warm the paper; False when `key` says that it was counted already."""
    if key is not None and c.execute(sa.select(t.event.c.id).where(t.event.c.key == key)).first():
        return False
    row = c.execute(sa.select(t.paper).where(t.paper.c.id == paper_id).with_for_update()).mappings().one()
    values = {"paper_id": paper_id, "account_id": account, "kind": kind, "weight": weight, "at": now}
    c.execute(sa.insert(t.event).values(**values, key=key, network=network))
    warmer = h.added({k: row[k] for k in h.HALF_LIVES}, h.Event(weight, now))
    c.execute(sa.update(t.paper).where(t.paper.c.id == paper_id).values(**warmer))
    return True


def undone(c: sa.Connection, paper_id: int, key: str) -> None:
    """Forget an event, and what it warmed; nothing happens when it was never counted."""
    c.execute(sa.select(t.paper.c.id).where(t.paper.c.id == paper_id).with_for_update())
    if c.execute(sa.delete(t.event).where(t.event.c.key == key)).rowcount:
        rebuild_heat(c, paper_id)


def rebuild_heat(c: sa.Connection, paper_id: int) -> None:
    """Heat from the events that are left."""
    rows = c.execute(sa.select(t.event.c.weight, t.event.c.at).where(t.event.c.paper_id == paper_id))
    c.execute(sa.update(t.paper).where(t.paper.c.id == paper_id).values(**h.heats(h.Event(w, at) for w, at in rows)))


def vote_weight(submitted_by: int | None, account: int, created_at: int, crowd: int, *, now: int) -> float:
    """0 for one's own submission; 0.25 for a young account or a network's 4th vote in a day; else 1."""
    if submitted_by == account:
        return 0.0
    damped = now - created_at < h.YOUNG_ACCOUNT_SECONDS or crowd >= h.NETWORK_FREE_VOTES
    return h.WEIGHTS["vote_damped" if damped else "vote"]


def set_vote(db: Database, paper_id: int, account: int, wanted: bool, *, now: int, network: str | None = None) -> int:
    """Make the vote be there, or not be there; saying it twice changes nothing. Returns the number of votes."""
    with db.begin() as c:
        return cast(c, paper_id, account, wanted, now=now, network=network)


def _asked() -> sa.Select:
    """One question for all that a vote depends on."""
    p, v, e = t.paper.c, t.vote.c, t.event.c
    paper_id: sa.BindParameter[int] = sa.bindparam("paper")
    account: sa.BindParameter[int] = sa.bindparam("account")
    voted = sa.select(v.at).where(v.paper_id == paper_id, v.account_id == account)
    created = sa.select(t.account.c.created_at).where(t.account.c.id == account)
    crowd = sa.select(sa.func.count()).select_from(t.event)
    crowd = crowd.where(e.paper_id == paper_id, e.kind == "vote", e.network == sa.bindparam("network"))
    return sa.select(
        p.votes, p.submitted_by, *(p[k] for k in h.HALF_LIVES), voted.scalar_subquery().label("voted_at"),
        created.scalar_subquery().label("created_at"),
        crowd.where(e.at > sa.bindparam("since")).scalar_subquery().label("crowd"),
    ).where(p.id == paper_id)  # fmt: skip


# Built once: to build them costs more than to run them.
_LOCK = sa.select(t.paper.c.id).where(t.paper.c.id == sa.bindparam("paper")).with_for_update()
_ASKED, _VOTE, _EVENT = _asked(), sa.insert(t.vote), sa.insert(t.event)
_PAPER = sa.update(t.paper).where(t.paper.c.id == sa.bindparam("paper"))


def cast(c: sa.Connection, paper_id: int, account: int, wanted: bool, *, now: int, network: str | None = None) -> int:
    """`set_vote` inside a transaction."""
    asked = {"paper": paper_id, "account": account, "network": network, "since": now - 24 * 3600}
    if c.dialect.name != "sqlite":  # SQLite's transaction has the lock; elsewhere what is asked must be asked after it
        c.execute(_LOCK, {"paper": paper_id})
    row = c.execute(_ASKED, asked).mappings().first()
    if row is None:
        raise EtudeError(f"there is no paper {paper_id}")
    there, key = row["voted_at"] is not None, f"vote:{paper_id}:{account}"
    if wanted == there:
        return int(row["votes"])
    votes = int(row["votes"]) + (1 if wanted else -1)
    if wanted:
        weight = vote_weight(row["submitted_by"], account, row["created_at"], row["crowd"], now=now)
        c.execute(_VOTE, {"paper_id": paper_id, "account_id": account, "at": now, "weight": weight})
        event = {"paper_id": paper_id, "account_id": account, "kind": "vote", "weight": weight, "at": now, "key": key}
        c.execute(_EVENT, event | {"network": network})
        warmer = h.added({k: row[k] for k in h.HALF_LIVES}, h.Event(weight, now))
        c.execute(_PAPER, {"paper": paper_id, "votes": votes, **warmer})
    else:
        v = t.vote.c
        c.execute(sa.delete(t.vote).where(v.paper_id == paper_id, v.account_id == account))
        c.execute(sa.delete(t.event).where(t.event.c.key == key))
        c.execute(_PAPER, {"paper": paper_id, "votes": votes})
        rebuild_heat(c, paper_id)
    return votes

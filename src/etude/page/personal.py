"""Everything that a person left here: exported as one zip of JSON, read back from it, or deleted.

Papers are named by what they are (arXiv id, DOI, title and abstract), so a zip also fits a page that is new.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, Field, ValidationError

from etude.errors import DataError
from etude.lab.queue import request_table
from etude.page import following, library, notes, store
from etude.page import heat as h
from etude.page import tables as t
from etude.page.accounts import address_hash, leave_log, rename
from etude.page.authorship import masked
from etude.page.database import Database
from etude.page.digest.mail import AUTHOR_KEY
from etude.page.records import PaperRecord, make_record
from etude.page.search.lexical import reindex
from etude.page.security import LIMITS, TooMany, limit, same
from etude.page.settings import Settings

FORMAT = 1
AUTHOR_MARK = b"Subject: Is this paper yours?"  # in the file of a mail to an author
LEFT_OUT = "left out for now: the limits of this page are reached"
MAX_FILE, MAX_FILES, MAX_ROWS = 32 * 2**20, 1000, 20_000
RECORD = ("title", "abstract", "venue", "room", "arxiv_id", "doi", "url", "code_url", "license", "lang", "published_at")
SOURCES = ("saved-page", "arxiv-atom", "hf-daily", "bibtex", "form")


class _About(BaseModel):
    format: int
    for_you: bool = False


class _Paper(BaseModel):
    slug: str
    title: str
    abstract: str = ""
    authors: list[str] = []
    venue: str | None = None
    room: str | None = None
    arxiv_id: str | None = None
    doi: str | None = None
    url: str | None = None
    code_url: str | None = None
    license: str | None = None
    lang: str | None = None
    published_at: int | None = None
    tags: list[str] = []
    source: str = "form"
    mine: bool = False


class _At(BaseModel):
    paper: str
    at: int


class _Kept(_At):
    tags: list[str] = []
    note: str = ""
    read: bool = False


class _Note(_At):
    claim: str | None = None
    kind: str = "note"
    text: str


class _Search(BaseModel):
    name: str
    query: str


class _Follow(BaseModel):
    kind: str
    value: str


class Bundle(BaseModel):
    """What is read back of a zip."""

    about: _About
    papers: list[_Paper] = Field(default_factory=list, max_length=MAX_ROWS)
    votes: list[_At] = Field(default_factory=list, max_length=MAX_ROWS)
    library: list[_Kept] = Field(default_factory=list, max_length=MAX_ROWS)
    notes: list[_Note] = Field(default_factory=list, max_length=MAX_ROWS)
    searches: list[_Search] = Field(default_factory=list, max_length=MAX_ROWS)
    dismissals: list[_At] = Field(default_factory=list, max_length=MAX_ROWS)
    follows: list[_Follow] = Field(default_factory=list, max_length=MAX_ROWS)


def subscriptions_of(db: Database, settings: Settings, account: dict[str, Any]) -> list[dict[str, Any]]:
    """The subscriptions of a person: those to the address that the account was made with."""
    known = account["email_hash"]
    return [
        r
        for r in db.rows(sa.select(t.subscriber))
        if r["account_id"] == account["id"] or (known and same(known, address_hash(settings, r["email"])))
    ]


def export(db: Database, settings: Settings, account: dict[str, Any], now: int) -> dict[str, Any]:
    """All of a person's data, by the name of its file in the zip."""
    me = account["id"]

    def mine(table: sa.Table, *columns: str) -> list[dict[str, Any]]:
        query = sa.select(table.c.paper_id, *(table.c[k] for k in columns)).where(table.c.account_id == me)
        return db.rows(query.order_by(table.c.at, table.c.paper_id))

    parts = {
        "votes": mine(t.vote, "at"), "library": mine(t.library, "at", "tags", "note", "read"),
        "notes": mine(t.note, "at", "claim", "kind", "text", "state"), "dismissals": mine(t.dismissal, "at"),
        "authorship": mine(t.authorship, "at", "state", "proof"),
    }  # fmt: skip
    v = t.paper_version.c
    edits = sa.select(v.paper_id, v.at, v.n, v.record).where(v.by == account["handle"])
    parts["edits"] = db.rows(edits.order_by(v.at, v.paper_id))
    ids = {r["paper_id"] for rows in parts.values() for r in rows}
    p = t.paper.c
    papers = db.rows(sa.select(t.paper).where(sa.or_(p.id.in_(ids), p.submitted_by == me)).order_by(p.id))
    slugs = {r["id"]: r["slug"] for r in papers}
    tags: dict[int, list[str]] = {}
    for r in db.rows(sa.select(t.paper_tag).where(t.paper_tag.c.paper_id.in_(list(slugs)))):
        tags.setdefault(r["paper_id"], []).append(r["tag"])
    out: dict[str, Any] = {
        "about": {"format": FORMAT, "exported_at": now, **{k: account[k] for k in ("handle", "role", "for_you")},
                  "created_at": account["created_at"]},
        "papers": [
            {k: r[k] for k in RECORD} | {
                "slug": r["slug"], "source": r["source"], "authors": [a["name"] for a in r["authors"]],
                "tags": sorted(tags.get(r["id"], [])), "mine": r["submitted_by"] == me,
            }
            for r in papers
        ],
    }  # fmt: skip
    for name, rows in parts.items():
        out[name] = [{"paper": slugs[r.pop("paper_id")]} | r for r in rows]
    k, s, q = t.api_token.c, t.saved_search.c, request_table.c
    out["searches"] = db.rows(sa.select(s.name, s.query, s.at).where(s.account_id == me).order_by(s.id))
    out["follows"] = [{"kind": kind, "value": value} for kind, value in following.follows_of(db, me)]
    out["tokens"] = db.rows(sa.select(k.name, k.created_at).where(k.account_id == me))
    asked = sa.select(q.slug, q.tier, q.state, q.created).where(q.asked_by == account["handle"])
    out["studies"] = db.rows(asked.order_by(q.created))
    shown = ("email", "status", "frequency", "zone", "hour", "language", "filters", "created_at", "confirmed_at")
    out["subscriptions"] = [{x: r[x] for x in shown} for r in subscriptions_of(db, settings, account)]
    return out


def pack(parts: dict[str, Any], more: dict[str, bytes] | None = None) -> bytes:
    """A zip with one JSON file for each part, and other files as they are."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as z:
        for name, rows in parts.items():
            z.writestr(f"{name}.json", json.dumps(rows, indent=1, ensure_ascii=False))
        for name, raw in (more or {}).items():
            z.writestr(name, raw)
    return target.getvalue()


def unpack(raw: bytes, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of a zip, bounded in number and in size.

    Raises
    ------
    DataError
        If it is no zip, or larger than an export can be.
    """
    out: dict[str, bytes] = {}
    left = MAX_FILE
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as z:
            if len(z.infolist()) > MAX_FILES:
                raise DataError(f"the zip holds more than {MAX_FILES} files: it is no export of this page")
            for info in z.infolist():
                if not wanted(info.filename):
                    continue
                with z.open(info) as f:
                    data = f.read(left + 1)  # what comes out is counted, whatever the archive says of itself
                left -= len(data)
                if left < 0:
                    raise DataError(
                        f"the zip unpacks to more than {MAX_FILE // 2**20} MiB: it is no export of this page"
                    )
                out[info.filename] = data
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(f"the file is no zip that this page made: {error}") from error
    return out


def read_bundle(raw: bytes) -> Bundle:
    """An export, checked.

    Raises
    ------
    DataError
        If a file is missing, no JSON, or not of the right form; the message names it.
    """
    names = {f"{name}.json": name for name in Bundle.model_fields}
    parts: dict[str, Any] = {}
    for file, data in unpack(raw, lambda name: name in names).items():
        try:
            parts[names[file]] = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file} in the zip is no JSON that this page made: {error}") from error
    try:
        bundle = Bundle.model_validate(parts)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"the zip is no export of this page: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    if bundle.about.format > FORMAT:
        raise DataError(f"the zip has format {bundle.about.format}, this Etude knows {FORMAT}: update Etude")
    return bundle


def restore(
    db: Database, account: dict[str, Any], bundle: Bundle, now: int, *, limited: bool = False,
    network: str | None = None,
) -> dict[str, int]:  # fmt: skip
    """Read an export into an account: what is there already stays as it is. Returns how much is new, by kind.

    `limited`: new papers, votes and notes count as if they were made by hand, and what is beyond the limits is left
    out, as "left out for now" says; the same zip brings it another day.
    """
    me = account["id"]
    new = dict.fromkeys(("papers", "votes", "library", "notes", "searches", "dismissals", "follows"), 0)
    full: set[str] = set()
    left_out = 0

    def when(at: int) -> int:
        return min(max(at, account["created_at"]), now)

    def allowed(c: sa.Connection, what: str) -> bool:
        nonlocal left_out
        if limited and what not in full:
            try:
                limit(c, what, str(me), now)
            except TooMany:
                full.add(what)
        left_out += what in full
        return what not in full

    with db.begin() as c:
        ids: dict[str, int] = {}
        fresh: list[int] = []
        for paper in bundle.papers:
            record, known = _known(c, paper)
            if known is None and allowed(c, "submit"):
                known = _add(c, paper, record, account, now)
                fresh.append(known)
            if known is not None:
                ids[paper.slug] = known
        reindex(c, fresh)
        new["papers"] = len(fresh)

        def missing(table: sa.Table, rows: list[Any]) -> list[tuple[int, Any]]:
            has = set(c.execute(sa.select(table.c.paper_id).where(table.c.account_id == me)).scalars())
            named = {ids[r.paper]: r for r in rows if r.paper in ids}
            return [(i, r) for i, r in named.items() if i not in has]

        for i, row in missing(t.vote, bundle.votes):
            if allowed(c, "vote"):
                store.cast(c, i, me, True, now=when(row.at), network=network)
                new["votes"] += 1
        for i, kept in missing(t.library, bundle.library):
            library.keep(c, i, me, tags=kept.tags, note=kept.note, read=kept.read, now=when(kept.at))
            new["library"] += 1
        for i, row in missing(t.dismissal, bundle.dismissals):
            library.dismiss(c, i, me, True, when(row.at))
            new["dismissals"] += 1
        said = {(r.paper_id, r.text) for r in c.execute(sa.select(t.note).where(t.note.c.account_id == me))}
        for note in bundle.notes:
            there = note.paper in ids and note.text.strip() and (ids[note.paper], note.text) not in said
            if there and allowed(c, "note"):
                claims = frozenset({note.claim} if note.claim else ())
                kind = note.kind if note.claim else "note"
                more: dict[str, Any] = {"claim": note.claim, "kind": kind, "now": when(note.at), "known": claims}
                notes.add_note(c, ids[note.paper], account, note.text, **more)
                new["notes"] += 1
        for search in bundle.searches[: library.MAX_SEARCHES]:
            if search.query.strip():
                new["searches"] += library.save_search(c, me, search.name, search.query, now)
        had = sa.select(sa.func.count()).select_from(t.follow).where(t.follow.c.account_id == me)
        before = c.execute(had).scalar_one()
        for one in bundle.follows[: following.MOST - before]:
            following.follow(c, me, one.kind, one.value, True, now)
        new["follows"] = c.execute(had).scalar_one() - before
        c.execute(sa.update(t.account).where(t.account.c.id == me).values(for_you=bundle.about.for_you))
    return new | ({LEFT_OUT: left_out} if left_out else {})


def _known(c: sa.Connection, paper: _Paper) -> tuple[PaperRecord, int | None]:
    """A paper of an export as a record, and its id here, None when it must be added."""
    try:
        values = {k: getattr(paper, k) for k in (*RECORD, "authors", "tags")}
        record = make_record(**values)
    except ValueError as error:
        raise DataError(f"papers.json in the zip: {error}") from error
    row = store.find_existing(c, record)
    if row is None and paper.source == "catalogue":
        named = sa.select(t.paper).where(t.paper.c.slug == paper.slug, t.paper.c.source == "catalogue")
        row = c.execute(named).mappings().first()  # type: ignore[assignment]
    return record, None if row is None else row["id"]


def _add(c: sa.Connection, paper: _Paper, record: PaperRecord, account: dict[str, Any], now: int) -> int:
    """Add a paper of an export; returns its id."""
    source = paper.source if paper.source in SOURCES else "form"
    owner = account["id"] if paper.mine else None
    match = store.add(c, record, source=source, now=now, by=account["handle"], account=owner, weight=h.NEW_BULK)
    assert match.paper_id is not None
    return match.paper_id


def erase(db: Database, settings: Settings, account: dict[str, Any]) -> None:
    """Delete a person: votes (heat is rebuilt), notes, library, searches, tokens, subscriptions, mails, the account.

    Papers that they submitted stay, without their name.
    """
    me = account["id"]
    subscribers = subscriptions_of(db, settings, account)
    with db.begin() as c:
        claimed = list(c.execute(sa.select(t.authorship.c.proof).where(t.authorship.c.account_id == me)).scalars())
        o = t.outbox.c
        for mail in c.execute(sa.select(o.id, o.recipient).where(o.key.like(f"{AUTHOR_KEY}%"))).all():
            if _proves(mail.recipient, claimed):
                c.execute(sa.delete(t.outbox).where(o.id == mail.id))
        voted = set(c.execute(sa.select(t.vote.c.paper_id).where(t.vote.c.account_id == me)).scalars())
        warmed = set(c.execute(sa.select(t.event.c.paper_id).where(t.event.c.account_id == me)).scalars())
        c.execute(sa.update(t.paper).where(t.paper.c.submitted_by == me).values(submitted_by=None))
        for table in (
            t.vote,
            t.event,
            t.note,
            t.library,
            t.dismissal,
            t.saved_search,
            t.api_token,
            t.session,
            t.follow,
        ):
            c.execute(sa.delete(table).where(table.c.account_id == me))
        for i in sorted(voted):
            left = sa.select(sa.func.count()).where(t.vote.c.paper_id == i).scalar_subquery()
            c.execute(sa.update(t.paper).where(t.paper.c.id == i).values(votes=left))
        for i in sorted(warmed):
            store.rebuild_heat(c, i)
        for row in subscribers:
            sent_to = sa.or_(t.outbox.c.subscriber_id == row["id"], t.outbox.c.recipient == row["email"])
            c.execute(sa.delete(t.outbox).where(sent_to))
            c.execute(sa.delete(t.subscriber).where(t.subscriber.c.id == row["id"]))
        c.execute(sa.delete(t.login_token).where(t.login_token.c.email_hash == account["email_hash"]))
        counted = [f"{what}:{who}" for what in LIMITS for who in (me, account["email_hash"])]
        c.execute(sa.delete(t.rate).where(t.rate.c.key.in_(counted)))
        rename(c, account["handle"], None)
        leave_log(c, me)
        c.execute(sa.delete(t.account).where(t.account.c.id == me))
    addresses = {row["email"] for row in subscribers}
    for file in Path(settings.mail_folder).glob("*.eml"):  # of a page without a mail server
        letter = file.read_bytes()
        to = message_from_bytes(letter)["To"] or ""
        known = account["email_hash"] and same(account["email_hash"], address_hash(settings, to))
        if known or to in addresses or (AUTHOR_MARK in letter and _proves(to, claimed)):
            file.unlink(missing_ok=True)


def _proves(address: str, proofs: list[str]) -> bool:
    """Whether a mail to an address may be the one of a claim to a paper; of it only the masked form is kept."""
    return any(proof.endswith(f" {masked(address)}") for proof in proofs)

"""Notes on claims in Markdown, waiting until a moderator shows them; pins, hidden papers, edits; all of it logged."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from etude.errors import UsageError
from etude.page import heat as h
from etude.page import store
from etude.page import tables as t
from etude.page.accounts import audit
from etude.page.database import Database
from etude.page.identity import clean_lines
from etude.page.records import PaperRecord
from etude.page.search.lexical import reindex

MAX_NOTE = 5000
MODERATORS = ("moderator", "admin")
STATES = ("shown", "hidden")
KINDS = ("note", "dispute")
EDITED = ("title", "abstract", "authors", "venue", "room", "arxiv_id", "doi", "url", "code_url", "published_at")


def add_note(
    c: sa.Connection, paper_id: int, account: dict[str, Any], text: str, *, claim: str | None, now: int,
    known: frozenset[str] = frozenset(), kind: str = "note",
) -> str:  # fmt: skip
    """Keep a note and return its state: shown at once for moderators, else pending. A dispute marks its claim.

    Raises
    ------
    UsageError
        For an empty note, or a claim that is none of `known`.
    """
    words = clean_lines(text)[:MAX_NOTE]
    if not words:
        raise UsageError("an empty note says nothing: write a line")
    if claim is not None and claim not in known:
        raise UsageError(f"this paper has no claim {claim!r}")
    if kind not in KINDS or (kind == "dispute" and claim is None):
        raise UsageError("a dispute is about a claim: choose which one")
    state = "shown" if account["role"] in MODERATORS else "pending"
    row = {"paper_id": paper_id, "account_id": account["id"], "claim": claim, "text": words, "at": now, "state": state,
           "kind": kind}  # fmt: skip
    c.execute(sa.insert(t.note).values(**row))
    if state == "shown":
        _warm(c, row)
    return state


def _warm(c: sa.Connection, note: Any) -> None:
    """A shown note warms its paper, once a person and day."""
    weight = h.WEIGHTS["note"]
    store.happened(c, note["paper_id"], "note", weight, now=note["at"], account=note["account_id"], key=_key(note))


def _key(note: Any) -> str:
    date = datetime.fromtimestamp(note["at"], UTC).date().isoformat()
    return f"note:{note['paper_id']}:{note['account_id']}:{date}"


def _cool(c: sa.Connection, note: Any) -> None:
    """The warmth of a note that is shown no more goes, unless another one of that person and day is shown."""
    n = t.note.c
    others = sa.select(t.note).where(
        n.paper_id == note["paper_id"], n.account_id == note["account_id"], n.state == "shown", n.id != note["id"]
    )
    if _key(note) not in {_key(other) for other in c.execute(others).mappings()}:
        store.undone(c, note["paper_id"], _key(note))


def judge_note(c: sa.Connection, note_id: int, state: str, by: dict[str, Any], now: int) -> None:
    """Show or hide a note.

    Raises
    ------
    UsageError
        For an unknown note or state.
    """
    if state not in STATES:
        raise UsageError(f"a note can be shown or hidden, not {state!r}")
    n = t.note.c
    row = c.execute(sa.select(t.note).where(n.id == note_id)).mappings().first()
    if row is None:
        raise UsageError("there is no such note any more")
    c.execute(sa.update(t.note).where(n.id == note_id).values(state=state))
    if state == "shown":
        _warm(c, row)
    else:
        _cool(c, row)
    audit(c, by["handle"], f"note {state}", {"note": note_id, "paper": row["paper_id"]}, now)


def take_back(c: sa.Connection, note_id: int, account: int) -> None:
    """Delete one's own note; others' are left alone."""
    mine = sa.and_(t.note.c.id == note_id, t.note.c.account_id == account)
    row = c.execute(sa.select(t.note).where(mine)).mappings().first()
    if row is not None:
        c.execute(sa.delete(t.note).where(mine))
        _cool(c, row)


def notes_of(db: Database, paper_id: int, account: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What is said about a paper: what is shown, and one's own in any state; moderators see all of it."""
    n = t.note.c
    visible: Any = n.state == "shown"
    if account is not None:
        visible = sa.true() if account["role"] in MODERATORS else sa.or_(visible, n.account_id == account["id"])
    query = sa.select(t.note, t.account.c.handle).select_from(t.note.join(t.account))
    return db.rows(query.where(n.paper_id == paper_id, visible).order_by(n.at, n.id))


def disputed(db: Database, paper_id: int) -> dict[str, int]:
    """Claims that somebody disputes, as a moderator has let it stand, and how often."""
    n = t.note.c
    stands = sa.and_(n.paper_id == paper_id, n.kind == "dispute", n.state == "shown")
    query = sa.select(n.claim, sa.func.count().label("times")).where(stands).group_by(n.claim)
    return {r["claim"]: r["times"] for r in db.rows(query)}


def waiting(db: Database) -> list[dict[str, Any]]:
    """Notes that nobody has judged yet, oldest first."""
    n, p = t.note.c, t.paper.c
    joined = t.note.join(t.account, n.account_id == t.account.c.id).join(t.paper, n.paper_id == p.id)
    query = sa.select(t.note, t.account.c.handle, p.slug, p.title).select_from(joined)
    return db.rows(query.where(n.state == "pending").order_by(n.id).limit(100))


def may_edit(account: dict[str, Any] | None, paper: dict[str, Any], authors: Collection[int] = ()) -> bool:
    """Moderators edit every paper, others those that they submitted or, as a moderator has checked, wrote."""
    if account is None:
        return False
    return account["role"] in MODERATORS or paper["submitted_by"] == account["id"] or account["id"] in authors


def set_flag(c: sa.Connection, paper_id: int, flag: str, wanted: bool, by: dict[str, Any], now: int) -> None:
    """Pin or hide a paper, or undo it.

    Raises
    ------
    UsageError
        For another flag.
    """
    if flag not in ("pinned", "hidden"):
        raise UsageError(f"{flag!r} is nothing that a paper can be: pinned or hidden")
    c.execute(sa.update(t.paper).where(t.paper.c.id == paper_id).values({flag: wanted}))
    audit(c, by["handle"], flag if wanted else f"un{flag}", {"paper": paper_id}, now)


def edit_paper(
    db: Database, paper_id: int, record: PaperRecord, *, expected: int, by: dict[str, Any], now: int
) -> tuple[str, ...]:
    """Change a paper by a form; returns the names of what changed.

    Raises
    ------
    EditConflict
        If it is no longer at version `expected`; nothing is overwritten.
    UsageError
        If an identifier belongs to another paper.
    """
    p = t.paper.c
    with db.begin() as c:
        row = c.execute(sa.select(t.paper).where(p.id == paper_id)).mappings().one()
        for kind, value in (("arxiv", record.arxiv_id), ("doi", record.doi)):
            known = sa.select(t.alias.c.paper_id).where(t.alias.c.kind == kind, t.alias.c.value == value)
            if value and any(r.paper_id != paper_id for r in c.execute(known)):
                raise UsageError(f"{value} is another paper of this page")
        new = record.columns()
        changes = {k: new[k] for k in EDITED if new[k] != row[k]}
        if "published_at" in changes:  # somebody has said it
            changes["published_inferred"] = False
        tagged = set(c.execute(sa.select(t.paper_tag.c.tag).where(t.paper_tag.c.paper_id == paper_id)).scalars())
        if not changes and tagged == set(record.tags) and row["version"] == expected:
            return ()
        store.edit(c, paper_id, changes, expected=expected, by=by["handle"], now=now)
        c.execute(sa.delete(t.paper_tag).where(t.paper_tag.c.paper_id == paper_id))
        if record.tags:
            c.execute(sa.insert(t.paper_tag), [{"paper_id": paper_id, "tag": tag} for tag in record.tags])
        names = (*changes, *(("tags",) if tagged != set(record.tags) else ()))
        audit(c, by["handle"], "edit", {"paper": paper_id, "version": expected + 1, "changed": list(names)}, now)
        reindex(c, [paper_id])
    return names

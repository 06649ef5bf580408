"""Claims to have written a paper: by a token in its repository or a link to an address, then a moderator's word.

An author may edit the paper and its notes are marked. Of an address only its beginning and domain are kept.
"""

from typing import Any

import sqlalchemy as sa

from etude.errors import UsageError
from etude.page import tables as t
from etude.page.accounts import audit
from etude.page.database import Database
from etude.page.digest import mail
from etude.page.digest.subscribe import check_address
from etude.page.security import keyed_hash, new_token, token_hash
from etude.page.settings import Settings

LINK_SECONDS = 48 * 3600
STATES = ("verified", "refused")


def repository_token(settings: Settings, paper_id: int, account: int) -> str:
    """What an author puts into the README of the paper's repository: one for every paper and account."""
    return f"etude-author-{keyed_hash(settings.secret, 'author', f'{paper_id}:{account}')[:32]}"


def ask(c: sa.Connection, paper_id: int, account: int, now: int, *, proof: str = "", verified: bool = False) -> int:
    """Say that a paper is one's own; saying it again keeps what was said before, unless it is proved now."""
    a = t.authorship.c
    mine = sa.and_(a.paper_id == paper_id, a.account_id == account)
    row = c.execute(sa.select(a.id, a.state).where(mine)).first()
    values: dict[str, Any] = {"state": "verified" if verified else "pending", "proof": proof[:300], "at": now}
    if row is None:
        new = c.execute(sa.insert(t.authorship).values(paper_id=paper_id, account_id=account, **values))
        return int(new.inserted_primary_key[0])  # type: ignore[index]
    if row.state == "refused":
        raise UsageError("a moderator has refused this before: write a note, or ask them")
    if row.state != "verified" and proof:
        c.execute(sa.update(t.authorship).where(a.id == row.id).values(**values))
    return int(row.id)


def send_link(db: Database, settings: Settings, paper: dict[str, Any], account: int, address: str, now: int) -> None:
    """Send a link to the address that the paper prints for its author; only the link's hash is kept."""
    email, token = check_address(address), new_token()
    with db.begin() as c:
        mine = ask(c, paper["id"], account, now)
        values = {"token_hash": token_hash(token), "expires_at": now + LINK_SECONDS, "proof": f"asked {masked(email)}"}
        open_ = sa.and_(t.authorship.c.id == mine, t.authorship.c.state == "pending")
        if c.execute(sa.update(t.authorship).where(open_).values(**values)).rowcount == 1:
            mail.queue(c, mail.author_link(settings, email, token, paper["title"], now), now=now)


def masked(email: str) -> str:
    """An address of which its owner is recognised by who knows it: a...@example.org."""
    name, _, domain = email.partition("@")
    return f"{name[:1]}...@{domain}"


def pending_link(db: Database, token: str, now: int) -> dict[str, Any] | None:
    """The claim of a link that still works."""
    a = t.authorship.c
    rows = db.rows(sa.select(t.authorship).where(a.token_hash == token_hash(token), a.expires_at > now))
    return rows[0] if rows else None


def follow_link(db: Database, token: str, now: int) -> bool:
    """Use a link once: the address is proved; the moderator decides whether it is an author's."""
    a = t.authorship.c
    with db.begin() as c:
        good = sa.and_(a.token_hash == token_hash(token), a.expires_at > now)
        row = c.execute(sa.select(a.id, a.proof).where(good)).first()
        if row is None:
            return False
        proof = row.proof.replace("asked ", "reads ", 1)
        c.execute(sa.update(t.authorship).where(a.id == row.id).values(token_hash=None, expires_at=None, proof=proof))
    return True


def judge(c: sa.Connection, claim_id: int, state: str, by: dict[str, Any], now: int) -> None:
    """A moderator's word.

    Raises
    ------
    UsageError
        For an unknown claim or state.
    """
    if state not in STATES:
        raise UsageError(f"a claim to a paper can be verified or refused, not {state!r}")
    row = c.execute(sa.select(t.authorship).where(t.authorship.c.id == claim_id)).mappings().first()
    if row is None:
        raise UsageError("there is no such claim any more")
    c.execute(sa.update(t.authorship).where(t.authorship.c.id == claim_id).values(state=state))
    audit(c, by["handle"], f"author {state}", {"paper": row["paper_id"], "account": row["account_id"]}, now)


def state_of(db: Database, paper_id: int, account: int | None) -> dict[str, Any] | None:
    """What one has said about a paper, None for nothing."""
    a = t.authorship.c
    rows = db.rows(sa.select(t.authorship).where(a.paper_id == paper_id, a.account_id == account))
    return rows[0] if rows else None


def authors_of(db: Database, paper_id: int) -> dict[int, str]:
    """Verified authors: account and handle."""
    a = t.authorship.c
    query = sa.select(a.account_id, t.account.c.handle).select_from(t.authorship.join(t.account))
    return {r["account_id"]: r["handle"] for r in db.rows(query.where(a.paper_id == paper_id, a.state == "verified"))}


def waiting(db: Database) -> list[dict[str, Any]]:
    """Claims that nobody has judged yet, oldest first."""
    a, p = t.authorship.c, t.paper.c
    joined = t.authorship.join(t.account, a.account_id == t.account.c.id).join(t.paper, a.paper_id == p.id)
    query = sa.select(t.authorship, t.account.c.handle, p.slug, p.title, p.code_url).select_from(joined)
    return db.rows(query.where(a.state == "pending").order_by(a.id).limit(100))

"""Accounts without passwords: a signed link by e-mail that works once, sessions whose token rotates, roles, API tokens.

Signing up and signing in are one thing: the account is made when the link of an unknown address is used. So what
happens when a link is asked for does not depend on who is known here, neither in its answer nor in its time.
"""

import re
import secrets
from typing import Any

import sqlalchemy as sa

from etude.errors import UsageError
from etude.lab.queue import request_table
from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest import mail
from etude.page.digest.subscribe import check_address
from etude.page.security import TooMany, keyed_hash, limit, new_token, same, token_hash
from etude.page.settings import Settings

LINK_SECONDS = 15 * 60
SESSION_SECONDS = 30 * 86_400
ROTATE_SECONDS = 86_400
GRACE_SECONDS = 60  # a token that was just rotated still answers, for requests that were on their way
ROLES = ("member", "moderator", "admin", "banned")
ANSWER = "If the address can be used, a mail with a link is on its way: open it here and press the button."
HANDLE = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,28}[a-z0-9])")
RESERVED = frozenset({  # words of the page, and what stands for itself in versions and the log
    "me", "admin", "moderator", "member", "banned", "etude", "import", "catalogue", "form", "deleted", "nobody", "user",
    "settings", "system", "openalex", "scholar", "github", "arxiv", "huggingface", "worker", "anonymous", "author",
    "saved-page", "arxiv-atom", "hf-daily", "bibtex",
})  # fmt: skip
API_PREFIX = "etude_"
MAX_API_TOKENS = 20


def address_hash(settings: Settings, address: str) -> str:
    """What is stored of an address in `account` and `login_token`: a hash that only this page can compute."""
    return keyed_hash(settings.secret, "address", address)


def _signature(settings: Settings, value: str) -> str:
    return keyed_hash(settings.secret, "login", value)


def ask_link(db: Database, settings: Settings, email: str, *, network: str, now: int) -> None:
    """Send a link that signs its reader in.

    Raises
    ------
    UsageError
        For what is no single address.
    TooMany
        When a network asks too often; too many links to one address are left out silently.
    """
    address = check_address(email)
    hashed, value = address_hash(settings, address), new_token()
    token = f"{value}.{_signature(settings, value)}"
    with db.begin() as c:
        limit(c, "login", network, now)
        try:
            limit(c, "signup", hashed, now)
        except TooMany:
            return
        c.execute(sa.delete(t.login_token).where(t.login_token.c.expires_at <= now))
        row = {"token_hash": token_hash(token), "email_hash": hashed, "expires_at": now + LINK_SECONDS, "used": False}
        c.execute(sa.insert(t.login_token).values(**row))
        mail.queue(c, mail.login_link(settings, address, token, LINK_SECONDS // 60, now), now=now)


def _signed(settings: Settings, token: str) -> bool:
    value, _, signature = token.partition(".")
    return same(signature, _signature(settings, value))


def link_works(db: Database, settings: Settings, token: str, now: int) -> bool:
    """Whether a link would sign somebody in; looking changes nothing."""
    if not _signed(settings, token):
        return False
    k = t.login_token.c
    good = sa.and_(k.token_hash == token_hash(token), k.used.is_(False), k.expires_at > now)
    return bool(db.rows(sa.select(k.expires_at).where(good)))


def sign_in(db: Database, settings: Settings, token: str, now: int) -> tuple[dict[str, Any], str | None] | None:
    """Use a link: the account and the token of a new session (None for a banned account); None for a dead link."""
    if not _signed(settings, token):
        return None
    k, a = t.login_token.c, t.account.c
    good = sa.and_(k.token_hash == token_hash(token), k.used.is_(False), k.expires_at > now)
    with db.begin() as c:
        if c.execute(sa.update(t.login_token).where(good).values(used=True)).rowcount != 1:
            return None
        hashed = c.execute(sa.select(k.email_hash).where(k.token_hash == token_hash(token))).scalar_one()
        mine = sa.select(t.account).where(a.email_hash == hashed)
        if c.execute(mine).first() is None:
            values = {"handle": f"reader-{secrets.token_hex(4)}", "role": "member", "created_at": now, "for_you": False}
            c.execute(sa.insert(t.account).values(email_hash=hashed, **values))
        row = dict(c.execute(mine).mappings().one())
        if settings.admin and row["role"] != "admin" and same(hashed, _admin_hash(settings)):
            c.execute(sa.update(t.account).where(a.id == row["id"]).values(role="admin"))
            audit(c, "settings", "role", {"account": row["id"], "role": "admin"}, now)
            row["role"] = "admin"
        return row, None if row["role"] == "banned" else open_session(c, row["id"], now)


def _admin_hash(settings: Settings) -> str:
    return address_hash(settings, check_address(settings.admin))


def open_session(c: sa.Connection, account: int, now: int) -> str:
    """A new session; returns its token, of which only the hash is kept."""
    c.execute(sa.delete(t.session).where(t.session.c.expires_at <= now))
    token = new_token()
    row = {
        "token_hash": token_hash(token), "account_id": account, "csrf": new_token(), "created_at": now,
        "expires_at": now + SESSION_SECONDS, "rotated_at": now,
    }  # fmt: skip
    c.execute(sa.insert(t.session).values(**row))
    return token


def _mine(token: str, now: int) -> sa.ColumnElement[bool]:
    s, hashed = t.session.c, token_hash(token)
    crossing = sa.and_(s.previous_hash == hashed, s.rotated_at > now - GRACE_SECONDS)
    return sa.and_(sa.or_(s.token_hash == hashed, crossing), s.expires_at > now)


def session_of(db: Database, token: str, now: int) -> tuple[dict[str, Any], str, bool] | None:
    """The account of a session's token, its form token, and whether the session's token is due to rotate."""
    s, a = t.session.c, t.account.c
    columns = (t.account, s.csrf, s.rotated_at, s.token_hash)
    query = sa.select(*columns).select_from(t.account.join(t.session)).where(_mine(token, now), a.role != "banned")
    rows = db.rows(query)
    if not rows:
        return None
    row = rows[0]
    csrf, rotated, current = row.pop("csrf"), row.pop("rotated_at"), row.pop("token_hash")
    return row, csrf, current == token_hash(token) and (rotated or 0) <= now - ROTATE_SECONDS


def rotate(db: Database, token: str, now: int) -> str | None:
    """Give a session a new token; None when another request was quicker."""
    s, new = t.session.c, token_hash(fresh := new_token())
    values = {"token_hash": new, "previous_hash": token_hash(token), "rotated_at": now}
    with db.begin() as c:
        done = c.execute(sa.update(t.session).where(s.token_hash == token_hash(token)).values(**values))
        return fresh if done.rowcount == 1 else None


def sign_out(db: Database, token: str, now: int) -> None:
    """End the session of a token."""
    with db.begin() as c:
        c.execute(sa.delete(t.session).where(_mine(token, now)))


def sign_out_everywhere(c: sa.Connection, account: int) -> None:
    """End all sessions of an account."""
    c.execute(sa.delete(t.session).where(t.session.c.account_id == account))


def set_handle(db: Database, account: int, handle: str) -> None:
    """Choose the name that others see.

    Raises
    ------
    UsageError
        If it is not allowed, or taken.
    """
    name = handle.strip().lower()
    if not HANDLE.fullmatch(name) or name in RESERVED:
        raise UsageError("a handle has 2 to 30 letters a-z, digits, - or _, and is none of the reserved words")
    try:
        with db.begin() as c:
            old = c.execute(sa.select(t.account.c.handle).where(t.account.c.id == account)).scalar_one()
            c.execute(sa.update(t.account).where(t.account.c.id == account).values(handle=name))
            rename(c, old, name)
    except sa.exc.IntegrityError as error:
        raise UsageError(f"the handle {name!r} is taken: choose another one") from error


def rename(c: sa.Connection, old: str, new: str | None) -> None:
    """Put another name, or "deleted", where a handle stands in versions, the log and requests of studies."""
    for table in (t.paper_version, t.audit):
        c.execute(sa.update(table).where(table.c.by == old).values(by=new or "deleted"))
    if sa.inspect(c).has_table(request_table.name):
        asked = request_table.c.asked_by
        c.execute(sa.update(request_table).where(asked == old).values(asked_by=new))


def leave_log(c: sa.Connection, account: int) -> None:
    """Take the number of an account that is deleted out of the log: SQLite may give it to the next who comes."""
    lines = c.execute(
        sa.select(t.audit.c.id, t.audit.c.record).where(t.audit.c.record["account"].as_integer() == account)
    )
    for line in lines.all():
        record = line.record | {"account": None}
        c.execute(sa.update(t.audit).where(t.audit.c.id == line.id).values(record=record))


def set_role(db: Database, by: dict[str, Any], handle: str, role: str, now: int) -> None:
    """Change somebody's role; who is banned is signed out at once and their API tokens end.

    Raises
    ------
    UsageError
        For an unknown handle or role, or one's own.
    """
    if role not in ROLES:
        raise UsageError(f"{role!r} is no role: {', '.join(ROLES)}")
    a = t.account.c
    with db.begin() as c:
        row = c.execute(sa.select(t.account).where(a.handle == handle)).mappings().first()
        if row is None:
            raise UsageError(f"there is nobody called {handle!r}")
        if row["id"] == by["id"]:
            raise UsageError("nobody changes their own role: ask another admin")
        c.execute(sa.update(t.account).where(a.id == row["id"]).values(role=role))
        if role == "banned":
            sign_out_everywhere(c, row["id"])
            c.execute(sa.delete(t.api_token).where(t.api_token.c.account_id == row["id"]))
        audit(c, by["handle"], "role", {"account": row["id"], "from": row["role"], "role": role}, now)


def audit(c: sa.Connection, by: str, what: str, record: dict[str, Any], now: int) -> None:
    """One line of the log. Lines are only added; who changes their handle or leaves is renamed in them."""
    c.execute(sa.insert(t.audit).values(at=now, by=by, what=what, record=record))


def new_api_token(db: Database, account: int, name: str, now: int) -> str:
    """A token for programs. It is shown once; only its hash is kept.

    Raises
    ------
    UsageError
        Without a name, or beyond 20 tokens.
    """
    label = " ".join(name.split())[:80]
    if not label:
        raise UsageError("give the token a name, so that you know it again")
    token = API_PREFIX + new_token()
    with db.begin() as c:
        count = sa.select(sa.func.count()).select_from(t.api_token).where(t.api_token.c.account_id == account)
        if c.execute(count).scalar_one() >= MAX_API_TOKENS:
            raise UsageError(f"{MAX_API_TOKENS} tokens are the most: take one back first")
        row = {"token_hash": token_hash(token), "account_id": account, "name": label, "created_at": now}
        c.execute(sa.insert(t.api_token).values(**row))
    return token


def account_of_token(db: Database, token: str) -> dict[str, Any] | None:
    """Whose API token it is."""
    query = sa.select(t.account).select_from(t.account.join(t.api_token))
    rows = db.rows(query.where(t.api_token.c.token_hash == token_hash(token), t.account.c.role != "banned"))
    return rows[0] if rows else None


def revoke_api_token(db: Database, account: int, token_id: str) -> None:
    """Take an API token back; `token_id` is the beginning of its hash. Others' tokens are left alone."""
    k = t.api_token.c
    with db.begin() as c:
        for row in c.execute(sa.select(k.token_hash).where(k.account_id == account)).all():
            if len(token_id) >= 12 and row.token_hash.startswith(token_id):
                c.execute(sa.delete(t.api_token).where(k.token_hash == row.token_hash))

"""Subscribing and leaving: a link that must be confirmed by a button, and a token that always lets one out."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from etude.errors import MissingExtra, UsageError
from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest import mail
from etude.page.digest.schedule import next_run, zone
from etude.page.digest.words import LANGUAGES
from etude.page.security import TooMany, keyed_hash, limit, new_token, same, token_hash
from etude.page.settings import Settings

CONFIRM_SECONDS = 48 * 3600
PURGE_SECONDS = 7 * 86_400
ANSWER = "If the address can be used, a mail with a link is on its way: open it and press the button."


@dataclass(frozen=True)
class Wish:
    """What somebody wants to be sent."""

    email: str
    frequency: str = "weekly"
    zone: str = "UTC"
    hour: int = 7
    filters: dict[str, Any] | None = None
    language: str = "en"


def check_address(text: str) -> str:
    """One e-mail address in its normal form.

    Raises
    ------
    UsageError
        For several addresses, control characters, or what is no address.
    """
    if any(ord(ch) < 32 or ord(ch) == 127 for ch in text) or "," in text or ";" in text:
        raise UsageError("give one e-mail address, without line breaks or commas")
    try:
        from email_validator import EmailNotValidError, validate_email
    except ImportError as error:
        raise MissingExtra("email-validator", "web", "subscribing by e-mail") from error
    try:
        valid = validate_email(
            text.strip(), check_deliverability=False, test_environment=True, allow_smtputf8=False
        )  # many servers take no letters beyond ASCII before the @; a domain has a spelling in ASCII
        return (valid.ascii_email or valid.normalized).lower()
    except EmailNotValidError as error:
        raise UsageError(f"that is no e-mail address: {error}") from error


def unsubscribe_token(settings: Settings, subscriber_id: int, created_at: int) -> str:
    """A subscriber's way out: not guessable, the same in every mail, valid for ever."""
    return f"{subscriber_id}.{keyed_hash(settings.secret, 'unsubscribe', f'{subscriber_id}:{created_at}')}"


def subscribe(
    db: Database, settings: Settings, wish: Wish, *, network: str, now: int, account: int | None = None
) -> None:
    """Ask for a subscription: a pending row and a mail with a link. The answer never says whether it was known.

    Raises
    ------
    UsageError
        For a bad address, zone, hour, frequency or language.
    TooMany
        When a network asks too often.
    """
    email = check_address(wish.email)
    zone(wish.zone)
    if wish.language not in LANGUAGES:
        raise UsageError(f"mails are written in {', '.join(LANGUAGES)}, not in {wish.language!r}")
    next_run(now, wish.frequency, wish.zone, wish.hour)
    token, s = new_token(), t.subscriber.c
    with db.begin() as c:
        limit(c, "subscribe", network, now)
        try:
            limit(c, "resend", keyed_hash(settings.secret, "resend", email), now)
        except TooMany:
            return  # silently: the answer is always the same
        forget_unconfirmed(c, now)
        row = c.execute(sa.select(t.subscriber).where(s.email == email)).mappings().first()
        wanted = {
            "frequency": wish.frequency, "zone": wish.zone, "hour": wish.hour, "filters": wish.filters or {},
            "account_id": account, "language": wish.language,
        }  # fmt: skip
        link = {"confirm_hash": token_hash(token), "confirm_expires_at": now + CONFIRM_SECONDS, "network": network}
        if row is not None and row["status"] == "active":
            mail.queue(c, mail.already_subscribed(settings, email, row, now), now=now)
            return
        if row is None:
            new = wanted | link | {"email": email, "status": "pending", "created_at": now, "soft_failures": 0}
            c.execute(sa.insert(t.subscriber).values(**new))
        elif row["status"] == "paused":  # nobody but the reader may change it, and it may yet go on by itself
            c.execute(sa.update(t.subscriber).where(s.id == row["id"]).values(**link, wish=wanted))
        else:
            c.execute(sa.update(t.subscriber).where(s.id == row["id"]).values(**wanted, **link, status="pending"))
        mail.queue(c, mail.confirmation(settings, email, token, wish.language, now), now=now)


def forget_unconfirmed(c: sa.Connection, now: int) -> int:
    """What was not confirmed within seven days of the wish: new addresses go; one that was a subscriber before is again
    what it was, so that the links in its old mails work and no paper comes twice. Returns rows deleted."""
    s = t.subscriber.c
    old = sa.and_(s.status == "pending", s.confirm_expires_at < now + CONFIRM_SECONDS - PURGE_SECONDS)
    values = {"status": "unsubscribed", "confirm_hash": None, "next_at": None}
    c.execute(sa.update(t.subscriber).where(old, s.confirmed_at.is_not(None)).values(**values))
    dead = sa.and_(s.wish.is_not(None), s.confirm_expires_at <= now)
    c.execute(sa.update(t.subscriber).where(dead).values(wish=None, confirm_hash=None))
    return max(0, c.execute(sa.delete(t.subscriber).where(old, s.confirmed_at.is_(None))).rowcount)


def _waiting(token: str) -> sa.ColumnElement[bool]:
    s = t.subscriber.c
    return sa.and_(s.confirm_hash == token_hash(token), sa.or_(s.status == "pending", s.wish.is_not(None)))


def pending(db: Database, token: str, now: int) -> dict[str, Any] | None:
    """The subscription that a confirmation link is for; None when it is unknown, used or too old."""
    rows = db.rows(sa.select(t.subscriber).where(_waiting(token)))
    return rows[0] if rows and rows[0]["confirm_expires_at"] > now else None


def confirm(db: Database, token: str, now: int) -> bool:
    """Make a subscription active; the link works once. False when it is unknown, used or too old."""
    s = t.subscriber.c
    with db.begin() as c:
        waiting = sa.and_(_waiting(token), s.confirm_expires_at > now)
        found = c.execute(sa.select(t.subscriber).where(waiting)).mappings().first()
        if found is None:
            return False
        wish = found["wish"] or {}
        row = {**found, **wish}
        due = next_run(now, row["frequency"], row["zone"], row["hour"])
        values = {"status": "active", "confirmed_at": now, "confirm_hash": None, "next_at": due, "soft_failures": 0}
        c.execute(sa.update(t.subscriber).where(s.id == row["id"]).values(**wish, **values, wish=None))
    return True


def by_token(db: Database, settings: Settings, token: str) -> dict[str, Any] | None:
    """The subscriber of an unsubscribe token; None for a forged one."""
    number, _, _ = token.partition(".")
    if not (number.isascii() and number.isdigit()) or len(number) > 9:
        return None
    rows = db.rows(sa.select(t.subscriber).where(t.subscriber.c.id == int(number)))
    if not rows or not same(token, unsubscribe_token(settings, rows[0]["id"], rows[0]["created_at"])):
        return None
    return rows[0]


def set_frequency(db: Database, settings: Settings, token: str, frequency: str, now: int) -> bool:
    """Send to a subscriber more or less often from now on. False for a forged token, or one who has left.

    Raises
    ------
    UsageError
        For an unknown frequency.
    """
    row = by_token(db, settings, token)
    if row is None or row["status"] != "active":
        return False
    due = next_run(now, frequency, row["zone"], row["hour"])
    s = t.subscriber.c
    with db.begin() as c:
        active = sa.and_(s.id == row["id"], s.status == "active")
        c.execute(sa.update(t.subscriber).where(active).values(frequency=frequency, next_at=due))
    return True


def unsubscribe(db: Database, settings: Settings, token: str) -> bool:
    """Leave, at once and for good; saying it twice is the same. False for a forged token."""
    row = by_token(db, settings, token)
    if row is None:
        return False
    s, o = t.subscriber.c, t.outbox.c
    with db.begin() as c:
        c.execute(
            sa.update(t.subscriber).where(s.id == row["id"]).values(status="unsubscribed", next_at=None, wish=None)
        )
        c.execute(sa.delete(t.outbox).where(o.subscriber_id == row["id"], o.status.in_(("queued", "sending"))))
    return True

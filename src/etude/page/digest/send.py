"""Sending the outbox: a folder of .eml files, or SMTP with STARTTLS; leases, retries, bounces, an end of trying.

A row is leased before it is sent and marked after. A process that dies between the two leaves a row whose lease runs
out; the Message-ID stays the same, so a mail that was handed over twice is one mail to its reader.
"""

import os
import smtplib
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from email import message_from_string
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.accounts import LINK_SECONDS
from etude.page.authorship import LINK_SECONDS as AUTHOR_SECONDS
from etude.page.database import Database
from etude.page.digest.mail import AUTHOR_KEY, LOGIN_KEY, WIRE
from etude.page.digest.schedule import next_run
from etude.page.settings import Settings, mail_server

LEASE = 120
RETRY_MINUTES = (5, 30, 120, 480)
PAUSE_AFTER = 3  # soft failures in a row
GIVE_UP = 5 * 86_400  # seconds after which a mail that never got through is no news any more (RFC 5321, 4.5.4.1)


class Transport(Protocol):
    """Hands one mail over. Raises `smtplib.SMTPResponseException` or `OSError` when it cannot."""

    def send(self, key: str, recipient: str, raw: str) -> None: ...

    def close(self) -> None: ...


class Folder:
    """Mails as files for their owner's eyes only, since they hold addresses and links that sign in; the same key writes
    the same file, so nothing is doubled."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def send(self, key: str, recipient: str, raw: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{key}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(raw)
        os.replace(part, self.folder / f"{key}.eml")

    def close(self) -> None:
        pass


class Refused(smtplib.SMTPResponseException):
    """The server does not take the mail for this recipient."""


class Dropped(smtplib.SMTPException):
    """The server was there, and this mail did not get through: it hung up, or refused the sender, or the size."""


class Smtp:
    """One connection a batch; certificates are checked."""

    def __init__(self, url: str, sender: str, context: ssl.SSLContext | None = None) -> None:
        self._parts, self._sender, self._context = mail_server(url), sender, context or ssl.create_default_context()
        self._server: smtplib.SMTP | None = None

    def _open(self) -> smtplib.SMTP:
        p = self._parts
        if p.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(p.hostname or "", p.port or 465, timeout=30, context=self._context)
        else:
            server = smtplib.SMTP(p.hostname or "", p.port or 587, timeout=30)
            if p.scheme == "smtp":  # smtp+plain is for a server on this machine
                server.starttls(context=self._context)
        if p.username:
            server.login(unquote(p.username), unquote(p.password or ""))
        return server

    def send(self, key: str, recipient: str, raw: str) -> None:
        if self._server is None or self._server.sock is None:  # smtplib closes it itself after a 421
            self._server = self._open()
        message = message_from_string(raw, policy=WIRE)
        try:
            self._server.send_message(message, self._sender, [recipient])
        except smtplib.SMTPRecipientsRefused as error:
            raise Refused(*next(iter(error.recipients.values()))) from error
        except smtplib.SMTPDataError as error:
            raise Refused(error.smtp_code, error.smtp_error) from error
        except (smtplib.SMTPException, OSError, ValueError) as error:  # the last: a mail that cannot be written
            self._server.close()
            self._server = None  # the next mail gets a connection of its own
            raise Dropped(str(error)) from error

    def close(self) -> None:
        if self._server is not None:
            with suppress(smtplib.SMTPException, OSError):
                self._server.quit()
            self._server = None


def transport(settings: Settings) -> Transport:
    """What the settings say: SMTP, or the folder."""
    if settings.smtp_url:
        from email.utils import parseaddr

        return Smtp(settings.smtp_url, parseaddr(settings.mail_from)[1])
    return Folder(settings.mail_folder)


def claim(db: Database, now: int) -> dict | None:
    """Lease the oldest mail that is due."""
    o = t.outbox.c
    free = sa.and_(o.next_at <= now, sa.or_(o.status == "queued", sa.and_(o.status == "sending", o.lease_until < now)))
    with db.begin() as c:
        query = sa.select(t.outbox).where(free).order_by(o.next_at, o.id).limit(1).with_for_update(skip_locked=True)
        row = c.execute(query).mappings().first()
        if row is None:
            return None
        c.execute(sa.update(t.outbox).where(o.id == row["id"]).values(status="sending", lease_until=now + LEASE))
        return dict(row)


def send_due(
    db: Database, way: Transport, *, clock: Callable[[], float] = time.time, per_minute: int = 30,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, int]:  # fmt: skip
    """Send what is due; returns how many were sent, put off, and bounced.

    A mail that was dropped holds up no other; the second one in a row is taken for the server's fault.
    """
    counts = {"sent": 0, "later": 0, "bounced": 0}
    dropped = False
    try:
        while (row := claim(db, int(clock()))) is not None:
            now = int(clock())
            if _is_dead(row, now):
                with db.begin() as c:
                    _close(c, row, "failed", "its link is dead by now")
                continue
            try:
                way.send(f"{row['created_at']}-{row['id']:08d}", row["recipient"], row["raw"])
            except Refused as error:
                hard = error.smtp_code >= 500
                counts["bounced" if hard else "later"] += 1
                _failed(db, row, f"{error.smtp_code} {error.smtp_error!r}"[:300], hard, now)
                dropped = False
            except Dropped as error:
                counts["later"] += 1
                _put_back(db, row, str(error)[:300], now, tries=row["tries"] + 1)
                if dropped:
                    break
                dropped = True
            except (OSError, smtplib.SMTPException) as error:  # away, or it refuses us: password, sender, greeting
                counts["later"] += 1
                _put_back(db, row, str(error)[:300], now)
                break
            else:
                counts["sent"] += 1
                dropped = False
                _sent(db, row, now)
                if not isinstance(way, Folder):
                    sleep(60 / per_minute)
    finally:
        way.close()
    return counts


def _is_login(row: dict) -> bool:
    """Whether a mail holds a secret, and an address kept nowhere else."""
    return (row["key"] or "").startswith(LOGIN_KEY)


def _is_dead(row: dict, now: int) -> bool:
    """Whether the link that a mail brings has run out."""
    seconds = AUTHOR_SECONDS if (row["key"] or "").startswith(AUTHOR_KEY) else LINK_SECONDS
    return _is_login(row) and row["created_at"] <= now - seconds


def _close(c: sa.Connection, row: dict, status: str, error: str | None) -> None:
    """No more is tried with a mail."""
    forgotten = {"recipient": "", "raw": ""} if _is_login(row) else {}
    values = {"status": status, "lease_until": None, "error": error} | forgotten
    c.execute(sa.update(t.outbox).where(t.outbox.c.id == row["id"]).values(**values))


def _put_back(db: Database, row: dict, error: str, now: int, tries: int = 0) -> None:
    """A mail that was not taken through no fault of its reader waits, longer after every one of `tries`."""
    minutes = RETRY_MINUTES[min(max(tries, 1), len(RETRY_MINUTES)) - 1]
    values = {"status": "queued", "error": error, "lease_until": None, "next_at": now + 60 * minutes}
    if tries:
        values["tries"] = tries
    with db.begin() as c:
        if row["created_at"] <= now - GIVE_UP:
            return _close(c, row, "failed", error)
        c.execute(sa.update(t.outbox).where(t.outbox.c.id == row["id"]).values(**values))


def _sent(db: Database, row: dict, now: int) -> None:
    s = t.subscriber.c
    with db.begin() as c:
        _close(c, row, "sent", None)
        if row["subscriber_id"]:
            mine = s.id == row["subscriber_id"]
            c.execute(sa.update(t.subscriber).where(mine).values(soft_failures=0))
            back = c.execute(sa.select(t.subscriber).where(mine, s.status == "paused")).mappings().first()
            if back is not None:  # the mailbox takes mail again
                due = next_run(now, back["frequency"], back["zone"], back["hour"])
                c.execute(sa.update(t.subscriber).where(mine).values(status="active", next_at=due))


def _failed(db: Database, row: dict, error: str, hard: bool, now: int) -> None:
    o, s = t.outbox.c, t.subscriber.c
    tries = row["tries"] + 1
    over = hard or tries > len(RETRY_MINUTES)
    values = {"tries": tries, "error": error, "lease_until": None}
    values |= {"status": "bounced" if hard else "failed"} if over else {
        "status": "queued", "next_at": now + 60 * RETRY_MINUTES[tries - 1]
    }  # fmt: skip
    with db.begin() as c:
        c.execute(sa.update(t.outbox).where(o.id == row["id"]).values(**values))
        if not row["subscriber_id"]:
            return
        mine = s.id == row["subscriber_id"]
        if hard:
            c.execute(sa.update(t.subscriber).where(mine).values(status="bounced", next_at=None))
        else:
            c.execute(sa.update(t.subscriber).where(mine).values(soft_failures=s.soft_failures + 1))
            tired = sa.and_(mine, s.soft_failures >= PAUSE_AFTER, s.status == "active")
            c.execute(sa.update(t.subscriber).where(tired).values(status="paused", next_at=None))

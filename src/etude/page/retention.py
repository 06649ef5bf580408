"""Forgetting in time: what is only needed for a while does not stay."""

import re
from pathlib import Path

import sqlalchemy as sa

from etude.page import tables as t
from etude.page.database import Database
from etude.page.digest.mail import LOGIN_KEY
from etude.page.digest.subscribe import forget_unconfirmed

DAY = 86_400
MAIL_DAYS, FAILED_DAYS = 30, 90


def purge(db: Database, now: int, folder: str | Path | None = None) -> int:
    """Delete dead links and sessions, old mails, unconfirmed addresses, networks of old votes. Returns rows deleted.

    `folder`: where mails go without a server; files of mails older than 30 days go too, as they hold addresses.
    """
    for file in Path(folder).glob("*.eml") if folder else ():
        made = re.fullmatch(r"(\d+)-\d+\.eml", file.name)  # as `Folder` names them: when the mail was made
        if made and int(made[1]) < now - MAIL_DAYS * DAY:
            file.unlink(missing_ok=True)
    o, s = t.outbox.c, t.subscriber.c
    old = [
        sa.delete(t.login_token).where(t.login_token.c.expires_at <= now),
        sa.delete(t.session).where(t.session.c.expires_at <= now),
        sa.delete(t.rate).where(t.rate.c.at < now - DAY),
        sa.delete(t.pending_import).where(t.pending_import.c.at < now - DAY),
        sa.delete(t.outbox).where(o.status == "sent", o.created_at < now - MAIL_DAYS * DAY),
        sa.delete(t.outbox).where(o.key.like(f"{LOGIN_KEY}%"), o.created_at < now - DAY),
        sa.delete(t.outbox).where(o.status.in_(("failed", "bounced")), o.created_at < now - FAILED_DAYS * DAY),
    ]
    with db.begin() as c:
        c.execute(sa.update(t.event).where(t.event.c.at < now - 2 * DAY).values(network=None))
        c.execute(sa.update(t.subscriber).where(s.status != "pending").values(network=None))
        return forget_unconfirmed(c, now) + sum(max(0, c.execute(q).rowcount) for q in old)

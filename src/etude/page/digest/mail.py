"""Building mails with `email.message.EmailMessage`, and putting them into the outbox."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid, parseaddr
from typing import Any

import jinja2
import sqlalchemy as sa

from etude.page import tables as t
from etude.page.digest.words import words
from etude.page.security import token_hash
from etude.page.settings import Settings

LOGIN_KEY = "login:"
AUTHOR_KEY = f"{LOGIN_KEY}author:"
MAX_BYTES = 90_000  # large providers cut mails at about 102 kB
# Headers stay on one line: folding would turn a long link into encoded words, which RFC 2369 forbids and nobody reads
WIRE = SMTP.clone(max_line_length=998)

_env = jinja2.Environment(
    loader=jinja2.PackageLoader("etude.page.digest", "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_text = jinja2.Environment(
    loader=jinja2.PackageLoader("etude.page.digest", "templates"),
    autoescape=False,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Mail:
    """One mail, ready for the outbox. `key` makes it unique: the same key is never queued twice."""

    recipient: str
    subject: str
    raw: str
    key: str | None = None
    subscriber_id: int | None = None


def _plain(value: str) -> str:
    """A header's text: no control characters, so nobody can add a header of their own."""
    if any(ord(ch) < 32 or ord(ch) == 127 for ch in value):
        raise ValueError(f"a header may hold no control character: {value[:60]!r}")
    return value


def build(
    settings: Settings, to: str, subject: str, text: str, html: str, now: int, headers: dict[str, str] | None = None
) -> str:
    """A multipart mail as text, with every header that a digest needs.

    Raises
    ------
    ValueError
        If an address or the subject holds a line break or another control character.
    """
    message = EmailMessage(policy=WIRE.clone(cte_type="7bit"))  # ASCII on the wire and in the outbox
    name, address = parseaddr(settings.mail_from)
    message["From"] = Address(_plain(name), addr_spec=address)
    message["To"] = Address(addr_spec=_plain(to))
    message["Subject"] = _plain(subject)
    message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    message["Message-ID"] = make_msgid(domain=address.rpartition("@")[2] or "localhost")
    for key, value in (headers or {}).items():
        message[key] = _plain(value)
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message.as_bytes().decode("ascii")


def _both(template: str, **values: Any) -> tuple[str, str]:
    return _text.get_template(f"{template}.txt.j2").render(**values), _env.get_template(f"{template}.html.j2").render(
        **values
    )


def confirmation(settings: Settings, email: str, token: str, language: str, now: int) -> Mail:
    """The mail that asks whether the address wants the digest."""
    link = f"{settings.address}/confirm/{token}"
    text, html = _both("confirm", link=link, site=settings.address, lang=language, say=words(language))
    subject = "Confirm your Etude digest"
    raw = build(settings, email, subject, text, html, now, {"Auto-Submitted": "auto-generated"})
    return Mail(email, subject, raw)


def already_subscribed(settings: Settings, email: str, row: dict[str, Any] | Any, now: int) -> Mail:
    """The mail to an address that gets the digest already."""
    language = row["language"]
    text, html = _both("already", every=row["frequency"], site=settings.address, lang=language, say=words(language))
    subject = "Your Etude digest"
    return Mail(email, subject, build(settings, email, subject, text, html, now, {"Auto-Submitted": "auto-generated"}))


def login_link(settings: Settings, email: str, token: str, minutes: int, now: int) -> Mail:
    """The mail that signs its reader in; `outbox` forgets its text once it is sent, since it holds a secret."""
    text, html = _both("login", link=f"{settings.address}/login/{token}", minutes=minutes, site=settings.address)
    subject = "Sign in to Etude"
    raw = build(settings, email, subject, text, html, now, {"Auto-Submitted": "auto-generated"})
    return Mail(email, subject, raw, key=f"{LOGIN_KEY}{token_hash(token)}")


def author_link(settings: Settings, email: str, token: str, title: str, now: int) -> Mail:
    """The mail that proves that somebody reads the address which a paper prints."""
    text, html = _both("author", link=f"{settings.address}/author/{token}", title=title, site=settings.address)
    subject = "Is this paper yours?"
    raw = build(settings, email, subject, text, html, now, {"Auto-Submitted": "auto-generated"})
    return Mail(email, subject, raw, key=f"{AUTHOR_KEY}{token_hash(token)}")


def digest(
    settings: Settings, row: dict[str, Any], papers: list[dict[str, Any]], changes: list[dict[str, Any]], *,
    token: str, period: str, now: int,
) -> Mail:  # fmt: skip
    """One digest: papers, and the verdicts that changed since the last mail."""
    leave = f"{settings.address}/u/{token}"
    reply = parseaddr(settings.mail_from)[1]
    text, html = _both(
        "digest", papers=papers, changes=changes, site=settings.address, leave=leave, frequency=row["frequency"],
        lang=row["language"], say=words(row["language"]),
    )  # fmt: skip
    subject = f"Etude {row['frequency']}: {len(papers)} papers, {len(changes)} re-tested"
    headers = {
        "List-Id": f"Etude digest <digest.{settings.address.split('//')[-1].split(':')[0]}>",
        "List-Unsubscribe": f"<{leave}>, <mailto:{reply}?subject=unsubscribe>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    raw = build(settings, row["email"], subject, text, html, now, headers)
    return Mail(row["email"], subject, raw, key=f"digest:{row['id']}:{period}", subscriber_id=row["id"])


def queue(c: sa.Connection, mail: Mail, *, now: int) -> bool:
    """Put a mail into the outbox; False when its key was queued before."""
    if mail.key and c.execute(sa.select(t.outbox.c.id).where(t.outbox.c.key == mail.key)).first():
        return False
    values = {
        "recipient": mail.recipient, "subject": mail.subject, "raw": mail.raw, "key": mail.key, "tries": 0,
        "subscriber_id": mail.subscriber_id, "status": "queued", "next_at": now, "created_at": now,
    }  # fmt: skip
    c.execute(sa.insert(t.outbox).values(**values))
    return True

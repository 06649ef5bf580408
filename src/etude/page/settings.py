"""How a page is set up: from arguments, environment variables and a file with mode 0600; no default secret."""

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.utils import parseaddr
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

from etude.errors import UsageError

MIN_SECRET = 32


@dataclass(frozen=True)
class Settings:
    """Everything that the page needs to know."""

    database: str | None = None
    """Path or URL; None: the ledger's."""
    host: str = "127.0.0.1"
    port: int = 8000
    base_url: str = ""
    """The address that readers use (in mails and feeds); empty: http://host:port."""
    mode: Literal["single", "accounts"] = "single"
    """single: one user, bound to this machine. accounts: sign-up by e-mail link."""
    secret: str = field(default="", repr=False)
    mail_folder: str = "etude-mail"
    smtp_url: str = field(default="", repr=False)
    """smtp://user:password@host:587 with STARTTLS, or smtps://...; empty: mails go into `mail_folder`."""
    mail_from: str = "Etude <etude@localhost>"
    admin: str = field(default="", repr=False)
    """The e-mail address whose account is the admin's (mode accounts)."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses whose X-Forwarded-For is believed."""
    embed: bool = True
    """Search by meaning, when the extra `hf` is installed."""
    static: bool = False
    """Pages to be kept as files: without search, votes and all else that needs a server."""

    @property
    def address(self) -> str:
        return (self.base_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Values of the Host header that are answered (a guard against DNS rebinding)."""
        named = urlsplit(self.address).netloc.lower()
        local = {f"{h}:{self.port}" for h in ("127.0.0.1", "localhost", "[::1]")} if self._is_local else set()
        return frozenset({named, *local})

    @property
    def _is_local(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1")

    def check(self) -> "Settings":
        """Refuse a set-up that is not safe.

        Raises
        ------
        UsageError
            For a short or default secret, a single-user page that others could reach, a port that is none, or
            addresses (of the page, the mail server, the sender, the admin) that cannot be read.
        """
        if len(self.secret) < MIN_SECRET or self.secret in ("changeme" * 4, "secret" * 6):
            raise UsageError(
                f"the page's secret needs at least {MIN_SECRET} characters: set ETUDE_SECRET or let it be made"
            )
        if self.mode == "single" and not self._is_local:
            raise UsageError(f"--host {self.host}: the single-user page answers on 127.0.0.1 only; use --mode accounts")
        if self.mode == "accounts" and not self._is_local and not self.base_url:
            raise UsageError(
                f"--host {self.host}: give --base-url, the address that readers use; links in mails need it"
            )
        if not 0 < self.port < 65_536:
            raise UsageError(f"--port {self.port}: choose 1 to 65535")
        if self.base_url and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise UsageError(f"--base-url {self.base_url}: write it as https://papers.example.org")
        if self.smtp_url:
            mail_server(self.smtp_url)
        sender = parseaddr(self.mail_from)[1]
        if not _is_address(sender) or not sender.isascii() or any(ord(ch) < 32 for ch in self.mail_from):
            raise UsageError(f"ETUDE_MAIL_FROM {self.mail_from!r}: write it as Etude <etude@example.org>")
        if self.admin and not _is_address(self.admin.strip()):
            raise UsageError(f"the admin's address {self.admin!r} (--admin or ETUDE_ADMIN) is no e-mail address")
        return self


def mail_server(url: str) -> SplitResult:
    """The parts of a mail server's address.

    Raises
    ------
    UsageError
        If it is none; without the password, which it may hold.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("smtp", "smtps", "smtp+plain") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise UsageError(
            f"ETUDE_SMTP_URL ...{url.rpartition('@')[2]}: the mail server is written smtp://user:password@host:587 "
            "or smtps://..."
        )
    return parts


def _is_address(text: str) -> bool:
    try:
        return bool(Address(addr_spec=text).domain)
    except (MessageError, ValueError, IndexError):  # the last for an empty one
        return False


def from_environment() -> dict[str, Any]:
    """The page's address, mail server, sender, admin and trusted proxies (by commas), from `ETUDE_BASE_URL`,
    `ETUDE_SMTP_URL`, `ETUDE_MAIL_FROM`, `ETUDE_ADMIN` and `ETUDE_PROXIES`, where they are set."""
    names = {
        "base_url": "ETUDE_BASE_URL", "smtp_url": "ETUDE_SMTP_URL", "mail_from": "ETUDE_MAIL_FROM",
        "admin": "ETUDE_ADMIN",
    }  # fmt: skip
    found: dict[str, Any] = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    if proxies := [p.strip() for p in os.environ.get("ETUDE_PROXIES", "").split(",") if p.strip()]:
        found["trusted_proxies"] = tuple(proxies)
    return found


def page_secret(database: str | None) -> str:
    """The secret of the page of a database: `ETUDE_SECRET`, else the file beside an SQLite database, so that a command
    from elsewhere signs with the same one.

    Raises
    ------
    UsageError
        If others may read the file; for a database elsewhere, if there is none in the working folder: a new one for
        each folder would make dead links.
    """
    given = database or os.environ.get("ETUDE_LEDGER") or "etude.sqlite"
    if "://" in given and not given.startswith("sqlite:///"):
        return load_secret(Path.cwd(), make=False)
    return load_secret(Path(given.removeprefix("sqlite:///")).resolve().parent)


def load_secret(folder: str | Path, *, make: bool = True) -> str:
    """`ETUDE_SECRET`, else the file `etude.secret` in a folder, made on first use and readable by its owner only.

    Raises
    ------
    UsageError
        If others may read the file, or it is not there and must not be made.
    """
    given = os.environ.get("ETUDE_SECRET")
    if given:
        return given
    path = Path(folder) / "etude.secret"
    if not path.exists():
        if not make:
            raise UsageError(
                f"{path} is not there: with a database on a server set ETUDE_SECRET, to the same {MIN_SECRET} or more "
                "characters for every command of the page"
            )
        with suppress(FileExistsError):  # another process may have been quicker
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as f:
                f.write(secrets.token_urlsafe(48))
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path} may be read by others: chmod 600 {path}")
    return path.read_text(encoding="ascii").strip()

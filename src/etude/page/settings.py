"""How a page is set up: from arguments, environment variables and a file with mode 0600; no default secret."""

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

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
            For a short or default secret, or a single-user page that others could reach.
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
        if self.base_url and urlsplit(self.base_url).scheme not in ("http", "https"):
            raise UsageError(f"--base-url {self.base_url}: write it as https://papers.example.org")
        return self


def from_environment() -> dict[str, Any]:
    """Mail server, sender, admin and trusted proxies (by commas), from `ETUDE_SMTP_URL`, `ETUDE_MAIL_FROM`,
    `ETUDE_ADMIN` and `ETUDE_PROXIES`, where they are set."""
    names = {"smtp_url": "ETUDE_SMTP_URL", "mail_from": "ETUDE_MAIL_FROM", "admin": "ETUDE_ADMIN"}
    found: dict[str, Any] = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    if proxies := [p.strip() for p in os.environ.get("ETUDE_PROXIES", "").split(",") if p.strip()]:
        found["trusted_proxies"] = tuple(proxies)
    return found


def secret_folder(database: str | None) -> Path:
    """Where the secret lies: beside an SQLite database, so that a command from elsewhere signs with the same one."""
    given = database or os.environ.get("ETUDE_LEDGER") or "etude.sqlite"
    if "://" in given and not given.startswith("sqlite:///"):
        return Path.cwd()
    return Path(given.removeprefix("sqlite:///")).resolve().parent


def load_secret(folder: str | Path) -> str:
    """`ETUDE_SECRET`, else the file `etude.secret` in a folder, made on first use and readable by its owner only.

    Raises
    ------
    UsageError
        If others may read the file.
    """
    given = os.environ.get("ETUDE_SECRET")
    if given:
        return given
    path = Path(folder) / "etude.secret"
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as f:
            f.write(secrets.token_urlsafe(48))
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{path} may be read by others: chmod 600 {path}")
    return path.read_text(encoding="ascii").strip()

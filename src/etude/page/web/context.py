"""What every view needs: the database, the ledger, the queue, the clock, and who is asking."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from fastapi import Request

from etude.errors import EtudeError
from etude.lab.ledger import Ledger
from etude.lab.queue import Queue
from etude.page import tables as t
from etude.page.accounts import rotate, session_of
from etude.page.authorship import authors_of
from etude.page.current import CurrentVerdicts
from etude.page.database import Database
from etude.page.digest.send import Folder, send_due
from etude.page.notes import may_edit
from etude.page.search.semantic import SemanticIndex
from etude.page.security import LIMITS, TooMany, client_address, keyed_hash, limit, network_prefix, same
from etude.page.settings import Settings
from etude.page.sync import sync_catalogue, sync_studies, sync_verdicts
from etude.page.web.kept import Kept

COOKIE = "etude"
_ME = sa.select(t.account).where(t.account.c.handle == "me")


@dataclass
class Site:
    """One running page."""

    settings: Settings
    clock: Callable[[], float] = time.time
    db: Database = field(init=False)
    ledger: Ledger = field(init=False)
    current: CurrentVerdicts = field(init=False)
    queue: Queue = field(init=False)
    meaning: SemanticIndex = field(init=False)
    kept: Kept = field(init=False)
    searches: dict[str, list[int]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.settings.database)
        self.current = CurrentVerdicts(self.ledger)
        self.db = Database(self.settings.database)
        self.queue = Queue(self.ledger, self.clock)
        self.kept = Kept(self.db)
        self.meaning = SemanticIndex(self.db)  # reads the vectors when they are first asked for
        sync_catalogue(self.db, self.now)
        self.refresh_verdicts()
        if self.settings.mode == "single":
            self.me()

    @property
    def now(self) -> int:
        return int(self.clock())

    def refresh_verdicts(self) -> int:
        """Log what the ledger says anew, and count the studies that readers ran."""
        sync_studies(self.db, self.queue, self.now)
        return sync_verdicts(self.db, self.current.verdicts(), self.now)

    def close(self) -> None:
        """Give the database back; on SQLite whoever is last takes the write-ahead log away."""
        self.db.close()
        self.ledger.close()

    def by_meaning(self) -> SemanticIndex | None:
        """The index of meanings, when it is wanted and ready."""
        if not self.settings.embed:
            return None
        self.meaning.refresh()
        return self.meaning if self.meaning.ready else None

    def me(self) -> dict[str, Any]:
        """The one user of a single-user page."""
        found = self.db.rows(_ME)
        if found:
            return found[0]
        with self.db.begin(alone=True) as c:
            if c.execute(_ME).first() is None:  # another process may have been quicker
                c.execute(sa.insert(t.account).values(handle="me", role="admin", created_at=0, for_you=False))
        return self.db.rows(_ME)[0]

    def verdicts(self, slugs: list[str] | None = None) -> dict[str, list[dict[str, Any]]]:
        """The verdicts of the newest run of every paper and tier, by slug, largest tier first."""
        by_slug = self.current.by_slug()
        return by_slug if slugs is None else {slug: by_slug[slug] for slug in slugs if slug in by_slug}

    def badges(self, slugs: list[str]) -> dict[str, dict[str, Any]]:
        """For a list: how many claims hold, fail, stay open at the largest tier measured."""
        out = {}
        for slug, rows in self.verdicts(slugs).items():
            tier = rows[0]["tier"]
            words = [r["verdict"] for r in rows if r["tier"] == tier]
            out[slug] = {
                "tier": tier,
                "counts": {w: words.count(w) for w in ("holds", "fails", "inconclusive") if w in words},
            }
        return out


def may_change(s: Site, account: dict[str, Any]) -> Callable[[dict[str, Any]], bool]:
    """Whether an account may change a paper that is here already, when it adds it again."""
    return lambda row: may_edit(account, row, authors_of(s.db, row["id"]))


def count_search(request: Request) -> None:
    """Count one search of a network; in memory, since reading must write nothing.

    Raises
    ------
    TooMany
        If the limit of the window is reached.
    """
    s = site(request)
    times, seconds = LIMITS["search"]
    who = reader(request).network
    with s.lock:
        used = [at for at in s.searches.pop(who, ()) if at > s.now - seconds]
        if len(used) < times:
            used.append(s.now)
            s.searches[who] = used
            while len(s.searches) > 10_000:
                s.searches.pop(next(iter(s.searches)))
            return
        s.searches[who] = used
    raise TooMany("search", max(1, used[0] + seconds - s.now))


@dataclass(frozen=True)
class Reader:
    """Who is asking: an account or nobody, the form token, the network prefix."""

    account: dict[str, Any] | None
    csrf: str
    network: str
    address: str

    @property
    def id(self) -> int | None:
        return self.account["id"] if self.account else None


class Forbidden(EtudeError):
    """The request does not come from one of our own pages, or its sender may not do this."""


def site(request: Request) -> Site:
    found: Site = request.app.state.site
    return found


def reader(request: Request) -> Reader:
    """The reader of this request; the cookie was set by the middleware."""
    known: Reader | None = getattr(request.state, "reader", None)
    if known is not None:
        return known
    s = site(request)
    cookie = request.state.cookie
    peer = request.client.host if request.client else ""
    address = client_address(peer, request.headers.get("x-forwarded-for"), s.settings.trusted_proxies)
    account, csrf = None, keyed_hash(s.settings.secret, "csrf", cookie)
    if s.settings.mode == "single":
        account = s.me()
    elif (signed := session_of(s.db, cookie, s.now)) is not None:
        account, csrf, old = signed
        if old and not request.url.path.startswith("/api/"):
            give_cookie(request, rotate(s.db, cookie, s.now))
    request.state.reader = Reader(account, csrf, network_prefix(address), address)
    return request.state.reader  # type: ignore[no-any-return]


def give_cookie(request: Request, token: str | None) -> None:
    """Let the answer to this request carry another cookie; None leaves it as it is."""
    request.state.given = token


def deliver(s: Site) -> None:
    """Write waiting mails into the folder; with a mail server they are left to the thread that talks to it."""
    if not s.settings.smtp_url:
        send_due(s.db, Folder(s.settings.mail_folder), clock=s.clock)


def check_form(request: Request, token: str) -> None:
    """The form's token must be the one of this reader's cookie.

    Raises
    ------
    Forbidden
        Otherwise; nothing was changed.
    """
    if not same(token, reader(request).csrf):
        raise Forbidden("the form is too old or not ours: reload the page and send it again")


def require_account(request: Request) -> dict[str, Any]:
    """The reader's account.

    Raises
    ------
    Forbidden
        For somebody who has none here.
    """
    account = reader(request).account
    if account is None:
        raise Forbidden("sign in first")
    return account


def require_role(request: Request, *roles: str) -> dict[str, Any]:
    """The reader's account, when it has one of the roles.

    Raises
    ------
    Forbidden
        Otherwise.
    """
    account = require_account(request)
    if account["role"] not in roles:
        raise Forbidden(f"this is for {' and '.join(roles)} accounts")
    return account


def count(request: Request, what: str) -> None:
    """Count one use against the rate limits: of the account, else of the network."""
    s, who = site(request), reader(request)
    with s.db.begin() as c:
        limit(c, what, str(who.id) if who.id is not None else who.network, s.now)

"""The page's part of the command line: serve, worker, import, snapshot, db."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console

from etude.errors import MissingExtra, UsageError
from etude.page import upkeep
from etude.page.upkeep import explained

Flag = Parameter(negative=())
LedgerOption = Annotated[str | None, Parameter(name="--ledger")]
PAUSE = 5.0  # seconds between two looks at the outbox, at papers without vectors, and after a round that failed
PARENT = "ETUDE_SERVED_BY"  # the process id of the server that started a worker
out = Console(highlight=False, soft_wrap=True)
_log = logging.getLogger(__name__)


def _need(module: str, purpose: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingExtra(module, "web", purpose)


def serve(
    *, host: str = "127.0.0.1", port: int = 8000, mode: Literal["single", "accounts"] = "single", base_url: str = "",
    ledger: LedgerOption = None, workers: int = 1, admin: str = "",
) -> None:  # fmt: skip
    """Serve the page of papers, with a worker that runs the studies asked for on it.

    Parameters
    ----------
    host
        Address to bind.
    port
        Port to bind.
    mode
        single: one user on this machine. accounts: several people.
    base_url
        The address that readers use, behind a proxy (default: ETUDE_BASE_URL).
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    workers
        Worker processes for studies; 0 starts none (use etude worker elsewhere).
    admin
        The e-mail address whose account is the admin's, in mode accounts (default: ETUDE_ADMIN).
    """
    _need("fastapi", "the page (etude serve)")
    _need("uvicorn", "the page (etude serve)")
    import os
    import subprocess
    import sys

    import uvicorn

    from etude.lab.export import unread_hint
    from etude.lab.ledger import Ledger
    from etude.page.retention import purge
    from etude.page.search.semantic import model_name
    from etude.page.serving import bound, end, keep, until_told_to_end
    from etude.page.settings import Settings, from_environment, page_secret
    from etude.page.web.app import create_app

    model_name()  # refuses what it does not know
    given = {"admin": admin, "base_url": base_url}
    more: dict[str, Any] = from_environment() | {name: value for name, value in given.items() if value}
    secret = page_secret(ledger)
    settings = Settings(database=ledger, host=host, port=port, mode=mode, secret=secret, **more).check()
    with until_told_to_end(), ExitStack() as after:
        sockets = [after.enter_context(each) for each in bound(host, port)]
        app = create_app(settings)
        site, stop = app.state.site, threading.Event()
        after.callback(site.close)
        purge(site.db, site.now, settings.mail_folder)
        threading.Thread(target=site.meaning.refresh, daemon=True).start()  # answers do not wait for it
        command = [sys.executable, "-m", "etude.cli", "worker"] + (["--ledger", ledger] if ledger else [])
        environment = os.environ | {PARENT: str(os.getpid())}
        children: list[Any] = []
        after.callback(end, children)
        children += [subprocess.Popen(command, env=environment) for _ in range(workers)]
        helpers = [threading.Thread(target=keep, args=(children, command, environment, stop), daemon=True)]
        if settings.smtp_url:
            helpers.append(threading.Thread(target=_send_mails, args=(settings, stop), daemon=True))
        for helper in helpers:
            helper.start()
            after.callback(helper.join, timeout=10)  # so that no worker is started that nobody ends
        after.callback(stop.set)
        out.print(f"Etude on {settings.address} (Ctrl-C stops it)")
        if hint := unread_hint(Ledger(ledger)):
            out.print(hint, soft_wrap=True)
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        # X-Forwarded-For is ours to read (`client_address`): uvicorn would believe everybody on this machine
        uvicorn.Server(uvicorn.Config(app, proxy_headers=False, **quiet)).run(sockets=sockets)


def _over_and_over(step: Callable[[], float], stop: threading.Event) -> None:
    """Repeat a step, which says how many seconds to wait after it, until `stop` is set.

    A round that fails, as when the database is away, is logged and ends nothing: the next one may find it back.
    """
    while not stop.is_set():
        try:
            pause = step()
        except Exception:
            _log.exception("this round failed, the next one is in %g s", PAUSE)
            pause = PAUSE
        stop.wait(pause)


def _send_mails(settings: Any, stop: threading.Event) -> None:
    """Hand the outbox to the mail server, also when the server or the database is away for a while."""
    from etude.page.database import Database
    from etude.page.digest.send import send_due, transport

    db = Database(settings.database, migrate=False)

    def send() -> float:
        send_due(db, transport(settings))
        return PAUSE

    _over_and_over(send, stop)
    db.close()


def worker(*, ledger: LedgerOption = None, jobs: int | None = None, once: Annotated[bool, Flag] = False) -> None:
    """Run the studies that were asked for on the page, one after another.

    Parameters
    ----------
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    jobs
        Worker processes of each study (default: one a core).
    once
        Stop when nothing waits.
    """
    import signal

    from etude.lab.ledger import Ledger
    from etude.lab.queue import Queue, work, work_one, worker_name

    queue = Queue(Ledger(ledger))
    if once:
        name = worker_name()
        while work_one(queue, name, jobs=jobs):
            _log_verdicts(ledger)
        return
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ready = threading.Event()  # two threads that import large packages at once can find each other's half done
    threading.Thread(target=_embed, args=(ledger, stop, ready), daemon=True).start()
    threading.Thread(target=_follow_ledger, args=(ledger, stop), daemon=True).start()
    threading.Thread(target=_leave_with_parent, args=(stop,), daemon=True).start()
    while not (stop.is_set() or ready.wait(0.2)):  # a model may take a minute to load: whoever ends us waits no longer
        pass
    work(queue, jobs=jobs, stop=stop)


def _log_verdicts(ledger: str | None) -> None:
    """Put what the ledger says into the page's history of verdicts."""
    from etude.lab.ledger import Ledger
    from etude.lab.queue import Queue
    from etude.lab.verdicts import verdicts
    from etude.page.database import Database
    from etude.page.sync import sync_studies, sync_verdicts

    store, db, now = Ledger(ledger), Database(ledger), int(time.time())
    sync_studies(db, Queue(store), now)
    sync_verdicts(db, verdicts(store), now)


def _follow_ledger(ledger: str | None, stop: threading.Event) -> None:
    """Log verdicts when a run has ended, here or by `etude run` beside the page: views themselves write nothing."""
    from etude.lab.ledger import Ledger

    store, seen = Ledger(ledger), None

    def look() -> float:
        nonlocal seen
        now = store.states()
        if now != seen:
            _log_verdicts(ledger)
        seen = now
        return 2.0

    stop.wait(2.0)
    _over_and_over(look, stop)


def _leave_with_parent(stop: threading.Event) -> None:
    """A worker of `etude serve` ends, after the study in hand, when its server was killed and could not tell it."""
    import os

    parent = os.environ.get(PARENT)
    while parent and not stop.wait(1.0):
        if os.getppid() != int(parent):
            stop.set()


def _embed(ledger: str | None, stop: threading.Event, ready: threading.Event) -> None:
    """Make the vectors of new papers while the worker has nothing else to say about it, after everybody else.

    `ready` is set when all that it needs is loaded, or cannot be.
    """
    import os

    from etude.errors import EtudeError
    from etude.page.database import Database
    from etude.page.search.semantic import embed_pending, forget_other_models, load_encoder

    if hasattr(os, "nice"):
        os.nice(10)  # on Linux of this thread and of those that it starts: answers and studies go first
    db: Database | None = None
    try:
        encode = load_encoder()
        encode(["the first call loads what is left"])
    except EtudeError:  # without the extra `hf` search is by words, and the page says so
        return
    finally:
        ready.set()

    def embed() -> float:
        nonlocal db
        if db is None:
            opened = Database(ledger)
            forget_other_models(opened)
            db = opened
        return PAUSE if embed_pending(db, encode) == 0 else 0.0

    _over_and_over(embed, stop)


def import_papers(file: Path, *, ledger: LedgerOption = None, dry_run: Annotated[bool, Flag] = False) -> None:
    """Import papers from a saved papers page, an Atom feed, daily-papers JSON or BibTeX.

    Parameters
    ----------
    file
        The file.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    dry_run
        Only say what it would do.
    """
    import time

    from etude.page import store
    from etude.page.database import Database
    from etude.page.importers import read
    from etude.page.search.lexical import index_matches
    from etude.page.sync import sync_catalogue

    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    now = int(time.time())
    reading = read(raw, now=now)
    db = Database(ledger)
    sync_catalogue(db, now)
    matches: list[Any]
    if dry_run:
        matches = store.preview(db, reading.records)
    else:
        matches = store.add_all(db, reading.records, source=reading.format, now=now, after=index_matches)
    words = [f"{sum(m.status == w for m in matches)} {w}" for w in ("new", "changed", "duplicate")]
    out.print(f"{reading.format}: {', '.join(words)}, {len(reading.unreadable)} unreadable")
    for bad in reading.unreadable:
        out.print(f"line {bad.line}: {bad.reason}: {bad.text[:80]}", markup=False)


def snapshot(folder: Path, *, base_url: str = "", ledger: LedgerOption = None) -> None:
    """Write the page as a static site that any web server can show.

    Parameters
    ----------
    folder
        Where it goes.
    base_url
        Where it will be read, such as https://papers.example.org: an Atom feed is written only with it.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    _need("fastapi", "the page (etude snapshot)")
    from etude.page.snapshot import write_site

    out.print(f"{write_site(folder, ledger, base_url)} files in {folder}")


def backup(target: Path, *, ledger: LedgerOption = None) -> None:
    """Copy the SQLite database while it is in use.

    Parameters
    ----------
    target
        A new file.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.errors import LedgerError
    from etude.page.database import Database, sqlite_file

    file = sqlite_file(ledger)
    if file is not None and not file.exists():  # opening it would make an empty one
        raise LedgerError(f"{file} is not there, so there is nothing to copy: name it with --ledger or ETUDE_LEDGER")
    Database(ledger).backup(target)
    out.print(f"copied to {target}")


def digest(
    *, due: Annotated[bool, Flag] = False, dry_run: Annotated[bool, Flag] = False,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    at: str | None = None, base_url: str = "", ledger: LedgerOption = None,
) -> None:  # fmt: skip
    """Send the digests that are due (for cron; doing it twice sends nothing twice).

    Parameters
    ----------
    due
        Compose and send what is due now.
    dry_run
        Print a mail instead of sending it; needs --for.
    for_
        The address whose mail is shown.
    at
        The moment to compose for, as 2026-11-23T07:00 (UTC; default: now).
    base_url
        The address of the page in the mails (default: ETUDE_BASE_URL or http://127.0.0.1:8000).
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    _need("email_validator", "the digest (etude digest)")
    import time
    from datetime import UTC, datetime

    import sqlalchemy as sa

    from etude.page import tables as t
    from etude.page.database import Database
    from etude.page.digest.compose import due as compose_due
    from etude.page.digest.compose import preview
    from etude.page.digest.send import send_due, transport
    from etude.page.retention import purge
    from etude.page.settings import Settings, from_environment, page_secret

    if due == dry_run:
        raise UsageError("give --due to send what is due, or --dry-run --for ADDRESS to look at one mail")
    more: dict[str, Any] = from_environment() | ({"base_url": base_url} if base_url else {})
    settings = Settings(database=ledger, secret=page_secret(ledger), **more).check()
    db = Database(ledger)
    try:
        moment = datetime.fromisoformat(at) if at else None
    except ValueError as error:
        raise UsageError(f"--at {at}: write it as 2026-11-23T07:00") from error
    now = (
        int(time.time())
        if moment is None
        else int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    )
    if due:
        _log_verdicts(ledger)
        queued = compose_due(db, settings, now)
        counts = send_due(db, transport(settings))
        purge(db, now, settings.mail_folder)
        out.print(f"{queued} composed, " + ", ".join(f"{n} {word}" for word, n in counts.items()))
        return
    rows = db.rows(sa.select(t.subscriber).where(t.subscriber.c.email == (for_ or "").lower()))
    if not rows:
        raise UsageError(f"nobody subscribed with {for_!r}")
    made = preview(db, settings, rows[0], now)
    out.print("nothing to say, so no mail" if made is None else made.raw, markup=False)


def register(app: App) -> None:
    """Add the page's commands to the command line."""
    app.command(explained()(serve))
    app.command(explained()(worker))
    app.command(explained()(import_papers), name="import")
    app.command(explained()(snapshot))
    app.command(explained()(digest))
    db = App(name="db", help="The database of page and ledger.")
    db.command(explained()(backup))
    upkeep.register(app, db)
    app.command(db)

"""Commands that look after a page: fetching papers, checking the index, bringing a backup back."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from etude.errors import LedgerError, UsageError

LedgerOption = Annotated[str | None, Parameter(name="--ledger")]
out = Console(highlight=False, soft_wrap=True)


@contextmanager
def explained() -> Iterator[None]:
    """What the database refuses a command, in words.

    Raises
    ------
    LedgerError
        In the place of the driver's own error.
    """
    try:
        yield
    except Exception as error:
        from sqlalchemy.exc import DBAPIError  # here, since loading it takes longer than most commands' help

        if not isinstance(error, DBAPIError):
            raise
        cause = str(error.orig).splitlines()[0]
        low = cause.lower()
        remedy = "see that it runs, and name it with --ledger or ETUDE_LEDGER"
        if "readonly" in low or "read-only" in low or "unable to open" in low:
            remedy = "make the file and its folder writable, or give another with --ledger or ETUDE_LEDGER"
        elif "full" in low:
            remedy = "free some space and try again; what was committed is intact"
        raise LedgerError(f"the database refuses: {cause}; {remedy}") from error


def fetch(query: str, *, most: int = 100, page: int = 100, ledger: LedgerOption = None) -> None:
    """Import the newest papers of an arXiv query; off unless ETUDE_FETCH=1, one request in three seconds.

    Parameters
    ----------
    query
        As arXiv writes it: "cat:cs.LG AND ti:pruning".
    most
        Papers at most.
    page
        Papers a request.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.page import store
    from etude.page.database import Database
    from etude.page.fetch import allowed, arxiv
    from etude.page.search.lexical import index_matches

    if not allowed():
        raise UsageError("this asks export.arxiv.org, and no request leaves this machine unless you set ETUDE_FETCH=1")
    now, db = int(time.time()), Database(ledger)
    for number, reading in enumerate(arxiv(query, most=most, page=page, now=now), 1):
        matches = store.add_all(db, reading.records, source=reading.format, now=now, after=index_matches)
        words = [f"{sum(m.status == w for m in matches)} {w}" for w in ("new", "changed", "duplicate")]
        out.print(f"request {number}: {', '.join(words)}, {len(reading.unreadable)} unreadable")


def enrich(source: Literal["openalex", "scholar", "github"], *, most: int = 50, ledger: LedgerOption = None) -> None:
    """Fill gaps of papers from what another host knows; off unless ETUDE_FETCH=1, slowly, and kept.

    Parameters
    ----------
    source
        openalex and scholar: abstracts, venues, citations. github: stars of the code.
    most
        Papers at most.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.page import enrich as sources
    from etude.page.database import Database
    from etude.page.fetch import allowed

    if not allowed():
        raise UsageError(f"this asks {source}, and no request leaves this machine unless you set ETUDE_FETCH=1")
    counts = sources.enrich(Database(ledger), source, most=most, now=int(time.time()))
    out.print(f"{source}: " + ", ".join(f"{n} {word}" for word, n in counts.items()))


def recommend(handle: str = "me", *, most: int = 50, ledger: LedgerOption = None) -> None:
    """Import what Semantic Scholar recommends to a reader, by the votes and dismissals; off unless ETUDE_FETCH=1.

    Parameters
    ----------
    handle
        The reader's account.
    most
        Papers at most.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    import sqlalchemy as sa

    from etude.page import enrich as sources
    from etude.page import store
    from etude.page import tables as t
    from etude.page.database import Database
    from etude.page.fetch import allowed
    from etude.page.search.lexical import index_matches
    from etude.page.search.taste import taste

    if not allowed():
        raise UsageError("this sends what you like to another host; nothing is sent unless you set ETUDE_FETCH=1")
    db, now = Database(ledger), int(time.time())
    found = db.rows(sa.select(t.account.c.id).where(t.account.c.handle == handle))
    if not found:
        raise UsageError(f"there is no account {handle!r}")
    p = t.paper.c

    def named(ids: set[int]) -> list[str]:
        rows = db.rows(sa.select(p.arxiv_id).where(p.id.in_(ids), p.arxiv_id.is_not(None)).order_by(p.id))
        return [r["arxiv_id"] for r in rows]

    liked, dismissed = taste(db, found[0]["id"])
    reading = sources.recommendations(named(liked), named(dismissed), most=most)
    matches = store.add_all(db, reading.records, source=reading.format, now=now, after=index_matches)
    out.print(f"{sum(m.status == 'new' for m in matches)} new of {len(matches)} recommended")


def index_check(*, most: int = 200, ledger: LedgerOption = None) -> None:
    """Measure the search on this page's papers: recall of the sign scan, titles and sentences as queries.

    Parameters
    ----------
    most
        Papers that are asked for.
    ledger
        Path or URL of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.errors import EtudeError
    from etude.page.database import Database
    from etude.page.search.quality import check
    from etude.page.search.semantic import SemanticIndex, load_encoder

    db, index = Database(ledger), None
    try:
        index = SemanticIndex(db, load_encoder())
        index.refresh()
    except EtudeError as error:
        out.print(f"words alone: {error}")
    found = check(db, index=index, most=most)
    recall = "no vectors yet" if found.recall_at_10 is None else f"{found.recall_at_10:.3f} (target 0.95)"
    out.print(f"recall@10 of the sign scan against exact: {recall}")
    out.print(f"title as query, mean reciprocal rank over {found.papers} papers: {found.title_mrr:.3f} (target 0.99)")
    parts = ", ".join(f"{name} {value:.3f}" for name, value in found.sentence_mrr.items())
    out.print(f"a sentence of the abstract as query: {parts}")


def restore(source: Path, *, ledger: LedgerOption = None) -> None:
    """Put a backup in the place of a database that is not there any more.

    Parameters
    ----------
    source
        A file that `etude db backup` wrote.
    ledger
        Path of the database (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.page.database import Database, sqlite_file

    target = sqlite_file(ledger)
    if target is None:
        raise UsageError("a backup of SQLite goes into a file; for PostgreSQL use pg_restore")
    if target.exists():
        raise LedgerError(
            f"{target} exists: stop the page and move it away first, with {target.name}-wal and -shm where they are "
            "there; nothing is overwritten"
        )
    if not target.parent.is_dir():
        raise LedgerError(f"there is no folder {target.parent}: make it first")
    for log in (target.with_name(f"{target.name}-{end}") for end in ("wal", "journal")):
        if log.exists():  # SQLite would play it into whatever file has the name
            raise LedgerError(f"{log} belongs to the database that was there: move it to where that one is now")
    part = target.with_name(f"{target.name}.part")
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old:
            sound = old.execute("PRAGMA integrity_check").fetchone()[0]
            ours = old.execute("SELECT count(*) FROM sqlite_master WHERE name = 'page_schema'").fetchone()[0]
            if sound == "ok" and ours:
                with closing(sqlite3.connect(part)) as new:
                    old.backup(new)
    except sqlite3.Error as error:
        part.unlink(missing_ok=True)
        raise LedgerError(f"{source} is no database that can be read and copied: {error}") from error
    if sound != "ok":
        raise LedgerError(f"{source} is damaged: {sound}")
    if not ours:
        raise LedgerError(f"{source} holds no page: give a file that etude db backup wrote")
    os.replace(part, target)
    Database(target).close()  # older tables come to the newest migration
    out.print(f"{source} is back as {target}")


def register(app: App, db: App) -> None:
    """Add these commands to the command line."""
    app.command(explained()(fetch))
    app.command(explained()(enrich))
    app.command(explained()(recommend))
    db.command(explained()(restore))
    index = App(name="index", help="The index of the page's search.")
    index.command(explained()(index_check), name="check")
    app.command(index)

"""Commands that look after a page: fetching papers, checking the index, bringing a backup back."""

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from etude.errors import LedgerError, UsageError

LedgerOption = Annotated[str | None, Parameter(name="--ledger")]
out = Console(highlight=False, soft_wrap=True)


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
    from etude.lab.ledger import default_url
    from etude.page.database import Database

    target = (ledger or default_url()).removeprefix("sqlite:///")
    if "://" in target:
        raise UsageError("a backup of SQLite goes into a file; for PostgreSQL use pg_restore")
    if Path(target).exists():
        raise LedgerError(f"{target} exists: stop the page and move it away first, nothing is overwritten")
    try:
        with sqlite3.connect(f"file:{source}?mode=ro", uri=True) as c:
            sound = c.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise LedgerError(f"{source} is no database that can be read: {error}") from error
    if sound != "ok":
        raise LedgerError(f"{source} is damaged: {sound}")
    shutil.copyfile(source, target)
    Database(target).close()  # older tables come to the newest migration
    out.print(f"{source} is back as {target}")


def register(app: App, db: App) -> None:
    """Add these commands to the command line."""
    app.command(fetch)
    app.command(enrich)
    app.command(recommend)
    db.command(restore)
    index = App(name="index", help="The index of the page's search.")
    index.command(index_check, name="check")
    app.command(index)

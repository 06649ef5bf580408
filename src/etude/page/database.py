"""Opening the page's database and bringing its tables to the newest migration."""

import importlib
import pkgutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import sqlalchemy as sa

from etude.errors import LedgerError
from etude.lab.ledger import default_url, records
from etude.page import migrations

THREADS = 40  # that a server answers with at once, each with a connection
ALONE = 0x65747564  # names our lock among those of a PostgreSQL database
_versions = sa.Table("page_schema", sa.MetaData(), sa.Column("version", sa.Integer, primary_key=True))


def sqlite_file(url: str | Path | None) -> Path | None:
    """The file of an SQLite database, None for one on a server; `url` None is the ledger's."""
    text = str(url or default_url()).removeprefix("sqlite:///")
    return None if "://" in text else Path(text).expanduser().absolute()


def steps() -> list[tuple[int, ModuleType]]:
    """The numbered migrations, in order: modules ``m0001_...`` with ``up(connection)`` and ``down(connection)``."""
    names = sorted(m.name for m in pkgutil.iter_modules(migrations.__path__) if m.name.startswith("m"))
    return [(int(n[1:5]), importlib.import_module(f"{migrations.__name__}.{n}")) for n in names]


class Database:
    """An engine with the page's tables.

    Parameters
    ----------
    url
        A file path or an SQLAlchemy URL; None takes the ledger's (`ETUDE_LEDGER` or ``etude.sqlite``).
    migrate
        False opens it as it is.

    Raises
    ------
    LedgerError
        If its tables are newer than this version of Etude knows.
    """

    def __init__(self, url: str | Path | None = None, *, migrate: bool = True) -> None:
        text = str(url or default_url())
        self.url = text if "://" in text else f"sqlite:///{Path(text).expanduser().absolute()}"
        self.engine = sa.create_engine(self.url, pool_pre_ping=not self.url.startswith("sqlite"), max_overflow=THREADS)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self._watch: sqlite3.Connection | None = None
        self._watching = threading.Lock()
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _pragmas)
            sa.event.listen(self.engine, "begin", _begin)
        if migrate:
            self.migrate()

    def version(self) -> int:
        """Number of the newest migration applied, 0 for none."""
        if not sa.inspect(self.engine).has_table("page_schema"):
            return 0
        with self.engine.connect() as c:
            return c.execute(sa.select(sa.func.max(_versions.c.version))).scalar() or 0

    def migrate(self, to: int | None = None) -> None:
        """Apply migrations up to (or take them back down to) number `to`; each in a transaction of its own."""
        known = steps()
        target = known[-1][0] if to is None else to
        now = self.version()
        if now > known[-1][0]:
            raise LedgerError(
                f"{self.url} has page tables of version {now}, this Etude knows {known[-1][0]}: update Etude"
            )
        for number, module in known:
            if now < number <= target:
                with self.begin(alone=True) as c:
                    _versions.create(c, checkfirst=True)
                    if not _applied(c, number):  # by another process that started at the same time
                        module.up(c)
                        c.execute(sa.insert(_versions).values(version=number))
        for number, module in reversed(known):
            if target < number <= now:
                with self.begin(alone=True) as c:
                    if _applied(c, number):
                        module.down(c)
                        c.execute(sa.delete(_versions).where(_versions.c.version == number))

    @contextmanager
    def begin(self, *, alone: bool = False) -> Iterator[sa.Connection]:
        """One transaction; on SQLite it takes the write lock at once, so two writers never deadlock.

        `alone` has PostgreSQL, too, wait until no other process is in such a transaction: what is looked up in it then
        holds until its end.
        """
        with self.engine.connect().execution_options(immediate=True) as c, c.begin():
            if alone and not self.is_sqlite:
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(ALONE)))
            yield c

    def rows(self, query: Any, parameters: Any = None) -> list[dict[str, Any]]:
        """A read as plain records."""
        with self.engine.connect() as c:
            return records(c.execute(query, parameters))

    def stamp(self) -> int | str:
        """A mark that differs from an earlier one when anything was committed in between, by whomever."""
        if not self.is_sqlite:
            with self.engine.connect() as c:
                return str(c.exec_driver_sql("SELECT pg_current_wal_insert_lsn()").scalar_one())
        with self._watching:
            if self._watch is None:  # a connection that never writes: it sees the commits of all others
                self._watch = sqlite3.connect(str(self.engine.url.database), check_same_thread=False)
            return int(self._watch.execute("PRAGMA data_version").fetchone()[0])

    def backup(self, target: str | Path) -> None:
        """A consistent copy of an SQLite database while it is in use (``VACUUM INTO``)."""
        if not self.is_sqlite:
            raise LedgerError("backup copies an SQLite database; for PostgreSQL use pg_dump")
        if Path(target).exists():
            raise LedgerError(f"{target} exists already: give a new file")
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
                c.execute(sa.text("VACUUM INTO :target"), {"target": str(target)})
        except sa.exc.DBAPIError as error:
            Path(target).unlink(missing_ok=True)  # half a copy is none
            raise LedgerError(f"{target} cannot be written: {error.orig}") from error

    def close(self) -> None:
        with self._watching:
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        self.engine.dispose()


def _applied(c: sa.Connection, number: int) -> bool:
    return c.execute(sa.select(_versions).where(_versions.c.version == number)).first() is not None


def _pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        "busy_timeout=30000",
        "synchronous=FULL",
        "cache_size=-16000",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

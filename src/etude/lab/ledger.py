"""The ledger: runs, finished jobs, measurements and artifacts in a database.

SQLite by default (one file), PostgreSQL by URL. Every finished seed is one transaction: after
`kill -9` at any point the ledger holds whole seeds and nothing else. Verdicts are computed on
reading from the measurements and the cards, so a ledger can hold no verdict that its numbers do not give.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from etude.errors import LedgerError
from etude.lab.finite import finite
from etude.lab.study import Artifact, Measurement

SCHEMA = 1
DEFAULT_FILE = "etude.sqlite"

_meta = sa.MetaData()
_schema = sa.Table("etude_schema", _meta, sa.Column("version", sa.Integer, primary_key=True))
run_table = sa.Table(
    "run", _meta,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("slug", sa.String(80), nullable=False, index=True),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # running, done, broken, skipped
    sa.Column("started", sa.String(40), nullable=False),
    sa.Column("seconds", sa.Float, nullable=False, default=0.0),
    sa.Column("record", sa.JSON, nullable=False),  # config, digests, environment, data, command, plots, error
    sa.Column("key", sa.String(64), nullable=False, index=True),  # what must agree for a run to be resumed
)  # fmt: skip
job_table = sa.Table(
    "job", _meta,
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("protocol", sa.String(80), primary_key=True),
    sa.Column("arm", sa.String(80), primary_key=True),
    sa.Column("seed", sa.Integer, primary_key=True),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("peak_bytes", sa.BigInteger, nullable=False),
)  # fmt: skip
measurement_table = sa.Table(
    "measurement", _meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("protocol", sa.String(80), nullable=False),
    sa.Column("arm", sa.String(80), nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("metric", sa.String(80), nullable=False),
    sa.Column("value", sa.Float, nullable=True),  # NULL: not a number (a diverged seed); infinities as text in `odd`
    sa.Column("odd", sa.String(8), nullable=True),
    sa.Column("unit", sa.String(40), nullable=False),
    sa.Column("step", sa.Float, nullable=True),
)  # fmt: skip
artifact_table = sa.Table(
    "artifact", _meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.ForeignKey("run.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("protocol", sa.String(80), nullable=False),
    sa.Column("arm", sa.String(80), nullable=False),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("value", sa.JSON, nullable=False),
)  # fmt: skip


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(value: float) -> tuple[float | None, str | None]:
    if value != value:
        return None, "nan"
    if value in (float("inf"), float("-inf")):
        return None, "inf" if value > 0 else "-inf"
    return float(value), None


def _decode(value: float | None, odd: str | None) -> float:
    return float(odd) if odd is not None else float("nan") if value is None else value


def default_url() -> str:
    """`ETUDE_LEDGER` (a URL or a path) or `etude.sqlite` in the working folder."""
    return os.environ.get("ETUDE_LEDGER") or DEFAULT_FILE


def records(result: sa.CursorResult[Any]) -> list[dict[str, Any]]:
    """The rows of a result by their columns' names, quicker than through each row's own mapping."""
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result]


class Ledger:
    """Open (and create) a ledger.

    Parameters
    ----------
    url
        A file path, an SQLAlchemy URL (``postgresql+psycopg://...``), or None for `default_url()`.

    Raises
    ------
    LedgerError
        If it cannot be opened or written, or its schema is newer than this version of Etude knows.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        text = str(url or default_url())
        self.url = text if "://" in text else f"sqlite:///{Path(text).expanduser().absolute()}"
        shown = "address"
        try:
            address = sa.make_url(self.url)
            if "://" not in text:  # a path may hold what an address gives a meaning, such as ?
                address = sa.URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
            shown = address.render_as_string(hide_password=True)
            kind = address.get_backend_name()
            self.engine: Engine = sa.create_engine(
                address,
                pool_pre_ping=kind != "sqlite",  # a server may have been restarted since
                json_serializer=_finite_json if kind == "postgresql" else None,
            )
        except (SQLAlchemyError, ImportError) as error:
            raise LedgerError(
                f"the ledger {shown} cannot be used: {error}; give a path, sqlite:///PATH or postgresql+psycopg://..."
            ) from error
        if self.url.startswith("sqlite"):
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
        try:
            self._open()
        except LedgerError:
            raise
        except SQLAlchemyError as error:
            raise self._explain(error) from error

    def _open(self) -> None:
        existing = set(sa.inspect(self.engine).get_table_names())
        if "etude_schema" in existing:
            with self.engine.connect() as c:
                found = c.execute(sa.select(sa.func.max(_schema.c.version))).scalar()
            if (found or 0) > SCHEMA:
                raise LedgerError(
                    f"the ledger {self._shown} has schema {found}, this Etude knows {SCHEMA}: "
                    "update Etude, or give another ledger with --ledger"
                )
            if found == SCHEMA:
                return
        try:
            _meta.create_all(self.engine)
        except SQLAlchemyError:  # another process may have made the tables in between: it must have made all of them
            _meta.create_all(self.engine)
        try:
            with self.engine.begin() as c:
                c.execute(sa.insert(_schema).values(version=SCHEMA))
        except IntegrityError:  # another process created it first
            pass

    def _explain(self, error: SQLAlchemyError) -> LedgerError:
        cause = str(error.orig if isinstance(error, DBAPIError) else error).splitlines()[0]
        remedy = "give another place with --ledger PATH or ETUDE_LEDGER"
        low = cause.lower()
        if "readonly" in low or "read-only" in low or "unable to open" in low:
            remedy = f"make it writable, or {remedy}"
        elif "full" in low:
            remedy = f"free some space, or {remedy}; everything committed so far is intact"
        elif "not a database" in low or "malformed" in low:
            remedy = f"it is not an Etude ledger: move it away and rebuild with etude import-results, or {remedy}"
        return LedgerError(f"the ledger {self._shown} cannot be used: {cause}; {remedy}")

    @property
    def _shown(self) -> str:
        """The address for messages, without a password."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._explain(error) from error

    # -- writing ---------------------------------------------------------------------------------

    def begin(
        self, slug: str, tier: str, key: str, record: Mapping[str, Any],
        *, run_id: str | None = None, started: str | None = None,
    ) -> str:  # fmt: skip
        """Open a run and return its id (an imported run keeps its id and its date)."""
        run_id = run_id or uuid.uuid4().hex
        row = dict(
            id=run_id,
            slug=slug,
            tier=tier,
            state="running",
            started=started or now(),
            seconds=0.0,
            record=dict(record),
            key=key,
        )
        with self._transaction() as c:
            c.execute(sa.insert(run_table).values(**row))
        return run_id

    def commit(
        self, run_id: str, protocol: str, arm: str, seeds: Sequence[int], items: Iterable[Measurement | Artifact],
        *, seconds: float, peak_bytes: int,
    ) -> None:  # fmt: skip
        """Store one finished job, all of it or nothing.

        A seed that is there already stays as it is, and what is given of it is left out: another process, running
        the same study on this ledger, was quicker.
        """
        measurements, artifacts = [], []
        for item in items:
            base = dict(run_id=run_id, protocol=protocol, arm=item.arm, seed=item.seed)
            if isinstance(item, Measurement):
                value, odd = _encode(float(item.value))
                measurements.append(
                    base | dict(metric=item.metric, value=value, odd=odd, unit=item.unit, step=item.step)
                )
            else:
                artifacts.append(base | dict(name=item.name, value=item.value))
        jobs = [
            dict(
                run_id=run_id,
                protocol=protocol,
                arm=arm,
                seed=s,
                seconds=seconds / len(seeds),
                peak_bytes=peak_bytes,
            )
            for s in seeds
        ]
        insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        with self._transaction() as c:
            # The jobs go first: the insert locks out other writers, so what it finds stands until the commit.
            new = {
                j["seed"] for j in jobs
                if c.execute(insert(job_table).values(**j).on_conflict_do_nothing()).rowcount
            }  # fmt: skip
            for table, rows in ((measurement_table, measurements), (artifact_table, artifacts)):
                if rows := [r for r in rows if r["seed"] in new]:
                    c.execute(sa.insert(table), rows)

    def update(self, run_id: str, *, state: str | None = None, seconds: float | None = None, **record: Any) -> None:
        """Change a run's state or time, and merge `record` into its record."""
        with self._transaction() as c:
            old = c.execute(sa.select(run_table.c.record).where(run_table.c.id == run_id)).scalar_one()
            values: dict[str, Any] = {"record": {**old, **record}}
            if state is not None:
                values["state"] = state
            if seconds is not None:
                values["seconds"] = seconds
            c.execute(sa.update(run_table).where(run_table.c.id == run_id).values(**values))

    def delete(self, run_id: str) -> None:
        with self._transaction() as c:
            for table in (artifact_table, measurement_table, job_table):
                c.execute(sa.delete(table).where(table.c.run_id == run_id))
            c.execute(sa.delete(run_table).where(run_table.c.id == run_id))

    # -- reading ---------------------------------------------------------------------------------

    def _rows(self, query: sa.Select) -> list[dict[str, Any]]:
        with self._transaction() as c:
            return records(c.execute(query))

    def find(self, key: str) -> dict[str, Any] | None:
        """The newest run with this key, or None."""
        order = (run_table.c.started.desc(), run_table.c.id)
        rows = self._rows(sa.select(run_table).where(run_table.c.key == key).order_by(*order).limit(1))
        return rows[0] if rows else None

    def run(self, run_id: str) -> dict[str, Any]:
        rows = self._rows(sa.select(run_table).where(run_table.c.id == run_id))
        if not rows:
            raise LedgerError(f"the ledger has no run {run_id!r}")
        return rows[0]

    def runs(self, slug: str | None = None) -> list[dict[str, Any]]:
        """All runs, newest first."""
        query = sa.select(run_table).order_by(run_table.c.started.desc(), run_table.c.id)
        return self._rows(query.where(run_table.c.slug == slug) if slug else query)

    def states(self) -> set[tuple[str, str]]:
        """Id and state of every run, without reading the records."""
        return {(r["id"], r["state"]) for r in self._rows(sa.select(run_table.c.id, run_table.c.state))}

    def latest(self, slug: str | None = None, *, states: Sequence[str] = ("done",)) -> list[dict[str, Any]]:
        """The newest run of every (slug, tier, place and target of one's own data) in one of `states`.

        A file that was edited is the same place: its newest run stands for it.
        """
        seen, out = set(), []
        for r in self.runs(slug):
            user = r["record"].get("user_data") or {}
            mark = (r["slug"], r["tier"], user.get("path"), user.get("target"))
            if r["state"] in states and mark not in seen:
                seen.add(mark)
                out.append(r)
        return out

    def finished(self, run_id: str) -> set[tuple[str, str, int]]:
        """(protocol, arm, seed) of every finished job."""
        c = job_table.c
        return {
            (r["protocol"], r["arm"], r["seed"])
            for r in self._rows(sa.select(c.protocol, c.arm, c.seed).where(c.run_id == run_id))
        }

    def jobs(self, run_id: str) -> list[dict[str, Any]]:
        rows = self._rows(sa.select(job_table).where(job_table.c.run_id == run_id))
        return sorted(rows, key=lambda r: (r["protocol"], r["arm"], r["seed"]))  # the same from every database

    def measurements(self, run_id: str) -> list[dict[str, Any]]:
        """Records with protocol, arm, seed, metric, value, unit, step, in the order they came."""
        rows = self._rows(sa.select(measurement_table).where(measurement_table.c.run_id == run_id).order_by("id"))
        return [
            {k: r[k] for k in ("protocol", "arm", "seed", "metric", "unit", "step")}
            | {"value": _decode(r["value"], r["odd"])}
            for r in rows
        ]

    def artifacts(self, run_id: str) -> list[dict[str, Any]]:
        rows = self._rows(sa.select(artifact_table).where(artifact_table.c.run_id == run_id).order_by("id"))
        return [{k: r[k] for k in ("protocol", "arm", "seed", "name", "value")} for r in rows]

    def close(self) -> None:
        self.engine.dispose()


def _finite_json(value: Any) -> str:
    """JSON for PostgreSQL, which refuses the NaN that SQLite keeps: null instead."""
    return json.dumps(finite(value))


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA busy_timeout=30000")
    cursor.close()


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def known_ledger(url: str | None) -> Ledger:
    """The ledger, or an empty one in memory where the folder has none yet (looking must not create one)."""
    place = url or default_url()
    if "://" not in place:
        path = Path(place).expanduser()
        if not path.exists() and path.absolute().parent.is_dir():
            return Ledger("sqlite://")
    return Ledger(place)

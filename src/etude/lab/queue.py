"""Studies asked for by the page: a table with leases, and the loop of a worker.

A worker claims the oldest request for a while (its lease) and renews it as seeds finish. A worker that dies lets
its lease run out; another takes the request over and, as the ledger resumes, repeats no finished seed.
"""

import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from etude.errors import EtudeError, UsageError
from etude.lab.ledger import Ledger, _meta
from etude.lab.registry import study
from etude.lab.runner import run_study

LEASE_SECONDS = 60.0
MOST_ATTEMPTS = 3  # that a request may cost a worker's life, such as one that needs more memory than there is

request_table = sa.Table(
    "study_request", _meta,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("slug", sa.String(80), nullable=False, index=True),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),  # queued, running, done, broken, skipped, cancelled
    sa.Column("asked_by", sa.String(80)),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("ended", sa.Float),
    sa.Column("lease_until", sa.Float),
    sa.Column("worker", sa.String(120)),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),  # how often it was claimed
    sa.Column("done", sa.Integer, nullable=False, default=0),
    sa.Column("total", sa.Integer, nullable=False, default=0),
    sa.Column("run_id", sa.String(32)),
    sa.Column("error", sa.Text),
)  # fmt: skip


class LeaseLost(EtudeError):
    """Another worker has taken the request over."""

    exit_code = 3


class Queue:
    """The requests of one ledger."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.time) -> None:
        self.ledger, self._clock = ledger, clock
        try:
            self._make_table()
        except SQLAlchemyError:  # another process may have made it in between
            self._make_table()

    def _make_table(self) -> None:
        """The table of requests, with the column that older ones lack."""
        engine = self.ledger.engine
        _meta.create_all(engine, tables=[request_table])
        if "attempts" not in {column["name"] for column in sa.inspect(engine).get_columns("study_request")}:
            with engine.begin() as c:
                c.exec_driver_sql("ALTER TABLE study_request ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0")

    def ask(self, slug: str, tier: str = "quick", *, asked_by: str | None = None) -> str:
        """Queue a study; the same study and tier waiting or running already is returned instead of doubled.

        Raises
        ------
        UsageError
            For a paper without a study, or a tier that it does not have.
        """
        if tier not in study(slug).configs:
            raise UsageError(f"unknown tier {tier!r}: {slug} has {', '.join(study(slug).configs)}")
        t = request_table.c
        same = sa.select(t.id).where(t.slug == slug, t.tier == tier, t.state.in_(("queued", "running")))
        with self.ledger._transaction() as c:
            known = c.execute(same).scalar()
            if known:
                return known
            new = uuid.uuid4().hex
            row = dict(id=new, slug=slug, tier=tier, state="queued", asked_by=asked_by, created=self._clock())
            c.execute(sa.insert(request_table).values(**row, done=0, total=0))
        return new

    def get(self, request: str) -> dict[str, Any]:
        """One request as a record."""
        rows = self.ledger._rows(sa.select(request_table).where(request_table.c.id == request))
        if not rows:
            raise UsageError(f"there is no study request {request!r}")
        return rows[0]

    def recent(self, *, slug: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
        """The newest requests first."""
        query = sa.select(request_table).order_by(request_table.c.created.desc()).limit(limit)
        return self.ledger._rows(query.where(request_table.c.slug == slug) if slug else query)

    def claim(self, worker: str) -> dict[str, Any] | None:
        """The oldest request that waits, or whose worker let its lease run out; None when there is none.

        One that has let `MOST_ATTEMPTS` workers die is closed as broken instead.
        """
        t, now = request_table.c, self._clock()
        free = sa.or_(t.state == "queued", sa.and_(t.state == "running", t.lease_until < now))
        for row in self.ledger._rows(sa.select(request_table).where(free).order_by(t.created)):
            unchanged = sa.and_(
                t.id == row["id"], t.state == row["state"], t.worker.is_not_distinct_from(row["worker"])
            )
            tired = row["attempts"] >= MOST_ATTEMPTS
            new = _given_up(now) if tired else {
                "state": "running", "worker": worker, "started": now, "lease_until": now + LEASE_SECONDS,
                "attempts": row["attempts"] + 1,
            }  # fmt: skip
            with self.ledger._transaction() as c:
                changed = c.execute(sa.update(request_table).where(unchanged, free).values(**new)).rowcount
            if changed == 1 and not tired:
                return row | new
        return None

    def beat(self, request: str, worker: str, done: int | None = None, total: int | None = None) -> None:
        """Renew the lease and report progress.

        Raises
        ------
        LeaseLost
            If the request is no longer this worker's.
        """
        t = request_table.c
        values: dict[str, Any] = {"lease_until": self._clock() + LEASE_SECONDS}
        if done is not None:
            values |= {"done": done, "total": total}
        mine = sa.and_(t.id == request, t.worker == worker, t.state == "running")
        with self.ledger._transaction() as c:
            if c.execute(sa.update(request_table).where(mine).values(**values)).rowcount != 1:
                raise LeaseLost(f"request {request} is no longer {worker}'s")

    def finish(
        self, request: str, worker: str, state: str, *, run_id: str | None = None, error: str | None = None
    ) -> None:
        """Close a request."""
        t = request_table.c
        with self.ledger._transaction() as c:
            c.execute(
                sa.update(request_table)
                .where(t.id == request, t.worker == worker)
                .values(state=state, run_id=run_id, error=error, ended=self._clock(), lease_until=None)
            )

    def cancel(self, request: str) -> bool:
        """Take back a request that waits; a running one goes on. True when it was taken back."""
        t = request_table.c
        waiting = sa.and_(t.id == request, t.state == "queued")
        with self.ledger._transaction() as c:
            changed = c.execute(sa.update(request_table).where(waiting).values(state="cancelled", ended=self._clock()))
            return changed.rowcount == 1


def _given_up(now: float) -> dict[str, Any]:
    problem = (
        f"{MOST_ATTEMPTS} workers ended in the middle of it, perhaps for want of memory: run it by etude run and see; "
        "finished seeds are kept"
    )
    return {"state": "broken", "error": problem, "ended": now, "lease_until": None}


def worker_name() -> str:
    """A name that no other worker has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


def work_one(queue: Queue, worker: str, *, jobs: int | None = None) -> bool:
    """Claim and run one request; False when there is none."""
    request = queue.claim(worker)
    if request is None:
        return False
    ended = threading.Event()

    def keep() -> None:  # a seed may take longer than a lease
        while not ended.wait(LEASE_SECONDS / 4):
            try:
                queue.beat(request["id"], worker)
            except EtudeError:
                return

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        result = run_study(
            request["slug"], request["tier"], ledger=queue.ledger, jobs=jobs,
            on_event=lambda what, slug, done, total: queue.beat(request["id"], worker, done, total),
        )  # fmt: skip
        problem = "; ".join(result.errors[:1] or result.skipped.values()) or None
        queue.finish(request["id"], worker, result.state, run_id=result.run_id, error=problem)
    except LeaseLost:
        return True
    except EtudeError as error:
        queue.finish(request["id"], worker, "broken", error=str(error))
    except Exception as error:  # a fault of ours: said on the page, and the worker goes on with the next request
        traceback.print_exc()
        queue.finish(request["id"], worker, "broken", error=f"{type(error).__name__}: {error}")
    finally:
        ended.set()
        keeper.join(timeout=5)
    return True


def work(queue: Queue, *, jobs: int | None = None, poll: float = 1.0, stop: threading.Event | None = None) -> None:
    """Run requests as they come, until `stop` is set."""
    stop, worker = stop or threading.Event(), worker_name()
    while not stop.is_set():
        if not work_one(queue, worker, jobs=jobs):
            stop.wait(poll)

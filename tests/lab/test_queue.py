"""The queue of studies: leases, takeover, no doubles."""

import pytest

from etude.errors import UsageError
from etude.lab import queue as q
from etude.lab.ledger import Ledger
from etude.lab.queue import LeaseLost, Queue, work_one


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def queue(toy, tmp_path):
    clock = Clock()
    it = Queue(Ledger(tmp_path / "l.sqlite"), clock)
    it.clock = clock
    return it


def test_ask_run_and_see(queue, toy):
    request = queue.ask(toy, asked_by="ann")
    assert queue.ask(toy) == request
    assert queue.get(request)["state"] == "queued"
    assert work_one(queue, "w1", jobs=1)
    row = queue.get(request)
    assert (row["state"], row["done"], row["total"], row["error"]) == ("done", 12, 12, None)
    assert queue.ledger.run(row["run_id"])["state"] == "done"
    assert not work_one(queue, "w1", jobs=1)
    assert queue.ask(toy) != request


def test_a_dead_workers_request_is_taken_over(queue, toy):
    request = queue.ask(toy)
    assert queue.claim("dead")["id"] == request
    assert queue.claim("w2") is None
    queue.clock.now += q.LEASE_SECONDS / 2
    queue.beat(request, "dead", 3, 12)
    queue.clock.now += q.LEASE_SECONDS / 2 + 1
    assert queue.claim("w2") is None
    queue.clock.now += q.LEASE_SECONDS
    assert queue.claim("w2")["id"] == request
    with pytest.raises(LeaseLost):
        queue.beat(request, "dead", 4, 12)
    queue.finish(request, "dead", "done")
    assert queue.get(request)["state"] == "running"


def test_cancel_and_bad_requests(queue, toy):
    request = queue.ask(toy)
    assert queue.cancel(request)
    assert not queue.cancel(request)
    assert queue.claim("w") is None
    with pytest.raises(UsageError, match="unknown tier 'huge'"):
        queue.ask(toy, "huge")
    with pytest.raises(UsageError, match="no study request"):
        queue.get("nothing")


def test_a_broken_study_is_said(queue, toy, monkeypatch):
    from etude.lab.registry import study

    def boom(self, job):
        raise RuntimeError("no luck")

    monkeypatch.setattr(type(study(toy)), "measure", boom)
    request = queue.ask(toy)
    work_one(queue, "w", jobs=1)
    row = queue.get(request)
    assert row["state"] == "broken"
    assert "no luck" in row["error"]


def test_a_fault_outside_the_study_ends_the_request_not_the_worker(queue, toy, monkeypatch, capsys):
    def boom(*_, **__):
        raise ImportError("half loaded")

    monkeypatch.setattr("etude.lab.queue.run_study", boom)
    request = queue.ask(toy)
    assert work_one(queue, "w", jobs=1)
    row = queue.get(request)
    assert (row["state"], row["error"]) == ("broken", "ImportError: half loaded")
    assert "half loaded" in capsys.readouterr().err
    assert not work_one(queue, "w", jobs=1)


def test_a_request_that_ends_its_workers_is_given_up(queue, toy):
    request = queue.ask(toy)
    for n in range(1, q.MOST_ATTEMPTS + 1):
        assert queue.claim(f"w{n}")["attempts"] == n
        queue.clock.now += q.LEASE_SECONDS + 1
    assert queue.claim("last") is None
    row = queue.get(request)
    assert row["state"] == "broken"
    assert "3 workers ended in the middle of it" in row["error"]
    assert queue.ask(toy) != request


def test_one_that_is_given_up_holds_up_no_other(queue, toy):
    queue.ask(toy)
    for _ in range(q.MOST_ATTEMPTS):
        queue.claim("w")
        queue.clock.now += q.LEASE_SECONDS + 1
    other = queue.ask(toy, "laptop")
    assert queue.claim("w")["id"] == other


def test_an_older_queue_learns_to_count(queue, toy):
    request = queue.ask(toy)
    with queue.ledger.engine.begin() as c:
        c.exec_driver_sql("ALTER TABLE study_request DROP COLUMN attempts")
    assert Queue(queue.ledger, queue.clock).claim("w")["attempts"] == 1
    assert queue.get(request)["state"] == "running"

"""Where jobs run makes no difference to what they give; a dead worker costs its own job only."""

import os
import time

import pytest

from etude.errors import MissingExtra
from etude.lab.ledger import Ledger
from etude.lab.pools import InProcess, RayPool, make_pool
from etude.lab.runner import run_study


@pytest.fixture(params=["here", "workers", "ray"])
def pool(request):
    if request.param == "ray":
        pytest.importorskip("ray", reason="the extra cluster is not installed")
    made = {"here": lambda: InProcess(), "workers": lambda: make_pool(2), "ray": lambda: RayPool(2)}[request.param]()
    yield made
    made.close()


def test_all_pools_give_the_same(pool):
    # functions of the standard library: a worker elsewhere may find another package called `tests` than this one
    for i in (0, 1, 2, 4):
        pool.submit(pow, i, 2, key=("job", i))
    pool.submit(int, "three", key=("job", 3))
    got = {o.key: o for o in pool.as_completed()}
    assert {k: o.value for k, o in got.items() if o.error is None} == {("job", i): i * i for i in (0, 1, 2, 4)}
    assert "three" in str(got[("job", 3)].error)
    assert all(o.seconds >= 0 for o in got.values())


@pytest.mark.parametrize("on", ["workers", "ray"])
def test_a_dead_worker_is_reported_with_its_job_and_the_others_go_on(on):
    if on == "ray":
        pytest.importorskip("ray", reason="the extra cluster is not installed")
    pool = make_pool(2) if on == "workers" else RayPool(2)
    try:
        pool.submit(os._exit, 7, key="dies")
        for i in range(3):
            pool.submit(pow, i, 2, key=i)
        got = {o.key: o for o in pool.as_completed()}
        assert got["dies"].error is not None
        assert [got[i].value for i in range(3)] == [0, 1, 4]
    finally:
        pool.close()


def test_a_real_study_on_a_local_ray_cluster_gives_the_same_numbers(tmp_path):
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    here = run_study("calibrated-hallucination", ledger=Ledger(tmp_path / "a.sqlite"), jobs=1)
    there = run_study("calibrated-hallucination", ledger=Ledger(tmp_path / "b.sqlite"), jobs=2, on="ray")
    key = lambda r: (r["protocol"], r["arm"], r["seed"], r["metric"], str(r["step"]))
    a, b = sorted(here.rows, key=key), sorted(there.rows, key=key)
    assert [key(r) for r in a] == [key(r) for r in b]
    assert [r["value"] for r in a] == pytest.approx([r["value"] for r in b], rel=1e-4, abs=1e-4, nan_ok=True)


def test_without_ray_the_install_command_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install 'etude\[cluster\]'"):
        RayPool(1)


def test_threads_are_shared_out():
    import torch

    before = torch.get_num_threads()
    pool = InProcess()
    pool.submit(torch.get_num_threads, key=0)
    assert [o.value for o in pool.as_completed()] == [1]
    assert torch.get_num_threads() == before
    workers = make_pool(2)
    try:
        workers.submit(torch.get_num_threads, key=0)
        workers.submit(time.sleep, 0.01, key=1)
        assert {o.key: o.value for o in workers.as_completed()}[0] == 1
    finally:
        workers.close()

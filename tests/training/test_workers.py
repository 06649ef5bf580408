"""Worker processes: results, errors, deaths, interruption, and every kind of parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
import torch

from etude.errors import MissingExtra, UsageError
from etude.training.workers import WorkerDied, WorkerError, WorkerPool, in_worker


class Own(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.a = a


def double(x: int) -> int:
    return 2 * x


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(2) as made:
        yield made


def test_values_errors_and_deaths(pool: WorkerPool) -> None:
    def own() -> None:
        raise Own(1, 2)

    def extra() -> None:
        raise MissingExtra("ray", "cluster", "this")

    pool.submit(double, 4, key="value")
    pool.submit(os.kill, 0, 0, key="none")
    pool.submit(lambda: os.kill(os.getpid(), signal.SIGKILL), key="killed")
    pool.submit(own, key="own")
    pool.submit(lambda: os._exit(3), key="exit")
    pool.submit(extra, key="extra")
    pool.submit(sys.exit, 5, key="sys")
    pool.submit(lambda: iter(range(3)).__next__ and (i for i in range(3)), key="unsendable")
    pool.submit(double, 5, key=("a", "key"))
    outcomes = {o.key: o for o in pool.as_completed()}
    assert len(outcomes) == 9
    assert outcomes["value"].value == 8
    assert outcomes["value"].error is None
    assert outcomes["value"].peak_bytes > 50 << 20
    assert outcomes["none"].value is None
    assert outcomes["none"].error is None
    assert isinstance(outcomes["killed"].error, WorkerDied)
    assert "SIGKILL" in str(outcomes["killed"].error)
    assert "'killed'" in str(outcomes["killed"].error)
    assert isinstance(outcomes["exit"].error, WorkerDied)
    assert "exit code 3" in str(outcomes["exit"].error)
    own_error = outcomes["own"].error
    assert isinstance(own_error, Own)
    assert (own_error.a, str(own_error)) == (1, "1 and 2")
    assert "In the worker" in own_error.__notes__[0]
    assert "in own\n" in own_error.__notes__[0]  # cloudpickle hides the file of a function sent by value
    assert isinstance(outcomes["extra"].error, MissingExtra)
    assert outcomes["extra"].error.extra == "cluster"
    assert isinstance(outcomes["sys"].error, SystemExit)
    assert isinstance(outcomes["unsendable"].error, WorkerError)
    assert outcomes[("a", "key")].value == 10


def test_workers_keep_their_memory_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    with WorkerPool(1) as made:
        kept = made.map(lambda name: os.environ.get(name), ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
    assert kept == [str(2**25), "1000000"]


def test_workers_stay_warm_and_are_single_threaded(pool: WorkerPool) -> None:
    def look() -> tuple[int, int, str, bool]:
        return os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], in_worker()

    first = {pool.map(lambda _: look(), range(6))[i][0] for i in range(6)}
    again = {r[0] for r in pool.map(lambda _: look(), range(6))}
    assert len(first | again) <= 2
    assert os.getpid() not in first
    assert pool.map(lambda _: look(), range(1))[0][1:] == (1, "1", True)
    assert not in_worker()


def test_calls_run_at_the_same_time(pool: WorkerPool) -> None:
    pool.map(double, range(2))
    start = time.perf_counter()
    pool.map(lambda _: time.sleep(0.4), range(2))
    assert time.perf_counter() - start < 0.75


def test_pools_are_never_nested(pool: WorkerPool) -> None:
    pool.submit(lambda: WorkerPool(1))
    (outcome,) = pool.as_completed()
    assert isinstance(outcome.error, UsageError)


def test_large_tensors_are_mapped_and_cannot_be_spoilt(pool: WorkerPool) -> None:
    big = torch.arange(2_000_000, dtype=torch.float64)
    total = float(big.sum())

    def spoil(x: torch.Tensor) -> float:
        before = float(x.sum())
        x.zero_()
        return before

    for _ in range(3):
        pool.submit(spoil, big)
    assert len(pool._mapped._files) == 1
    pool.submit(spoil, big.clone())  # gone here before it is read there
    assert [o.value for o in pool.as_completed()] == [total] * 4
    assert float(big.sum()) == total
    big.numpy()[:] += 1.0  # changed behind torch's back: it is sent anew
    pool.submit(spoil, big)
    assert [o.value for o in pool.as_completed()] == [float(big.sum())]
    pool.submit(spoil, big.view(1000, 2000)[:, ::2])
    assert [o.value for o in pool.as_completed()] == [float(big.view(1000, 2000)[:, ::2].sum())]
    pool.submit(double, 1)
    assert pool._mapped._files == {}
    list(pool.as_completed())


@pytest.mark.slow
def test_peak_memory_is_of_each_call(pool: WorkerPool) -> None:
    def fill(megabytes: int) -> int:
        return len(bytearray(os.urandom(1 << 20) * megabytes))

    with WorkerPool(1) as one:
        for megabytes in (1, 200, 1):
            one.submit(fill, megabytes, key=megabytes)
        small, large, after = [o.peak_bytes for o in one.as_completed()]
    assert large - small > 150 << 20
    assert after < large - (100 << 20)


@pytest.mark.slow
def test_initializer() -> None:
    def prepare() -> None:
        os.environ["PREPARED"] = "yes"

    def fail() -> None:
        raise OSError("no such disk")

    with WorkerPool(1, initializer=prepare) as pool:
        assert pool.map(lambda _: os.environ["PREPARED"], range(1)) == ["yes"]
        pool.submit(lambda: os._exit(1))
        list(pool.as_completed())
        assert pool.map(lambda _: os.environ["PREPARED"], range(1)) == ["yes"], "a new worker is prepared too"
    with WorkerPool(1, initializer=fail) as pool, pytest.raises(OSError, match="no such disk"):
        pool.map(double, range(1))


def test_work_may_be_added_while_it_runs(pool: WorkerPool) -> None:
    pool.submit(double, 1, key=1)
    seen = []
    for outcome in pool.as_completed():
        seen.append(outcome.value)
        if outcome.key < 4:
            pool.submit(double, outcome.key + 1, key=outcome.key + 1)
    assert seen == [2, 4, 6, 8]
    assert len(pool) == 0


def test_a_worker_that_dies_between_calls_is_replaced() -> None:
    with WorkerPool(1) as pool:
        (pid,) = pool.map(lambda _: os.getpid(), range(1))
        os.kill(pid, signal.SIGKILL)
        pool._workers[0].process.wait()
        (other,) = pool.map(lambda _: os.getpid(), range(1))
        assert other != pid


def test_closing_ends_running_calls() -> None:
    pool = WorkerPool(1)
    pool.map(double, range(1))
    process = pool._workers[0].process
    pool.submit(time.sleep, 60)
    start = time.perf_counter()
    pool.close()
    assert time.perf_counter() - start < 5
    assert process.poll() is not None
    pool.close()
    with pytest.raises(UsageError, match="closed"):
        pool.submit(double, 1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(0)
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(1, threads=0)
    with WorkerPool(1) as pool, pytest.raises(UsageError, match="cannot be sent"):
        pool.submit(double, (i for i in range(3)))


SCRIPT = """
from etude.training import WorkerPool
import torch

class Box:
    def __init__(self, x): self.x = x

def work(box):
    return Box(box.x + 1)

print("main runs")
with WorkerPool(2) as pool:
    boxes = pool.map(work, [Box(i) for i in range(3)])
print([b.x for b in boxes], all(type(b) is Box for b in boxes))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["command", "stdin", "file"])
def test_any_parent_without_a_main_guard(how: str, tmp_path: object) -> None:
    arguments, text = [sys.executable, "-c", SCRIPT], None
    if how == "stdin":
        arguments, text = [sys.executable, "-"], SCRIPT
    if how == "file":
        path = os.path.join(str(tmp_path), "script.py")
        with open(path, "w") as file:
            file.write(SCRIPT)
        arguments = [sys.executable, path]
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, timeout=120)
    assert done.stdout == "main runs\n[1, 2, 3] True\n", done.stderr


@pytest.mark.slow
def test_a_module_that_only_the_parent_finds(tmp_path: object) -> None:
    """Loaded from a file under a name that no import would find, as pytest does."""
    path = os.path.join(str(tmp_path), "strange.py")
    with open(path, "w") as file:
        file.write("FACTOR = 3\ndef triple(x):\n    return FACTOR * x\n")
    code = f"""
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("very.strange", {path!r})
    module = importlib.util.module_from_spec(spec)
    sys.modules["very.strange"] = module
    spec.loader.exec_module(module)
    from etude.training import WorkerPool
    with WorkerPool(1) as pool:
        print(pool.map(module.triple, [1, 2]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[3, 6]\n", done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_behind(tmp_path: object) -> None:
    code = """
    import os, signal, time
    from etude.training import WorkerPool
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's shell has it ignored
    pool = WorkerPool(2)
    print(*pool.map(lambda _: (time.sleep(0.3), os.getpid())[1], range(2)), flush=True)
    for _ in range(4):
        pool.submit(time.sleep, 60)
    try:
        list(pool.as_completed())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(0.5)
    os.killpg(parent.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    out, err = parent.communicate(timeout=120)
    assert out == "interrupted\n"
    assert err == ""
    assert not any(_alive(pid) for pid in children)


@pytest.mark.slow
def test_workers_leave_when_their_parent_is_killed() -> None:
    code = """
    import os, time
    from etude.training import WorkerPool
    pool = WorkerPool(1)
    print(*pool.map(lambda _: os.getpid(), range(1)), flush=True)
    pool.submit(time.sleep, 60)
    time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while _alive(child) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

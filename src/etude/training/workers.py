"""Warm worker processes: single-threaded, fed with calls over pipes, replaced when they die.

A worker is a fresh interpreter that has imported torch and waits for calls. It never runs the caller's
`__main__` again, so no ``if __name__ == "__main__":`` guard is needed and a script, ``python -c``, standard
input, a notebook or pytest can all be the parent. Functions and their closures travel by cloudpickle;
what is defined in `__main__`, or in a module that a fresh interpreter would not find, travels by value.
Large tensors of the caller are mapped into the workers' memory instead of being copied.
POSIX only (a pipe is handed on by its descriptor).
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Pipe, wait
from types import TracebackType
from typing import Any

from etude.errors import StudyError, UsageError
from etude.training.wire import Mapped, WorkerError, dumps

IN_WORKER = "ETUDE_WORKER"  # set in the environment of a worker and of whatever it starts
# glibc's malloc returns large blocks to the system at every free and so faults their pages in again at the next
# update (up to a quarter of a small convnet's time): a worker keeps them. Other allocators do not read these.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
}
START = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = {path!r}; "
    "from etude.training.wire import serve; serve({fd}, {parent}, {threads})"
)


class WorkerDied(StudyError):
    """A worker process ended (killed, out of memory, `os._exit`) while it ran a call."""


@dataclass(frozen=True)
class Outcome:
    """One finished call: its value, or the error it raised (with the worker's traceback as a note).

    `peak_bytes` is the highest resident memory of the worker during the call, `seconds` the call alone.
    """

    key: Any
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    worker: int = -1


def in_worker() -> bool:
    """Whether this code runs inside a worker of a `WorkerPool`."""
    return IN_WORKER in os.environ


class WorkerPool:
    """Processes that stay warm and take one call at a time each.

    Parameters
    ----------
    num_workers
        Processes; default: the cores that this process may use.
    threads
        Threads of torch and its libraries in each.
    initializer
        Called once in every new worker; if it raises, every call to that worker has that error.

    Raises
    ------
    UsageError
        Inside a worker (pools are never nested), or where processes cannot inherit a pipe.
    ValueError
        For fewer than one worker or thread.

    Notes
    -----
    Calls are started in the order of `submit`, as workers are free; a call that kills its worker is not
    repeated. On Ctrl-C in `as_completed`, or when the pool is closed, running calls are ended.
    """

    def __init__(
        self,
        num_workers: int | None = None,
        threads: int = 1,
        initializer: Callable[[], Any] | None = None,
    ) -> None:
        if in_worker():
            raise UsageError("this is a worker of a pool already: run the calls here instead of in a nested pool")
        if os.name != "posix" or not sys.executable:
            raise UsageError("worker processes need a POSIX system and a Python executable: use plan='sequential'")
        self.num_workers = cores() if num_workers is None else num_workers
        if self.num_workers < 1 or threads < 1:
            raise ValueError(f"num_workers and threads must be at least 1, got {num_workers} and {threads}")
        self.threads = threads
        self._mapped = Mapped()
        self._initializer = None if initializer is None else dumps(initializer, self._mapped)
        self._workers: list[_Worker] = []
        self._queue: deque[tuple[Any, bytes]] = deque()
        self._ready: deque[Outcome] = deque()
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._workers, self._owner)

    def submit(self, fn: Callable[..., Any], *args: Any, key: Any = None) -> None:
        """Queue ``fn(*args)``; its outcome carries `key`."""
        if not self._finalizer.alive:
            raise UsageError("the pool is closed")
        if not len(self):  # nothing that is still to be read refers to them
            self._mapped.clear()
        try:
            self._queue.append((key, dumps((fn, args), self._mapped)))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(f"the call {key!r} cannot be sent to a worker: {error}") from error
        self._dispatch()

    def as_completed(self) -> Iterator[Outcome]:
        """Outcomes as the calls end, until none is left. Calls may be submitted meanwhile."""
        try:
            while True:
                while self._ready:
                    yield self._ready.popleft()
                self._dispatch()
                busy = {w.pipe: w for w in self._workers if w.busy}
                if not busy and not self._ready:
                    return
                for pipe in wait(list(busy), timeout=0.0 if self._ready else 0.5):
                    self._take(busy[pipe])  # type: ignore[index]
                for worker in busy.values():
                    if worker.busy and worker.process.poll() is not None and not worker.pipe.poll():
                        self._bury(worker)
        except KeyboardInterrupt:
            self.close()
            raise

    def map(self, fn: Callable[..., Any], items: Any) -> list[Any]:
        """``[fn(item) for item in items]``; raises the first error in the order of `items`."""
        items = list(items)
        for i, item in enumerate(items):
            self.submit(fn, item, key=i)
        outcomes = {o.key: o for o in self.as_completed()}
        for i in range(len(items)):
            error = outcomes[i].error
            if error is not None:
                raise error
        return [outcomes[i].value for i in range(len(items))]

    def close(self) -> None:
        """End the workers, running calls included. Closing twice does nothing."""
        self._queue.clear()
        self._ready.clear()
        self._finalizer()
        self._mapped.clear()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def warm(self) -> int:
        """Workers that have been started and live."""
        return sum(w.process.poll() is None for w in self._workers)

    def start(self, number: int | None = None) -> None:
        """Start workers up to `number` (default: all) before a call needs them; does not wait for them."""
        number = self.num_workers if number is None else min(number, self.num_workers)
        while len(self._workers) < number:
            self._workers.append(_Worker(len(self._workers), self.threads, self._initializer))

    def __len__(self) -> int:
        """Calls queued, running, or finished and not yet taken."""
        return len(self._queue) + sum(w.busy for w in self._workers) + len(self._ready)

    def _dispatch(self) -> None:
        while self._queue:
            worker = next((w for w in self._workers if not w.busy), None)
            if worker is not None and worker.process.poll() is not None:  # died between two calls
                self._replace(worker)
                continue
            if worker is None:
                if len(self._workers) == self.num_workers:
                    return
                self.start(len(self._workers) + 1)
                worker = self._workers[-1]
            key, payload = self._queue.popleft()
            worker.key, worker.busy, worker.started = key, True, time.perf_counter()
            try:
                worker.pipe.send_bytes(payload)
            except (BrokenPipeError, ConnectionResetError):
                self._bury(worker)

    def _take(self, worker: "_Worker") -> None:
        try:
            payload = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self._bury(worker)
            return
        worker.busy = False
        try:
            value, error, seconds, peak = pickle.loads(payload)
        except Exception as caught:
            value, seconds, peak = None, time.perf_counter() - worker.started, 0
            error = WorkerError(f"the outcome of {worker.key!r} cannot be read: {type(caught).__name__}: {caught}")
        self._ready.append(Outcome(worker.key, value, error, seconds, peak, worker.number))

    def _bury(self, worker: "_Worker") -> None:
        key, seconds = worker.key, time.perf_counter() - worker.started
        try:
            code = worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            worker.process.kill()
            code = worker.process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        error = WorkerDied(f"worker {worker.number} died ({how}{hint}) while it ran {key!r}")
        self._ready.append(Outcome(key, None, error, seconds, 0, worker.number))
        self._replace(worker)

    def _replace(self, worker: "_Worker") -> None:
        worker.busy = False
        worker.end(0.0)
        if self._queue:  # else the next call that needs it starts it
            self._workers[worker.number] = _Worker(worker.number, self.threads, self._initializer)


class _Worker:
    """The parent's end of one process."""

    def __init__(self, number: int, threads: int, initializer: bytes | None) -> None:
        self.number, self.key, self.busy, self.started = number, None, False, 0.0
        self.pipe, child = Pipe()
        count = str(threads)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        environment = KEEP_MEMORY | os.environ | dict.fromkeys(names, count) | {IN_WORKER: "1"}
        path = [os.path.abspath(p) if p else os.getcwd() for p in sys.path]
        code = START.format(path=path, fd=child.fileno(), parent=os.getpid(), threads=threads)
        self.process = subprocess.Popen(
            [sys.executable, *_interpreter_flags(), "-c", code],
            pass_fds=[child.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        child.close()
        with suppress(BrokenPipeError, ConnectionResetError):  # it died at once: the first call finds out
            self.pipe.send_bytes(initializer or b"")

    def end(self, patience: float) -> None:
        self.pipe.close()  # an idle worker leaves by itself
        if self.busy:
            self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _end(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a forked child of the caller must not end its parent's workers
        return
    for worker in workers:
        worker.pipe.close()
        if worker.busy:
            worker.process.terminate()
    for worker in workers:
        worker.end(2.0)
    workers.clear()


def _interpreter_flags() -> list[str]:
    return [f"-W{option}" for option in sys.warnoptions] if len(sys.warnoptions) < 20 else []


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_shared: WorkerPool | None = None


def shared_pool() -> WorkerPool:
    """The pool of this process that `train` uses; made on first use, warm until the process ends."""
    global _shared
    if _shared is None or _shared._owner != os.getpid() or not _shared._finalizer.alive:
        _shared = WorkerPool()
        atexit.register(_shared.close)
    return _shared


__all__ = ["Outcome", "WorkerDied", "WorkerError", "WorkerPool", "cores", "in_worker", "shared_pool"]

"""Where jobs run: in this process, in warm worker processes, or on a Ray cluster. One shape for all."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from etude.errors import MissingExtra


class Finished(Protocol):
    """What comes back of a job: its key, and a value or an error."""

    @property
    def key(self) -> Any: ...

    @property
    def value(self) -> Any: ...

    @property
    def error(self) -> BaseException | None: ...

    @property
    def seconds(self) -> float: ...

    @property
    def peak_bytes(self) -> int: ...


class Pool(Protocol):
    """Takes calls, gives them back as they finish."""

    def submit(self, fn: Callable[..., Any], *args: Any, key: Any = None) -> None: ...

    def as_completed(self) -> Iterator[Finished]: ...

    def close(self) -> None: ...


class _Result(NamedTuple):
    key: Any
    value: Any
    error: BaseException | None
    seconds: float
    peak_bytes: int


def peak_memory() -> int:
    """Highest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def call(key: Any, fn: Callable[..., Any], args: tuple) -> _Result:
    """Run a job here and now, one thread, errors caught."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        value, error = fn(*args), None
    except Exception as caught:  # the job's own error is the result
        value, error = None, caught
    finally:
        torch.set_num_threads(threads)
    return _Result(key, value, error, time.perf_counter() - start, peak_memory())


class InProcess:
    """One job after another in this process: the reference, and the way on a GPU."""

    def __init__(self) -> None:
        self._todo: list[tuple[Any, Callable[..., Any], tuple]] = []

    def submit(self, fn: Callable[..., Any], *args: Any, key: Any = None) -> None:
        self._todo.append((key, fn, args))

    def as_completed(self) -> Iterator[_Result]:
        while self._todo:
            key, fn, args = self._todo.pop(0)
            yield call(key, fn, args)

    def close(self) -> None:
        self._todo.clear()


class RayPool:
    """Jobs as Ray tasks of one core each: a cluster when `RAY_ADDRESS` names one, else this machine.

    Raises
    ------
    MissingExtra
        Without the package `ray`.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "cluster", "running studies on a cluster (--on ray)") from error
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            import os

            local: dict[str, Any] = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_workers, "include_dashboard": False}
            )
            ray.init(log_to_driver=False, configure_logging=False, **local)
        self._call = ray.remote(num_cpus=1, max_retries=0)(call)
        self._keys: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., Any], *args: Any, key: Any = None) -> None:
        self._keys[self._call.remote(key, fn, args)] = key

    def as_completed(self) -> Iterator[_Result]:
        while self._keys:
            ready, _ = self._ray.wait(list(self._keys), num_returns=1)
            key = self._keys.pop(ready[0])
            try:
                yield self._ray.get(ready[0])
            except self._ray.exceptions.RayError as error:
                yield _Result(key, None, error, 0.0, 0)

    def close(self) -> None:
        for ref in self._keys:
            self._ray.cancel(ref, force=True)
        self._keys.clear()
        if self._own:
            self._ray.shutdown()


def make_pool(workers: int, on: str = "local", device: str = "cpu") -> Pool:
    """The pool for a run: Ray, this process (one worker, or a GPU), or warm worker processes."""
    if on == "ray":
        return RayPool(workers)
    if workers == 1 or device != "cpu":
        return InProcess()
    from etude.training.workers import WorkerPool

    return WorkerPool(num_workers=workers, threads=1)


__all__ = ["Finished", "InProcess", "Pool", "RayPool", "make_pool"]

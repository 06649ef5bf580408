"""What goes between a pool and its workers, and the worker's side of it.

Calls and results are cloudpickles. Large tensors of the caller are mapped into the workers' memory; what a fresh
interpreter would not find by its name is sent by value; errors keep their class whatever its constructor
takes.
"""

import io
import os
import pickle
import sys
import threading
import time
import traceback
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from etude.errors import StudyError

SHARED_BYTES = 1 << 20  # tensors from this size on are mapped, not copied


class WorkerError(StudyError):
    """A call's result or error could not be brought back from its worker."""


class Mapped:
    """Large tensors of the caller as anonymous files, which the workers map. A tensor that goes with several
    calls has one file, until the pool is idle."""

    def __init__(self) -> None:
        self._files: dict[tuple[Any, ...], tuple[int, Tensor]] = {}

    def reduce(self, x: Tensor) -> Any:
        """How to rebuild `x` in a worker, or NotImplemented to send it as it is."""
        size = x.numel() * x.element_size()
        plain = type(x) is Tensor and x.device.type == "cpu" and x.layout == torch.strided and not x.requires_grad
        if not plain or size < SHARED_BYTES or not x.is_contiguous() or not hasattr(os, "memfd_create"):
            return NotImplemented
        name = (x.data_ptr(), x._version, tuple(x.shape), x.dtype)
        if name not in self._files:
            fd = os.memfd_create("etude")
            with open(fd, "wb", closefd=False) as file:
                file.write(x.view(-1).view(torch.uint8).numpy().data)
            self._files[name] = (fd, x)  # held, so that its address is not given to another
        return _map_tensor, (f"/proc/{os.getpid()}/fd/{self._files[name][0]}", tuple(x.shape), x.dtype)

    def clear(self) -> None:
        for fd, _ in self._files.values():
            os.close(fd)
        self._files.clear()


def _map_tensor(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    count = 1
    for length in shape:
        count *= length
    return torch.from_file(path, shared=False, size=count, dtype=dtype).view(shape)


class _Pickler(cloudpickle.Pickler):
    """cloudpickle that maps large tensors and sends by value what a fresh interpreter would not find."""

    def __init__(self, file: io.BytesIO, mapped: Mapped | None) -> None:
        super().__init__(file)
        self._mapped = mapped

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return NotImplemented if self._mapped is None else self._mapped.reduce(obj)
        if isinstance(obj, BaseException):
            return _rebuild_error, (type(obj), obj.args, dict(obj.__dict__))
        if isinstance(obj, type) or callable(obj):
            _register(getattr(obj, "__module__", None))
        return super().reducer_override(obj)


def dumps(value: Any, mapped: Mapped | None = None) -> bytes:
    """Pickle a call (`mapped` keeps the files of its large tensors) or a result (without)."""
    buffer = io.BytesIO()
    _Pickler(buffer, mapped).dump(value)
    return buffer.getvalue()


_seen: set[str] = set()


def _register(name: str | None) -> None:
    if not isinstance(name, str) or name in _seen or name == "__main__" or name not in sys.modules:
        return
    _seen.add(name)
    module = sys.modules[name]
    file = getattr(module, "__file__", None)
    if file is not None and not _findable(name, file):
        cloudpickle.register_pickle_by_value(module)


def _findable(name: str, file: str) -> bool:
    """Whether a fresh interpreter with our `sys.path` imports `name` from `file`."""
    path, spec = None, None
    parts = name.split(".")
    for i in range(len(parts)):
        full = ".".join(parts[: i + 1])
        finders = [f for f in sys.meta_path if f is PathFinder or "editable" in str(getattr(f, "__module__", f))]
        found = (f.find_spec(full, path) for f in finders)
        spec = next((s for s in found if s is not None), None)
        if spec is None:
            return False
        path = spec.submodule_search_locations
    return spec is not None and spec.origin is not None and os.path.samefile(spec.origin, file)


def _rebuild_error(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


# The worker's side


def serve(fd: int, parent: int, threads: int) -> None:
    """The life of a worker: read a call, run it, send the outcome; end with the pipe or with the parent."""
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    pipe = Connection(fd)
    os.set_inheritable(fd, False)  # what a call starts must not keep the pipe open
    broken: BaseException | None = None
    try:
        first = pipe.recv_bytes()
        if first:
            try:
                pickle.loads(first)()
            except Exception as caught:
                broken = caught
        while True:
            pipe.send_bytes(_outcome(pipe.recv_bytes(), broken))
    except (EOFError, OSError):
        return  # the parent closed the pipe


def _outcome(payload: bytes, broken: BaseException | None) -> bytes:
    _reset_peak()
    start, value, error = time.perf_counter(), None, broken
    if error is None:
        try:
            fn, args = pickle.loads(payload)
            start = time.perf_counter()
            value = fn(*args)
            del fn, args
        except BaseException as caught:  # SystemExit of a call is that call's error
            caught.add_note(f"In the worker:\n{traceback.format_exc().rstrip()}")
            error = caught.with_traceback(None)
    seconds = time.perf_counter() - start
    try:
        return dumps((value, error, seconds, _peak()))
    except Exception as caught:
        what = "result" if error is None else f"error {type(error).__name__}: {error}"
        lost = WorkerError(f"the call's {what} cannot be sent back: {type(caught).__name__}: {caught}")
        return dumps((None, lost, seconds, _peak()))


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _reset_peak() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: the peak restarts at the present size
    except OSError:
        pass


def _peak() -> int:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

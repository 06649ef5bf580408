"""Callbacks of `train`: checkpoints to resume from, and a progress bar.

A callback is any object with some of ``on_start(state)``, ``on_step(state)``, ``on_eval(state)`` and
``on_end(state)``. `portable = True` says that it keeps nothing for the caller and may act in a worker process;
`one_seed = True` that it cannot work where many seeds are updated in one loop.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etude.data.progress import track
from etude.data.randomness import fork_global, stream
from etude.files import written
from etude.training.config import TrainConfig
from etude.training.run import State

FORMAT = "1"
FREE = ("steps", "epochs", "seconds", "patience", "stop_when", "eval_every")  # may differ on resuming


class Checkpoint:
    """Save a run so that it can go on where it was killed, bit for bit.

    Batches that are given as an iterable (a `DataLoader`) must come in the same order again: they are drawn anew up
    to where the run stood. Give a loader that shuffles a ``generator=`` of its own for each call, or the rows
    themselves: one that draws its order from the global generator is refused.

    One file a seed, ``<folder>/seed-<n>.safetensors``, replaced as a whole. When `train` is called
    again with the same folder, each seed starts from its file; a finished seed is not trained again.

    Parameters
    ----------
    folder
        Made if it does not exist.
    every
        Updates between two saves; default: at each point of the curve. The last state is always saved.

    Raises
    ------
    ValueError
        On resuming, if the file was made with another configuration or another net, holds more updates than the
        run has, or cannot be read, or if the batches cannot be drawn in the same order again.
    """

    portable = True
    one_seed = True

    def __init__(self, folder: str | os.PathLike[str], *, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1 update, got {every}")
        self.folder, self.every = Path(folder), every

    def path(self, seed: int) -> Path:
        """The file of a seed."""
        return self.folder / f"seed-{seed}.safetensors"

    def on_start(self, state: State) -> None:
        if state.restore is None or state.config is None:
            raise ValueError("a checkpoint needs plan 'sequential' or 'processes'")
        path = self.path(state.seed)
        if not path.exists():
            return
        saved = _read(path)
        _compare(saved["config"], _settings(state.config), path)
        lane = saved["run"]["lane"]
        if lane["step"] > state.total:
            raise ValueError(
                f"{path} stands at update {lane['step']}, this run ends at {state.total}: use another folder"
            )
        ends = _ends(state.config)
        if lane["stopped"] in ("patience", "stop_when") and saved.get("ends", ends) != ends:
            lane["stopped"] = ""  # the rule that ended it was changed: go on
        if saved["total"] != state.total and state.config.schedule in ("cosine", "linear"):
            raise ValueError(
                f"{path} belongs to a run of {saved['total']} updates, this one has {state.total}, and schedule "
                f"{state.config.schedule!r} depends on it: use another folder"
            )
        try:
            with fork_global(stream(state.seed, "resume")):  # batches drawn anew may draw from the caller's generators
                state.restore(saved["run"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path} does not fit this net: {error}") from error

    def on_step(self, state: State) -> None:
        if self._due(state):
            self._save(state)

    def on_eval(self, state: State) -> None:  # again where on_step has saved: the point belongs to the update
        if self.every is None or self._due(state) or state.stopped or state.step >= state.total:
            self._save(state)

    def _due(self, state: State) -> bool:
        return self.every is not None and state.step % self.every == 0

    def _save(self, state: State) -> None:
        assert state.snapshot is not None and state.config is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "config": _settings(state.config), "ends": _ends(state.config), "total": state.total,
            "run": state.snapshot(),
        }  # fmt: skip
        _write(self.path(state.seed), content)


class Progress:
    """A bar on the terminal for runs that last longer than two seconds; moves at each point of the curve."""

    def __init__(self, points: int, what: str) -> None:
        self._bar: Iterator[int] = iter(track(range(points), what, points))
        next(self._bar, None)

    def on_eval(self, state: State) -> None:
        next(self._bar, None)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()  # type: ignore[attr-defined]


def _settings(config: TrainConfig) -> dict[str, str]:
    plain = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in FREE}
    return {name: _named(value) if callable(value) else repr(value) for name, value in plain.items()}


def _named(value: Any) -> str:
    """A function by its name, a partial one with its arguments, a lambda by its code and plain values."""
    if isinstance(value, partial):
        return repr((_named(value.func), value.args, value.keywords))
    name = getattr(value, "__name__", type(value).__name__)
    if name != "<lambda>":
        return name
    code = value.__code__
    held = (*code.co_consts, *(cell.cell_contents for cell in value.__closure__ or ()), *(value.__defaults__ or ()))
    plain = [v for v in held if isinstance(v, bool | int | float | str | tuple)]
    return repr((name, code.co_code.hex(), code.co_names, plain))


def _ends(config: TrainConfig) -> list[str]:
    """The rules that end a run early."""
    return [repr(config.patience), "None" if config.stop_when is None else _named(config.stop_when)]


def _compare(saved: dict[str, str], present: dict[str, str], path: Path) -> None:
    wrong = [n for n in present if saved.get(n) != present[n]]
    if wrong:
        changes = ", ".join(f"{n} was {saved.get(n)} and is {present[n]}" for n in wrong)
        raise ValueError(f"{path} was made with another configuration: {changes}. Use another folder")


def _write(path: Path, content: Any) -> None:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(content, "", tensors))
    with written(path) as part:  # a killed save leaves the old file
        save_file(tensors, part, metadata={"format": FORMAT, "content": text})


def _read(path: Path) -> Any:
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole checkpoint ({error}): delete it to start anew") from error
    with opened as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is no checkpoint of this version")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _unpack(json.loads(metadata["content"]), tensors)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with tensors by name; keeps integer keys and tuples apart from strings and lists."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{name}.{k}" if name else str(k), tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in inner)
    return {k: _unpack(v, tensors) for k, v in inner}

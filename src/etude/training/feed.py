"""Batches of one seed: rows of a split in the order of its stream, fresh draws, or the user's own batches.

A split is shuffled anew each epoch and gathered some batches at a time, so that a batch is a view.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from etude.data.randomness import stream
from etude.data.tasks import Split

CHUNK_BYTES = 8 << 20  # gathered at once


def move(value: Any, device: torch.device) -> Any:
    """Tensors inside splits, tuples, lists and dictionaries, on `device`; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: move(v, device) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(v, device) for v in value))
    if isinstance(value, (tuple, list)) and any(isinstance(v, (Tensor, dict, tuple, list)) for v in value):
        return type(value)(move(v, device) for v in value)
    return value


def float_images(split: Any) -> Any:
    """Images kept as uint8 pixels become float32 in [0, 1], as in `etude.data.Batches`."""
    x = split[0]
    if isinstance(x, Tensor) and x.dtype == torch.uint8:
        return split._replace(x=x.float().div_(255))
    return split


def as_split(data: Any) -> Any:
    """A split from a split or an (x, y) pair; numeric arrays become tensors."""
    if isinstance(data, tuple) and not hasattr(data, "_fields"):
        if not 1 <= len(data) <= 2:
            raise ValueError(f"data as a tuple are (x, y), got {len(data)} entries")
        data = Split(*data)
    if not hasattr(data, "_fields"):
        raise ValueError(f"cannot train on {type(data).__name__}: give a Split, (x, y), Batches or sampled(draw)")
    columns = [torch.as_tensor(c) if isinstance(c, np.ndarray) and c.dtype.kind in "fiub" else c for c in data]
    n = len(columns[0])
    for name, column in zip(data._fields, columns):
        if column is not None and len(column) != n:
            raise ValueError(f"column {name!r} has {len(column)} rows, {data._fields[0]!r} has {n}")
    if n == 0:
        raise ValueError("no rows to train on")
    return type(data)(*columns)


class Feed:
    """Endless batches of one seed; `steps_per_epoch` is None where the data have no end."""

    steps_per_epoch: int | None = None

    def next(self) -> Any:
        raise StopIteration

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class RowFeed(Feed):
    """Shuffled rows of a split."""

    def __init__(
        self, data: Any, batch_size: int, generator: torch.Generator, *, drop_last: bool, device: torch.device
    ) -> None:
        self.data, self.batch_size, self.generator = move(data, device), batch_size, generator
        self.n = len(data[0])
        self.epoch_steps = self.n // batch_size if drop_last else math.ceil(self.n / batch_size)
        self.steps_per_epoch = self.epoch_steps
        if self.epoch_steps == 0:
            raise ValueError(f"{self.n} rows make no full batch of {batch_size}: drop_last=False keeps them")
        self.kept = min(self.n, self.epoch_steps * batch_size)
        self.device, self.kind = device, type(self.data)
        self.used = [i for i, column in enumerate(self.data) if column is not None]
        self.row_bytes = sum(c[:1].numel() * c.element_size() for c in self.data if isinstance(c, Tensor))
        self.per_chunk = max(1, CHUNK_BYTES // max(1, self.row_bytes * batch_size))
        self.start = generator.get_state()  # of the order stream, before the running epoch was drawn
        self.epoch_step = self.epoch_steps  # batches of the epoch already given
        self.batches: Iterator[Any] = iter(())

    def next(self) -> Any:
        batch = next(self.batches, None)
        if batch is None:
            if self.epoch_step >= self.epoch_steps:
                self._shuffle()
            self._gather()
            batch = next(self.batches)
        self.epoch_step += 1
        return batch

    def _shuffle(self) -> None:
        self.start = self.generator.get_state()
        self.order = torch.randperm(self.n, generator=self.generator)[: self.kept]
        self.epoch_step = 0

    def _gather(self) -> None:
        first = self.epoch_step * self.batch_size
        rows = self.order[first : first + self.per_chunk * self.batch_size]
        parts: list[Any] = [None] * len(self.data)
        count = math.ceil(len(rows) / self.batch_size)
        here = rows.to(self.device)
        for i in self.used:
            column = self.data[i]
            if isinstance(column, Tensor):
                chunk = column.index_select(0, here)
                if i == 0 and chunk.dtype == torch.uint8:
                    chunk = chunk.float().div_(255)
                parts[i] = chunk.split(self.batch_size)
            else:
                parts[i] = _split_rows(column, rows, self.batch_size)
        empty = (None,) * count
        self.batches = map(self.kind, *(empty if p is None else p for p in parts))

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.start, "epoch_step": self.epoch_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["order"])
        self.start, done, self.batches = state["order"], int(state["epoch_step"]), iter(())
        self.epoch_step = self.epoch_steps
        if done < self.epoch_step:
            self._shuffle()
        else:  # the epoch was finished: draw it so that the stream stands after it
            torch.randperm(self.n, generator=self.generator)
        self.epoch_step = done


def _split_rows(column: Any, rows: Tensor, size: int) -> list[Any]:
    if isinstance(column, np.ndarray):
        return [column[part.numpy()] for part in rows.split(size)]
    return [[column[i] for i in part.tolist()] for part in rows.split(size)]


class DrawFeed(Feed):
    """Fresh data: `draw(generator, step)`."""

    def __init__(
        self, draw: Callable[[torch.Generator, int], Any], generator: torch.Generator, device: torch.device
    ) -> None:
        self.draw, self.generator, self.device, self.step = draw, generator, device, 0

    def next(self) -> Any:
        batch = self.draw(self.generator, self.step)
        self.step += 1
        return batch if self.device.type == "cpu" else move(batch, self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.generator.get_state(), "draws": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["data"])
        self.step = int(state["draws"])


class BatchesFeed(Feed):
    """The user's own iterable of batches, gone through again and again."""

    def __init__(self, batches: Any, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.steps_per_epoch = len(batches) if hasattr(batches, "__len__") else None
        self.given = 0
        self.iterator: Iterator[Any] = iter(())

    def next(self) -> Any:
        batch = next(self.iterator, None)
        if batch is None:
            self.iterator = iter(self.batches)
            batch = next(self.iterator, None)
            if batch is None:
                raise ValueError(
                    "the batches to train on are exhausted: give an iterable that can be gone through again"
                )
        self.given += 1
        if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields") and len(batch) <= 2:
            batch = Split(*batch)
        return move(batch, self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if isinstance(getattr(self.batches, "sampler", None), RandomSampler) and self.batches.generator is None:
            raise ValueError(
                "a DataLoader that shuffles without a generator of its own cannot be gone through again in the same "
                "order: give it generator=torch.Generator().manual_seed(...), or train the rows themselves"
            )
        for _ in range(int(state["given"])):
            self.next()


def make_feed(data: Any, seed: int, *, batch_size: int, drop_last: bool, device: torch.device) -> Feed:
    """The batches of one seed from whatever `train` was given as data."""
    if hasattr(data, "draw"):
        return DrawFeed(data.draw, stream(seed, "data"), device)
    if callable(data):
        return make_feed(data(seed), seed, batch_size=batch_size, drop_last=drop_last, device=device)
    if isinstance(data, tuple):
        rows = as_split(data)
        return RowFeed(rows, batch_size, stream(seed, "order"), drop_last=drop_last, device=device)
    if hasattr(data, "__iter__") and not isinstance(data, (Tensor, np.ndarray, dict, str)):
        return BatchesFeed(data, device)
    raise ValueError(f"cannot train on {type(data).__name__}: give a Split, (x, y), Batches or sampled(draw)")

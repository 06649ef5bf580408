"""Batches of many seeds at once, with a leading axis of seeds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etude.training.feed import Feed, RowFeed

CHUNK_BYTES = 16 << 20


class CannotBatch(ValueError):
    """This net, loss or data cannot be trained for many seeds in one loop; the message says why."""


class BatchedFeed:
    """Batches of all seeds with a leading axis of seeds; the order of each is that of its own feed."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.pending: list[Any] = []
        self.rows = [f for f in feeds if isinstance(f, RowFeed)]
        self.together = len(self.rows) == len(feeds) and self._join()

    def _join(self) -> bool:
        first = self.rows[0]
        if any(f.n != first.n or f.used != first.used for f in self.rows):
            raise CannotBatch(f"the seeds' data differ in size: {sorted({f.n for f in self.rows})} rows")
        if not all(isinstance(first.data[i], Tensor) for i in first.used):
            raise CannotBatch("some columns of the data are no tensors")
        self.offsets = torch.zeros(len(self.rows), dtype=torch.long)
        self.columns: list[Any] = list(first.data)
        if any(f.data[i] is not first.data[i] for f in self.rows for i in first.used):
            if any(f.data[i].shape != first.data[i].shape for f in self.rows for i in first.used):
                raise CannotBatch("the seeds' data differ in shape")
            self.columns = [
                torch.cat([f.data[i] for f in self.rows]) if i in first.used else None for i in range(len(first.data))
            ]
            self.offsets = torch.arange(len(self.rows)) * first.n
        self.epoch_step = first.epoch_steps
        return True

    def next(self) -> Any:
        """A split whose columns are (S, B, ...)."""
        if not self.together:
            return _stack_batches([f.next() for f in self.feeds])
        if not self.pending:
            self._gather()
        return self.pending.pop()

    def _gather(self) -> None:
        first = self.rows[0]
        if self.epoch_step >= first.epoch_steps:
            orders = [torch.randperm(f.n, generator=f.generator)[: f.kept] for f in self.rows]
            self.order = torch.stack(orders) + self.offsets[:, None]
            self.epoch_step = 0
        size, seeds = first.batch_size, len(self.rows)
        begin = self.epoch_step * size
        full = (self.order.shape[1] - begin) // size
        count = min(full, max(1, CHUNK_BYTES // max(1, first.row_bytes * size * seeds)))
        if full == 0:  # the last batch, not full
            index, size, count = self.order[:, begin:].reshape(1, seeds, -1), self.order.shape[1] - begin, 1
        else:
            index = self.order[:, begin : begin + count * size].view(seeds, count, size).transpose(0, 1)
        flat = index.reshape(-1).to(first.device)
        parts: list[Any] = [[None] * count for _ in self.columns]
        for i in first.used:
            chunk = self.columns[i].index_select(0, flat)
            if i == 0 and chunk.dtype == torch.uint8:
                chunk = chunk.float().div_(255)
            parts[i] = chunk.view(count, seeds, size, *chunk.shape[1:]).unbind(0)
        self.pending = [first.kind(*columns) for columns in zip(*parts)][::-1]
        self.epoch_step += count

    def keep(self, lanes: list[int]) -> None:
        """Go on with these seeds only."""
        self.feeds = [self.feeds[i] for i in lanes]
        if self.together:
            index = torch.tensor(lanes)
            self.rows = [self.rows[i] for i in lanes]
            self.offsets, self.order = self.offsets[index], self.order[index]
            self.pending = [type(b)(*(None if c is None else c[index.to(c.device)] for c in b)) for b in self.pending]


def _stack_batches(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        if any(b.shape != first.shape for b in batches):
            raise CannotBatch(f"the seeds' batches differ in shape: {sorted({tuple(b.shape) for b in batches})}")
        return torch.stack(batches)
    if first is None or isinstance(first, (int, float, str, bool)):
        if any(b != first for b in batches):
            raise CannotBatch(f"the seeds' batches differ in a plain value: {batches}")
        return first
    if isinstance(first, dict):
        return {k: _stack_batches([b[k] for b in batches]) for k in first}
    if isinstance(first, tuple):
        parts = [_stack_batches(list(column)) for column in zip(*batches)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    raise CannotBatch(f"batches of {type(first).__name__} cannot be stacked over seeds: give tensors")


def flatten_batch(value: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """The tensors of a batch, and a function that puts others in their places (it uses up its list)."""
    if isinstance(value, Tensor):
        return [value], lambda leaves: leaves.pop(0)
    if isinstance(value, dict):
        items = {k: flatten_batch(v) for k, v in value.items()}
        found = [leaf for leaves, _ in items.values() for leaf in leaves]
        return found, lambda leaves: {k: make(leaves) for k, (_, make) in items.items()}
    if isinstance(value, tuple):
        parts = [flatten_batch(v) for v in value]
        found = [leaf for leaves, _ in parts for leaf in leaves]
        if hasattr(value, "_fields"):
            return found, lambda leaves: type(value)(*(make(leaves) for _, make in parts))
        return found, lambda leaves: tuple(make(leaves) for _, make in parts)
    return [], lambda leaves: value


def lane_batches(batch: Any, seeds: int) -> list[Any]:
    """Each seed's own batch, as views."""
    leaves, rebuild = flatten_batch(batch)
    return [rebuild(list(parts)) for parts in zip(*(leaf.unbind(0) for leaf in leaves))]

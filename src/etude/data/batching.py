"""Mini-batches over data in memory, and fresh data drawn step by step.

Data stay where they are as whole tensors; a batch is one index operation a column. Images kept as uint8 pixels
become float32 in [0, 1] in the batch, so that 60,000 of them need no float copy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from etude.data.tasks import Split

POOL = 50  # batches sorted together by length: enough to cut padding, few enough to keep the order random


@dataclass(frozen=True)
class Sampled:
    """Data drawn anew for every step: ``draw(generator, step)`` returns a batch."""

    draw: Callable[[torch.Generator, int], Any]

    def endless(self, generator: torch.Generator) -> Iterator[Any]:
        """Batches of steps 0, 1, 2, ..."""
        return (self.draw(generator, step) for step in count())


def sampled(draw: Callable[[torch.Generator, int], Any]) -> Sampled:
    """Mark `draw` as the source of a training run's batches: exact generators, in-context tasks."""
    if not callable(draw):
        raise ValueError(f"sampled() takes a function draw(generator, step), got {type(draw).__name__}")
    return Sampled(draw)


class Batches:
    """Batches of a split in an order drawn from `generator`.

    Iterating runs through the rows once, in a new order each time; `endless` goes on for ever.

    Parameters
    ----------
    data
        The rows. Columns that are lists are indexed one by one.
    batch_size
        Rows a batch; more than there are rows gives one batch of all.
    generator
        CPU generator that every order is drawn from.
    drop_last
        Leave out the rows that do not fill a batch.
    bucket_by_length
        Put rows of like `data.lengths` together and cut the padding that no row of the batch needs from `x`
        (and from `y` where it is as long).
    balance
        One integer a row (often `data.y`): each of its values makes up the same share of every epoch. Rows of rare
        values come several times, rows of common ones not in every epoch.
    device
        Where the batches lie; the data are moved there once.
    """

    def __init__(
        self,
        data: Split,
        batch_size: int,
        generator: torch.Generator,
        *,
        drop_last: bool = False,
        bucket_by_length: bool = False,
        balance: Tensor | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if data.n == 0:
            raise ValueError("there are no rows to make batches of")
        if drop_last and data.n < batch_size:
            raise ValueError(f"drop_last leaves nothing of {data.n} rows at batch_size {batch_size}")
        if bucket_by_length and data.lengths is None:
            raise ValueError("bucket_by_length needs data.lengths, which is None")
        if balance is not None and len(balance) != data.n:
            raise ValueError(f"balance has {len(balance)} entries for {data.n} rows")
        self.data = data if device is None else data.to(device)
        self.batch_size, self.generator, self.drop_last = batch_size, generator, drop_last
        # the common case is spared every look at what kind of column there is
        self._tensors = all(c is None or isinstance(c, Tensor) for c in self.data)
        self._lengths = torch.as_tensor(data.lengths).cpu() if bucket_by_length else None
        self._balance = None if balance is None else torch.as_tensor(balance).cpu().unique(return_inverse=True)[1]

    def __len__(self) -> int:
        """Batches an epoch."""
        n = self.data.n
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Split]:
        order = self._order()
        device = self.data.x.device if isinstance(self.data.x, Tensor) else None
        chunks = list(order.split(self.batch_size))
        if self._lengths is not None:
            chunks = self._bucket(order)
        elif device is not None and device.type != "cpu":
            chunks = list(order.to(device).split(self.batch_size))
        if self.drop_last:
            chunks = [c for c in chunks if len(c) == self.batch_size]
        for rows in chunks:
            yield self._batch(rows)

    def endless(self) -> Iterator[Split]:
        """Epoch after epoch."""
        while True:
            yield from self

    def _order(self) -> Tensor:
        n = self.data.n
        if self._balance is None:
            return torch.randperm(n, generator=self.generator)
        members = [(self._balance == value).nonzero()[:, 0] for value in range(int(self._balance.max()) + 1)]
        shares = [n // len(members) + (i < n % len(members)) for i in range(len(members))]
        drawn = []
        for rows, share in zip(members, shares, strict=True):
            rounds = -(-share // len(rows))
            again = [rows[torch.randperm(len(rows), generator=self.generator)] for _ in range(rounds)]
            drawn.append(torch.cat(again)[:share])
        return torch.cat(drawn)[torch.randperm(n, generator=self.generator)]

    def _bucket(self, order: Tensor) -> list[Tensor]:
        assert self._lengths is not None
        chunks: list[Tensor] = []
        for pool in order.split(self.batch_size * POOL):
            by_length = pool[torch.sort(self._lengths[pool], stable=True).indices]
            chunks += by_length.split(self.batch_size)
        return [chunks[i] for i in torch.randperm(len(chunks), generator=self.generator).tolist()]

    def _batch(self, rows: Tensor) -> Split:
        if self._tensors:
            batch = Split(*[None if c is None else c.index_select(0, rows) for c in self.data])
        else:
            batch = self.data.take(rows)
        if self._lengths is not None:
            batch = _trim(batch, int(self._lengths[rows.cpu()].max()))
        if isinstance(batch.x, Tensor) and batch.x.dtype == torch.uint8:
            batch = batch._replace(x=batch.x.float().div_(255))
        return batch


def _trim(batch: Split, longest: int) -> Split:
    if not isinstance(batch.x, Tensor):
        return batch
    width = batch.x.shape[1]
    y = batch.y
    if isinstance(y, Tensor) and y.ndim > 1 and y.shape[1] == width:
        y = y[:, :longest]
    return batch._replace(x=batch.x[:, :longest], y=y)

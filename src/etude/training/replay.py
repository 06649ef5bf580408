"""A memory of earlier samples: a uniform sample of the whole stream (reservoir), or the latest ones (fifo).

Source of the reservoir: Vitter 1985, algorithm R: the t-th row takes the place of a random one of the rows seen
so far, so that after every row each of the t rows lies in memory with probability size / t.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


class ReplayBuffer:
    """Keeps at most `size` rows of what it is given.

    Parameters
    ----------
    size
        Rows held at most.
    policy
        "reservoir": every row of the stream is held with the same probability. "fifo": the latest rows.
    generator
        CPU generator that places and samples are drawn from; part of `state_dict`.
    device
        Where the rows lie; None: where the first batch lies.

    Raises
    ------
    ValueError
        If `size` is below 1, the policy unknown, a batch has no rows or its columns differ from the first batch's.
    """

    def __init__(
        self,
        size: int,
        policy: Literal["reservoir", "fifo"] = "reservoir",
        generator: torch.Generator | None = None,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if policy not in ("reservoir", "fifo"):
            raise ValueError(f"policy must be 'reservoir' or 'fifo', got {policy!r}")
        if generator is None:
            raise ValueError("give a generator, e.g. etude.data.stream(seed, 'replay')")
        self.size, self.policy, self.generator, self.device = size, policy, generator, device
        self.num_seen = 0
        self._columns: list[Tensor | None] = []
        self._spec: Any = None

    def __len__(self) -> int:
        return min(self.num_seen, self.size)

    def add(self, batch: Any) -> Tensor:
        """Take in the rows of a batch (a `Split`, tensor, tuple or dictionary of tensors), in order.

        The cost does not depend on how much is held. Returns the place of every row, (B,) int64; -1 for a row that
        the reservoir did not take or that a later row of the same batch pushed out again.
        """
        leaves, n = self._checked(batch)
        places = self._places(n)
        kept = _last_of_each(places)
        chosen = kept.nonzero()[:, 0]
        for column, rows in zip(self._columns, leaves, strict=True):
            if column is not None and rows is not None:
                column[places[chosen].to(column.device)] = rows[chosen.to(rows.device)].detach().to(column.device)
        self.num_seen += n
        return torch.where(kept, places, -1)

    def _places(self, n: int) -> Tensor:
        number = torch.arange(self.num_seen, self.num_seen + n)
        if self.policy == "fifo":
            return number % self.size
        drawn = torch.randint(2**62, (n,), generator=self.generator) % (number + 1)
        place = torch.where(number < self.size, number, drawn)
        return torch.where(place < self.size, place, -1)

    def _checked(self, batch: Any) -> tuple[list[Tensor | None], int]:
        leaves, spec = tree_flatten(batch)
        tensors = [leaf for leaf in leaves if leaf is not None]
        if not tensors or not all(isinstance(t, Tensor) and t.ndim for t in tensors):
            raise ValueError("a batch must hold tensors, one row a sample")
        sizes = {len(t) for t in tensors}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"the tensors of a batch must have one first axis of at least 1, got {sorted(sizes)}")
        if self._spec is None:
            self._spec = spec
            self._columns = [
                None if t is None else t.new_empty((self.size, *t.shape[1:]), device=self.device or t.device)
                for t in leaves
            ]
        for column, t in zip(self._columns, leaves, strict=len(leaves) == len(self._columns)):
            if (column is None) != (t is None) or (column is not None and column.shape[1:] != t.shape[1:]):
                have, got = _shape(column), _shape(t)
                raise ValueError(f"rows of shape {got} do not fit the buffer's {have}")
        if spec != self._spec:
            raise ValueError("the batch is built otherwise than the first one that was added")
        return leaves, sizes.pop()

    def sample(self, n: int) -> Any:
        """`n` different rows, uniformly from those held; all of them, in random order, if there are fewer."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if not len(self):
            raise ValueError("the buffer is empty: add a batch first")
        return self.rows(self._draw(n))

    def _draw(self, n: int) -> Tensor:
        held = len(self)
        if 8 * n >= held:
            return torch.randperm(held, generator=self.generator)[:n]
        found = torch.randint(held, (n,), generator=self.generator)
        while True:  # a few duplicates at most: draw these anew until all differ
            again = ~_last_of_each(found)
            if not again.any():
                return found
            found[again] = torch.randint(held, (int(again.sum()),), generator=self.generator)

    def rows(self, places: Tensor | None = None) -> Any:
        """The rows at the given places, or all that are held."""
        pick = torch.arange(len(self)) if places is None else places
        columns = [None if c is None else c[pick.to(c.device)] for c in self._columns]
        if self._spec is None:
            raise ValueError("the buffer is empty: add a batch first")
        return tree_unflatten(columns, self._spec)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as tensors: rows, count, state of the generator."""
        held = {f"column.{i}": c[: len(self)].clone() for i, c in enumerate(self._columns) if c is not None}
        return {"num_seen": torch.tensor(self.num_seen), "generator": self.generator.get_state(), **held}

    def load_state_dict(self, state: dict[str, Any], like: Any = None) -> None:
        """Go on where `state_dict` was taken.

        Parameters
        ----------
        like
            A batch built like those that were added; needed where this buffer has not seen any.
        """
        rows = {k: v for k, v in state.items() if k.startswith("column.")}
        if rows and self._spec is None:
            if like is None:
                raise ValueError("an empty buffer cannot know how its batches are built: pass like=batch")
            leaves, self._spec = tree_flatten(like)
            self._columns = [None if t is None else torch.empty(0) for t in leaves]
        wanted = {f"column.{i}" for i, c in enumerate(self._columns) if c is not None}
        if rows and wanted != set(rows):
            raise ValueError(f"the state holds {sorted(rows)}, the buffer {sorted(wanted)}")
        seen = int(state["num_seen"])
        for name, held in rows.items():
            if len(held) != min(seen, self.size):
                raise ValueError(
                    f"the state holds {len(held)} rows, a buffer of size {self.size} would hold others: make one of "
                    "the state's size"
                )
            column = held.new_empty((self.size, *held.shape[1:]), device=self.device or held.device)
            column[: len(held)] = held
            self._columns[int(name.removeprefix("column."))] = column
        self.num_seen = seen
        self.generator.set_state(state["generator"])


def _shape(t: Tensor | None) -> Any:
    return None if t is None else tuple(t.shape[1:])


def _last_of_each(places: Tensor) -> Tensor:
    """True for the last row of each place, False for those it overwrites and for -1."""
    n = len(places)
    order = torch.argsort(places, stable=True)
    ends = torch.ones(n, dtype=torch.bool)
    ends[:-1] = places[order][1:] != places[order][:-1]
    kept = torch.empty(n, dtype=torch.bool)
    kept[order] = ends
    return kept & (places >= 0)

"""Embeddings in batches, as often as they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Again:
    """An iterable that starts anew each time, where an iterator would be used up."""

    def __init__(self, make: Callable[[], Iterator[Tensor]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.make()


def embeddings_of(loader: Any, batch_size: int, generator: torch.Generator) -> Again:
    """Embeddings of a loader's batches (of pairs or splits the first part), or of one tensor or array, cut into batches
    that are shuffled anew each time. A bare iterator is read into a list.

    Raises
    ------
    ValueError
        While iterating, for a batch that is a mapping.
    """
    whole = torch.as_tensor(loader) if _is_array(loader) else None
    if whole is None and iter(loader) is loader:
        loader = list(loader)

    def batches() -> Iterator[Tensor]:
        if whole is not None:
            for rows in torch.randperm(len(whole), generator=generator).split(batch_size):
                yield whole[rows.to(whole.device)]
            return
        for batch in loader:
            if isinstance(batch, Mapping):
                raise ValueError(f"a batch of embeddings must be a tensor or a pair, got a mapping of {list(batch)}")
            yield torch.as_tensor(batch if _is_array(batch) else batch[0])

    return Again(batches)


def _is_array(value: Any) -> bool:
    """Whether this is rows, as a tensor or an array, and no pair, split or loader."""
    return isinstance(value, Tensor) or hasattr(value, "__array__")

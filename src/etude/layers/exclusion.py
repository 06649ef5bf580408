"""Which stored items a query of a nearest-neighbour search must not get."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Exclusions = NDArray[Any] | torch.Tensor | Sequence[int] | Sequence[Sequence[int]] | None
"""For every query an index (-1: none), a row of indices padded with -1, or a sequence of indices."""


def excluded_pairs(exclude: Exclusions, n_queries: int, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs (query, item) that are excluded, as two arrays.

    Raises
    ------
    ValueError
        If there is not one entry a query, or an index is not that of an item.
    """
    if exclude is None:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if isinstance(exclude, torch.Tensor):
        exclude = exclude.detach().cpu().numpy()
    if len(exclude) != n_queries:
        raise ValueError(f"exclude has {len(exclude)} entries for {n_queries} queries: give one a query")
    rows = [np.atleast_1d(np.asarray(entry, dtype=np.int64)).reshape(-1) for entry in exclude]
    query = np.repeat(np.arange(n_queries), [len(r) for r in rows])
    item = np.concatenate([*rows, np.empty(0, dtype=np.int64)])
    bad = (item < -1) | (item >= n_items)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"exclude holds index {item[first]} for query {query[first]}; the items are 0..{n_items - 1} (-1: none)"
        )
    return query[item >= 0], item[item >= 0]

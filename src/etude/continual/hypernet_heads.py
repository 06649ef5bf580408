"""Heads of a target whose weights are generated: each task has some rows of the last layer for its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from etude.layers.parameters import Layout


def checked_rows(layout: Layout, outputs: Sequence[int]) -> tuple[int, ...]:
    """The rows as integers.

    Raises
    ------
    ValueError
        If they are not different rows of the last layer.
    """
    count = layout.shapes[-1][0]
    rows = tuple(int(o) for o in outputs)
    if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= count:
        raise ValueError(f"outputs must be different rows of the last layer's {count}, got {rows}")
    return rows


def head_mask(layout: Layout, rows: Sequence[int] | None, like: Tensor) -> Tensor:
    """(P,) 1 where a weight counts for the task, 0 on output rows of other heads; no rows: all of them are its own."""
    mask = like.new_ones(layout.size)
    if rows is None:
        return mask
    last = layout.names[-1].rpartition(".")[0]
    for (name, part), shape in zip(layout.slices().items(), layout.shapes, strict=True):
        if name in (f"{last}.weight", f"{last}.bias"):
            own = torch.zeros(shape[0], device=like.device)
            own[list(rows)] = 1
            mask[part] = own.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1)
    return mask

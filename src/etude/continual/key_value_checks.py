"""What the key-value bottleneck refuses: other things than tensors, labels and cells out of range, ruinous rates."""

import math
from typing import Any

import torch
from torch import Tensor


def holds_embeddings(e: Any) -> bool:
    """Whether these are embeddings, which are floats; kept cells are whole numbers. TypeError for no tensor."""
    if not isinstance(e, Tensor):
        raise TypeError(f"embeddings and cells must be tensors, got {type(e).__name__}: use torch.as_tensor")
    return e.is_floating_point()


def check_cells(cells: Tensor, codebooks: int, topk: int, pairs: int) -> Tensor:
    """The same kept cells; ValueError unless they are (..., codebooks, topk) of 0 .. pairs - 1."""
    if cells.shape[-2:] != (codebooks, topk):
        raise ValueError(f"cells must have shape (..., {codebooks}, {topk}), got {tuple(cells.shape)}")
    if cells.numel():
        low, high = torch.aminmax(cells)
        if bool((low < 0) | (high >= pairs)):
            wrong = int(low if low < 0 else high)
            raise ValueError(f"cells must lie in 0..{pairs - 1}, got {wrong}: take them from `cells`")
    return cells


def check_labels(e: Tensor, y: Any, classes: int) -> Tensor:
    """The labels as int64; ValueError unless they are whole, one a row of `e` (at least one) and all known."""
    if not isinstance(y, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(y).__name__}: use torch.as_tensor")
    if y.is_floating_point() or y.shape != (len(e),):
        raise ValueError(f"labels must be whole numbers ({len(e)},), one a row, got {y.dtype} {tuple(y.shape)}")
    if not len(e):
        raise ValueError("there is no row to learn: a batch needs at least one")
    strange = y[(y < 0) | (y >= classes)]
    if strange.numel():
        raise ValueError(f"label {int(strange[0])} is not one of the {classes} classes: grow_values adds columns")
    return y.long()


def check_step(*, lr: float = 0.0, label_smoothing: float = 0.0, clip_norm: float | None = None) -> None:
    """ValueError for settings that would ruin the table."""
    if not (lr >= 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be finite and at least 0, got {lr}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be a share in [0, 1], got {label_smoothing}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be positive, or None for no clipping, got {clip_norm}")


def what_ruins(optimizer: torch.optim.Optimizer, values: Tensor) -> list[str]:
    """Why an optimiser would not do: it does not train the table, or moves cells that were not fetched."""
    groups = [g for g in optimizer.param_groups if any(p is values for p in g["params"])]
    if not groups:
        return ["`values` is not trained (grow_values makes a new parameter, which needs a new optimiser)"]
    reasons = []
    for group in groups:
        if not isinstance(optimizer, torch.optim.SGD):
            reasons.append(f"{type(optimizer).__name__} keeps running averages of past gradients")
        if group.get("momentum"):
            reasons.append(f"momentum {group['momentum']}")
        if group.get("weight_decay"):
            reasons.append(f"weight decay {group['weight_decay']}")
    return [f"cells that were not fetched will move too ({', '.join(reasons)})"] if reasons else []

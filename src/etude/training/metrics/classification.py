"""Metrics of classifiers: one definition each, fractions in [0, 1]."""

from typing import Any

import torch
from torch import Tensor


def _labels(predictions: Any, y: Any) -> tuple[Tensor, Tensor]:
    p, y = torch.as_tensor(predictions), torch.as_tensor(y)
    if p.ndim == y.ndim + 1:
        p = p.argmax(-1)
    if p.shape != y.shape:
        raise ValueError(f"predictions {tuple(p.shape)} do not fit labels {tuple(y.shape)}")
    if y.numel() == 0:
        raise ValueError("no rows to score")
    return p.detach(), y.to(p.device)


def accuracy(predictions: Any, y: Any) -> float:
    """Share of right answers; `predictions` are labels like `y`, or scores with a last axis of classes."""
    p, y = _labels(predictions, y)
    return float((p == y).double().mean())

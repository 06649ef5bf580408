"""Items and labels of an episode: what is refused, labels as vectors with holes, and the loss over them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TaskKind = Literal["classification", "regression"]
KINDS = ("classification", "regression")


def encode_labels(y: Tensor, output_size: int, task: TaskKind) -> tuple[Tensor, Tensor]:
    """Labels (B, T) as vectors (B, T, out), one-hot or values, and which of them are there.

    Classes of -1 and values of NaN are missing: their vectors are zero. Regression also takes (B, T, out).

    Raises
    ------
    ValueError
        For another shape, classes that are no whole numbers, a class outside 0..output_size - 1, or an infinite value.
    """
    if task == "classification":
        if y.ndim != 2 or y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(f"classes must be whole numbers of shape (B, T), got {y.dtype} {tuple(y.shape)}")
        if y.numel() and (int(y.max()) >= output_size or int(y.min()) < -1):
            raise ValueError(
                f"classes must lie in 0..{output_size - 1} (-1: missing), got {int(y.min())}..{int(y.max())}"
            )
        y = y.long()
        known = y >= 0
        return F.one_hot(y.clamp_min(0), output_size).float() * known[..., None], known
    values = y[..., None] if y.ndim == 2 and output_size == 1 else y
    if values.ndim != 3 or values.shape[-1] != output_size or not values.is_floating_point():
        raise ValueError(f"values must be floats of shape (B, T, {output_size}), got {y.dtype} {tuple(y.shape)}")
    if bool(values.isinf().any()):
        raise ValueError("labels must be finite (NaN: missing), got an infinite one")
    known = ~values.isnan().any(-1)
    return torch.where(known[..., None], values, 0.0), known


def check_items(x: Tensor) -> None:
    """Raise ValueError for features (B, T, d) that are not finite: one such item would spoil the memory for good."""
    bad = ~x.isfinite()
    if bool(bad.any()):
        row, item, _ = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"row {row}, item {item} holds a NaN or infinite feature: fill it in, or mask the item out")


def prediction_error(predictions: Tensor, y: Tensor, task: TaskKind) -> Tensor:
    """Gradient of an item's loss at its prediction, up to a factor: softmax - one-hot, or the difference."""
    return (predictions.softmax(-1) if task == "classification" else predictions) - y


def item_losses(predictions: Tensor, y: Tensor, task: TaskKind) -> Tensor:
    """(B, T) cross-entropy, or squared error averaged over outputs, against encoded labels."""
    if task == "classification":
        return -(predictions.log_softmax(-1) * y).sum(-1)
    return (predictions - y).square().mean(-1)


def previous_labels(y: Tensor, delay: int) -> Tensor:
    """What is fed as label at each step: that of `delay` steps before, zeros at first."""
    return y if delay == 0 else F.pad(y, (0, 0, delay, 0))[:, : y.shape[1]]

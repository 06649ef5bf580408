"""Cross-entropy that leaves out some targets, and focal loss.

Source: Lin et al. 2017, arXiv 1708.02002, eq. 4 (`focal`); Szegedy et al. 2016, arXiv 1512.00567,
section 7 (label smoothing).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "tokens",
) -> Tensor:
    """Mean cross-entropy over the targets that count.

    Parameters
    ----------
    logits
        (..., C) scores, also -inf for classes that are masked out.
    targets
        (...) class numbers; `ignore_index` where a position takes no part.
    label_smoothing
        Share of the target's mass that is spread evenly over all classes whose logit is not -inf.
    reduction
        ``"tokens"``: every counted position weighs the same. ``"sequence"``: the last axis of `targets`
        is time; each sequence weighs the same, whatever its length; one without a counted target weighs nothing.

    Returns
    -------
    Tensor
        A scalar; 0 (with a gradient of 0) where no target counts.

    Raises
    ------
    ValueError
        For shapes that do not fit, targets that are no integers, or an unknown reduction.
    """
    if logits.ndim < 1 or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} need targets {tuple(logits.shape[:-1])}, got {tuple(targets.shape)}"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    if reduction not in ("tokens", "sequence"):
        raise ValueError(f"unknown reduction {reduction!r}: choose tokens or sequence")
    if reduction == "sequence" and targets.ndim < 1:
        raise ValueError("reduction 'sequence' needs a time axis")
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(f"targets must be integers, got {targets.dtype}")
    counted = targets != ignore_index
    # a position without any allowed class (all -inf) may be left out: keep its NaN from the gradient
    logits = torch.where(counted[..., None], logits, 0.0)
    flat = logits.reshape(-1, logits.shape[-1])
    losses = F.cross_entropy(flat, targets.reshape(-1), ignore_index=ignore_index, reduction="none").view(targets.shape)
    if label_smoothing > 0:
        losses = (1 - label_smoothing) * losses + label_smoothing * torch.where(counted, _uniform_loss(logits), 0.0)
    if reduction == "tokens":
        return losses.sum() / counted.sum().clamp(min=1)
    lengths = counted.sum(-1)
    return (losses.sum(-1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


def _uniform_loss(logits: Tensor) -> Tensor:
    """Cross-entropy against the even distribution over the classes whose logit is not -inf."""
    allowed = logits > -torch.inf
    log_probs = torch.where(allowed, F.log_softmax(logits, dim=-1), 0.0)
    return -log_probs.sum(-1) / allowed.sum(-1).clamp(min=1)


def focal(logits: Tensor, y: Tensor, gamma: float = 2.0, *, weight: Tensor | None = None) -> Tensor:
    """Focal loss ``-(1 - p_y)^gamma log p_y``, mean over rows; `gamma` 0 is the cross-entropy.

    Parameters
    ----------
    logits, y
        (..., C) scores and (...) class numbers.
    weight
        (C,) a factor for each class; the mean stays over rows.

    Raises
    ------
    ValueError
        For a negative `gamma`, no rows, or shapes that do not fit.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    if logits.shape[:-1] != y.shape:
        raise ValueError(f"logits {tuple(logits.shape)} need labels {tuple(logits.shape[:-1])}, got {tuple(y.shape)}")
    if y.numel() == 0:
        raise ValueError("no rows: the mean of nothing is not a number")
    if weight is not None and weight.shape != logits.shape[-1:]:
        raise ValueError(f"weight needs one entry a class ({logits.shape[-1]}), got {tuple(weight.shape)}")
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1), reduction="none")
    if gamma > 0:
        wrong = -torch.expm1(-losses)  # 1 - p_y without cancellation
        # at p_y = 1 the power's slope is infinite for gamma < 1, while the loss there is 0 and flat
        losses = wrong.clamp(min=torch.finfo(losses.dtype).tiny) ** gamma * losses
    if weight is not None:
        losses = losses * weight[y.reshape(-1)]
    return losses.mean()

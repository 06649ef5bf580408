"""Metrics of classifiers: one definition each; shares lie in [0, 1].

Labels are class numbers 0, 1, ... and probabilities (n, C) rows that sum to 1. Arrays and tensors on any
device are taken; a float or an array comes back. Scores that hold a NaN (a diverged net) score NaN.

Source: Guo et al. 2017, arXiv 1706.04599, eq. 3 (expected calibration error, bins of equal width);
Nguyen & O'Connor 2015, arXiv 1508.05154 (bins of equal count); Brier 1950.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def accuracy(predictions: Any, y: Any) -> float:
    """Share of right answers; `predictions` are labels like `y`, or scores with a last axis of classes.

    Raises
    ------
    ValueError
        If there is no row, or the shapes do not fit.
    """
    predicted, y = _labels(predictions, y)
    return math.nan if _nan(predictions) else float((predicted == y).mean())


def class_accuracy(predictions: Any, y: Any, num_classes: int | None = None) -> FloatArray:
    """(C,) share of right answers among the rows of each class (its recall); NaN for a class without rows."""
    matrix = confusion(predictions, y, num_classes)
    rows = np.zeros(len(matrix)) if _nan(predictions) else matrix.sum(1)
    return np.where(rows > 0, np.diag(matrix) / np.maximum(rows, 1), np.nan)


def confusion(predictions: Any, y: Any, num_classes: int | None = None) -> IntArray:
    """(C, C) counts: row the true class, column the predicted one.

    `num_classes` defaults to the scores' last axis, or to the largest number that occurs plus one.
    """
    scores = _array(predictions)
    predicted, y = _labels(predictions, y)
    if predicted.dtype.kind not in "iub" or y.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, got {predicted.dtype} and {y.dtype}")
    predicted, y = predicted.ravel().astype(np.int64), y.ravel().astype(np.int64)
    largest = int(max(predicted.max(), y.max()))
    if num_classes is None:
        num_classes = max(largest + 1, scores.shape[-1] if scores.ndim > np.ndim(_array(y)) else 0)
    if min(predicted.min(), y.min()) < 0 or largest >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {min(predicted.min(), y.min())}..{largest}")
    return np.bincount(y * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def expected_calibration_error(probs: Any, y: Any, bins: int = 15, *, adaptive: bool = False) -> float:
    """Mean gap between confidence and accuracy over bins of the top class's probability.

    ``sum_b (n_b / n) |accuracy(b) - confidence(b)|``.

    Parameters
    ----------
    probs
        (n, C) probabilities, or (n,) the probability of class 1 of two.
    bins
        Their number: of equal width over [0, 1], each ``(low, high]``; or with `adaptive` of equal count
        (counts differ by one at most; equal confidences may fall on both sides of an edge).

    Raises
    ------
    ValueError
        For rows that are not probabilities, labels outside the classes, or fewer than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if _nan(probs):
        return math.nan
    probs, y = _probabilities(probs, y)
    confidence, right = probs.max(1), (probs.argmax(1) == y).astype(float)
    if adaptive:
        order = np.argsort(confidence, kind="stable")
        place = np.empty(len(y), dtype=np.int64)
        place[order] = np.arange(len(y)) * bins // len(y)
    else:
        place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(y))


def nll(probs: Any, y: Any) -> float:
    """Mean negative log-likelihood of the true class, in nats; probabilities of 0 count as the smallest float."""
    if _nan(probs):
        return math.nan
    probs, y = _probabilities(probs, y)
    chosen = probs[np.arange(len(y)), y]
    return float(-np.log(np.maximum(chosen, np.finfo(np.float64).tiny)).mean())


def brier(probs: Any, y: Any) -> float:
    """Mean over rows of ``sum_c (p_c - 1[c = y])^2``, in [0, 2] (twice the one-column form of two classes)."""
    if _nan(probs):
        return math.nan
    probs, y = _probabilities(probs, y)
    wanted = np.zeros_like(probs)
    wanted[np.arange(len(y)), y] = 1.0
    return float(((probs - wanted) ** 2).sum(1).mean())


def error_consistency(right_a: Any, right_b: Any) -> float:
    """Cohen's kappa of two classifiers' hits on the same rows: do they err on the same ones more than by chance?

    Geirhos, Meding & Wichmann 2020, arXiv 2006.16736, eq. 1 to 3. 0 where one of them errs never or always, as
    there is then no pattern to agree on.

    Parameters
    ----------
    right_a, right_b
        (n,) bool: whether each row was answered right.
    """
    a, b = _array(right_a), _array(right_b)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or a.dtype != bool or b.dtype != bool:
        raise ValueError(f"hits must be two bool arrays of one length, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    p, q = a.mean(), b.mean()
    expected = p * q + (1 - p) * (1 - q)
    return 0.0 if expected == 1 else float(((a == b).mean() - expected) / (1 - expected))


def _nan(scores: Any) -> bool:
    scores = _array(scores)
    return scores.dtype.kind == "f" and bool(np.isnan(scores).any())


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _labels(predictions: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    predicted, y = _array(predictions), _array(y)
    if predicted.ndim == y.ndim + 1:
        if predicted.shape[-1] == 1 and y.any():
            raise ValueError(f"predictions {predicted.shape} are scores of one class: give labels {y.shape}")
        predicted = predicted.argmax(-1)
    if predicted.shape != y.shape:
        raise ValueError(f"predictions {predicted.shape} do not fit labels {y.shape}")
    if y.size == 0:
        raise ValueError("no rows to score")
    return predicted, y


def _probabilities(probs: Any, y: Any) -> tuple[FloatArray, IntArray]:
    probs, y = _array(probs).astype(np.float64), _array(y)
    if probs.ndim == 1:
        probs = np.stack([1 - probs, probs], axis=1)
    if probs.ndim != 2 or y.shape != probs.shape[:1]:
        raise ValueError(f"need probabilities (n, C) and labels (n,), got {probs.shape} and {y.shape}")
    if y.size == 0:
        raise ValueError("no rows to score")
    sums = probs.sum(1)
    wrong = ~((probs >= 0).all(1) & (np.abs(sums - 1) < 1e-2))
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"row {row} is no probability distribution (sum {sums[row]:.4g}): apply softmax first")
    if y.dtype.kind not in "iub":
        raise ValueError(f"labels must be integers, got {y.dtype}")
    y = y.astype(np.int64)
    if y.min() < 0 or y.max() >= probs.shape[1]:
        raise ValueError(f"labels must lie in 0..{probs.shape[1] - 1}, got {y.min()}..{y.max()}")
    return probs, y


def auroc(scores: Any, positive: Any) -> float:
    """Probability that a positive row scores higher than a negative one, ties counting one half (Mann-Whitney).

    scores (n,), positive (n,) of truth values. ValueError where one of the two classes has no row.
    """
    s, p = torch.as_tensor(scores).double().reshape(-1), torch.as_tensor(positive).bool().reshape(-1)
    if s.shape != p.shape:
        raise ValueError(f"{len(s)} scores for {len(p)} labels")
    pos, neg = int(p.sum()), int((~p).sum())
    if not pos or not neg:
        raise ValueError(f"AUROC needs positive and negative rows, got {pos} and {neg}")
    if torch.isnan(s).any():
        return math.nan
    _, place, count = s.unique(return_inverse=True, return_counts=True)
    count = count.double()  # beyond 2^24 rows float32 would lose ranks
    middle = count.cumsum(0) - (count - 1) / 2  # mean rank of a group of ties, from 1
    return float((middle[place][p].sum() - pos * (pos + 1) / 2) / (pos * neg))

"""Retrieval metrics for rankings by distance, in which ties are averaged.

Binary codes give massive ties. Every metric here is the expectation over all orders of the tied items, in closed
form: each ranking becomes a table of tie groups (items and gain per distinct distance), and every item of a group
carries the group's mean gain. The chance line is the same formula with all items tied, i.e. a random order.

Sources: McSherry & Najork 2008, "Computing information retrieval performance measures efficiently in the presence
of tied scores" (average precision, NDCG, reciprocal rank).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RetrievalScore:
    """A metric over queries; ``float(score)`` is the mean."""

    mean: float
    """Mean over the queries that have something to find."""
    per_query: Floats
    """(q,), NaN where a query has nothing to find."""
    chance: float
    """What a random order of the same items scores, on average over the same queries."""

    def __float__(self) -> float:
        return self.mean


class _Groups(NamedTuple):
    """Tie groups in order of distance; empty groups are harmless."""

    size: NDArray[Any]  # (q, G) items of the group
    gain: NDArray[Any]  # (q, G) their summed gain
    before: NDArray[Any]  # (q, G) items of earlier groups
    earlier: NDArray[Any]  # (q, G) gain of earlier groups


def _rankings(gains: Any, distances: Any, binary: bool) -> tuple[Floats, NDArray[Any]]:
    g, d = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (gains, distances))
    g, d = np.atleast_2d(g), np.atleast_2d(d)
    if g.ndim != 2 or g.shape != d.shape or g.shape[1] == 0:
        raise ValueError(
            f"relevance has shape {g.shape} and distances {d.shape}: give both as (queries, items), at least one item"
        )
    if d.dtype.kind == "f" and np.isnan(d).any():
        raise ValueError(f"distances of query {int(np.isnan(d).any(1).argmax())} hold NaN")
    g = g.astype(np.float64)
    if binary and not np.isin(g, (0, 1)).all():
        raise ValueError("relevance must be boolean (0 or 1); for graded relevance use ndcg")
    if not (np.isfinite(g) & (g >= 0)).all():
        raise ValueError("gains must be finite and at least 0")
    return g, d


def _tie_groups(gains: Floats, distances: NDArray[Any]) -> _Groups:
    n_queries, n = distances.shape
    group = None
    if distances.dtype.kind in "iub":
        low, high = int(distances.min()), int(distances.max())
        if high - low < n:
            group = distances.astype(np.int64) - low
    if group is None:
        order = np.argsort(distances, axis=1, kind="stable")
        ordered = np.take_along_axis(distances, order, axis=1)
        gains = np.take_along_axis(gains, order, axis=1)
        group = np.zeros((n_queries, n), dtype=np.int64)
        group[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(axis=1)
    width = int(group.max()) + 1
    flat = (group + width * np.arange(n_queries)[:, None]).reshape(-1)
    size = np.bincount(flat, minlength=n_queries * width).reshape(n_queries, width).astype(np.float64)
    gain = np.bincount(flat, gains.reshape(-1), n_queries * width).reshape(n_queries, width)
    return _Groups(size, gain, size.cumsum(axis=1) - size, gain.cumsum(axis=1) - gain)


def _score(
    gains: Any, distances: Any, metric: Callable[[_Groups, Floats], Floats], *, binary: bool = True
) -> RetrievalScore:
    g, d = _rankings(gains, distances, binary)
    findable = g.sum(axis=1) > 0
    if not findable.any():
        raise ValueError("no query has a relevant item")
    values = np.full(len(g), np.nan)
    values[findable] = metric(_tie_groups(g[findable], d[findable]), g[findable])
    random_order = metric(_tie_groups(g[findable], np.zeros(d[findable].shape, dtype=np.int8)), g[findable])
    return RetrievalScore(float(values[findable].mean()), values, float(random_order.mean()))


def _mean_gain(groups: _Groups) -> Floats:
    return groups.gain / np.maximum(groups.size, 1)


def _within(groups: _Groups, k: int) -> Floats:
    """Items of each group that stand among the first k."""
    return np.clip(k - groups.before, 0, groups.size)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def average_precision(relevant: Any, distances: Any) -> RetrievalScore:
    """Average precision of each query's full ranking; its mean over queries is MAP.

    Parameters
    ----------
    relevant
        Booleans, shape (q, n), or (n,) for one query.
    distances
        Same shape, smaller = nearer; integers (Hamming) and floats.

    Notes
    -----
    In a tie group of size s with r relevant items, after N items of which R were relevant, position N + i holds a
    relevant item with probability r/s, and then expects R + 1 + (i - 1)(r - 1)/(s - 1) relevant items up to it.
    Summed over i this needs only a difference of harmonic numbers.
    """

    def metric(g: _Groups, gains: Floats) -> Floats:
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, gains.shape[1] + 1))])
        first = g.before.astype(np.int64)
        span = harmonic[first + g.size.astype(np.int64)] - harmonic[first]  # sum of 1/(N + i)
        pairs = (g.gain - 1) / np.maximum(g.size - 1, 1)
        total = (g.earlier + 1) * span + pairs * (g.size - (g.before + 1) * span)
        return (_mean_gain(g) * total).sum(axis=1) / gains.sum(axis=1)

    return _score(relevant, distances, metric)


def ndcg(gains: Any, distances: Any, k: int | None = None) -> RetrievalScore:
    """Normalised discounted cumulative gain of the first k (None: of all), with discount 1/log2(1 + rank).

    Parameters
    ----------
    gains
        At least 0, shape (q, n); for exponential gains pass ``2**relevance - 1``.
    """
    if k is not None:
        _check_k(k)

    def metric(g: _Groups, raw: Floats) -> Floats:
        n = raw.shape[1]
        discounts = 1 / np.log2(np.arange(2, n + 2))
        discounts[n if k is None else k :] = 0
        cumulated = np.concatenate([[0.0], np.cumsum(discounts)])
        first = g.before.astype(np.int64)
        span = cumulated[first + g.size.astype(np.int64)] - cumulated[first]
        ideal = (-np.sort(-raw, axis=1) * discounts).sum(axis=1)
        return (_mean_gain(g) * span).sum(axis=1) / ideal

    return _score(gains, distances, metric, binary=False)


def recall_at(relevant: Any, distances: Any, k: int) -> RetrievalScore:
    """Share of a query's relevant items among its first k."""
    _check_k(k)
    return _score(relevant, distances, lambda g, r: (_mean_gain(g) * _within(g, k)).sum(axis=1) / r.sum(axis=1))


def precision_at(relevant: Any, distances: Any, k: int) -> RetrievalScore:
    """Share of relevant items among the first k (of min(k, n) items)."""
    _check_k(k)
    return _score(relevant, distances, lambda g, r: (_mean_gain(g) * _within(g, k)).sum(axis=1) / min(k, r.shape[1]))


def reciprocal_rank(relevant: Any, distances: Any) -> RetrievalScore:
    """1 / rank of the first relevant item; its mean over queries is MRR."""

    def metric(g: _Groups, raw: Floats) -> Floats:
        rows = np.arange(len(raw))
        first = (g.gain > 0).argmax(axis=1)
        size, r, before = g.size[rows, first], g.gain[rows, first], g.before[rows, first]
        result = np.zeros(len(raw))
        probability = r / size  # that the first relevant one is item i of its group
        for i in range(1, int((size - r).max()) + 2):
            result += probability / (before + i)
            left = size - i
            probability = probability * np.clip(left - r + 1, 0, None) / np.maximum(left, 1)
        return result

    return _score(relevant, distances, metric)


def precision_recall(relevant: Any, distances: Any, levels: int = 20) -> tuple[Floats, Floats]:
    """Interpolated precision at equally spaced recall levels, averaged over queries.

    A point of the curve is a radius: everything at most that far away is retrieved. The precision at a recall
    level is the best one at any radius that reaches it.

    Returns
    -------
    recall, precision
        Both of shape (levels,); recall runs from 1/levels to 1.
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    gains, d = _rankings(relevant, distances, binary=True)
    findable = gains.sum(axis=1) > 0
    if not findable.any():
        raise ValueError("no query has a relevant item")
    g = _tie_groups(gains[findable], d[findable])
    found, retrieved = g.earlier + g.gain, g.before + g.size
    recall = found / gains[findable].sum(axis=1, keepdims=True)
    precision = found / np.maximum(retrieved, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    grid = np.arange(1, levels + 1) / levels
    at = np.stack([(recall < level - 1e-12).sum(axis=1) for level in grid], axis=1)  # first radius that reaches it
    return grid, np.take_along_axis(best, at, axis=1).mean(axis=0)

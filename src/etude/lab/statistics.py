"""Intervals over few seeds. Everything here is paired: same seed = same data and order in both arms."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


class Interval(NamedTuple):
    """A two-sided confidence interval for a mean over `n` seeds."""

    mean: float
    low: float
    high: float
    n: int


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one number a seed, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} holds a NaN or an infinite value: a diverged seed is reported, never dropped")
    return array


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean.

    With 3-10 seeds it covers what it promises on normal data; a percentile bootstrap covers 75 % at
    n = 3 and 84 % at n = 5 where 95 % is asked.

    Raises
    ------
    ValueError
        With fewer than two values, a NaN or an infinite value, or a `level` outside (0, 1).
    """
    x = _finite(values, "values")
    if x.size < 2:
        raise ValueError(f"an interval needs at least 2 values, got {x.size}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    half = float(x.std(ddof=1) / np.sqrt(x.size) * special.stdtrit(x.size - 1, 0.5 + level / 2))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, int(x.size))


def log_slope(x: ArrayLike, y_by_seed: ArrayLike) -> Interval:
    """Interval over seeds of the least-squares slope of log y on log x.

    Parameters
    ----------
    x
        Positive positions, shape (points,).
    y_by_seed
        Positive values, shape (seeds, points).
    """
    lx, ly = np.log(np.asarray(x, float)), np.log(np.asarray(y_by_seed, float))
    if ly.ndim != 2 or ly.shape[1] != lx.size or lx.size < 2:
        raise ValueError(f"need y of shape (seeds, {lx.size}) with at least 2 points, got {ly.shape}")
    centred = lx - lx.mean()
    return t_interval(ly @ centred / (centred @ centred))


def sign_flip(gain: ArrayLike) -> float:
    """Two-sided p-value of the exact sign-flip test of a zero mean (all 2^n sign patterns, n <= 20)."""
    g = _finite(gain, "gain")
    if not 1 <= g.size <= 20:
        raise ValueError(f"the exact test takes 1 to 20 pairs, got {g.size}")
    bits = (np.arange(2**g.size)[:, None] >> np.arange(g.size)) & 1
    means = np.abs((1 - 2 * bits) @ g)
    return float((means >= abs(g.sum()) - 1e-12 * float(np.abs(g).max())).mean())


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion k / n (sampling error inside one data set)."""
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"need 0 <= k <= n and n >= 1, got k={k}, n={n}")
    from scipy import stats  # takes a second to import

    result = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    return Interval(k / n, float(result.low), float(result.high), n)


def mcnemar(a_right: ArrayLike, b_right: ArrayLike) -> float:
    """Exact two-sided McNemar p-value: do two classifiers differ on the same items?"""
    a, b = np.asarray(a_right, bool), np.asarray(b_right, bool)
    if a.shape != b.shape:
        raise ValueError(f"need the same items for both, got {a.shape} and {b.shape}")
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    if only_a + only_b == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    generator: np.random.Generator,
    *,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of the mean over whole clusters (queries, documents) inside one seed.

    Only for many clusters; over seeds use `t_interval`.
    """
    x = _finite(values, "values")
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if codes.shape != x.shape:
        raise ValueError(f"need one cluster a value, got {codes.shape} for {x.shape}")
    sums, counts = np.bincount(codes, x), np.bincount(codes)
    picks = generator.integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(x.mean()), float(low), float(high), len(sums))

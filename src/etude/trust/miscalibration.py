"""Miscalibration of a generator: total variation to the truth after merging facts of equal confidence.

Source: Kalai & Vempala 2023, arXiv 2311.14648, section 3: ``Mis(g, p) = 1/2 sum_i |p(B_i) - g(B_i)|`` over bins B_i
of facts by the value of g.
"""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Bins = Literal["levels"] | int
Floats = NDArray[np.float64]
SAME = 1e-12  # relative difference up to which two probabilities are one level


class HeldOutMiscalibration(NamedTuple):
    """An estimate from held-out facts, with its bootstrap interval."""

    value: float
    low: float
    high: float


def miscalibration(g: Any, p: Any, bins: Bins = "levels") -> float:
    """How far a generator's probabilities are from the truth, seen through its own confidence.

    Parameters
    ----------
    g, p
        Probabilities of the same facts, as arrays of one length or mappings fact -> probability (a fact that one
        of them lacks has probability 0 there). p is the distribution of documents, not of being right.
    bins
        "levels": one bin for each value of g. A number b: facts sorted by g are cut so that each bin holds about
        1 / b of g's mass. Facts of equal g are never parted. Facts of g = 0 have no mass and share the first bin,
        which hides what a generator misses entirely: use "levels" for those that give exactly 0.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        For negative values, sums other than 1 (tolerance 1e-6), different lengths, fewer than 1 bin.
    """
    g_values, p_values = aligned(g, p)
    return grouped_miscalibration(g_values, g_values, p_values, bins)


def grouped_miscalibration(level: Floats, g_mass: Floats, p_mass: Floats, bins: Bins = "levels") -> float:
    """`miscalibration` where entry i stands for many facts that share the probability ``level[i]`` each.

    Parameters
    ----------
    level, g_mass, p_mass
        (m,): probability of one fact, and mass of all the facts of the entry under g and under p.
    """
    bin_of, n_bins = bins_by_level(level, g_mass, bins)
    gap = np.bincount(bin_of, weights=p_mass - g_mass, minlength=n_bins)
    return float(0.5 * np.abs(gap).sum())


def bins_by_level(level: Floats, g_mass: Floats, bins: Bins) -> tuple[NDArray[np.int64], int]:
    """Bin number of each entry, and how many bins there are; a bin begins at its first level's lower end."""
    if bins != "levels" and (isinstance(bins, (str, bool)) or int(bins) != bins or bins < 1):
        raise ValueError(f"bins must be 'levels' or a number of at least 1, got {bins!r}")
    order = np.argsort(level)
    ordered = level[order]
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = ordered[1:] > ordered[:-1] * (1 + SAME)
    level_of = np.cumsum(new) - 1
    if bins != "levels":
        mass = np.bincount(level_of, weights=g_mass[order])
        below = np.concatenate([[0.0], np.cumsum(mass)[:-1]])
        bin_of_level = np.minimum(np.floor(below * bins + 1e-9).astype(np.int64), int(bins) - 1)
        level_of = bin_of_level[level_of]
    out = np.empty(len(level), dtype=np.int64)
    out[order] = level_of
    return out, int(level_of[-1]) + 1


def heldout_miscalibration(
    g: Any, facts: Any, bins: Bins = 10, *, generator: np.random.Generator, samples: int = 200, delta: float = 0.05
) -> HeldOutMiscalibration:
    """`miscalibration` with p replaced by the facts of held-out documents.

    The share of held-out documents in a bin is unbiased, the sum of absolute differences is biased upwards by about
    ``sqrt(bins / n)``; few bins are better than many.

    Parameters
    ----------
    g
        Mapping fact -> probability, or an array over facts 0 .. N - 1.
    facts
        Held-out facts: keys of g or indices. A fact that g does not know counts as probability 0.
    """
    if isinstance(g, Mapping):
        index = {fact: i for i, fact in enumerate(g)}
        values = _checked(np.fromiter(g.values(), dtype=float, count=len(g)), "g")
        rows = np.array([index.get(fact, -1) for fact in facts], dtype=np.int64)
    else:
        values = _checked(np.asarray(g, dtype=float), "g")
        rows = np.asarray(facts, dtype=np.int64)
    if len(rows) == 0:
        raise ValueError("no held-out facts")
    bin_of, n_bins = bins_by_level(values, values, bins)
    g_mass = np.append(np.bincount(bin_of, weights=values, minlength=n_bins), 0.0)
    where = np.where(rows >= 0, bin_of[rows], n_bins)
    share = np.bincount(where, minlength=n_bins + 1) / len(rows)
    value = float(0.5 * np.abs(share - g_mass).sum())
    drawn = generator.multinomial(len(rows), share, size=samples) / len(rows)
    again = 0.5 * np.abs(drawn - g_mass).sum(1)
    low, high = np.quantile(again - again.mean(), [delta / 2, 1 - delta / 2])
    return HeldOutMiscalibration(value, max(0.0, value + float(low)), min(1.0, value + float(high)))


def aligned(g: Any, p: Any) -> tuple[Floats, Floats]:
    """Both as arrays over the same facts, checked to be distributions."""
    if isinstance(g, Mapping) != isinstance(p, Mapping):
        raise ValueError("g and p must both be mappings fact -> probability, or both arrays")
    if isinstance(g, Mapping):
        keys: dict[Hashable, None] = dict.fromkeys([*g, *p])
        g = np.array([g.get(k, 0.0) for k in keys], dtype=float)
        p = np.array([p.get(k, 0.0) for k in keys], dtype=float)
    g, p = _checked(_array(g), "g"), _checked(_array(p), "p")
    if g.shape != p.shape:
        raise ValueError(f"g has {g.size} facts and p {p.size}: give mappings fact -> probability to align them")
    return g, p


def _array(values: Any) -> Floats:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=float).ravel()


def _checked(values: Floats, name: str) -> Floats:
    if values.size == 0:
        raise ValueError(f"{name} has no facts")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite")
    if values.min() < 0:
        raise ValueError(f"{name}[{int(values.argmin())}] is negative: {values.min():.3g}")
    total = float(values.sum())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"{name} must sum to 1 (tolerance 1e-6), its sum is {total:.8g}")
    return values

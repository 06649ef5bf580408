"""Miscalibration of a generator: total variation to the truth after merging facts of equal confidence.

Source: Kalai & Vempala 2023, arXiv 2311.14648, section 3: ``Mis(g, p) = 1/2 sum_i |p(B_i) - g(B_i)|`` over bins B_i
of facts by the value of g.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from etude.trust.facts import check_hashable, listed

Bins = Literal["levels"] | int
Floats = NDArray[np.float64]
SAME = 1e-12  # relative difference up to which two probabilities are one level
SHOWN = 200  # bins of a plot: those that differ most


@dataclass(frozen=True)
class BinMasses:
    """Mass of each bin, from the least confident on: under the generator (n_bins,) and under the truth (n_bins,)."""

    g: Floats
    p: Floats

    def to_dict(self) -> dict[str, Any]:
        """Both as lists."""
        return {"g": self.g.tolist(), "p": self.p.tolist()}

    def plot(self) -> dict[str, Any]:
        """Vega-Lite scatter of the truth's mass over the generator's, one point a bin; the diagonal is calibrated."""
        import altair as alt

        worst = np.sort(np.argsort(-np.abs(self.p - self.g), kind="stable")[:SHOWN])
        rows = [{"bin": int(i), "generator": float(self.g[i]), "truth": float(self.p[i])} for i in worst]
        top = max([*(r["generator"] for r in rows), *(r["truth"] for r in rows)])
        x = alt.X("generator:Q", title="mass under the generator")
        y = alt.Y("truth:Q", title="mass under the truth")
        ends = [{"generator": v, "truth": v} for v in (0.0, top)]
        line = alt.Chart(alt.Data(values=ends)).mark_line(strokeDash=[4, 3]).encode(x=x, y=y)
        dots = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=45)
        return (line + dots.encode(x=x, y=y, tooltip=["bin:Q", "generator:Q", "truth:Q"])).to_dict()


class Miscalibration(float):
    """Mis, a number between 0 and 1 that knows the bins it was summed over."""

    masses: BinMasses

    def __new__(cls, value: float, masses: BinMasses) -> "Miscalibration":
        """Half the sum of the differences of the bins' masses."""
        made = super().__new__(cls, value)
        made.masses = masses
        return made

    def __getnewargs__(self) -> tuple[float, BinMasses]:  # type: ignore[override]
        return float(self), self.masses

    def to_dict(self) -> dict[str, Any]:
        """The value and the mass of each bin, as JSON values."""
        return {"value": float(self), "bins": self.masses.to_dict()}

    def plot(self) -> dict[str, Any]:
        """See `BinMasses.plot`."""
        return self.masses.plot()


@dataclass(frozen=True)
class HeldOutMiscalibration:
    """An estimate from held-out facts, with its bootstrap interval; unpacks into the three numbers."""

    value: float
    low: float
    high: float
    masses: BinMasses
    """The truth's are shares of the held-out facts; the last bin is of facts that the generator does not know."""

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self) | {"masses": self.masses.to_dict()}

    def plot(self) -> dict[str, Any]:
        """See `BinMasses.plot`."""
        return self.masses.plot()


def miscalibration(g: Any, p: Any, bins: Bins = "levels") -> Miscalibration:
    """How far a generator's probabilities are from the truth, seen through its own confidence.

    Parameters
    ----------
    g, p
        Probabilities of the same facts, as arrays of one length or mappings fact -> probability (a fact that one
        of them lacks has probability 0 there). Series of pandas whose indices differ are such mappings. p is the
        distribution of documents, not of being right.
    bins
        "levels": one bin for each value of g. A number b: facts sorted by g are cut so that each bin holds about
        1 / b of g's mass. Facts of equal g are never parted. Facts of g = 0 have no mass and share the first bin,
        which hides what a generator misses entirely: use "levels" for those that give exactly 0.

    Returns
    -------
    Miscalibration
        A float between 0 and 1, with the masses of its bins and `to_dict` and `plot` of them.

    Raises
    ------
    ValueError
        For negative values, sums other than 1 (tolerance 1e-6), different lengths, fewer than 1 bin.
    """
    g_values, p_values = aligned(g, p)
    bin_of, n_bins = bins_by_level(g_values, g_values, bins)
    g_mass = np.bincount(bin_of, weights=g_values, minlength=n_bins).astype(float)
    p_mass = np.bincount(bin_of, weights=p_values, minlength=n_bins).astype(float)
    return Miscalibration(_half_gap(bin_of, n_bins, g_values, p_values), BinMasses(g_mass, p_mass))


def grouped_miscalibration(level: Floats, g_mass: Floats, p_mass: Floats, bins: Bins = "levels") -> float:
    """`miscalibration` where entry i stands for many facts that share the probability ``level[i]`` each.

    Parameters
    ----------
    level, g_mass, p_mass
        (m,): probability of one fact, and mass of all the facts of the entry under g and under p.
    """
    bin_of, n_bins = bins_by_level(level, g_mass, bins)
    return _half_gap(bin_of, n_bins, g_mass, p_mass)


def _half_gap(bin_of: NDArray[np.int64], n_bins: int, g_mass: Floats, p_mass: Floats) -> float:
    gap = np.bincount(bin_of, weights=p_mass - g_mass, minlength=n_bins)
    return float(0.5 * np.abs(gap).sum())


def bins_by_level(level: Floats, g_mass: Floats, bins: Bins) -> tuple[NDArray[np.int64], int]:
    """Bin number of each entry, and how many bins there are; a bin begins at its first level's lower end."""
    if bins != "levels" and (not isinstance(bins, Real) or isinstance(bins, bool) or bins != bins // 1 or bins < 1):
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
        Held-out facts: keys of g, or indices. A fact that g does not know counts as probability 0; as an index, -1.

    Raises
    ------
    ValueError
        Without facts, for indices that are no integers or beyond g, or a g as `miscalibration` refuses it.
    TypeError
        For a fact that cannot be hashed; the message names it.
    """
    if isinstance(g, Mapping):
        check_hashable(facts := listed(facts), "held-out fact")
        index = {fact: i for i, fact in enumerate(g)}
        values = _checked(np.fromiter(g.values(), dtype=float, count=len(g)), "g")
        rows = np.array([index.get(fact, -1) for fact in facts], dtype=np.int64)
    else:
        values = _checked(masses(g), "g")
        rows = np.asarray(facts)
        if len(rows) and rows.dtype.kind not in "iu":
            raise ValueError(
                f"held-out facts must be indices of g, got {rows.dtype}; give g as a mapping to name facts"
            )
        rows = rows.astype(np.int64)
    if len(rows) == 0:
        raise ValueError("no held-out facts")
    if rows.max() >= len(values) or rows.min() < -1:
        i = int(np.argmax((rows >= len(values)) | (rows < -1)))
        raise ValueError(f"held-out fact {i} has index {rows[i]}, but g has {len(values)} facts; -1 stands for unknown")
    bin_of, n_bins = bins_by_level(values, values, bins)
    g_mass = np.append(np.bincount(bin_of, weights=values, minlength=n_bins), 0.0)
    where = np.where(rows >= 0, bin_of[rows], n_bins)
    share = np.bincount(where, minlength=n_bins + 1) / len(rows)
    value = float(0.5 * np.abs(share - g_mass).sum())
    drawn = generator.multinomial(len(rows), share, size=samples) / len(rows)
    again = 0.5 * np.abs(drawn - g_mass).sum(1)
    low, high = np.quantile(again - again.mean(), [delta / 2, 1 - delta / 2])
    return HeldOutMiscalibration(
        value, max(0.0, value + float(low)), min(1.0, value + float(high)), BinMasses(g_mass, share)
    )


def aligned(g: Any, p: Any) -> tuple[Floats, Floats]:
    """Both as arrays over the same facts, checked to be distributions."""
    g, p = _named(g, p), _named(p, g)
    if isinstance(g, Mapping) != isinstance(p, Mapping):
        raise ValueError("g and p must both be mappings fact -> probability, or both arrays")
    if isinstance(g, Mapping):
        keys: dict[Hashable, None] = dict.fromkeys([*g, *p])
        g = np.array([g.get(k, 0.0) for k in keys], dtype=float)
        p = np.array([p.get(k, 0.0) for k in keys], dtype=float)
    g, p = _checked(masses(g).ravel(), "g"), _checked(masses(p).ravel(), "p")
    if g.shape != p.shape:
        raise ValueError(f"g has {g.size} facts and p {p.size}: give mappings fact -> probability to align them")
    return g, p


def _named(values: Any, other: Any) -> Any:
    """A Series of pandas as a mapping, unless it stands beside an array or a Series of the same index."""
    if not hasattr(values, "to_dict") or getattr(values, "ndim", 0) != 1:
        return values
    if isinstance(other, Mapping) or (hasattr(other, "to_dict") and not values.index.equals(other.index)):
        return values.to_dict()
    return values


def masses(values: Any) -> Floats:
    """An array, a tensor or the values of a mapping as numpy's floats."""
    values = list(values.values()) if isinstance(values, Mapping) else values
    values = values.detach().cpu().double().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, dtype=float)


def check_masses(values: Floats, name: str) -> None:
    """Raise ValueError unless there are values, all finite and at least 0, and one of them is above 0."""
    if values.size == 0:
        raise ValueError(f"{name} has no facts")
    if not np.isfinite(values).all():
        raise ValueError(f"{name}[{int(np.flatnonzero(~np.isfinite(values))[0])}] is not finite")
    if values.min() < 0:
        raise ValueError(f"{name}[{int(values.argmin())}] is negative: {values.min():.3g}")
    if values.max() == 0:
        raise ValueError(f"{name} is 0 everywhere: no fact would ever be generated")


def _checked(values: Floats, name: str) -> Floats:
    check_masses(values, name)
    total = float(values.sum())
    if abs(total - 1) > 1e-6:
        raise ValueError(f"{name} must sum to 1 (tolerance 1e-6), its sum is {total:.8g}")
    return values

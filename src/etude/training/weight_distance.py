"""How far the weights have moved from where they started, and by which law they move.

Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741, section 3: on a random landscape whose potential differs by
|w1 - w2|^alpha, E|w_t - w_0|^2 grows as (log t)^(4 / alpha); alpha = 2 gives a distance linear in log t ("ultra-slow
diffusion"), an ordinary random walk sqrt(t).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from etude.layers.parameters import Anchor


class DistanceFit(NamedTuple):
    """Three laws fitted to distances d(t) by least squares in d, with the share of variance each explains."""

    log_a: float
    log_c: float
    """d = log_a + log_c * ln t."""
    log_r2: float
    power_a: float
    power_p: float
    """d = power_a * t ** power_p."""
    power_r2: float
    sqrt_r2: float
    """Of d = c * sqrt(t), the random walk without a landscape."""


def fit_distances(steps: ArrayLike, distances: ArrayLike) -> DistanceFit:
    """Fit the laws to distances at updates `steps` (at least 1), both shape (n,), n at least 3.

    The power law is fitted in d itself (not in log d), so that all three are judged by the same errors.

    Raises
    ------
    ValueError
        For fewer than 3 points, an update below 1, updates or distances that are all the same, or distances that are
        not finite and positive.
    """
    t, d = np.asarray(steps, np.float64), np.asarray(distances, np.float64)
    if t.ndim != 1 or t.shape != d.shape or t.size < 3:
        raise ValueError(f"need at least 3 updates with one distance each, got shapes {t.shape} and {d.shape}")
    if not (t >= 1).all():
        raise ValueError(f"updates are numbered from 1, got {t.min():g}")
    if not (np.isfinite(d).all() and (d > 0).all()):
        raise ValueError("distances must be finite and positive: the weights have not moved, or training diverged")
    for name, values in (("updates", t), ("distances", d)):
        if np.ptp(values) == 0:
            raise ValueError(f"all {name} are {values[0]:g}: there is no growth to fit")
    log_c, log_a = np.polyfit(np.log(t), d, 1)
    power = _best_power(t, d)
    root = np.sqrt(t)
    return DistanceFit(
        float(log_a), float(log_c), _r2(d, log_a + log_c * np.log(t)),
        float(_scale(t**power, d)), power, _r2(d, _scale(t**power, d) * t**power),
        _r2(d, _scale(root, d) * root),
    )  # fmt: skip


def _scale(basis: np.ndarray, d: np.ndarray) -> float:
    return float(basis @ d / (basis @ basis))


def _best_power(t: np.ndarray, d: np.ndarray) -> float:
    """The exponent with the smallest squared error; the factor has a closed form, so this is one number to find."""
    from scipy.optimize import minimize_scalar

    def error(p: float) -> float:
        basis = (t / t.max()) ** p
        return float(((d - _scale(basis, d) * basis) ** 2).sum())

    grid = np.linspace(-1.0, 3.0, 81)
    best = float(grid[np.argmin([error(p) for p in grid])])
    found = minimize_scalar(error, bounds=(best - 0.05, best + 0.05), method="bounded", options={"xatol": 1e-10})
    return float(found.x)


def _r2(d: np.ndarray, fitted: np.ndarray) -> float:
    spread = float(((d - d.mean()) ** 2).sum())
    return 1.0 - float(((d - fitted) ** 2).sum()) / spread if spread > 0 else float("nan")


class WeightDistance:
    """Records |w_t - w_0| of a model; the start is where the model stands when this is made.

    ``probe = WeightDistance(model); ...; probe.record(step); probe.fit()``

    Attributes
    ----------
    steps, distances
        What was recorded, in the order of the calls.
    """

    def __init__(self, model: nn.Module) -> None:
        self._anchor = Anchor(model)
        self.steps: list[int] = []
        self.distances: list[float] = []

    def record(self, step: int) -> float:
        """Measure the Euclidean distance over all parameters after update `step`, keep it and return it."""
        if self.steps and step <= self.steps[-1]:
            raise ValueError(f"updates must increase, got {step} after {self.steps[-1]}")
        distance = self._anchor.distance()
        assert isinstance(distance, torch.Tensor)
        self.steps.append(int(step))
        self.distances.append(float(distance))
        return self.distances[-1]

    def fit(self, *, first: int = 1, last: int | None = None) -> DistanceFit:
        """Log law against power law over the recorded updates from `first` to `last` (None: all).

        The law holds for an initial phase at a high learning rate, so the window belongs to the result.
        """
        chosen = [(t, d) for t, d in zip(self.steps, self.distances) if t >= first and (last is None or t <= last)]
        return fit_distances([t for t, _ in chosen], [d for _, d in chosen])


def compare_walks(probes: Sequence[WeightDistance]) -> dict[str, float]:
    """How alike walks are: mean R2 of each law over them, and the relative spread of where they ended.

    Returns
    -------
    ``log_r2``, ``power_r2``, ``sqrt_r2``; ``spread`` = (largest - smallest) / mean of the last distances.
    """
    fits, ends = [p.fit() for p in probes], [p.distances[-1] for p in probes]
    laws = {name: float(np.mean([getattr(f, name) for f in fits])) for name in ("log_r2", "power_r2", "sqrt_r2")}
    return laws | {"spread": (max(ends) - min(ends)) / float(np.mean(ends))}


def log_spaced(last: int, count: int = 40) -> list[int]:
    """At most `count` different updates from 1 to `last`, evenly spaced in log t."""
    if last < 1 or count < 2:
        raise ValueError(f"need last of at least 1 and count of at least 2, got {last} and {count}")
    return sorted({int(t) for t in np.rint(np.geomspace(1, last, count))})


class DistanceTrace:
    """A callback of `train`: a `WeightDistance` for each seed, recorded at given updates.

    Attributes
    ----------
    probes
        Seed to its `WeightDistance`.
    """

    one_seed = True

    def __init__(self, steps: Sequence[int]) -> None:
        self.at = frozenset(steps)
        self.probes: dict[int, WeightDistance] = {}

    def on_start(self, state: Any) -> None:
        self.probes[state.seed] = WeightDistance(state.model)

    def on_step(self, state: Any) -> None:
        if state.step in self.at:
            self.probes[state.seed].record(state.step)

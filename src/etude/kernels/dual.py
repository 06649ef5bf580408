"""Dual activations: how one layer of an infinitely wide net maps the inner product of two unit inputs.

For phi = sum_k a_k h_k with sum a_k^2 = 1 the dual is phi^(z) = E phi(u) phi(v) = sum_k a_k^2 z^k for standard
normal u, v of correlation z. Near z = 1 everything is also available in u = 1 - z, where no digit is lost.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.kernels.hermite import (
    Activation,
    HermiteActivation,
    activation_report,
    hermite_coefficients,
    optimal_activation,
    sine_frequency,
)

_MAX_DEGREE = 200
_STEEPEST = 20_000  # the highest degree that stands in for what is left out of a series
FLATTEST = 1e-146  # a smaller phi^'(0) leaves float64's range before phi^ is linear


class DualActivation:
    """A dual with ``value(1) = 1``. Subclasses give `value`, `slope` and, exactly for small u, `complement`."""

    def value(self, z: Tensor) -> Tensor:
        """phi^(z) for z in [-1, 1]."""
        raise TypeError("use a subclass of DualActivation")

    def slope(self, z: Tensor) -> Tensor:
        """The derivative of phi^ at z: the dual of phi'."""
        raise TypeError("use a subclass of DualActivation")

    def complement(self, u: Tensor) -> Tensor:
        """1 - phi^(1 - u)."""
        return 1 - self.value(1 - u)

    @property
    def at_zero(self) -> float:
        """phi^(0) = A^2."""
        return float(self.value(torch.zeros((), dtype=torch.float64)))

    @property
    def slope_at_zero(self) -> float:
        """phi^'(0) = A'^2."""
        return float(self.slope(torch.zeros((), dtype=torch.float64)))

    @property
    def slope_at_one(self) -> float:
        """phi^'(1) = B'."""
        return float(self.slope(torch.ones((), dtype=torch.float64)))

    @property
    def order(self) -> float | None:
        """alpha = -2 log phi^'(0) / log phi^'(1) of the singular class; None outside of it."""
        if self.limit != "singular":
            return None
        return -2 * math.log(self.slope_at_zero) / math.log(self.slope_at_one)

    @property
    def limit(self) -> str:
        """Which classifier infinite depth gives: "majority", "1-nn", "singular" or "linear"."""
        if self.at_zero > 0:
            return "majority"
        if self.slope_at_zero == 0:
            return "1-nn"
        return "linear" if self.slope_at_zero >= 1 else "singular"


class PowerDual(DualActivation):
    """sum_k p_k z^k with weights p_k = a_k^2 that sum to 1."""

    def __init__(self, weights: Sequence[float] | Tensor) -> None:
        p = np.asarray(weights, dtype=np.float64)
        if p.ndim != 1 or not len(p) or (p < 0).any() or not math.isclose(p.sum(), 1.0, rel_tol=1e-9):
            raise ValueError(f"weights of a dual must be at least 0 and sum to 1, got {p.tolist()}")
        p = np.trim_zeros(p, "b")
        self.weights = tuple((p / p.sum()).tolist())
        self._slopes = tuple(k * w for k, w in enumerate(self.weights))[1:] or (0.0,)
        # 1 - z^k = u (1 + z + ... + z^(k-1)), so the complement is u times a sum of positive terms
        self._tails = tuple(np.cumsum(self.weights[::-1])[::-1][1:].tolist()) or (0.0,)

    @staticmethod
    def _polynomial(coefficients: Sequence[float], z: Tensor) -> Tensor:
        out = torch.full_like(z, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            out = out.mul_(z).add_(c) if c else out.mul_(z)
        return out

    def value(self, z: Tensor) -> Tensor:
        return self._polynomial(self.weights, z)

    def slope(self, z: Tensor) -> Tensor:
        return self._polynomial(self._slopes, z)

    def complement(self, u: Tensor) -> Tensor:
        return self._polynomial(self._tails, 1 - u).mul_(u)


class SineDual(DualActivation):
    """sinh(w^2 z) / sinh(w^2), the dual of sin(w x)."""

    def __init__(self, frequency: float) -> None:
        if not frequency > 0:
            raise ValueError(f"the frequency of a sine must be positive, got {frequency}")
        self.frequency = float(frequency)
        self._a = self.frequency**2

    def value(self, z: Tensor) -> Tensor:
        a, size = self._a, z.abs()
        return z.sign() * torch.exp(a * (size - 1)) * torch.expm1(-2 * a * size) / math.expm1(-2 * a)

    def slope(self, z: Tensor) -> Tensor:
        a, size = self._a, z.abs()
        return -a * torch.exp(a * (size - 1)) * (1 + torch.exp(-2 * a * size)) / math.expm1(-2 * a)

    def complement(self, u: Tensor) -> Tensor:
        a, h = self._a, u / 2  # (sinh a - sinh a(1-u)) = 2 cosh(a - ah) sinh(ah)
        return (1 + torch.exp(-2 * a * (1 - h))) * torch.expm1(-2 * a * h) / math.expm1(-2 * a)


class ErfDual(DualActivation):
    """arcsin(2z/3) / arcsin(2/3), the dual of erf."""

    def value(self, z: Tensor) -> Tensor:
        return torch.asin(z * (2 / 3)) / math.asin(2 / 3)

    def slope(self, z: Tensor) -> Tensor:
        return (2 / 3) / (torch.sqrt(1 - (4 / 9) * z.square()) * math.asin(2 / 3))

    def complement(self, u: Tensor) -> Tensor:
        c = 2 / 3
        y = c * (1 - u)  # asin c - asin y by the sine of the difference, written without a cancellation
        below = y < 0  # there is nothing to cancel
        y = torch.where(below, 0.0, y)
        sine = c**2 * u * (2 - u) / (c * torch.sqrt(1 - y.square()) + y * math.sqrt(1 - c**2))
        return torch.where(below, 1 - self.value(1 - u), torch.asin(sine.clamp(max=1)) / math.asin(c))


class ReluDual(DualActivation):
    """(sin t + (pi - t) cos t) / pi with cos t = z, the dual of the rectifier (arc-cosine kernel of order 1)."""

    def value(self, z: Tensor) -> Tensor:
        z = z.clamp(-1, 1)
        return (torch.sqrt((1 - z) * (1 + z)) + (math.pi - torch.acos(z)) * z) / math.pi

    def slope(self, z: Tensor) -> Tensor:
        return (math.pi - torch.acos(z.clamp(-1, 1))) / math.pi

    def complement(self, u: Tensor) -> Tensor:
        t = 2 * torch.asin(torch.sqrt((u / 2).clamp(0, 1)))
        series = t**3 * (1 / 3 - t**2 * (1 / 30 - t**2 * (1 / 840 - t**2 / 45360)))
        bend = torch.where(t < 0.1, series, torch.sin(t) - t * torch.cos(t))
        return u - bend / math.pi


def dual_activation(
    activation: str | Sequence[float] | Tensor | Activation | DualActivation, dim: float | None = None
) -> DualActivation:
    """The dual of an activation, scaled to E phi(g)^2 = 1.

    Parameters
    ----------
    activation
        "optimal" or "sine" (both made for the sphere of dimension `dim`), "sin", "erf", "relu", "tanh", "gelu",
        "silu", "linear"; Hermite coefficients a_0, a_1, ...; or any elementwise function, expanded to degree 200; what
        is left goes to the one higher degree that makes the slope at 1 E phi'^2 (a warning where phi jumps, so that it
        is infinite).
    dim
        Dimension of the sphere, for "optimal" and "sine" alone.

    Raises
    ------
    ValueError
        For an unknown name, a missing `dim` or one beyond float64 (the optimal activation's from about 960 on, the
        sine's from about 115 on), or an activation that cannot be expanded.
    """
    if isinstance(activation, DualActivation):
        return activation
    if isinstance(activation, str):
        if activation in ("optimal", "sine"):
            if dim is None:
                raise ValueError(f'activation "{activation}" is made for a dimension: give dim')
            made = _made_for(activation, dim)
            check_slope(made)
            return made
        if activation not in _NAMED:
            names = ", ".join(("optimal", "sine", *_NAMED))
            raise ValueError(f"unknown activation {activation!r}: choose one of {names}")
        known = _NAMED[activation]
        return known if isinstance(known, DualActivation) else _expand(known)
    if isinstance(activation, HermiteActivation) and activation.clip is None:
        activation = activation.coefficients
    if isinstance(activation, Tensor | Sequence | np.ndarray):
        a = HermiteActivation(activation).coefficients  # type: ignore[arg-type]
        return PowerDual(a.square() / a.square().sum())
    if isinstance(activation, nn.ReLU) or activation in (torch.relu, torch.Tensor.relu, F.relu):
        return ReluDual()
    if activation is torch.erf:
        return ErfDual()
    return SineDual(1.0) if activation is torch.sin else _expand(activation)


def name_of(dual: DualActivation) -> str | None:
    """ "erf", "relu" or "sin" where it is the dual of that activation, else None."""
    if isinstance(dual, SineDual):
        return "sin" if dual.frequency == 1.0 else None
    return {ErfDual: "erf", ReluDual: "relu"}.get(type(dual))


def _made_for(activation: str, dim: float) -> DualActivation:
    if activation == "sine":
        return SineDual(sine_frequency(dim))
    return PowerDual(optimal_activation(dim).square())  # type: ignore[arg-type]


def check_slope(dual: DualActivation) -> None:
    """ValueError where phi^'(0) is too small for the kernel to be followed to where phi^ is linear."""
    if dual.slope_at_zero < FLATTEST:
        raise ValueError(
            f"the activation's dual has the slope {dual.slope_at_zero:.3g} at 0, too flat for float64: give a smaller "
            "dim (the optimal activation reaches about 960, the sine about 115)"
        )


def within_float64(activation: str, dim: float) -> bool:
    """Whether `dual_activation` can make "optimal" or "sine" for this dimension."""
    return _made_for(activation, dim).slope_at_zero >= FLATTEST


def _expand(activation: Activation) -> PowerDual:
    report = activation_report(activation)
    a = (hermite_coefficients(activation, _MAX_DEGREE) / report.scale).square()
    a[0] = report.A**2  # exactly 0 where the report says so: depth would blow up what is left
    a[1] = report.A_prime**2
    a[a < 1e-20] = 0.0
    if (left := float(1 - a.sum())) > 1e-12:  # belongs to higher degrees: the one that makes the slope at 1 B'
        slope = float((torch.arange(len(a), dtype=a.dtype) * a).sum())
        degree = max((report.B_prime - slope) / left, float(_MAX_DEGREE))
        if degree > _STEEPEST:
            warnings.warn(
                f"the activation jumps or is too steep for a series (E phi'^2 = {report.B_prime:.3g}): at infinite "
                "depth its kernel is that of a less steep one",
                stacklevel=3,
            )
            degree = float(_MAX_DEGREE)
        below = int(degree)
        a = torch.cat([a, a.new_zeros(below + 2 - len(a))])
        a[below] += left * (below + 1 - degree)
        a[below + 1] += left * (degree - below)
    return PowerDual(a / a.sum())


_NAMED: dict[str, DualActivation | Activation] = {
    "sin": SineDual(1.0),
    "erf": ErfDual(),
    "relu": ReluDual(),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "linear": PowerDual([0.0, 1.0]),
}

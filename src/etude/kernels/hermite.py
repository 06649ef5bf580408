"""Activations seen through Hermite polynomials: what an infinitely deep net of them computes.

Source: Radhakrishnan, Belkin & Uhler 2022, arXiv 2204.14126.

With g ~ N(0, 1), an activation phi scaled to E phi(g)^2 = 1 and orthonormal (probabilists') Hermite polynomials h_k,
phi = sum_k a_k h_k. Three numbers decide the classifier that an infinitely wide net becomes as its depth grows:

    A = E phi = a_0,    A' = E phi' = a_1,    B' = E phi'^2 = sum_k k a_k^2.

A != 0: majority vote. A = A' = 0: the nearest neighbour. A = 0, A' != 0: a singular kernel of order
alpha = -4 log|A'| / log B', which is consistent for every density on the d-sphere when alpha = d.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
_ZERO = 1e-6  # an expectation below this is taken as 0: far above the quadrature's error
_FLAT = 1e-9  # the same for A', which is 2^(-d/4) for the optimal activations and exact where it vanishes by symmetry
_REACH, _PANEL, _NODES = 13.0, 0.5, 20  # the integral over [-13, 13] in panels that end at every multiple of 0.5
_SETTLED, _HALVINGS = 1e-10, 40  # a panel whose halves add up to something else is halved
_SLOWEST = 1e-3  # squared frequency of the slowest sine
_JUMP = 1e4  # what changes faster than this jumps
_KINKS = 8  # of the panels of a round, so that a noisy function ends


def _nodes(panels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points and weights of E f(g): Gauss-Legendre in the panels (m, 2), exact for kinks at their ends."""
    x, w = np.polynomial.legendre.leggauss(_NODES)
    low, width = panels[:, :1], panels[:, 1:] - panels[:, :1]
    points = (low + width * (x + 1) / 2).ravel()
    weights = (width * w / 2).ravel() * np.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(points), torch.from_numpy(weights)


class _Sampled(NamedTuple):
    """Nodes, their weights, phi and phi' there."""

    x: Tensor
    w: Tensor
    value: Tensor
    slope: Tensor


def _sample(activation: Activation) -> _Sampled:
    """The activation at the nodes of panels that end at every multiple of 0.5 and close in on kinks between."""
    _check_elementwise(activation)
    edges = np.arange(-_REACH, _REACH, _PANEL)
    unsettled, settled = np.stack([edges, edges + _PANEL], 1), []
    for _ in range(_HALVINGS):
        middle = unsettled.mean(1)
        halves = np.stack([unsettled[:, 0], middle, middle, unsettled[:, 1]], 1).reshape(-1, 2)
        finer = _integrals(activation, halves).reshape(-1, 2, 2).sum(1)
        off = np.abs(_integrals(activation, unsettled) - finer).max(1)
        split = (off > _SETTLED) & (off >= np.sort(off)[-_KINKS:][0])
        settled.append(unsettled[~split])
        unsettled = halves.reshape(-1, 2, 2)[split].reshape(-1, 2)
        if not len(unsettled):
            break
    panels = np.concatenate([*settled, unsettled])
    x, w = _nodes(panels[panels[:, 0].argsort()])
    return _Sampled(x, w, *_value_and_slope(activation, x))


def _check_elementwise(activation: Activation) -> None:
    """Raise ValueError where what becomes of a number depends on the numbers beside it (softmax, a norm)."""
    x = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    whole, part = (_value_and_slope(activation, t)[0] for t in (x, x[2:5]))
    if not torch.allclose(whole[2:5], part, rtol=1e-6, atol=1e-9):
        raise ValueError("an activation acts elementwise: what this one makes of a number depends on those beside it")


def _integrals(activation: Activation, panels: np.ndarray) -> np.ndarray:
    """What each panel adds to E phi and E phi', (m, 2)."""
    x, w = _nodes(panels)
    both = torch.stack(_value_and_slope(activation, x)) * w
    return both.view(2, len(panels), -1).sum(-1).T.numpy()


def _value_and_slope(activation: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """phi and phi' at x. Takes functions of tensors and, failing that, functions of numpy arrays."""
    given = x.clone().requires_grad_()
    if isinstance(activation, nn.Module):
        activation = copy.deepcopy(activation).double().eval()
    slope = None
    try:
        with torch.enable_grad():
            value: Any = activation(given.clone())  # which may work in place
            if isinstance(value, Tensor) and value.requires_grad:
                slope = torch.autograd.grad(value.sum(), given, allow_unused=True)[0]
                slope = torch.zeros_like(x) if slope is None else slope
    except (TypeError, RuntimeError):
        value = _plain(activation, x)
    if slope is None:  # outside of autograd: central differences
        step = 1e-6
        low, high = (_plain(activation, x + s) for s in (-step, step))
        slope = (high - low) / (2 * step)
        slope = slope.masked_fill(slope.abs() > _JUMP, 0.0)  # a jump has no slope, as autograd sees it
    value = torch.as_tensor(value, dtype=torch.float64).detach()
    if value.shape != x.shape:
        raise ValueError(f"an activation acts elementwise: {tuple(x.shape)} became {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        bad = float(x[~torch.isfinite(value)][0])
        raise ValueError(f"the activation is not finite at {bad:.3g}; its second moment must exist")
    return value, slope.detach()


def _plain(activation: Activation, x: Tensor) -> Tensor:
    try:
        out: Any = activation(x.clone())
    except TypeError:  # a function of numpy arrays
        out = activation(x.numpy().copy())  # type: ignore[arg-type]
    return torch.as_tensor(out, dtype=torch.float64)


def hermite_values(x: Tensor, degree: int) -> Tensor:
    """Orthonormal Hermite polynomials h_0 .. h_degree at `x`: (..., degree + 1)."""
    values = [torch.ones_like(x), x][: degree + 1]
    for k in range(1, degree):
        values.append((x * values[k] - math.sqrt(k) * values[k - 1]) / math.sqrt(k + 1))
    return torch.stack(values, dim=-1)


def hermite_coefficients(activation: Activation, degree: int = 100) -> Tensor:
    """a_0 .. a_degree of an activation as it is (not scaled), float64, by quadrature.

    Raises
    ------
    ValueError
        If the activation is not elementwise or not finite.
    """
    x, w, value, _ = _sample(activation)
    return (w * value) @ hermite_values(x, degree)


class HermiteActivation(nn.Module):
    """phi(x) = sum_k a_k h_k(x) with orthonormal Hermite polynomials.

    Parameters
    ----------
    coefficients
        a_0, a_1, ... (fixed; E phi(g)^2 is the sum of their squares).
    clip
        Inputs are cut to [-clip, clip] first. The tails of a polynomial of a Gaussian are heavy; a finite net may need
        this, the theory has none.

    Raises
    ------
    ValueError
        If there is no finite non-zero coefficient, or `clip` is not positive.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Sequence[float] | Tensor, *, clip: float | None = None) -> None:
        super().__init__()
        a = torch.as_tensor(coefficients, dtype=torch.float64).detach().clone()
        if a.ndim != 1 or not bool(torch.isfinite(a).all()) or not bool((a != 0).any()):
            raise ValueError(f"coefficients must be a list of finite numbers, not all 0; got {a.tolist()}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.clip = clip
        self.register_buffer("coefficients", a)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):  # the recurrence loses most of their few digits
            return self.forward(x.float()).to(x.dtype)
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        a = self.coefficients.tolist()
        above, here = 0.0 * x, torch.zeros_like(x)  # Clenshaw: h_{k+1} = (x h_k - sqrt(k) h_{k-1}) / sqrt(k+1)
        for k in range(len(a) - 1, 0, -1):
            here, above = a[k] + x / math.sqrt(k + 1) * here - math.sqrt((k + 1) / (k + 2)) * above, here
        return a[0] + x * here - math.sqrt(1 / 2) * above

    def extra_repr(self) -> str:
        return f"coefficients={[round(v, 6) for v in self.coefficients.tolist()]}, clip={self.clip}"


class ScaledActivation(nn.Module):
    """(phi(x) - shift) / scale."""

    def __init__(self, activation: Activation, shift: float, scale: float) -> None:
        super().__init__()
        self.activation, self.shift, self.scale = activation, shift, scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.activation(x) - self.shift) / self.scale

    def extra_repr(self) -> str:
        return f"shift={self.shift:.6g}, scale={self.scale:.6g}"


def _check_dim(d: float) -> None:
    if not 1 <= d < math.inf:
        raise ValueError(f"dim must be at least 1 (the sphere's own dimension) and finite, got {d}")


def optimal_activation(d: int) -> Tensor:
    """Hermite coefficients a_0 .. a_k of the paper's activation of order alpha = d, for `HermiteActivation`.

    d = 1: (h_1 + h_7) / sqrt 2. d >= 2: 2^(-d/4) (h_1 + h_3) + sqrt(1 - 2^(1 - d/2)) h_2. `d` is the dimension of the
    sphere: the number of coordinates less one.

    Raises
    ------
    ValueError
        If `d` is below 1, between 1 and 2, or infinite.
    """
    _check_dim(d)
    a = torch.zeros(8 if d == 1 else 4, dtype=torch.float64)
    if d == 1:
        a[1] = a[7] = math.sqrt(0.5)
        return a
    if d < 2:
        raise ValueError(f"dim must be 1 or at least 2, got {d}")
    a[1] = a[3] = 2 ** (-d / 4)
    a[2] = math.sqrt(1 - 2 ** (1 - d / 2))
    return a


def sine_frequency(d: float) -> float:
    """The frequency w for which a net of sin(w x) has order alpha = d.

    Its dual is sinh(a z) / sinh(a) with a = w^2, so alpha = -2 log(a / sinh a) / log(a coth a).

    Raises
    ------
    ValueError
        If `d` is at most 1, the limit of small frequencies, or above 1000.
    """
    if not 1 < d <= 1000:
        raise ValueError(f"a sine reaches the orders above 1 up to 1000, got dim {d}")

    def order(a: float) -> float:
        log_slope0 = math.log(2 * a) - a - math.log1p(-math.exp(-2 * a))  # log(a / sinh a)
        return -2 * log_slope0 / math.log(a / math.tanh(a))

    if d < order(_SLOWEST):
        raise ValueError(f"dim must be at least {order(_SLOWEST):.7f} for a sine, got {d}")
    return math.sqrt(brentq(lambda a: order(a) - d, _SLOWEST, 5000.0, xtol=1e-14, rtol=1e-14))


@dataclass(frozen=True)
class ActivationReport:
    """What depth does with an activation, after scaling to E phi(g)^2 = 1.

    `class_` is "majority", "1-nn", "singular" or "linear"; `alpha` the order of the singular kernel (None otherwise);
    `scale` the square root of E phi(g)^2 before scaling; `warning` what stands in the way of the singular class.
    """

    A: float
    A_prime: float
    B_prime: float
    alpha: float | None
    class_: Literal["majority", "1-nn", "singular", "linear"]
    scale: float
    warning: str | None = None
    _activation: Activation | None = field(default=None, repr=False, compare=False)

    def centered(self) -> ScaledActivation:
        """(phi - E phi) / std: the same activation without the constant that makes depth a majority vote."""
        assert self._activation is not None
        std = self.scale * math.sqrt(max(1 - self.A**2, 0.0))
        if std < _ZERO:
            raise ValueError("a constant activation cannot be centred")
        return ScaledActivation(self._activation, self.A * self.scale, std)

    def as_dict(self) -> dict[str, Any]:
        """The numbers under the paper's names: A, A', B', alpha, class."""
        return {"A": self.A, "A'": self.A_prime, "B'": self.B_prime, "alpha": self.alpha, "class": self.class_}


def _moments(activation: Activation) -> tuple[float, float, float, float]:
    """A, A', B' after scaling, and the scale, by quadrature."""
    x, w, value, slope = _sample(activation)
    scale = math.sqrt(float(w @ value.square()))
    ends = x.abs() > _REACH - 1
    if float(w[ends] @ value[ends].square()) > _ZERO * scale**2:
        raise ValueError("the activation grows too fast: E phi(g)^2, its second moment, must exist")
    if scale < _ZERO:
        raise ValueError("the activation is zero, so it cannot be scaled to E phi(g)^2 = 1")
    value, slope = value / scale, slope / scale
    a, a_prime = float(w @ value), float(w @ (x * value))  # E phi' = E g phi(g) (Stein), also with jumps
    b_prime = float(w @ slope.square())
    if b_prime < 1 - a**2 - _ZERO or b_prime < a_prime**2 - _ZERO:  # sum k a_k^2 >= sum_{k>0} a_k^2: it jumps
        b_prime = math.inf
    return a, a_prime, b_prime, scale


def _moments_of_series(coefficients: Tensor) -> tuple[float, float, float, float]:
    """The same from Hermite coefficients: the quadrature ends before high degrees do."""
    a = coefficients.detach().cpu().double()
    scale = float(a.norm())
    a = a / scale
    degrees = torch.arange(len(a), dtype=a.dtype)
    return float(a[0]), float(a[1]) if len(a) > 1 else 0.0, float((degrees * a.square()).sum()), scale


def activation_report(activation: Activation) -> ActivationReport:
    """Which classifier an infinitely wide and deep net of this activation becomes.

    Parameters
    ----------
    activation
        Any elementwise function of a tensor (or of a numpy array); modules (in eval mode) and built-in functions alike,
        with up to eight kinks or jumps that are no multiples of 0.5. Of a `HermiteActivation` without clip everything
        is exact, at any degree.

    Raises
    ------
    ValueError
        If it is not elementwise, not finite, zero, or grows so fast that E phi(g)^2 does not exist.
    """
    exact = isinstance(activation, HermiteActivation) and activation.clip is None
    zero, flat = (0.0, 0.0) if exact else (_ZERO, _FLAT)
    if isinstance(activation, HermiteActivation) and exact:
        a, a_prime, b_prime, scale = _moments_of_series(activation.coefficients)
    else:
        a, a_prime, b_prime, scale = _moments(activation)
    warning = None
    if abs(a) > zero:
        kind: Any = "majority"
        warning = (
            f"E phi = {a:.3g} is not 0, so depth turns this net into a majority vote; "
            "report.centered() is the same activation in another class"
        )
    elif abs(a_prime) <= flat:
        kind, a_prime = "1-nn", 0.0
    elif abs(abs(a_prime) - 1) <= zero or b_prime <= 1:
        kind, warning = "linear", "a linear activation: every depth is the linear kernel"
    else:
        kind = "singular"
    a = 0.0 if abs(a) <= zero else a
    alpha = -4 * math.log(abs(a_prime)) / math.log(b_prime) if kind == "singular" else None
    return ActivationReport(a, a_prime, b_prime, alpha, kind, scale, warning, activation)

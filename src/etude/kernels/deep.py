"""Kernels of infinitely wide nets: NNGP and NTK at a finite depth, and their limit as the depth grows.

Source: Radhakrishnan, Belkin & Uhler 2022, arXiv 2204.14126; recursions without bias on the unit sphere. Inputs enter
through u = 1 - x.y = |x - y|^2 / 2, which near duplicates keep to full precision.
"""

import math
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from etude.kernels.dual import DualActivation, check_slope

COINCIDENT = 1e-28  # u of two unit vectors that differ by rounding alone
_LOWEST = math.log(COINCIDENT) - 5
OPPOSITE = 1e-8  # 1 + z below which an odd dual would never leave -1
KNOTS = 4096  # intervals of the table up to the order ORDER; above it, the kernel bends faster
ORDER = 33.0
Kind = Literal["nngp", "ntk"]


def deep_kernel(u: Tensor, dual: DualActivation, depth: int, kind: Kind = "ntk") -> Tensor:
    """The kernel of a net with `depth` hidden layers.

    NNGP: S_0 = z, S_l = phi^(S_{l-1}). NTK: K_0 = z, K_l = S_l + K_{l-1} phi^'(S_{l-1}).

    Parameters
    ----------
    u
        (...) float64, 1 - z, where z is the inner product of two unit vectors.
    depth
        At least 0, where both kernels are z itself.

    Returns
    -------
    Tensor
        (...) float64. Where u is 0: 1 (NNGP) or 1 + B' + ... + B'^depth (NTK).
    """
    if depth < 0:
        raise ValueError(f"depth must be at least 0, got {depth}")
    if kind not in ("nngp", "ntk"):
        raise ValueError(f'kind must be "nngp" or "ntk", got {kind!r}')
    u = u.clone()
    z = 1 - u
    ntk = z.clone()
    for _ in range(depth):
        if kind == "ntk":
            ntk.mul_(dual.slope(z))
        u_near = dual.complement(torch.where(u < 0.5, u, 0.0))
        close = (u < 0.5) & (u_near < 0.5)  # a steep dual may carry u from near 0 to near 1, where 1 - u has no digits
        value = dual.value(torch.where(close, 0.0, z))
        u = torch.where(u < 0.5, u_near, 1 - value)
        z = torch.where(close, 1 - u_near, value)
        if kind == "ntk":
            ntk.add_(z)
    return ntk if kind == "ntk" else z


def log_limit_ratio(u: Tensor, dual: DualActivation) -> tuple[Tensor, Tensor]:
    """log |K(z) / z| and the sign of K(z) / z for the limit kernel of the singular class.

    K(z) = lim_L A'^(-2L) phi^(...phi^(z)), the solution of K(phi^(z)) = A'^2 K(z) with K'(0) = 1 (Koenigs). It is
    reached by iterating phi^ until z is so small that phi^ is linear there; while z is near 1, u = 1 - z is iterated
    instead. K grows like u^(-alpha/2) towards u = 0, where it is infinite.

    Parameters
    ----------
    u
        (...) float64 in (0, 2].

    Raises
    ------
    ValueError
        If the dual is not of the singular class, or is too flat at 0 for float64.
    """
    _check_singular(dual)
    u = u.double()
    opposite = (2 - u) < OPPOSITE
    if bool(opposite.any()) and _is_odd(dual):  # K(-z) / (-z) = K(z) / z
        u = torch.where(opposite, 2 - u, u)
    u = u.clamp(min=math.exp(_LOWEST))
    return _iterate(1 - u, u, dual)


def _is_odd(dual: DualActivation) -> bool:
    return abs(float(dual.value(torch.tensor(-1.0, dtype=torch.float64))) + 1) < OPPOSITE


def _check_singular(dual: DualActivation) -> None:
    if dual.limit != "singular":
        raise ValueError(f"only the singular class has a limit kernel; this activation's class is {dual.limit!r}")
    check_slope(dual)


def _log_ratio_of_odds(log_odds: Tensor, dual: DualActivation) -> Tensor:
    """log(K / z) at log(u / z), to full precision at both ends."""
    return _iterate(torch.sigmoid(-log_odds), torch.sigmoid(log_odds), dual)[0]


def _iterate(z: Tensor, u: Tensor, dual: DualActivation) -> tuple[Tensor, Tensor]:
    decay = dual.slope_at_zero
    small = min(1e-15, 1e-12 * decay)
    start, z, u = z, z.clone(), u.clone()
    steps = torch.zeros_like(u)
    while bool((near := u < 0.5).any()):
        u = torch.where(near, dual.complement(torch.where(near, u, 0.0)), u)
        close = u < 0.5
        z = torch.where(near, torch.where(close, 1 - u, dual.value(torch.where(close, 0.0, z))), z)
        steps += near
    while bool((far := z.abs() > small).any()):
        z = torch.where(far, dual.value(torch.where(far, z, 0.0)), z)
        steps += far
    at_zero = start == 0  # the ratio is 1 there
    ratio = torch.where(at_zero, 1.0, z / torch.where(at_zero, 1.0, start))
    return ratio.abs().log() - steps * math.log(decay) * ~at_zero, ratio.sign()


def _knots(dual: DualActivation) -> int:
    """The error of a cubic grows like order^5 knots^-4."""
    order = dual.order
    return KNOTS if order is None or order <= ORDER else KNOTS * 2 ** math.ceil(1.25 * math.log2(order / ORDER))


class LimitKernel:
    """The limit kernel of the singular class, tabulated: one cubic interpolation a pair of points.

    log(K / z) as a function of log(u / z) is smooth, constant beyond the table's right end, and the table's error is
    at most about 1e-5 of K's value (2e-5 at order 900). Inner products below 0 are outside of the theory and of the
    table; they are computed exactly.

    Parameters
    ----------
    knots
        Number of intervals of log(u / z). None: as many as the order needs, 4096 up to order 33, 262,144 at 900.
    """

    def __init__(self, dual: DualActivation, *, knots: int | None = None, device: str | torch.device = "cpu") -> None:
        _check_singular(dual)
        knots = _knots(dual) if knots is None else knots
        self.dual = dual
        right = math.log(1e7 / min(1.0, dual.slope_at_zero))  # K / z is 1 once z is far below phi^'(0)
        grid = np.linspace(_LOWEST, right, knots + 1)
        values = _log_ratio_of_odds(torch.from_numpy(grid), dual).numpy()
        cubic = CubicSpline(grid, values).c  # (4, knots), highest power first, in the distance from the left knot
        self.step, self.right = float(grid[1] - grid[0]), right
        scaled = cubic * self.step ** np.array([3, 2, 1, 0])[:, None]
        self._table = torch.from_numpy(np.ascontiguousarray(scaled)).to(device)
        self._knots = knots

    def log_ratio(self, u: Tensor) -> Tensor:
        """log(K / z) for u in [0, 1], from the table."""
        at = (u / (1 - u).clamp_(min=1e-300)).log_().clamp_(_LOWEST, self.right).sub_(_LOWEST).div_(self.step)
        cell = at.long().clamp_(max=self._knots - 1)
        at -= cell
        cell = cell.view(-1)
        c3, c2, c1, c0 = (row.take(cell).view(at.shape) for row in self._table)
        return c3.mul_(at).add_(c2).mul_(at).add_(c1).mul_(at).add_(c0)

    def weights(self, u: Tensor) -> Tensor:
        """K(z) of every row scaled by a positive number of its own, so that the largest is of order 1.

        Where a row holds coincident points (K infinite) these get 1 and all others 0.

        Parameters
        ----------
        u
            (rows, points), 1 - z.
        """
        log_k = self.log_ratio(u)
        z = 1 - u
        if bool((below := z < 0).any()):
            exact, sign = log_limit_ratio(u[below], self.dual)
            log_k[below] = exact
            z[below] *= sign
        log_k -= log_k.amax(1, keepdim=True)
        out = log_k.exp_().mul_(z)
        same = u < COINCIDENT
        hit = same.any(1)
        if bool(hit.any()):
            out[hit] = same[hit].to(out.dtype)
        return out


def solve_kernel(kernel: Tensor, targets: Tensor, ridge: float = 0.0) -> Tensor:
    """(K + ridge I)^-1 Y; for a singular K the solution of least norm, which averages coincident points.

    Parameters
    ----------
    kernel, targets
        (n, n) symmetric and (n, k), float64.

    Raises
    ------
    ValueError
        If the kernel is not finite: the net is too deep for float64.
    """
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("the kernel leaves the range of float64 at this depth; use depth=None, the limit itself")
    scale = float(kernel.diagonal().mean())
    k = kernel / scale + (ridge / scale) * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(k)
    if int(failed) == 0:
        smallest, largest = factor.diagonal().abs().aminmax()
        if float(smallest) > 1e-7 * float(largest):
            return torch.cholesky_solve(targets, factor) / scale
    values, vectors = torch.linalg.eigh(k)
    kept = values > values[-1] * len(k) * torch.finfo(k.dtype).eps
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.mT @ targets)) / scale


def deep_predictions(
    u_test: Tensor,
    u_train: Tensor,
    targets: Tensor,
    dual: DualActivation,
    depth: int,
    *,
    kind: Kind = "ntk",
    ridge: float = 0.0,
) -> Tensor:
    """Kernel regression with the kernel of a net of finite depth, (m, k).

    Parameters
    ----------
    u_test, u_train
        1 - z of the test points to the training points, (m, n), and among the training points, (n, n).
    targets
        (n, k): values, or one-hot classes.
    """
    weights = solve_kernel(deep_kernel(u_train, dual, depth, kind), targets, ridge)
    return deep_kernel(u_test, dual, depth, kind) @ weights

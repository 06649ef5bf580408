"""From predicted losses to probabilities of actions: inverse-gap weighting, epsilon-greedy, Thompson sampling.

Sources: SquareCB, Foster & Rakhlin 2020, arXiv 2002.04926; FastCB, Foster & Krishnamurthy 2021, arXiv 2107.02237; both
as Deb et al. 2023, arXiv 2312.07145, use them. Losses lie in [0, 1]; `...` stands for any leading axes, K for the arms.
"""

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor

Gamma = float | Tensor
Numbers = Tensor | ArrayLike


def _checked(given: Numbers) -> Tensor:
    losses = torch.as_tensor(given)
    if losses.ndim < 1 or losses.shape[-1] < 1:
        raise ValueError(f"losses must have shape (..., arms) with at least one arm, got {tuple(losses.shape)}")
    if not bool(torch.isfinite(losses).all()):
        raise ValueError("predicted losses must be finite: the network has diverged or a context holds NaN")
    return losses if losses.is_floating_point() else losses.to(torch.get_default_dtype())


def _check_gamma(gamma: Gamma) -> None:
    if not bool(((value := torch.as_tensor(gamma)) > 0).all() & torch.isfinite(value).all()):
        raise ValueError(f"gamma must be positive and finite, got {gamma}")


def _rest_to_best(p: Tensor, best: Tensor) -> Tensor:
    """The best arm gets what the others leave; p is overwritten."""
    p.scatter_(-1, best, 0.0)
    return p.scatter_(-1, best, 1 - p.sum(-1, keepdim=True))


def squarecb_probabilities(losses: Numbers, gamma: Gamma) -> Tensor:
    """p_a = 1 / (K + gamma (y_a - y_b)) for the arms a other than the best b, which gets the rest.

    For all predictions y and true means y* in [0, 1]
    ``sum_a p_a (y*_a - min y*) <= 2 K / gamma + gamma / 4 sum_a p_a (y_a - y*_a)^2``.

    Parameters
    ----------
    losses
        (..., K) predicted losses, a tensor, an array or a list; clipped to [0, 1].
    gamma
        Larger: less exploration. A number or a tensor that broadcasts against (..., 1).

    Returns
    -------
    Tensor
        (..., K); the best arm's share is at least 1 / K. Of equal arms the first is the best.
    """
    _check_gamma(gamma)
    y = _checked(losses).clamp(0, 1)
    low, best = y.min(-1, keepdim=True)
    return _rest_to_best(1 / (y.shape[-1] + gamma * (y - low)), best)


def fastcb_probabilities(losses: Numbers, gamma: Gamma) -> Tensor:
    """p_a = y_b / (K y_b + gamma (y_a - y_b)) for the arms a other than the best b, which gets the rest.

    Exploration vanishes as the best prediction y_b does. For gamma >= 10 K, all y and true means y* in [0, 1]
    ``sum_a p_a (y*_a - min y*) <= 5 K / gamma sum_a p_a y*_a + 2 gamma sum_a p_a (y_a - y*_a)^2 / (y_a + y*_a)``.

    Parameters and result as in `squarecb_probabilities`. Arms that are all predicted 0 are equal.
    """
    _check_gamma(gamma)
    y = _checked(losses).clamp(0, 1)
    low, best = y.min(-1, keepdim=True)
    k = y.shape[-1]
    below = k * low + gamma * (y - low)
    return _rest_to_best(torch.where(below > 0, low / torch.where(below > 0, below, 1.0), 1.0 / k), best)


def epsilon_greedy_probabilities(losses: Numbers, epsilon: float) -> Tensor:
    """epsilon / K for every arm and 1 - epsilon more for the best; epsilon = 0 is greedy.

    Raises
    ------
    ValueError
        If `epsilon` lies outside of [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
    y = _checked(losses)
    p = torch.full_like(y, epsilon / y.shape[-1])
    return _rest_to_best(p, y.argmin(-1, keepdim=True))


def thompson_probabilities(mean: Numbers, std: Numbers, *, nodes: int = 33) -> Tensor:
    """Probability that an arm's draw from its own normal distribution is the smallest.

    By quadrature over every arm's quantiles together: exact to about 1e-3 at 33 nodes an arm.

    Parameters
    ----------
    mean, std
        (..., K), std at least 0; below 1e-9 it counts as 1e-9.

    Returns
    -------
    Tensor
        (..., K), sums to 1; arms of equal mean and no doubt share evenly.

    Raises
    ------
    ValueError
        For a negative std, or values that are not finite.
    """
    centre, spread = torch.broadcast_tensors(_checked(mean), _checked(std))
    eps = torch.finfo(centre.dtype).eps
    # where the doubt is so small, or the precision half, the dtype cannot tell an arm's quantiles apart
    narrow = (spread <= (4 * eps * centre.abs()).clamp_min(1e-9)).any(-1) | (eps > 1e-4)
    p = _quadrature(centre, spread, nodes)
    if bool(narrow.any()):
        if bool((spread < 0).any()):
            raise ValueError(f"std must be at least 0, got {float(spread.min()):.4g}")
        wide = centre[narrow].double()
        wide = wide - wide.min(-1, keepdim=True).values  # around 0 there are digits enough
        p[narrow] = _quadrature(wide, spread[narrow].double(), nodes).to(p.dtype)
    return p


def _quadrature(mean: Tensor, std: Tensor, nodes: int) -> Tensor:
    std = std.clamp_min(1e-9)
    q = torch.linspace(-4.5, 4.5, nodes, dtype=mean.dtype, device=mean.device)
    grid = (mean[..., None] + std[..., None] * q).flatten(-2).sort(-1).values  # (..., K * nodes)
    middle = (grid[..., 1:] + grid[..., :-1]) / 2

    def z(points: Tensor) -> Tensor:  # (..., K, points)
        return (points[..., None, :] - mean[..., None]) / (std[..., None] * math.sqrt(2))

    mass = 0.5 * (torch.erf(z(grid[..., 1:])) - torch.erf(z(grid[..., :-1])))  # of each arm in each interval
    log_above = torch.log(0.5 * torch.special.erfc(z(middle)).clamp_min(1e-38))
    others = (log_above.sum(-2, keepdim=True) - log_above).exp()
    p = (mass * others).sum(-1)
    return p / p.sum(-1, keepdim=True)

"""Weighted votes of the training points: the classifiers that infinite depth turns nets into, and the Hilbert estimate.

Each rule maps u = |x - x_i|^2 / 2, (rows, points), to weights of the points, scaled freely row by row.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from etude.kernels.deep import COINCIDENT
from etude.layers.distances import squared_distances

Rule = Callable[[Tensor], Tensor]
_HIGHEST = 1e300  # a power beyond which only the nearest points are left, and float64 ends
CHUNK_PAIRS = 2**16  # pairs of points handled at once: stays in the cache


def hilbert_weights(u: Tensor, dim: float) -> Tensor:
    """Distance to the power -dim: consistent for every density in `dim` dimensions.

    Source: Devroye, Gyorfi & Krzyzak 1998. Coincident points take the whole vote.
    """
    same = u < COINCIDENT
    log_w = torch.where(same, COINCIDENT, u).log_().mul_(-dim / 2)
    out = log_w.sub_(log_w.amax(1, keepdim=True)).exp_()
    hit = same.any(1)
    if bool(hit.any()):
        out[hit] = same[hit].to(out.dtype)
    return out


def nearest_weights(u: Tensor) -> Tensor:
    """1 for the nearest point, and for all that coincide with the row; 0 for others."""
    return (u <= u.amin(1, keepdim=True).clamp(min=COINCIDENT)).to(u.dtype)


def power_weights(u: Tensor, degree: int, depth: int) -> Tensor:
    """The NNGP kernel z^(degree^depth) of a net of the activation h_degree, in logarithms: it underflows at once.

    A row orthogonal to all points gives all the same weight.
    """
    if degree < 2 or depth < 0:
        raise ValueError(f"degree must be at least 2 and depth at least 0, got {degree} and {depth}")
    log_k = torch.log1p(-u.clamp(max=1)) * float(min(degree**depth, _HIGHEST))
    top = log_k.amax(1, keepdim=True)
    return torch.where(top == -math.inf, 1.0, (log_k - top).exp())


def vote_shares(rows: Tensor, points: Tensor, labels: Tensor, rules: Mapping[str, Rule]) -> dict[str, Tensor]:
    """Shares of the classes in each rule's vote; distances are computed once, some rows at a time.

    Parameters
    ----------
    rows, points
        (m, dim) and (n, dim), unit vectors.
    labels
        (n, classes), one-hot.

    Returns
    -------
    dict
        (m, classes) a rule; rows of non-negative weights sum to 1.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in rules}
    for some in rows.split(max(1, CHUNK_PAIRS // max(1, len(points)))):
        u = squared_distances(some, points, exact=True).div_(2)
        for name, rule in rules.items():
            weights = rule(u)
            parts[name].append((weights @ labels) / weights.abs().sum(1, keepdim=True))
    return {name: torch.cat(found) for name, found in parts.items()}

"""The local loss of a layer: its output shall point along a fixed random direction for the right label only.

Source: Momeni et al. 2023, arXiv 2304.11042, cosine goodness and contrastive loss. Names: `direction` is r_l, `theta`
the steepness. The paper's detector takes absolute values ("abs"), its digital variant GELU ("gelu").
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Goodness = Literal["cosine-abs", "cosine-gelu"]


def detected(h: Tensor, kind: Goodness = "cosine-abs") -> Tensor:
    """``|h|`` or ``GELU(h)``."""
    if kind not in ("cosine-abs", "cosine-gelu"):
        raise ValueError(f'goodness must be "cosine-abs" or "cosine-gelu", got {kind!r}')
    return h.abs() if kind == "cosine-abs" else F.gelu(h)


def cosine_goodness(h: Tensor, direction: Tensor, kind: Goodness = "cosine-abs") -> Tensor:
    """``g = cos(|h|, r)``: (..., k), (k,) -> (...); 0 for a row of zeros."""
    a = detected(h, kind)
    length = a.norm(dim=-1) * direction.norm()
    return (a @ direction) / length.clamp_min(1e-12)


def contrastive_loss(positive: Tensor, negative: Tensor, theta: float = 4.0) -> Tensor:
    """``mean log(1 + exp(-theta (g+ - g-)))``."""
    return F.softplus(-theta * (positive - negative)).mean()


class LocalGradient(NamedTuple):
    """Loss and its exact gradient with respect to a layer's weight (k, q) and bias (k,)."""

    loss: Tensor
    weight: Tensor
    bias: Tensor


def local_gradient(
    features: Tensor, weight: Tensor, bias: Tensor, direction: Tensor, theta: float = 4.0, kind: Goodness = "cosine-abs"
) -> LocalGradient:
    """The closed-form gradient of the local loss; `features` (2n, q) holds n right-label rows, then n wrong-label rows.

    With ``a = |W f + b|`` and ``g = a.r / (|a| |r|)``: ``dg/da = (r / |r| - g a / |a|) / |a|``, and the loss weighs the
    rows by ``-+ theta sigmoid(-theta (g+ - g-)) / n``.
    """
    n = len(features) // 2
    h = torch.addmm(bias, features, weight.T)
    a = detected(h, kind)
    length = a.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit, r = a / length, direction / direction.norm()
    g = unit @ r
    gap = theta * (g[:n] - g[n:])
    pull = torch.sigmoid(-gap) * (theta / n)
    da = (r - g[:, None] * unit) / length * torch.cat([-pull, pull])[:, None]
    dh = da * (torch.sign(h) if kind == "cosine-abs" else _gelu_slope(h))
    return LocalGradient(F.softplus(-gap).mean(), dh.T @ features, dh.sum(0))


def _gelu_slope(h: Tensor) -> Tensor:
    normal = torch.distributions.Normal(0.0, 1.0)
    return normal.cdf(h) + h * normal.log_prob(h).exp()

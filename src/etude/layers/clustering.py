"""k-means, its seeding and farthest-first selection, for one set of points or for many of one size at once.

Sources: Lloyd 1982; Arthur & Vassilvitskii 2007 (k-means++: each next row with probability proportional to its
squared distance to those chosen; plain, without local trials); Gonzalez 1985 (farthest-first, a 2-approximation of
k-centre).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from etude.layers.code_search import nearest_codes


class Clusters(NamedTuple):
    """centers (..., k, d), labels (..., n) int64, inertia (...) = (weighted) sum of squared distances to the own
    centre, iterations of Lloyd done, and whether the labels had stopped changing."""

    centers: Tensor
    labels: Tensor
    inertia: Tensor
    iterations: int
    converged: bool


def kmeans(
    x: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    init: str | Tensor = "k-means++",
    iters: int = 50,
    weights: Tensor | None = None,
) -> Clusters:
    """Lloyd's algorithm until no label changes, at most `iters` times.

    Parameters
    ----------
    x
        (..., n, d): leading axes are sets that are clustered independently, in the same passes.
    generator
        CPU generator of the seeding.
    init
        ``"k-means++"``, ``"random"`` (k different rows), or centres (..., k, d).
    weights
        (..., n) weights of the rows, at least 0; None: all 1.

    Returns
    -------
    Clusters
        The labels belong to the returned centres. A cluster that loses all its rows is put on the row
        that lies farthest from its centre.

    Raises
    ------
    ValueError
        If `k` is not in 1..n, `x` is not finite, or shapes do not fit.
    """
    points, lead = _checked(x, k)
    sets, n, dim = points.shape
    load = _weights(weights, lead, n, points)
    if isinstance(init, Tensor):
        if init.shape[-2:] != (k, dim):
            raise ValueError(f"init must have shape (..., {k}, {dim}), got {tuple(init.shape)}")
        centers = init.to(points).expand(*lead, k, dim).reshape(sets, k, dim).clone()
    elif init in ("k-means++", "random"):
        rows = _seed(points, k, generator, load) if init == "k-means++" else _random_rows(points, k, generator, load)
        centers = points.gather(1, rows[..., None].expand(-1, -1, dim))
    else:
        raise ValueError(f'init must be "k-means++", "random" or a tensor of centres, got {init!r}')
    if iters < 1:
        raise ValueError(f"iters must be at least 1, got {iters}")
    labels, distances = _assign(points, centers)
    done, converged = 0, False
    while done < iters and not converged:
        centers = _means(points, labels, distances, load, centers)
        old = labels
        labels, distances = _assign(points, centers)
        done, converged = done + 1, bool((labels == old).all())
    inertia = (distances * load).sum(-1)
    return Clusters(
        centers.view(*lead, k, dim), labels.view(*lead, n), inertia.view(lead), done, converged
    )  # fmt: skip


def kmeans_plus_plus(x: Tensor, k: int, generator: torch.Generator, *, weights: Tensor | None = None) -> Tensor:
    """Indices (..., k) of different rows of `x` (..., n, d) by D^2 sampling.

    Where fewer than `k` distinct points exist, the rest is drawn at random from the rows not yet chosen.
    """
    points, lead = _checked(x, k)
    return _seed(points, k, generator, _weights(weights, lead, points.shape[1], points)).view(*lead, k)


def k_center(x: Tensor, k: int, start: int | Tensor) -> Tensor:
    """Farthest-first: indices (k,) of rows of `x` (n, d), each the farthest from all centres before it.

    Parameters
    ----------
    start
        Row or rows that are centres already (the labelled ones of a core-set); they are not returned.

    Raises
    ------
    ValueError
        If `start` is empty, no row numbers or reaches beyond the rows, or fewer than `k` other rows are left.
    """
    if x.ndim != 2:
        raise ValueError(f"x must have shape (rows, dim), got {tuple(x.shape)}")
    named = torch.as_tensor(start)
    if named.dtype == torch.bool or named.is_floating_point():
        raise ValueError(f"start must be numbers of rows, got {named.dtype}: of a mask give mask.nonzero()")
    given = named.to(x.device, torch.long).reshape(-1).unique()
    if len(given) == 0 or int(given.min()) < 0 or int(given.max()) >= len(x):
        raise ValueError(f"start must name at least one row in 0..{len(x) - 1}")
    if not 0 <= k <= len(x) - len(given):
        raise ValueError(f"k must lie in 0..{len(x) - len(given)}, the rows that are no centre yet, got {k}")
    points, _ = _checked(x, 1)
    gap = _assign(points, points[:, given])[1][0]
    gap[given] = -1.0
    chosen = torch.empty(k, dtype=torch.long, device=x.device)
    for i in range(k):
        row = gap.argmax()
        chosen[i] = row
        gap = torch.minimum(gap, (points[0] - points[0, row]).square().sum(-1))
        gap[row] = -1.0
    return chosen


def _checked(x: Tensor, k: int) -> tuple[Tensor, torch.Size]:
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (..., rows, dim) without empty axes, got {tuple(x.shape)}")
    if not 1 <= k <= x.shape[-2]:
        raise ValueError(f"k must lie in 1..{x.shape[-2]}, the number of rows, got {k}")
    points = x.detach().reshape(-1, *x.shape[-2:])
    points = points if points.dtype == torch.float64 else points.float()
    if not bool(torch.isfinite(points).all()):
        raise ValueError("x holds NaN or infinities: every entry must be finite")
    return points, x.shape[:-2]


def _weights(weights: Tensor | None, lead: torch.Size, n: int, points: Tensor) -> Tensor:
    if weights is None:
        return points.new_ones(points.shape[0], n)
    if weights.shape[-1:] != (n,) or not bool((weights >= 0).all()) or not bool((weights.sum(-1) > 0).all()):
        raise ValueError(f"weights must be (..., {n}), at least 0 and not all 0, got shape {tuple(weights.shape)}")
    return weights.to(points).expand(*lead, n).reshape(-1, n)


def _assign(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    labels, distances = nearest_codes(points.transpose(0, 1), centers)
    return labels[..., 0].T.contiguous(), distances[..., 0].T.contiguous()


def _means(points: Tensor, labels: Tensor, distances: Tensor, load: Tensor, centers: Tensor) -> Tensor:
    sets, k, dim = centers.shape
    flat = (labels + torch.arange(sets, device=labels.device)[:, None] * k).flatten()
    sums = points.new_zeros(sets * k, dim).index_add_(0, flat, (points * load[..., None]).reshape(-1, dim))
    mass = points.new_zeros(sets * k).index_add_(0, flat, load.flatten())
    new = (sums / torch.where(mass > 0, mass, 1.0)[:, None]).view(sets, k, dim)
    empty = (mass == 0).view(sets, k)
    if not bool(empty.any()):
        return new
    # the farthest rows, in turn, take the empty clusters
    far = (distances * (load > 0)).sort(dim=-1, descending=True, stable=True).indices
    place = (empty.long().cumsum(-1) - 1).clamp_min(0)
    fresh = points.gather(1, far.gather(1, place)[..., None].expand(-1, -1, dim))
    return torch.where(empty[..., None], fresh, new)


def _random_rows(points: Tensor, k: int, generator: torch.Generator, load: Tensor) -> Tensor:
    order = torch.rand(points.shape[:2], generator=generator)
    order = order.masked_fill(load.cpu() == 0, 2.0)  # rows of no weight come last
    return order.argsort(-1)[:, :k].to(points.device)


def _draw(mass: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row with probability proportional to `mass` (sets, n), in float64."""
    edges = mass.double().cumsum(-1)
    at = torch.rand(len(mass), 1, generator=generator, dtype=torch.float64).to(mass.device) * edges[:, -1:]
    return torch.searchsorted(edges, at, right=True).clamp_max(mass.shape[1] - 1)[:, 0]


def _seed(points: Tensor, k: int, generator: torch.Generator, load: Tensor) -> Tensor:
    sets, n, dim = points.shape
    chosen = torch.empty(sets, k, dtype=torch.long, device=points.device)
    gap = torch.full((sets, n), torch.inf, dtype=points.dtype, device=points.device)
    free = torch.ones(sets, n, dtype=torch.bool, device=points.device)
    mass = load
    for i in range(k):
        drawn = _draw(mass, generator)
        chosen[:, i] = drawn
        free.scatter_(1, drawn[:, None], False)
        center = points.gather(1, drawn[:, None, None].expand(-1, 1, dim))
        gap = torch.minimum(gap, (points - center).square().sum(-1))
        mass = torch.where(free, gap * load, 0.0)
        spent = mass.sum(-1, keepdim=True) <= 0
        mass = torch.where(spent, free.to(mass.dtype), mass)
    return chosen

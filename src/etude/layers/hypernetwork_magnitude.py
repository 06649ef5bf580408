"""How far the size of generated weights follows the size of the condition, for any hypernetwork.

Source: Ortiz, Guttag & Dalca 2023, arXiv 2304.07645, section 3.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from etude.layers.modes import gradients_on


@dataclass(frozen=True)
class MagnitudeReport:
    """Norms of the generated weights over conditions.

    grid, norms
        The conditions (C,) and the norm of all weights at each.
    per_tensor
        The norms of each tensor, (C,).
    cov
        Standard deviation of `norms` over their mean.
    r_squared
        Of a line through the origin, ``norm = a * condition``, against the spread around the mean norm: 1 for
        proportional weights, and at most 0 for weights of one size.
    grad_norms, grad_cov
        Norm of the gradient that reaches the generator's parameters at each condition (C,), and its coefficient of
        variation; None where no parameters were given.
    """

    grid: Tensor
    norms: Tensor
    per_tensor: dict[str, Tensor]
    cov: float
    r_squared: float
    grad_norms: Tensor | None = None
    grad_cov: float | None = None


def coefficient_of_variation(values: Tensor) -> float:
    """Standard deviation over mean of positive numbers (n,)."""
    return float(values.std(correction=0) / values.mean())


def r_squared_through_origin(x: Tensor, y: Tensor) -> float:
    """R2 of the best line y = a x against the spread of y around its mean; -inf if y has none and the line misses."""
    x, y = x.double(), y.double()
    rest = (y - x * (x @ y) / (x @ x)).square().sum()
    spread = (y - y.mean()).square().sum()
    if spread == 0:
        return 1.0 if rest == 0 else -torch.inf
    return float(1 - rest / spread)


def magnitude_report(
    generate: Callable[[float], Mapping[str, Tensor]],
    grid: int | Sequence[float] = 21,
    *,
    parameters: Iterable[Tensor] | None = None,
    loss: Callable[[Mapping[str, Tensor], float], Tensor] | None = None,
) -> MagnitudeReport:
    """Generate weights over conditions and measure their size, in float32 at least.

    Parameters
    ----------
    generate
        Any function from a condition to named tensors, e.g. ``lambda c: hyper.generate(lam=c)``.
    grid
        The conditions, or their number, even over [0, 1].
    parameters
        The generator's, for the gradients; those that take none are left out.
    loss
        What is differentiated, ``loss(tensors, condition)``, such as a training loss. None: half the squared norm of
        the generated weights, whose gradient by them is the weights themselves.

    Raises
    ------
    ValueError
        For fewer than three conditions, or a loss without parameters to take its gradient by.
    """
    wanted = [p for p in parameters or () if p.requires_grad and not p.is_inference()]
    if loss is not None and not wanted:
        raise ValueError("a loss needs parameters= that take a gradient, such as those of the generator")
    at = torch.linspace(0, 1, grid) if isinstance(grid, int) else torch.tensor([float(c) for c in grid])
    if len(at) < 3:
        raise ValueError(f"a report needs at least 3 conditions, got {len(at)}")
    with torch.no_grad():
        made = [generate(float(c)) for c in at]
        per = {name: torch.stack([_wide(m[name]).norm() for m in made]) for name in made[0]}
        norms = torch.stack(list(per.values())).square().sum(0).sqrt()
    found = MagnitudeReport(at, norms, per, coefficient_of_variation(norms), r_squared_through_origin(at, norms))
    if not wanted:
        return found
    grads = torch.stack([_gradient_norm(generate, loss or _half_square, float(c), wanted) for c in at])
    return replace(found, grad_norms=grads, grad_cov=coefficient_of_variation(grads))


def _wide(t: Tensor) -> Tensor:
    """Half precision cannot hold the squares."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _half_square(tensors: Mapping[str, Tensor], condition: float) -> Tensor:
    return 0.5 * torch.stack([_wide(t).square().sum() for t in tensors.values()]).sum()


def _gradient_norm(generate: Any, loss: Any, condition: float, parameters: Sequence[Tensor]) -> Tensor:
    with gradients_on():
        value = loss(generate(condition), condition)
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.stack([_wide(g).square().sum() for g in grads if g is not None]).sum().sqrt()

"""The output regulariser of a weight generator: how far what it generates for old tasks has moved.

    R_j = sum_k Omega_jk (theta_k(e_j, phi*) - theta_k(e_j, phi + d))^2

Sources: von Oswald et al. 2020, arXiv 1906.00695, eq. 2; Dupati et al. 2022, arXiv 2209.07712 (importance).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.continual.hypernet_heads import head_mask
from etude.continual.hypernet_optimizer import ManagedOptimizer
from etude.continual.importance import importance as importance_of
from etude.layers.parameters import Layout


@dataclass(frozen=True)
class KeptWeights:
    """theta(e_j, phi*) of J old tasks, (J, P), and what each weight counts, (J, P); None: all alike."""

    tasks: tuple[int, ...] = ()
    targets: Tensor | None = None
    weighing: Tensor | None = None

    def distance(self, made: Tensor, rows: Sequence[int]) -> Tensor:
        """Mean of R_j over some of the tasks, `rows`, from the weights (rows, P) that are made for them now."""
        assert self.targets is not None
        moved = (made - self.targets[rows].to(made)).square()
        if self.weighing is not None:
            weight = self.weighing if len(rows) == len(self.weighing) else self.weighing[rows]
            moved = moved * weight.to(moved)
        return moved.sum() / len(rows)


def weighing_of(
    tasks: Iterable[int],
    omega: Mapping[int, Tensor],
    outputs: Mapping[int, Sequence[int]],
    layout: Layout,
    like: Tensor,
) -> Tensor | None:
    """(tasks, P) importances; weights of other tasks' heads count 0. None where all count alike."""
    if not omega and not outputs:
        return None
    ones = like.new_ones(layout.size)
    return torch.stack(
        [omega[t].to(like) if t in omega else ones * head_mask(layout, outputs.get(t), like) for t in tasks]
    )


def generated_importance(
    net: nn.Module, layout: Layout, data: Any, kind: Literal["mas", "fisher"], rows: Sequence[int] | None
) -> Tensor:
    """(P,) importance of a task's generated weights, in `net`, for its head's `rows`; mean 1 over those that count."""
    forward = None if rows is None else lambda m, x: m(x)[:, list(rows)]
    found = importance_of(net, data, kind, forward=forward)
    flat = torch.cat([found[n].reshape(-1) for n in layout.names])
    mask = head_mask(layout, rows, flat)
    flat = flat * mask
    return flat * mask.sum() / flat.sum()


def one_step_ahead(
    loss: Tensor, regulariser: Callable[[], Tensor], params: list[nn.Parameter], optimizer: ManagedOptimizer
) -> Tensor:
    """The regulariser one step of the optimiser for `loss` ahead: its value, with its gradient there (first order)."""
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    step = optimizer.rehearse(params, grads)
    start = [p.detach().clone() for p in params]
    for p, d in zip(params, step, strict=True):
        p.data.add_(d)  # .data: the graph of the task loss stands for the present weights
    try:
        with torch.enable_grad():
            value = regulariser()
        found = torch.autograd.grad(value, params, allow_unused=True)
    finally:
        for p, s in zip(params, start, strict=True):
            p.data.copy_(s)
    pulls = [((p - p.detach()) * g).sum() for p, g in zip(params, found, strict=True) if g is not None]
    return value.detach() + torch.stack(pulls).sum()

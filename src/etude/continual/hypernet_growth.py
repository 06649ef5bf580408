"""Growth of a weight generator with its tasks.

Before a task is learned its embedding alone is trained for a while; if the loss stays above `trigger` times the mean
that earlier tasks had at that point, the generator is widened. Widening changes no generated weight. Source: Dupati et
al. 2022, arXiv 2209.07712 (the abstract names growth; this rule is ours).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from etude.continual.importance import batches_of
from etude.data.randomness import fork_global, stream
from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_generators import Recurrent

if TYPE_CHECKING:
    from etude.continual.hypernet_growing import GrowingHypernet


@dataclass(frozen=True)
class Growth:
    """When and by how much a generator is widened.

    Parameters
    ----------
    step
        New hidden units each time.
    trigger
        Widen when the loss after the warm-up exceeds this many times the mean of earlier tasks; None: never for this.
        The warm-up comes before a task where `begin_task` is given its data. Otherwise it is the task's own first
        updates, of all parameters, whose losses are given to `penalty`; the generator is then widened at the next
        update, and only an optimiser of `make_optimizer` follows without more ado.
    every
        Widen before every so-many-th task, whatever the loss; None: never for this.
    max_times
        Widenings at most; None: no bound.
    warm_up, lr, batch_size
        Adam updates of the embedding alone before the loss is taken, their rate, and rows in each.
    freeze_old
        Train only the new rows and columns and the embedding from then on, by their gradients: weight decay would still
        move the old ones, so take an optimiser without it.
    """

    step: int = 4
    trigger: float | None = 1.5
    every: int | None = None
    max_times: int | None = None
    warm_up: int = 50
    lr: float = 1e-2
    batch_size: int = 64
    freeze_old: bool = False

    def __post_init__(self) -> None:
        if self.step < 1 or self.warm_up < 1 or self.batch_size < 1 or not self.lr > 0:
            raise ValueError("step, warm_up and batch_size must be at least 1 and lr positive")
        if self.max_times is not None and self.max_times < 1:
            raise ValueError(f"max_times must be at least 1, got {self.max_times}")
        if (self.trigger is not None and not self.trigger > 0) or (self.every is not None and self.every < 1):
            raise ValueError(f"trigger must be positive and every at least 1, got {self.trigger} and {self.every}")

    def scheduled(self, task: int) -> bool:
        """Whether the fixed schedule asks for growth before this task."""
        return self.every is not None and task > 0 and task % self.every == 0


def labelled_rows(data: Any) -> tuple[Tensor, Tensor]:
    """Inputs and labels for the warm-up.

    Raises
    ------
    ValueError
        "no samples" without labelled rows.
    """
    pairs = [(x, y) for x, y in batches_of(data) if y is not None]
    if not pairs:
        raise ValueError("no samples: the warm-up needs inputs with labels")
    return torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])  # type: ignore[misc]


def warm_up(cl: "GrowingHypernet", task: int, rows: tuple[Tensor, Tensor], growth: Growth, loss_fn: Any) -> float:
    """Train the task's embedding alone; the mean loss of the last fifth of updates."""
    x, y = rows
    row = cl.condition.rows[task]
    optimizer, draw, losses = torch.optim.Adam([row], lr=growth.lr), stream(task, "warm-up"), []
    mode = cl.training
    cl.eval()
    with torch.enable_grad():
        for _ in range(growth.warm_up):
            at = torch.randint(len(x), (growth.batch_size,), generator=draw).to(x.device)
            loss = loss_fn(cl(x[at], task), y[at])
            (row.grad,) = torch.autograd.grad(loss, [row])
            optimizer.step()
            losses.append(float(loss.detach()))
    row.grad = None
    cl.train(mode)
    return tail_mean(losses)


def tail_mean(losses: Sequence[float]) -> float:
    """Mean of the last fifth."""
    tail = losses[-max(1, len(losses) // 5) :]
    return sum(tail) / len(tail)


def grow(hyper: HyperNetwork, growth: Growth, generator: torch.Generator) -> dict[str, Tensor]:
    """Widen the generator, with new units drawn from `generator`; with `freeze_old` only what is new is trained.

    Returns what `hold` was given: copies of the parameters lose the hooks.
    """
    before = {n: p.detach().clone() for n, p in hyper.generator.named_parameters()}
    with fork_global(generator):
        hyper.widen(growth.step)
    if not growth.freeze_old:
        return {}
    for p in (hyper.theta0, *hyper.target.parameters()):
        if p is not None:
            p.requires_grad_(False)
    masks = {n: _fresh(before[n], p, hyper.generator) for n, p in hyper.generator.named_parameters()}
    hold(hyper.generator, masks)
    return masks


def hold(generator: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Let gradients through to entries with a 1 in the parameter's mask alone."""
    for name, fresh in masks.items():
        generator.get_parameter(name).register_hook(lambda g, fresh=fresh: g * fresh)  # type: ignore[misc]


def _fresh(old: Tensor, new: nn.Parameter, generator: nn.Module) -> Tensor:
    """1 at entries that widening added, 0 at those that were there."""
    mask = torch.ones_like(new)
    if old.shape == new.shape:
        return torch.zeros_like(new)
    gates = 1
    if isinstance(generator, Recurrent):
        rows, width = new.shape[0], generator.rnn.hidden_size
        in_cell = any(new is p for p in generator.rnn.parameters())
        gates = rows // width if in_cell else 1
    block = mask.view(gates, -1, *new.shape[1:])
    kept = old.view(gates, -1, *old.shape[1:]).shape
    block[tuple(slice(0, k) for k in kept)] = 0
    return mask

"""A weight generator that grows while it learns, and its optimiser: when growth is decided, and who is told of it."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from etude.continual.hypernet_growth import Growth, grow, tail_mean, warm_up
from etude.continual.hypernet_optimizer import ManagedOptimizer, UntrainedWatch
from etude.data.randomness import stream
from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_conditions import TaskCondition
from etude.layers.hypernetwork_generators import widenable

CrossEntropy = Callable[[Tensor, Tensor], Tensor]


class GrowingHypernet(nn.Module):
    """What `ContinualHypernet` knows of growth and optimisers; its docstring has the parameters and attributes."""

    def __init__(self, hyper: HyperNetwork, growth: Growth | None, generator: torch.Generator | None) -> None:
        super().__init__()
        if growth is not None:
            widenable(hyper.generator)
        self.hyper, self.growth, self.generator = hyper, growth, generator
        self.warm_losses: list[float] = []
        self.growth_history: list[tuple[int, int]] = []
        self.parameters_changed: list[Callable[[], None]] = []
        self._losses: list[float] | None = None  # of a task's first updates, while growth hangs on them
        self._grow_next = False
        self._masks: dict[str, Tensor] = {}  # of `Growth.freeze_old`
        self._watch = UntrainedWatch()
        self._optimizer: ManagedOptimizer | None = None

    @property
    def condition(self) -> TaskCondition:
        """The table of embeddings."""
        assert isinstance(self.hyper.condition, TaskCondition)
        return self.hyper.condition

    def _maybe_grow(self, task: int, rows: tuple[Tensor, Tensor] | None, loss_fn: CrossEntropy) -> None:
        assert self.growth is not None
        wanted = self.growth.scheduled(task)
        if rows is not None:
            wanted |= self._too_high(warm_up(self, task, rows, self.growth, loss_fn))
        if wanted:
            self._grow(task)

    def _too_high(self, value: float) -> bool:
        """Whether the loss after a warm-up asks for growth; it is kept for later tasks to be compared with."""
        assert self.growth is not None
        earlier, trigger = list(self.warm_losses), self.growth.trigger
        self.warm_losses.append(value)
        return bool(earlier) and trigger is not None and value > trigger * sum(earlier) / len(earlier)

    def _heed(self, loss: float) -> None:
        """Growth by loss while the task is learned: decided after `warm_up` updates, done before the next one."""
        if self._losses is None or self.growth is None:
            return
        self._losses.append(loss)
        if len(self._losses) == self.growth.warm_up:
            self._grow_next, self._losses = self._too_high(tail_mean(self._losses)), None

    def _grow(self, task: int) -> None:
        assert self.growth is not None
        self._grow_next = False
        if self.growth.max_times is None or len(self.growth_history) < self.growth.max_times:
            rng = stream(task, "growth") if self.generator is None else self.generator
            self._masks = grow(self.hyper, self.growth, rng)
            self.growth_history.append((task, self.growth.step))
            self._changed(list(self.hyper.generator.parameters()))

    def _changed(self, fresh: list[nn.Parameter]) -> None:
        self._watch.expect(fresh, self.named_parameters())
        if self._optimizer is not None:
            self._optimizer.rebuild()
            if self._masks and any(g.get("weight_decay") for g in self._optimizer.param_groups):
                warnings.warn("weight decay moves what freeze_old keeps: take an optimiser without it", stacklevel=3)
        for call in self.parameters_changed:
            call()

    def make_optimizer(self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> ManagedOptimizer:
        """An optimiser that is made anew, ``make(parameters)``, at every task and growth.

        New parameters are then trained, and momentum of an earlier task does not move old weights. A copy of this
        object has an optimiser of its own; pickling asks for a `make` such as ``partial(torch.optim.Adam, lr=1e-3)``.
        """
        self._optimizer = ManagedOptimizer(self._trainable, make)
        return self._optimizer

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

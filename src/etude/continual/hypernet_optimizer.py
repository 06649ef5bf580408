"""Optimisers of a weight generator whose parameters become more, and a watch for those that do not notice."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class UntrainedWatch:
    """Finds new parameters that stand still while others are trained: the optimiser was made before them.

    A hook notes that a gradient has reached a new parameter, as ``module.zero_grad()`` clears it before anybody looks.
    """

    def __init__(self) -> None:
        self._fresh: list[nn.Parameter] = []
        self._at: dict[int, int] = {}
        self._reached: set[int] = set()
        self._hooks: list[RemovableHandle] = []

    def expect(self, fresh: Sequence[nn.Parameter], every: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Note new parameters, and where all stand."""
        kept = {id(p): p for p in [*self._fresh, *fresh]}
        self._at = {id(p): p._version for _, p in every}
        self._reached.clear()
        self._follow([p for i, p in kept.items() if i in self._at])

    def _follow(self, fresh: list[nn.Parameter]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._fresh = fresh
        self._hooks = [
            p.register_post_accumulate_grad_hook(lambda p: self._reached.add(id(p))) for p in fresh if p.requires_grad
        ]

    def check(self, every: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Raise if a new parameter has not been updated though others were."""
        if not self._fresh:
            return
        named = [(n, p) for n, p in every if p.requires_grad]
        if not any(p._version > self._at.get(id(p), p._version) for _, p in named):
            return  # no step yet
        fresh = {id(p) for p in self._fresh}
        still = [(n, p) for n, p in named if id(p) in fresh and p._version == self._at[id(p)]]
        reached = [n for n, p in still if p.grad is not None or id(p) in self._reached]
        if reached:  # without a gradient nobody meant to train it yet
            raise RuntimeError(
                f"{reached[0]} is new and is not trained: the optimiser was made before it. Make a new one after "
                "begin_task and after growth, or use make_optimizer"
            )
        self._follow([p for _, p in still])


class ManagedOptimizer:
    """An optimiser that is made anew whenever the parameters change.

    No `torch.optim.Optimizer`, as it stands for several: torch's schedulers, which follow one, do not take it.
    """

    def __init__(
        self,
        parameters: Callable[[], list[nn.Parameter]],
        make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self._parameters, self._make = parameters, make
        self.rebuild()

    def rebuild(self) -> None:
        """A new optimiser without momentum for the parameters as they are now."""
        self.optimizer = self._make(self._parameters())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the optimiser's; what the closure gave."""
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimiser as it is now."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, with the parameters of then (load the model's state before)."""
        self.optimizer.load_state_dict(state)

    def rehearse(self, params: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> list[Tensor]:
        """The change that a step with these gradients would make, found on copies.

        `params` are those that the optimiser was made for, in their order.
        """
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        optimizer = self._make(copies)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        for p, g in zip(copies, grads, strict=True):
            p.grad = None if g is None else g.detach().clone()
        optimizer.step()
        return [c.detach() - p.detach() for c, p in zip(copies, params, strict=True)]

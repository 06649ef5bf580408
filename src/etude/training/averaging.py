"""Averages of a model's weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a model's parameters; buffers are copied as they are.

    Parameters
    ----------
    decay
        Weight of the old value, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is the weight of the old value and lies in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`: ``average = decay * average + (1 - decay) * value``."""
        mine: list[Tensor] = [p.detach() for p in self.module.parameters()]
        if mine:
            torch._foreach_lerp_(mine, [p.detach() for p in model.parameters()], 1 - self.decay)
        for a, b in zip(self.module.buffers(), model.buffers()):
            a.copy_(b)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)

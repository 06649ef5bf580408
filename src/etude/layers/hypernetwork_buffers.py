"""Buffers of a target whose weights are generated: one set for all conditions, or a copy for every task."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from etude.layers.hypernetwork_conditions import Condition, TaskCondition


class BufferStacks(nn.Module):
    """Buffers (tasks, ...) by the target's names; none where they are shared."""

    def __init__(self, own: Mapping[str, Tensor], tasks: int) -> None:
        super().__init__()
        self.names = {name: name.replace(".", "__") for name in own}
        for name, value in own.items():
            self.register_buffer(self.names[name], value.expand(tasks, *value.shape).clone())

    def at(self, tasks: Any) -> dict[str, Tensor]:
        """The buffers of one task, as views, or of ids (C,)."""
        return {name: getattr(self, key)[tasks] for name, key in self.names.items()}

    def add(self, count: int, target: nn.Module) -> None:
        """New tasks, with the target's own buffers, which stay as built."""
        for name, key in self.names.items():
            stack, built = getattr(self, key), target.get_buffer(name)
            setattr(self, key, torch.cat([stack, built.to(stack).expand(count, *built.shape)]))


def buffers_of(target: nn.Module, generated: Collection[str], condition: Condition, buffers: str) -> BufferStacks:
    """The stacks of `buffers` "shared" or "per_condition"; a warning where conditions share what follows the weights.

    Raises
    ------
    ValueError
        For another word, or copies for a condition without tasks.
    """
    own = {n: b for n, b in target.named_buffers() if n not in generated}
    if buffers == "per_condition":
        if not isinstance(condition, TaskCondition):
            raise ValueError('buffers="per_condition" needs a TaskCondition')
        return BufferStacks(own, condition.num_tasks)
    if buffers != "shared":
        raise ValueError(f'buffers must be "shared" or "per_condition", got {buffers!r}')
    if any(n.endswith("running_mean") for n in own):
        text = "conditions share batch norm's running statistics: prefer GroupNorm, or buffers='per_condition'"
        warnings.warn(text, stacklevel=4)
    if any(isinstance(m, _SpectralNorm) for m in target.modules()):
        text = "conditions share spectral norm's vectors, which follow one weight: take buffers='per_condition'"
        warnings.warn(text, stacklevel=4)
    return BufferStacks({}, 0)

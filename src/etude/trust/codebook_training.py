"""Fine-tuning through codebooks: the task's update, and idle codes put where they are used.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230, and its official code (replacement of idle codes).
Differs from the official code: the optimiser's moments of a replaced code are set to zero.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from etude.trust.codebook import CodebookModel


def finetuning_step(loss: Callable[[Any, Any], Tensor], *, replace_steps: int = 0, noise: float = 0.0) -> Callable:
    """The `step` that `etude.training.train` takes for a wrapped model.

    Parameters
    ----------
    loss
        ``loss(model, batch)``; with ``gradient="base"`` it has to hold ``model.reconstruction_loss()``.
    replace_steps
        Idle codes are replaced after each of the first so many updates of an optimiser; the last updates should let
        codes settle.
    noise
        Standard deviation of what is added to the activations that replaced codes take.
    """

    updates: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # by optimiser: one step may train several models

    def step(cb: CodebookModel, optimizer: Any, batch: Any, generator: torch.Generator) -> Tensor:
        value = loss(cb, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        updates[optimizer] = updates.get(optimizer, 0) + 1
        if updates[optimizer] <= replace_steps:
            number = torch.randint(2**62, (1,), generator=generator, device=generator.device)
            cb.replace_dead(torch.Generator().manual_seed(int(number)), optimizer, noise=noise)
        return value.detach()

    return step

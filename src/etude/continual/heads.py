"""A shared trunk with one head a task: the net of task-incremental learning, where the task is known at test time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream


class TaskHeads(nn.Module):
    """y = head_t(trunk(x)); `forward(x)` takes the head of `task`, the one that is learned at present.

    Parameters
    ----------
    trunk
        (B, ...) -> (B, feature_dim), shared by all tasks.
    feature_dim
        Width of what the trunk puts out.

    Attributes
    ----------
    task
        Number of the head in use; `add_head` moves it to the new one.
    """

    def __init__(self, trunk: nn.Module, feature_dim: int) -> None:
        super().__init__()
        if feature_dim < 1:
            raise ValueError(f"feature_dim must be at least 1, got {feature_dim}")
        self.trunk, self.feature_dim = trunk, feature_dim
        self.heads = nn.ModuleList()
        self.task = 0

    def add_head(self, num_classes: int, generator: torch.Generator | None = None) -> int:
        """A new linear head, in use from now on; its number. Its parameters are new: make a new optimiser."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        where = next(self.trunk.parameters(), torch.zeros(()))
        rng = stream(0, "head", len(self.heads)) if generator is None else generator
        head = seeded_build(lambda: nn.Linear(self.feature_dim, num_classes), rng)
        self.heads.append(head.to(where))
        self.task = len(self.heads) - 1
        return self.task

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Logits (B, classes of the task); None: the task in use.

        Raises
        ------
        ValueError
            If there is no such head.
        """
        number = self.task if task is None else task
        if not 0 <= number < len(self.heads):
            raise ValueError(f"there is no head {number}: there are {len(self.heads)}")
        return self.heads[number](self.trunk(x))  # type: ignore[no-any-return]

    def at(self, task: int) -> Callable[[Tensor], Tensor]:
        """The net of one task, as a function of x."""
        return lambda x: self(x, task)


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, (B,); of pixels or tokens (B, C, ...) their mean."""
    each = F.cross_entropy(logits, y, reduction="none")
    return each if each.ndim == 1 else each.flatten(1).mean(1)


def loss_of_each(losses: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, y: Tensor) -> Tensor:
    """``losses(outputs, y)``, (B,).

    Raises
    ------
    ValueError
        Unless that is one number a sample.
    """
    each = losses(outputs, y)
    if each.shape != (len(outputs),):
        raise ValueError(
            f"losses must give one number a sample, ({len(outputs)},), got {tuple(each.shape)}: "
            'a loss of torch does with reduction="none"'
        )
    return each


def check_rows(x: Any, y: Any) -> None:
    """Refuse inputs and labels that are no tensors of one length.

    Raises
    ------
    ValueError
        Saying what they are.
    """
    wrong = [type(part).__name__ for part in (x, y) if not isinstance(part, Tensor)]
    if wrong:
        raise ValueError(f"inputs and labels must be tensors, got {' and '.join(wrong)}: use torch.as_tensor")
    if len(x) != len(y):
        raise ValueError(f"{len(x)} inputs and {len(y)} labels")


def check_labels(logits: Tensor, y: Tensor) -> None:
    """Refuse labels that the head has no output for.

    Raises
    ------
    ValueError
        Naming the first such label.
    """
    if logits.ndim < 2 or y.is_floating_point():
        return
    wrong = y[(y < 0) | (y >= logits.shape[1])]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} lies outside the head's {logits.shape[1]} classes")

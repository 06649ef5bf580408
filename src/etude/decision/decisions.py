"""What a bandit decided, and the losses that come back."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Decision(tuple[Any, Any]):
    """``action, prob``, and the decision's `id` for feedback that comes later.

    One context gives an int and a float, a batch (B,) tensors.
    """

    id: int

    def __new__(cls, action: Any, prob: Any, number: int) -> "Decision":
        made = super().__new__(cls, (action, prob))
        made.id = number
        return made

    def __getnewargs__(self) -> tuple[Any, Any, int]:
        """What copies and pickles are made from."""
        return self[0], self[1], self.id

    @property
    def action(self) -> Any:
        """The chosen arm."""
        return self[0]

    @property
    def prob(self) -> Any:
        """The probability with which it was chosen: log it, off-policy evaluation needs it."""
        return self[1]


class LoggedDecisions(NamedTuple):
    """Decisions of any policy, for `NeuralBandit.evaluate`: n rows each; losses or rewards, in [0, 1]."""

    contexts: Any
    action: Any
    loss: Any = None
    prob: Any = None
    reward: Any = None


def numbers(given: Any, name: str, n: int, dtype: torch.dtype) -> Tensor:
    """A number or n of them as (n,); `name` is what errors call it."""
    try:
        y = torch.as_tensor(given, dtype=dtype).detach().reshape(-1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number or {n} of them, got {given!r}") from error
    if len(y) != n:
        raise ValueError(f"{name} must hold {n} numbers, got {len(y)}")
    return y


def losses_in_unit(loss: Any, reward: Any, n: int) -> Tensor:
    """Losses (n,) in [0, 1] from either."""
    if (loss is None) == (reward is None):
        raise ValueError("give loss= or reward=, one of the two")
    name, given = ("loss", loss) if reward is None else ("reward", reward)
    y = numbers(given, name, n, torch.float32)
    if not bool(((y >= 0) & (y <= 1)).all()):
        other = "; where larger is better pass reward=" if name == "loss" else ""
        raise ValueError(f"{name} must lie in [0, 1], got {y.min():.4g} to {y.max():.4g}: scale it first{other}")
    return y if reward is None else 1 - y

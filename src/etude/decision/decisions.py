"""What a bandit is shown, what it decided, and the losses that come back."""

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
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


class WaitingDecisions:
    """Contexts and arms of decisions whose loss may still come, numbered; the oldest go once there are too many rows.

    `made` counts all decisions so far: the number of the next one.
    """

    rows_at_most = 10_000

    def __init__(self) -> None:
        self.made = 0
        self._rows = 0
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, number: int) -> bool:
        return number in self._kept

    @property
    def rows(self) -> int:
        """Contexts that are kept."""
        return self._rows

    def add(self, contexts: Tensor, arms: Tensor) -> int:
        """Keep a decision's contexts (B, ...) and arms (B,); the newest always stays. Returns its number."""
        number = self.made
        self.made += 1
        self._kept[number] = (contexts.clone(), arms)  # the caller may write over its own, or it may be a view of more
        self._rows += len(arms)
        while self._rows > self.rows_at_most and len(self._kept) > 1:
            self._rows -= len(self._kept.popitem(last=False)[1][1])
        return number

    def find(self, decision: int | Decision) -> tuple[Tensor, Tensor]:
        """Contexts and arms of a decision; it goes on waiting until `answered`.

        Raises
        ------
        ValueError
            If it does not wait.
        """
        number = _number(decision)
        if number not in self._kept:
            raise ValueError(
                f"decision {number} is not waiting for a loss: it was answered already, never made, or older than "
                f"the last {self.rows_at_most} contexts; give contexts and action instead"
            )
        return self._kept[number]

    def answered(self, decision: int | Decision) -> None:
        """Its loss has come: keep it no longer."""
        self._rows -= len(self._kept.pop(_number(decision))[1])


def _number(decision: int | Decision) -> int:
    return decision.id if isinstance(decision, Decision) else int(decision)


class LoggedDecisions(NamedTuple):
    """Decisions of any policy, for `NeuralBandit.evaluate`: n rows each; losses or rewards, in [0, 1]."""

    contexts: Any
    action: Any
    loss: Any = None
    prob: Any = None
    reward: Any = None


def tensor_of(values: Any, **kwargs: Any) -> Tensor:
    """Tensors, arrays, data frames, their columns and lists as a tensor without gradient; `kwargs` of `as_tensor`."""
    given = np.array(values) if hasattr(values, "to_numpy") else values
    return torch.as_tensor(given, **kwargs).detach()


def numbers(given: Any, name: str, n: int, dtype: torch.dtype) -> Tensor:
    """A number or n of them as (n,); `name` is what errors call it."""
    try:
        y = tensor_of(given, dtype=dtype).reshape(-1)
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


def checked_contexts(
    contexts: Any, n_features: int, n_arms: int | None, *, dtype: torch.dtype, device: str
) -> tuple[Tensor, bool]:
    """Contexts as (B, d), or (B, K, d) with `n_arms`, and whether one alone was given.

    Raises
    ------
    ValueError
        For another shape, no rows, or NaN and infinity.
    TypeError
        For what is no numbers.
    """
    try:
        x = tensor_of(contexts, device=device).to(dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"contexts must be numbers in one block, got {type(contexts).__name__}: {error}") from error
    wanted = (n_features,) if n_arms is None else (n_arms, n_features)
    if x.ndim not in (len(wanted), len(wanted) + 1) or tuple(x.shape[-len(wanted) :]) != wanted:
        inner = ", ".join(map(str, wanted))
        hint = "" if n_arms is None else f": K = {n_arms} arms with {n_features} features each"
        raise ValueError(f"contexts must have shape ({inner}) or (B, {inner}), got {tuple(x.shape)}{hint}")
    if not len(x):
        raise ValueError("contexts must hold at least one row, got none")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("contexts must be finite: they hold NaN or infinity")
    single = x.ndim == len(wanted)
    return (x[None], True) if single else (x, False)

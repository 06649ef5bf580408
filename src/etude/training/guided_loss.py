"""Guidance as a loss that the training engine takes, for one net or many seeds."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from etude.training.guidance import Guidance


class _Guidances(weakref.WeakKeyDictionary[nn.Module, Guidance]):
    """The guidance of each model: its steps so far would be lost on the way to another process."""

    def __reduce__(self) -> Any:
        raise TypeError("guidance stays in the process of its model: train with plan='sequential'")


def guided_loss(
    loss: Callable[[Any, Any], Tensor],
    guide: nn.Module | Callable[[nn.Module], nn.Module],
    *,
    mask: Callable[[Any], Tensor] | None = None,
    **options: Any,
) -> Callable[[Any, Any], dict[str, Tensor]]:
    """``loss(model, batch)`` with guidance, as `etude.training.train` takes it: terms "task" and "alignment".

    Parameters
    ----------
    loss
        The task's ``loss(model, batch)``, which calls the model once.
    guide
        A model, or a function from the target to its guide (each seed its own).
    mask
        ``mask(batch)``, (n, time), True = real token.
    options
        Of `Guidance`; one is made for each model at its first batch. `guidance_of(model)` of the result is that one.
        As hooks belong to one model, seeds can neither be stacked nor sent to processes: use plan "sequential".
        After training ``guidance_of(model).remove()`` takes the hooks off.
    """
    made = _Guidances()

    def guided(model: Any, batch: Any) -> dict[str, Tensor]:
        if not isinstance(model, nn.Module):
            raise ValueError("guidance hooks into one model: train with plan='sequential'")
        if model not in made:
            net = guide if isinstance(guide, nn.Module) else guide(model)
            made[model] = Guidance(model, net, **options)
        guidance = made[model]
        if not model.training:  # an evaluation: the task alone
            return {"task": loss(model, batch)}
        task = loss(model, batch)
        return {"task": task, "alignment": guidance.loss(mask=None if mask is None else mask(batch), task=task)}

    guided.guidance_of = made.__getitem__  # type: ignore[attr-defined]
    return guided

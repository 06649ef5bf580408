"""Tasks one after the other, several epochs each, with whatever a method adds to the loss or does between tasks.

Source of the setting: Aljundi 2019, arXiv 1910.02718, chapters 3 to 6 (the task is known at test time).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.continual.evaluate import StreamResult, evaluate_stream
from etude.continual.heads import TaskHeads
from etude.continual.online_learning import cross_entropy, warn_of_batchnorm
from etude.data.randomness import stream
from etude.data.streams import Segment
from etude.training.config import TrainConfig
from etude.training.engine import train
from etude.training.updater import Loss


def learn_tasks(
    model: nn.Module,
    segments: Sequence[Segment],
    *,
    config: TrainConfig,
    loss: Loss = cross_entropy,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    before: Callable[[Segment], Any] | None = None,
    after: Callable[[Segment], Any] | None = None,
    callbacks: Sequence[Any] = (),
    by_task: bool | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> StreamResult:
    """Train `model` in place on every segment in turn, a new optimiser each, and evaluate after each.

    Parameters
    ----------
    model
        A `TaskHeads` gets a head for each segment and is asked with the head of the segment in question, so that only
        segments learned so far are evaluated. Any other module has one head for all.
    loss, penalty, callbacks
        As for `train`.
    by_task
        ``model(x, task)`` is told the task at test time; None: `TaskHeads` are.
    before, after
        Called with the segment before it is learned (and after its head was added) and right after it.

    Raises
    ------
    ValueError
        For a label outside the head, or a `TaskHeads` whose next head is not the segment's.
    """
    warn_of_batchnorm(model, config)
    told = isinstance(model, TaskHeads) if by_task is None else by_task

    def learn(segment: Segment) -> None:
        data = segment.split("train").to(device)
        if isinstance(model, TaskHeads):
            if len(model.heads) != segment.number:
                raise ValueError(
                    f"the model has {len(model.heads)} heads, so segment {segment.number} would get another number: "
                    "start with a TaskHeads without heads"
                )
            classes = len(segment.classes) if segment.relabel else segment.task.num_classes
            model.add_head(classes, stream(seed, "head", segment.number))
        if before is not None:
            before(segment)
        train(
            model, data, loss=loss, config=config, penalty=penalty, callbacks=callbacks,
            seeds=(1000 * seed + segment.number,), plan="sequential", device=device,
        )  # fmt: skip
        if after is not None:
            after(segment)

    return evaluate_stream(model, segments, learn=learn, by_task=told)

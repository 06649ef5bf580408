"""The nets of the study of fast and slow learning, and how they are asked and trained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from etude.data import sampled
from etude.incontext import EpisodeLSTM, EpisodeMAML, FastSlowMemory, Feedback, OnlinePrototypes
from etude.incontext.few_shot_tasks import Episodes
from etude.lab.study import Job
from etude.layers import convnet
from etude.studies._memory_problems import Problem
from etude.training import TrainConfig, Trained, train

MEMORY: dict[str, dict[str, Any]] = {
    "plain": {"feedback": None}, "fast": {}, "labels_hidden": {"feedback": None},
    "fast_no_synthetic_loss": {"synthetic": False}, "fast_no_meta": {"meta": False},
}  # fmt: skip


def build(arm: str, problem: Problem, c: Any) -> nn.Module:
    """The net of an arm."""
    shared: dict[str, Any] = {}
    if problem.images:
        shared["encoder"] = convnet(problem.images, (c.channels,) * 4, 64, norm="batch")
    sizes = (problem.input_size, problem.output_size)
    if arm == "lstm":
        return EpisodeLSTM(*sizes, c.lstm_size, task=problem.kind, **shared)  # type: ignore[arg-type]
    if arm == "prototypes":
        return OnlinePrototypes(problem.output_size, **shared)
    if arm.startswith("maml"):
        flat = 1
        for n in problem.images or (problem.input_size,):
            flat *= n
        inner = 0.01 if problem.kind == "regression" else 0.1
        return EpisodeMAML(flat, problem.output_size, int(arm[5:]), inner_lr=inner, task=problem.kind)  # type: ignore[arg-type]
    options: dict[str, Any] = {"hidden_size": c.hidden_size, "task": problem.kind} | MEMORY[arm] | shared
    return FastSlowMemory(problem.input_size, problem.output_size, c.slots, c.width, **options)


def answer(arm: str, net: Any, batch: Episodes) -> Any:
    """Predictions and losses of any arm; the control is shown no label."""
    if arm == "labels_hidden":
        return net(batch.x, batch.y, reveal=torch.zeros_like(batch.y, dtype=torch.bool))
    x = batch.x.flatten(2) if isinstance(net, EpisodeMAML) else batch.x
    return net(x, batch.y)


def loss_of(arm: str) -> Callable[[Any, Episodes], Any]:
    def loss(net: Any, batch: Episodes) -> Any:
        out = answer(arm, net, batch)
        terms = {"task": out.loss}
        if getattr(net, "feedback", None) is not None and net.synthetic:
            terms["synthetic"] = out.synthetic_loss
        return terms

    return loss


def trained(
    job: Job, problem: Problem, make: Any, *, arm: str, callbacks: Any = (), every: int | None = None
) -> list[Trained]:
    c = job.config
    config = TrainConfig(steps=c.steps, lr=c.lr, clip_norm=1.0, eval_every=every)
    source = sampled(lambda g, t: problem.draw(g, c.batch_size, problem.steps))
    return train(
        make, source, loss=loss_of(arm), config=config, seeds=job.seeds, device=job.device, callbacks=callbacks,
        plan="sequential",  # targets of S take gradients inside the loss
    )  # fmt: skip


class PermutedFeedback(Feedback):
    """A feedback that is shown the neighbouring row: right in kind, wrong in content."""

    def forward(self, name: str, h: Tensor, c: Tensor, task_id: int = 0, *, both: Tensor | None = None) -> Tensor:
        """ghat of the row before."""
        return super().forward(name, h.roll(1, 0), c.roll(1, 0), task_id)

"""Training of the guided targets: which guide an arm has, and what it adds to the task's loss."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from etude.data.randomness import stream
from etude.lab.study import Job
from etude.studies._guidance_guides import Shuffled, trained_guide, untrained
from etude.studies._guidance_problems import Problem
from etude.training import DistillationLoss, Trained, distillation_objective, guided_loss, train

FCN, CNN = "deep_fcn", "plain_cnn"
GUIDED = ("trained_guide", "untrained_guide", "untrained_same_guide", "shuffled_guide")
EARLY = {"early_stop_trained": "trained_guide", "early_stop_untrained": "untrained_guide"}


def mean(right: torch.Tensor) -> float:
    return float(right.float().mean())


def guide_of(job: Job, p: Problem, seed: int, arm: str) -> nn.Module:
    """What an arm is guided by."""
    if arm == "untrained_guide":
        return untrained(p.guide, seed, job.device)
    if arm == "untrained_same_guide":
        return untrained(p.target, seed, job.device)
    trained = trained_guide(p, seed, job.config.digest(), job.device)
    return Shuffled(trained, stream(seed, "permute")) if arm == "shuffled_guide" else trained


def train_targets(job: Job, p: Problem) -> Iterator[tuple[int, Trained, Any]]:
    """Train one target a seed; each seed's guide is found by the target that it guides."""
    owner: dict[nn.Module, int] = {}

    def build(seed: int) -> nn.Module:
        net = p.target()
        owner[net] = seed
        return net

    kind = EARLY.get(job.arm, job.arm)
    made: dict[int, nn.Module] = {}

    def guide(net: nn.Module) -> nn.Module:
        seed = owner[net]
        if seed not in made:
            made[seed] = guide_of(job, p, seed, kind)
        return made[seed]

    loss: Callable[..., Any] = p.loss
    if kind in GUIDED:
        stop = max(1, round(job.config.early_share * (p.config.steps or 0))) if job.arm in EARLY else None
        loss = guided_loss(p.loss, guide, mask=p.mask, map=pairs_of(p, kind), alpha=p.alpha, until_step=stop)
    elif kind == "distillation":
        soft = distillation_objective(guide, DistillationLoss(temperature=job.config.temperature))

        def loss(net: Any, batch: Any) -> Any:
            return {"task": p.loss(net, batch)} | (soft(net, batch) if net.training else {})

    config = replace(p.config, eval_every=max(1, (p.config.steps or 0) // 8))
    for seed, done in zip(
        job.seeds,
        train(
            build, p.data, loss=loss, config=config, seeds=job.seeds, val=p.test,
            metric=lambda net, rows: 100 * mean(p.correct(net, rows)), plan="sequential", device=job.device,
        ),
        strict=True,
    ):  # fmt: skip
        yield seed, done, loss.guidance_of(done.module) if kind in GUIDED else None  # type: ignore[attr-defined]


def pairs_of(p: Problem, kind: str) -> Any:
    """The problem's pairs under the names that this guide's layers have."""
    if p.pairs == "even":
        return p.pairs
    if kind == "untrained_same_guide":
        return [(t, t) for t, _ in p.pairs]
    return [(t, f"guide.{g}" if kind == "shuffled_guide" else g) for t, g in p.pairs]

"""How the study of large batches trains its recipes, lets the weights walk and measures the noise of a step."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from etude import training
from etude.data.randomness import stream
from etude.data.tasks import Split, Task
from etude.lab.study import Job, Measurement
from etude.layers import mlp

PLAIN, RULED = {"rule": "none", "adapted": False}, {"rule": "sqrt", "adapted": False}
RECIPES: dict[str, tuple[bool, bool, dict[str, Any]]] = {  # large batch, ghosts, how the schedule is carried over
    "small": (False, False, PLAIN), "large": (True, False, PLAIN), "large_lr": (True, False, RULED),
    "large_lr_ghost": (True, True, RULED), "adapted": (True, True, {"rule": "sqrt", "adapted": True}),
    "large_ghost": (True, True, PLAIN), "large_linear": (True, False, {"rule": "linear", "adapted": False}),
    "ghost_noop": (True, True, RULED), "shuffled": (False, False, PLAIN),
}  # fmt: skip


def _loss(net: Any, batch: Split) -> torch.Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


@torch.no_grad()
def score(net: nn.Module, test: Split) -> float:
    """Test accuracy in percent."""
    return 100 * training.accuracy(net(test.x), test.y)


def train_recipe(job: Job, tasks: dict[int, Task], arm: str, **walk: Any) -> list[training.Trained]:
    """Train one recipe; `walk` asks for other batches, a constant rate and a trace."""
    c, task = job.config, tasks[job.seeds[0]]
    large, ghosts, changes = RECIPES[arm]
    rows = task.train.n
    batch = min(walk.get("batch", c.batch_large if large else c.batch_small), rows)
    ghost = batch if arm == "ghost_noop" else c.batch_small

    def build(seed: int) -> nn.Module:
        sizes = [task.train.x[0].numel(), *[c.hidden_size] * c.num_hidden, task.num_classes]
        net = nn.Sequential(nn.Flatten(), mlp(sizes, norm="batch"))
        return training.to_ghost_batchnorm(net, ghost) if ghosts else net

    config = training.TrainConfig(
        batch_size=c.batch_small, optimizer="sgd", momentum=0.9, weight_decay=1e-4, decay="all", clip_norm=5.0
    )
    # in this order the higher rate stays where a short run puts two phases on one epoch
    regime = {3 * c.epochs // 4: c.lr / 100, c.epochs // 2: c.lr / 10, 0: c.lr}
    config = training.large_batch_config(config, regime, num_rows=rows, batch=batch, epochs=c.epochs, **changes)
    if walk:
        config = replace(config, steps=c.walk_steps, schedule="constant", boundaries=None, eval_every=c.walk_steps)
    return training.train(
        build, lambda s: tasks[s].train, loss=_loss, config=config, seeds=job.seeds, device=job.device,
        val=None if walk else lambda s: tasks[s].test, metric=None if walk else score,
        callbacks=walk.get("callbacks", ()),
    )  # fmt: skip


def measure_walk(job: Job, tasks: dict[int, Task]) -> Iterator[Measurement]:
    """Distance from the start by updates for three batch sizes, and what the walks have in common (section 4)."""
    c, found = job.config, {}
    for batch in (c.batch_small, (c.batch_small * c.batch_large) ** 0.5, c.batch_large):
        trace = training.DistanceTrace(training.log_spaced(c.walk_steps))
        arm = "large_lr_ghost" if job.arm == "walk" else "large_ghost"
        train_recipe(job, tasks, arm, batch=int(batch), callbacks=[trace])
        found[int(batch)] = trace.probes
    for seed in job.seeds:
        probes = [found[b][seed] for b in found]
        for b, probe in zip(found, probes, strict=True):
            for t, d in zip(probe.steps, probe.distances, strict=True):
                yield Measurement(job.arm, seed, f"distance_{b}", d, step=t)
        for name, value in training.compare_walks(probes).items():
            yield Measurement(job.arm, seed, name, value)


def measure_noise(job: Job, tasks: dict[int, Task]) -> Iterator[Measurement]:
    """Size of one update's noise, large batch against small, under two rules for the rate (section 4.1)."""
    c = job.config
    for seed, done in zip(job.seeds, train_recipe(job, tasks, "small", batch=c.batch_small), strict=True):
        rows, draws = tasks[seed].train.to(job.device), stream(seed, "noise_batches")
        one = training.step_noise(done.module, _loss, rows, c.batch_small, c.lr, draws, batches=c.noise_batches)
        for rule in ("sqrt", "linear"):
            lr = training.scale_lr(c.lr, c.batch_large, c.batch_small, rule)
            many = training.step_noise(done.module, _loss, rows, c.batch_large, lr, draws, batches=c.noise_batches)
            name = "step_noise_ratio" if rule == "sqrt" else "linear_noise_ratio"
            yield Measurement(job.arm, seed, name, many / one)

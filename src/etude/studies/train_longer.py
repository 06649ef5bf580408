"""Train longer, generalize better: is it the large batch that costs accuracy, or the few updates it leaves?

Every arm trains the same perceptron with batch norm on the same rows; only batch, rate, ghosts and updates differ.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional as F

from etude import training
from etude.data import load_images
from etude.data.randomness import stream
from etude.data.tasks import Split, Task
from etude.errors import SourceUnavailable
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import mlp
from etude.studies._longer_plots import longer_plots

ONCE = ("mnist", "mnist_5k", "digits")  # where walks and noise are measured


PLAIN, RULED = {"rule": "none", "adapted": False}, {"rule": "sqrt", "adapted": False}
RECIPES: dict[str, tuple[bool, bool, dict[str, Any]]] = {  # large batch, ghosts, how the schedule is carried over
    "small": (False, False, PLAIN), "large": (True, False, PLAIN), "large_lr": (True, False, RULED),
    "large_lr_ghost": (True, True, RULED), "adapted": (True, True, {"rule": "sqrt", "adapted": True}),
    "large_ghost": (True, True, PLAIN), "large_linear": (True, False, {"rule": "linear", "adapted": False}),
    "ghost_noop": (True, True, RULED), "shuffled": (False, False, PLAIN),
}  # fmt: skip


class LongerConfig(StudyConfig):
    """The paper's net F1 and its recipe, smaller."""

    protocols: tuple[str, ...] = ("mnist", "fashion_mnist", "mnist_5k")
    train_rows: PositiveInt = 4000
    pool: PositiveInt = 2
    """Images are averaged over blocks of this many pixels a side."""
    hidden_size: PositiveInt = 128
    num_hidden: PositiveInt = 3
    batch_small: PositiveInt = 32
    """Also the size of a ghost."""
    batch_large: PositiveInt = 512
    epochs: PositiveInt = 12
    lr: float = 0.1
    walk_steps: PositiveInt = 200
    noise_batches: PositiveInt = 200


class LongerStudy(Study):
    """Accuracy of the cures, the walk of the weights and the noise of their steps."""

    configs: ClassVar = {
        "quick": LongerConfig(n_seeds=3, protocols=("digits",), pool=1, batch_large=256, epochs=4),
        "laptop": LongerConfig(n_seeds=10),
        "gpu": LongerConfig(
            protocols=("mnist",), train_rows=60_000, pool=1, hidden_size=512, num_hidden=5, batch_small=128,
            batch_large=4096, epochs=50,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "small": Arm("small batch", role="baseline"),
        "large": Arm("large batch, the same epochs", role="baseline"),
        "large_lr": Arm("large batch, rate by the square-root rule"),
        "large_lr_ghost": Arm("and ghost batch norm"),
        "adapted": Arm("and as many updates as the small batch"),
        "large_ghost": Arm("large batch, ghost batch norm alone", role="ablation"),
        "large_linear": Arm("large batch, rate by the linear rule", role="ablation"),
        "walk": Arm("distance from the start, square-root rule", protocols=ONCE),
        "walk_constant": Arm("distance from the start, one rate for every batch", role="baseline", protocols=ONCE),
        "noise": Arm("covariance of one update, large batch against small", protocols=ONCE),
        "ghost_noop": Arm("large batch with the rule, one ghost as large as the batch", role="control"),
        "shuffled": Arm("small batch, shuffled labels", role="control"),
    }
    kinds: ClassVar = ("images", "table")

    def task(self, protocol: str, config: LongerConfig) -> Any:
        """The image set itself; "mnist_5k" stands in where the official MNIST is not to be had."""
        if protocol == "mnist_5k":
            try:
                load_images("mnist")
            except SourceUnavailable:
                return load_images("mnist_5k", pool=config.pool)
            raise SourceUnavailable("not needed, as the official MNIST is here")
        return load_images(protocol, pool=config.pool)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Train and score twice; or let the weights walk; or measure the noise."""
        tasks = {s: _task(job, s) for s in job.seeds}
        if job.arm.startswith("walk"):
            yield from _walk(job, tasks)
        elif job.arm == "noise":
            yield from _noise(job, tasks)
        else:
            for seed, done in zip(job.seeds, _train(job, tasks, job.arm), strict=True):
                test = tasks[seed].test.to(job.device)  # type: ignore[union-attr]
                yield Measurement(job.arm, seed, "accuracy_running", _score(done.module, test), "points")
                training.reestimate_batchnorm(done.module, tasks[seed].train.x.to(job.device))
                yield Measurement(job.arm, seed, "accuracy", _score(done.module, test), "points")
                for point in done.curve:
                    yield Measurement(job.arm, seed, "error", 100 - point["metric"], "points", point["step"])

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy by regime, error by updates and by the share of the run, distance by updates."""
        return longer_plots(results, [*RECIPES])


def _task(job: Job, seed: int) -> Task:
    official = getattr(job.task, "test", None) is not None
    task = job.task.task(seed, (min(job.config.train_rows, len(job.task.y)), 0) if official else (0.7, 0.0, 0.3))
    if job.arm == "shuffled":
        order = torch.randperm(task.train.n, generator=stream(seed, "shuffle"))
        task = replace(task, train=task.train._replace(y=task.train.y[order]))
    return task


def _loss(net: Any, batch: Split) -> torch.Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


@torch.no_grad()
def _score(net: nn.Module, test: Split) -> float:
    return 100 * training.accuracy(net(test.x), test.y)


def _train(job: Job, tasks: dict[int, Task], arm: str, **walk: Any) -> list[training.Trained]:
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
    regime = {0: c.lr, c.epochs // 2: c.lr / 10, 3 * c.epochs // 4: c.lr / 100}
    config = training.large_batch_config(config, regime, num_rows=rows, batch=batch, epochs=c.epochs, **changes)
    if walk:
        config = replace(config, steps=c.walk_steps, schedule="constant", boundaries=None, eval_every=c.walk_steps)
    return training.train(
        build, lambda s: tasks[s].train, loss=_loss, config=config, seeds=job.seeds, device=job.device,
        val=None if walk else lambda s: tasks[s].test, metric=None if walk else _score,
        callbacks=walk.get("callbacks", ()),
    )  # fmt: skip


def _walk(job: Job, tasks: dict[int, Task]) -> Iterator[Measurement]:
    c, found = job.config, {}
    for batch in (c.batch_small, (c.batch_small * c.batch_large) ** 0.5, c.batch_large):
        trace = training.DistanceTrace(training.log_spaced(c.walk_steps))
        arm = "large_lr_ghost" if job.arm == "walk" else "large_ghost"
        _train(job, tasks, arm, batch=int(batch), callbacks=[trace])
        found[int(batch)] = trace.probes
    for seed in job.seeds:
        probes = [found[b][seed] for b in found]
        for b, probe in zip(found, probes, strict=True):
            for t, d in zip(probe.steps, probe.distances, strict=True):
                yield Measurement(job.arm, seed, f"distance_{b}", d, step=t)
        for name, value in training.compare_walks(probes).items():
            yield Measurement(job.arm, seed, name, value)


def _noise(job: Job, tasks: dict[int, Task]) -> Iterator[Measurement]:
    c = job.config
    for seed, done in zip(job.seeds, _train(job, tasks, "small", batch=c.batch_small), strict=True):
        rows, draws = tasks[seed].train.to(job.device), stream(seed, "noise_batches")
        one = training.step_noise(done.module, _loss, rows, c.batch_small, c.lr, draws, batches=c.noise_batches)
        for rule in ("sqrt", "linear"):
            lr = training.scale_lr(c.lr, c.batch_large, c.batch_small, rule)
            many = training.step_noise(done.module, _loss, rows, c.batch_large, lr, draws, batches=c.noise_batches)
            name = "step_noise_ratio" if rule == "sqrt" else "linear_noise_ratio"
            yield Measurement(job.arm, seed, name, many / one)

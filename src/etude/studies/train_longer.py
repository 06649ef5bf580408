"""Train longer, generalize better: is it the large batch that costs accuracy, or the few updates it leaves?

Every arm trains the same perceptron with batch norm on the same rows; only batch, rate, ghosts and updates differ.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from etude import training
from etude.data import load_images
from etude.data.randomness import stream
from etude.data.tasks import Task
from etude.errors import SourceUnavailable
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._longer_plots import longer_plots
from etude.studies._longer_training import RECIPES, measure_noise, measure_walk, score, train_recipe

ONCE = ("mnist", "mnist_5k", "digits")  # where walks and noise are measured


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
    lr: PositiveFloat = 0.1
    walk_steps: Annotated[int, Field(ge=3)] = 200
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

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train and score twice; or let the weights walk; or measure the noise."""
        tasks = {s: _task(job, s) for s in job.seeds}
        if job.arm.startswith("walk"):
            yield from measure_walk(job, tasks)
        elif job.arm == "noise":
            yield from measure_noise(job, tasks)
        else:
            for seed, done in zip(job.seeds, train_recipe(job, tasks, job.arm), strict=True):
                test = tasks[seed].test.to(job.device)  # type: ignore[union-attr]
                yield Measurement(job.arm, seed, "accuracy_running", score(done.module, test), "points")
                training.reestimate_batchnorm(done.module, tasks[seed].train.x.to(job.device))
                yield Measurement(job.arm, seed, "accuracy", score(done.module, test), "points")
                for point in done.curve:
                    yield Measurement(job.arm, seed, "error", 100 - point["metric"], "points", point["step"])
                seen: list[Any] = [
                    {"step": p["step"], "value": round(p["loss"], 5)} for p in done.curve if isfinite(p["loss"])
                ]
                yield Artifact(job.arm, seed, "training_loss", seen)

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

"""Dependency-preserving hypernetworks: does a generator that knows what it generated learn tasks in sequence better?

All arms of a seed meet the same tasks and batches. P: permuted tasks; S: pairs of classes with a head each.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from etude.data import load_images, permuted_stream
from etude.data.images import ImageSet
from etude.lab.study import FIRST_SEED, Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies import _dependency_problems as problems
from etude.studies._accuracy_matrix import matrix_artifact
from etude.studies._continual_problems import flat_task, small
from etude.studies._dependency_plots import dependency_plots
from etude.training import TrainConfig

GENERATORS = ("rnn", "chunked", "rnn_importance", "rnn_growth", "rnn_small", "fine_tune")
SPLIT = ("rnn", "chunked", "fine_tune")  # arms that learn the split tasks, too


class DependencyConfig(StudyConfig):
    """Images of 14 x 14 and a target 196-64-64-10 with 17,418 weights."""

    n_seeds: int = 10
    protocols: tuple[str, ...] = ("mnist_5k",)
    rows: tuple[PositiveInt, PositiveInt] = (4000, 1000)
    pool: PositiveInt = 2
    tasks: PositiveInt = 8
    """Permuted tasks."""
    steps: PositiveInt = 250
    """Updates a permuted task."""
    steps_split: PositiveInt = 250
    """Updates a task of two classes."""
    lr: PositiveFloat = 2e-3
    beta: NonNegativeFloat = 0.1
    """Of the regulariser: best of 0.01, 0.1 and 1 on a held-out seed, for every arm."""
    batch_size: PositiveInt = 64
    width: PositiveInt = 64
    """Units of both hidden layers of the target."""
    scale: PositiveFloat = 1.0
    """Factor of the generators' sizes."""
    few_seeds: PositiveInt = 5
    """Seeds of the split tasks."""
    full: bool = False
    """Measure the published figures of the chunked baseline."""


class DependencyStudy(Study):
    """Accuracy and backward transfer of generators of one size; what importance and growth add."""

    kinds: ClassVar = ("images",)
    configs: ClassVar = {
        "quick": DependencyConfig(
            n_seeds=3, protocols=("digits",), rows=(1300, 400), tasks=3, steps=80, steps_split=30, lr=5e-3,
            batch_size=32, width=32, scale=0.5, few_seeds=3,
        ),
        "laptop": DependencyConfig(),
        "gpu": DependencyConfig(
            n_seeds=5, protocols=("mnist",), rows=(60_000, 10_000), pool=1, tasks=10, steps=3000, steps_split=2000,
            lr=1e-3, batch_size=128, width=400, scale=3.0, full=True,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "rnn": Arm("recurrent generator over chunks"),
        "chunked": Arm("chunks generated one by one, same size", role="baseline"),
        "rnn_importance": Arm("recurrent, regulariser weighed by importance"),
        "rnn_growth": Arm("recurrent, starts at 20 units and grows"),
        "rnn_small": Arm("recurrent, 20 units for good", role="baseline"),
        "fine_tune": Arm("recurrent without regulariser", role="control"),
        "all_at_once": Arm("one head for all weights", role="control"),
        "ewc": Arm("EWC on the target's own weights", role="reference"),
        "mas": Arm("MAS on the target's own weights", role="reference"),
        "joint": Arm("one target trained on all tasks together", role="reference"),
    }

    def task(self, protocol: str, config: DependencyConfig) -> ImageSet:
        """The images; tasks are drawn for each seed."""
        return self.user_task(load_images(protocol, grey=True), config)

    def user_task(self, data: ImageSet, config: DependencyConfig) -> ImageSet:
        """The user's images in grey, brought to 14 x 14, or 28 x 28 ones pooled as configured."""
        return small(data, config.pool)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Learn both streams with the arm, or count its parameters."""
        c: DependencyConfig = job.config
        for seed in job.seeds:
            config = TrainConfig(steps=c.steps, batch_size=c.batch_size, lr=c.lr)
            task = flat_task(job.task, seed, c.rows, job.device)
            sizes = (task.train.x.shape[1], c.width, c.width, task.num_classes)
            if job.arm == "all_at_once":
                ratio = problems.parameter_ratio(problems.generator(job.arm, sizes, seed, c.scale), c.tasks)
                yield Measurement(job.arm, seed, "parameter_ratio", ratio)
                continue
            segments = permuted_stream(task, c.tasks, seed=seed)
            if job.arm in GENERATORS:
                found, cl = problems.learn(job.arm, segments, sizes, config, c.beta, seed, job.device, c.scale)
                yield Measurement(job.arm, seed, "parameter_ratio", problems.parameter_ratio(cl.hyper, c.tasks))
                if job.arm == "rnn_growth":
                    yield Measurement(job.arm, seed, "widenings", len(cl.growth_history))
            else:
                found = problems.rival(job.arm, segments, sizes, config, seed, job.device)
            yield Measurement(job.arm, seed, "final_accuracy_permuted", 100 * found.average, "points")
            if c.full:
                yield Measurement(job.arm, seed, "full_permuted_accuracy", 100 * found.average, "points")
            yield Measurement(job.arm, seed, "last_tasks_accuracy", 100 * found.last(min(3, c.tasks)), "points")
            if job.arm != "joint":
                yield Measurement(job.arm, seed, "backward_transfer_permuted", 100 * found.bwt, "points")
                yield Measurement(job.arm, seed, "learning_accuracy_permuted", 100 * found.learned, "points")
                yield matrix_artifact(job.arm, seed, found)
            if job.arm in SPLIT and seed < FIRST_SEED + c.few_seeds:
                pairs = problems.split_classes(task, seed)
                config = replace(config, steps=c.steps_split)
                found, _ = problems.learn(job.arm, pairs, sizes, config, c.beta, seed, job.device, c.scale)
                yield Measurement(job.arm, seed, "final_accuracy_split", 100 * found.average, "points")
                yield Measurement(job.arm, seed, "backward_transfer_split", 100 * found.bwt, "points")
                if c.full:
                    yield Measurement(job.arm, seed, "full_split_accuracy", 100 * found.average, "points")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy of each task after each, and final accuracy against size."""
        return dependency_plots(results)

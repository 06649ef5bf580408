"""Hypernetworks: does one net that generates the weights of many tasks beat separate ones, and when?

Every arm of a seed sees the same tasks and the same batches. Near tasks turn digits by 10 degrees more each, far ones
by 30; the other two problems ask for calibrated noise and for weights that follow the data.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch.nn import functional as F

from etude.data import load_images
from etude.data.images import ImageSet
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import mlp
from etude.studies._review_nets import STRATEGIES, per_task_net
from etude.studies._review_plots import review_plots
from etude.studies._review_problems import DEGREES, TurnedTasks
from etude.studies._review_runs import fit, open_set, waves
from etude.training.metrics import accuracy

PER_TASK = ("independent", "shared", "shared_with_embedding", *STRATEGIES, "same_embedding")
ROLES: dict[str, Any] = {"independent": "baseline", "shared": "baseline", "shared_with_embedding": "baseline",
         "same_embedding": "control", "all_at_once": "method", "chunk": "method"}  # fmt: skip
WAVES = ("data_conditioned", "concatenation", "concatenation_wide", "film", "shuffled_condition")


class ReviewConfig(StudyConfig):
    """Perceptrons with 32 hidden units as targets, trunks of (32, 32), Adam at 3e-3."""

    n_seeds: int = 10
    protocols: tuple[str, ...] = ("mnist_5k",)
    pool: PositiveInt = 2
    tasks: PositiveInt = 12
    rows: PositiveInt = 60
    """Training images of a task."""
    test_rows: PositiveInt = 200
    batch: PositiveInt = 20
    """Images of each task in an update."""
    steps: PositiveInt = 400
    open_rows: PositiveInt = 300
    """Training images of known classes for the noise-conditioned net."""
    draws: PositiveInt = 20
    wave_rows: PositiveInt = 4000
    wave_steps: PositiveInt = 2000
    lr: PositiveFloat = 3e-3


class ReviewStudy(Study):
    """Mean accuracy over tasks, calibration and unknown classes, error of a regression with a condition."""

    configs: ClassVar = {
        "quick": ReviewConfig(n_seeds=3, protocols=("digits",), pool=1, steps=90, wave_rows=2000, wave_steps=600),
        "laptop": ReviewConfig(),
        "gpu": ReviewConfig(pool=1, tasks=12, rows=300, steps=2000, open_rows=2000, wave_steps=10_000),
    }
    arms: ClassVar = {
        f"{kind}_{where}": Arm(f"{kind.replace('_', ' ')}, {where} tasks", role=ROLES.get(kind, "ablation"))
        for where in DEGREES for kind in PER_TASK
    } | {
        "single": Arm("one net", role="baseline"),
        "ensemble5": Arm("five nets, averaged", role="reference"),
        "noise_hypernetwork": Arm("20 nets drawn from a noise-conditioned hypernetwork, averaged"),
        "noise_one_draw": Arm("one of these nets", role="control", derived=True),
        "noise_untrained": Arm("the same before training", role="control", derived=True),
        "data_conditioned": Arm("weights for each row from its condition"),
        "concatenation": Arm("the condition as a further input", role="baseline"),
        "concatenation_wide": Arm("the same with as many parameters as the hypernetwork", role="reference"),
        "film": Arm("the condition scales and shifts hidden units", role="reference"),
        "shuffled_condition": Arm("the hypernetwork told other rows' conditions", role="control"),
    }  # fmt: skip
    kinds: ClassVar = ("images",)

    def task(self, protocol: str, config: ReviewConfig) -> ImageSet:
        """The image set itself; tasks are drawn from it for each seed."""
        return load_images(protocol, pool=config.pool)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Train the arm and score it on its problem."""
        for seed in job.seeds:
            if job.arm in WAVES:
                yield from waves(job, seed)
            elif job.arm.rpartition("_")[2] in DEGREES:
                yield from _tasks(job, seed)
            else:
                yield from open_set(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy against the share of parameters for every strategy; reliability; error of the regression."""
        return review_plots(results)


def _tasks(job: Job, seed: int) -> Iterator[Measurement]:
    c, (kind, _, where) = job.config, job.arm.rpartition("_")
    data = TurnedTasks.of(job.task, seed, DEGREES[where], c.tasks, c.rows, c.test_rows)
    sizes = (data.x.shape[2], 32, data.classes)
    net = fit(
        job, seed, lambda s: per_task_net(kind, c.tasks, sizes), lambda g, step: data.draw(c.batch, g),
        lambda net, b: F.cross_entropy(net(b.x).flatten(0, 1), b.y.flatten()), c.steps,
    )  # fmt: skip
    with torch.no_grad():
        right = accuracy(net(data.test_x.to(job.device)).flatten(0, 1), data.test_y.flatten())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    whole = c.tasks * sum(p.numel() for p in mlp(sizes).parameters())
    yield Measurement(job.arm, seed, "mean_test_accuracy", 100 * right, "points")
    yield Measurement(job.arm, seed, "share_of_parameters", trained / whole)

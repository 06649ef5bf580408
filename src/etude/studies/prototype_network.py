"""Prototype network: does a net that explains itself by cases lose accuracy, and do its terms make the cases real?

Every arm trains an autoencoder of the same shape on the same rows in the same order.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn
from torch.nn import functional as F

from etude import trust
from etude.data import load_images
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split, Task
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._prototype_plots import prototype_artifacts, prototype_plots
from etude.training import TrainConfig, accuracy, train
from etude.trust import Lambdas, PrototypeNetwork

ABLATED = ("digits", "mnist")
SIZES = ("fewer", "full", "more")
WEIGHTS = {
    "no_r1_r2": Lambdas(r1=0, r2=0), "no_r1": Lambdas(r1=0), "no_r2": Lambdas(r2=0), "no_terms": Lambdas(20, 0, 0, 0),
}  # fmt: skip


class PrototypeConfig(StudyConfig):
    """Batches of 250 and Adam at 2e-3, as in the paper."""

    protocols: tuple[str, ...] = ("digits", "fashion_mnist")
    n_prototypes: PositiveInt = 15
    more: PositiveFloat = 2.0
    """Prototypes of the arm of this name, in multiples of `n_prototypes`."""
    epochs: PositiveInt = 200
    """Passes over sets of small images and tables."""
    epochs_large: PositiveInt = 12
    """Passes over images of at least 16 pixels, elastically deformed."""
    train_rows: PositiveInt = 10_000
    """Training rows of sets with an official test part, which is used whole; 2,000 are compared with prototypes."""
    lr: PositiveFloat = 2e-3


class PrototypeStudy(Study):
    """Accuracy against a plain classifier; looks of the prototypes against nets without the terms."""

    configs: ClassVar = {
        "quick": PrototypeConfig(n_seeds=3, protocols=("digits",), epochs=60),
        "laptop": PrototypeConfig(),
        "gpu": PrototypeConfig(
            n_seeds=3, protocols=("mnist", "fashion_mnist"), epochs_large=300, train_rows=60_000, more=10 / 3
        ),
    }
    arms: ClassVar = {
        "full": Arm("prototype network with all terms"),
        "plain": Arm("the same encoder, a hidden layer of as many units as prototypes", role="baseline"),
        "no_r1_r2": Arm("without R1 and R2", role="ablation", protocols=ABLATED),
        "no_r1": Arm("without R1", role="ablation", protocols=ABLATED),
        "no_r2": Arm("without R2", role="ablation", protocols=ABLATED),
        "no_terms": Arm("cross-entropy alone", role="ablation", protocols=ABLATED),
        "fewer": Arm("two thirds of the prototypes", role="ablation", protocols=ABLATED),
        "more": Arm("twice the prototypes, at the gpu tier 50", role="ablation", protocols=ABLATED),
        "untrained": Arm("the net before training", role="control", protocols=ABLATED),
        "shuffled": Arm("all terms, shuffled labels", role="control"),
    }
    kinds: ClassVar = ("images", "table")

    def task(self, protocol: str, config: PrototypeConfig) -> Any:
        """The image set itself; rows are drawn for each seed."""
        return load_images(protocol)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the arm, score it on test rows and compare its prototypes with training rows."""
        tasks, count = {s: _task(job, s) for s in job.seeds}, job.config.n_prototypes
        m = max(1, round({"fewer": 2 / 3, "more": job.config.more}.get(job.arm, 1.0) * count))
        for seed, net in zip(job.seeds, _nets(job, tasks, m), strict=True):
            rows, test = tasks[seed].train, tasks[seed].test
            assert test is not None
            with torch.no_grad():
                logits = torch.cat([net(part.to(job.device)).cpu() for part in test.x.split(1000)])
            yield Measurement(job.arm, seed, "accuracy", 100 * accuracy(logits, test.y), "points")
            if isinstance(net, PrototypeNetwork):
                rows = rows.take(range(min(rows.n, 2000))).to(job.device)
                report = trust.prototype_report(net, rows.x, rows.y)
                for name in ("latent_ratio", "pixel_ratio", "classes_covered", "own_class"):
                    yield Measurement(job.arm, seed, name, getattr(report, name))
                whole, partial = trust.explanation_error(net, test.x[:500].to(job.device))
                yield Measurement(job.arm, seed, "logit_difference", whole)
                yield Measurement(job.arm, seed, "left_out_difference", partial)
                if seed == job.config.seeds[0]:
                    yield from prototype_artifacts(job, net, rows, test, report, tasks[seed].meta["classes"])

    def plots(self, results: Results) -> list[Plot]:
        """Gallery, ablation strip, accuracy by number of prototypes, one explanation."""
        return prototype_plots(results, ablations=("full", *WEIGHTS, "untrained"), sizes=SIZES)


def _task(job: Job, seed: int) -> Task:
    official = getattr(job.task, "test", None) is not None
    task = job.task.task(seed, (min(job.config.train_rows, len(job.task.y)), 0) if official else (0.7, 0.0, 0.3))
    if job.arm == "shuffled":
        order = torch.randperm(task.train.n, generator=stream(seed, "shuffle"))
        task = replace(task, train=task.train._replace(y=task.train.y[order]))
    return task


def _nets(job: Job, tasks: dict[int, Task], m: int) -> list[nn.Module]:
    rows, classes = tasks[job.seeds[0]].train.x, tasks[job.seeds[0]].num_classes
    shape = tuple(rows.shape[1:])
    large = len(shape) == 3 and min(shape[1:]) >= 16

    def build(seed: int) -> nn.Module:
        low, high = tasks[seed].train.x.amin(0), tasks[seed].train.x.amax(0)
        scale = {} if len(shape) == 3 else {"low": low, "span": torch.where(high > low, high - low, 1.0)}
        net = trust.prototype_network(shape, classes, m, **scale)
        if job.arm != "plain":
            return net
        return nn.Sequential(net.encoder, nn.Linear(net.layer.dim, m), nn.ReLU(), nn.Linear(m, classes))

    def loss(net: Any, batch: Split) -> Any:
        if job.arm == "plain":
            return F.cross_entropy(net(trust.deformed(batch.x) if large else batch.x), batch.y)
        return trust.prototype_loss(net, batch.x, batch.y, WEIGHTS.get(job.arm, Lambdas()), deform=large)

    if job.arm == "untrained":
        return [seeded_build(lambda s=s: build(s), stream(s, "init")).to(job.device).eval() for s in job.seeds]  # type: ignore[misc]
    epochs = job.config.epochs_large if large else job.config.epochs
    config = TrainConfig(epochs=epochs, batch_size=min(250, len(rows)), lr=job.config.lr, drop_last=True)
    done = train(build, lambda s: tasks[s].train, loss=loss, config=config, seeds=job.seeds, device=job.device)
    return [t.module for t in done]

"""Discrete key-value bottleneck: do tables behind a frozen encoder learn class after class without forgetting?

All arms of a seed see the same frozen features, the same order of classes and the same batches, equally many of them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch.nn import functional as F

from etude import continual
from etude.continual import FrozenFeatures, KeyValueBottleneck, StreamRecord, learn_key_values, learn_stream
from etude.data import class_stream, stream
from etude.data.tasks import Task
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import class_means, mean_logits, mlp
from etude.studies._stream_plots import stream_plots
from etude.training import TrainConfig

SETS = ("digits", "cifar10", "wikilead", "wikilead_minilm")
Records = dict[int, StreamRecord]
HEADS: dict[str, tuple[int, ...]] = {"linear": (), "linear_paper_rate": (), "mlp": (128,)}
TOGETHER = ("bottleneck", "tuned_rate", *HEADS)  # arms that learn the same rows i.i.d. as well


# What is best in the i.i.d. run on validation rows, seeds 0 and 1, from five rates of the tables and four of each head.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"key_dim": 8, "tuned_rate": ("sgd", 300.0), "linear": ("sgd", 0.05), "mlp": ("sgd", 0.5)},
    "cifar10": {"key_dim": 8, "tuned_rate": ("sgd", 100.0), "linear": ("adam", 1e-3), "mlp": ("adam", 1e-3)},
    "wikilead": {"key_dim": 8, "tuned_rate": ("sgd", 300.0), "linear": ("sgd", 5.0), "mlp": ("adam", 3e-4)},
}
PAPER = {"bottleneck": ("sgd", 0.3), "linear_paper_rate": ("sgd", 1e-3)}  # the paper's rates


class KeyValueConfig(StudyConfig):
    """The paper's 256 codebooks of 4,096 pairs with keys of width 14 are the gpu tier's."""

    protocols: tuple[str, ...] = ("toy", "digits", "cifar10", "wikilead")
    steps: PositiveInt = 800
    """Updates on each segment of two or three classes, 32 rows each."""
    toy_steps: PositiveInt = 1000
    """Updates on each task of the toy, all its rows each."""
    num_codebooks: PositiveInt = 64
    num_pairs: PositiveInt = 128
    key_dim: PositiveInt | None = None
    """None: what suits the set."""
    grid: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        ((4, 8), (4, 128), (16, 32), (64, 8), (64, 32)), min_length=1
    )
    """Codebooks and pairs of the sweep."""


class KeyValueStudy(Study):
    """Accuracy after the stream against heads, class means and the i.i.d. run; keys, sizes, locality."""

    configs: ClassVar = {
        "quick": KeyValueConfig(
            n_seeds=3, protocols=("toy", "digits"), steps=60, toy_steps=150, num_codebooks=32, num_pairs=64,
            grid=((4, 8),),
        ),
        "laptop": KeyValueConfig(),
        "gpu": KeyValueConfig(
            protocols=(*SETS, "toy"), steps=4000, num_codebooks=256, num_pairs=4096, key_dim=14,
            grid=((16, 256), (16, 4096), (64, 1024), (256, 256), (256, 1024)),
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "bottleneck": Arm("key-value bottleneck at the paper's value rate of 0.3"),
        "linear": Arm("linear head on the same features", role="baseline"),
        "mlp": Arm("head with a hidden layer of 128 (toy: 32)", role="baseline"),
        "class_mean": Arm("nearest class mean", role="baseline", protocols=SETS),
        "linear_paper_rate": Arm("linear head at the paper's rate of 0.001", role="reference", protocols=SETS),
        "tuned_rate": Arm("bottleneck at the value rate that is best i.i.d.", role="ablation", protocols=SETS),
        "small": Arm("a quarter of the codebooks and of the pairs", role="ablation", protocols=SETS),
        "other_keys": Arm("keys placed on other data", role="ablation", protocols=SETS),
        "grid": Arm("other numbers of codebooks and pairs", role="ablation", protocols=("digits",)),
        "one_pair": Arm("one pair a codebook: every row gets the same vote", role="control", protocols=SETS),
        "far_keys": Arm("keys placed on data ten standard deviations away", role="control", protocols=SETS),
        "shuffled": Arm("bottleneck with shuffled labels", role="control", protocols=SETS),
        "untrained": Arm("bottleneck with the values that it starts from", role="control", protocols=("toy",)),
    }
    kinds: ClassVar = ("images", "table", "documents")

    def task(self, protocol: str, config: KeyValueConfig) -> FrozenFeatures | None:
        """Features of the frozen encoder; the toy is drawn for each seed."""
        return None if protocol == "toy" else continual.frozen_features(protocol)

    def user_task(self, data: Any, config: KeyValueConfig) -> FrozenFeatures:
        """Features of the user's images, table or documents."""
        return continual.user_features(data)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Learn the stream, and where a claim asks for it the same rows together; score all classes."""
        c, arm = job.config, job.arm
        if job.protocol == "toy":
            yield from _rows(job, continual.learn_toy(arm, job.seeds, steps=c.toy_steps, device=job.device))
            return
        tasks = {s: _task(job, s) for s in job.seeds}
        sizes = {"small": (max(1, c.num_codebooks // 4), max(1, c.num_pairs // 4)), "one_pair": (c.num_codebooks, 1)}
        for books, pairs in c.grid if arm == "grid" else ():
            for seed, record in _learn(job, tasks, (books, pairs)).items():
                yield Measurement(arm, seed, f"class_accuracy_{books}_{pairs}", 100 * record.class_accuracy, "points")
        if arm != "grid":
            size = sizes.get(arm, (c.num_codebooks, c.num_pairs))
            yield from _rows(job, _learn(job, tasks, size))
            for seed, record in _learn(job, tasks, size, together=True).items() if arm in TOGETHER else ():
                yield Measurement(arm, seed, "iid_accuracy", 100 * record.class_accuracy, "points")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy by class over the stream, sizes of the tables, touched cells, the toy's regions."""
        return stream_plots(results)


def _rows(job: Job, records: Records) -> Iterator[Measurement | Artifact]:
    for seed, record in records.items():
        yield Measurement(job.arm, seed, "class_accuracy", 100 * record.class_accuracy, "points")
        if record.touched:
            yield Measurement(job.arm, seed, "untouched_change", record.change)
            yield Artifact(job.arm, seed, "by_arrival", record.by_arrival)  # type: ignore[arg-type]
        for step, share in enumerate(record.touched):
            yield Measurement(job.arm, seed, "touched_share", share, step=step)
        if record.regions and seed == job.config.seeds[0]:
            yield Artifact(job.arm, seed, "regions", record.regions)  # type: ignore[arg-type]


def _task(job: Job, seed: int) -> Task:
    task = job.task.task(seed)
    order = torch.randperm(task.train.n, generator=stream(seed, "shuffle"))
    y = task.train.y[order] if job.arm == "shuffled" else task.train.y
    return replace(task, train=task.train._replace(y=y).to(job.device), test=task.test.to(job.device))


def _learn(job: Job, tasks: dict[int, Task], size: tuple[int, int], *, together: bool = False) -> Records:
    """Every seed's stream under the job's arm; `together`: all classes at once, with as many updates."""
    n, width = next(iter(tasks.values())).num_classes, next(iter(tasks.values())).train.x.shape[1]
    cut = (2,) * (n // 2 - 1) + (2 + n % 2,) if n > 3 else (1,) * n
    segments = {s: class_stream(t, n if together else cut, seed=s) for s, t in tasks.items()}
    if job.arm == "class_mean":
        means = {s: class_means(t.train.x, t.train.y, n) for s, t in tasks.items()}
        said = {s: continual.evaluate_stream(lambda x, m=m: mean_logits(x, m), segments[s]) for s, m in means.items()}
        return {s: StreamRecord(segments[s], [r.by_class[0].tolist()]) for s, r in said.items()}
    setting = SETTINGS.get(job.protocol.removesuffix("_minilm"), SETTINGS["digits"])
    optimizer, lr = (setting | PAPER).get(job.arm, PAPER["bottleneck"])
    steps, clip = job.config.steps * (len(cut) if together else 1), None if job.arm in HEADS else 1.0
    config = TrainConfig(steps=steps, batch_size=32, optimizer=optimizer, lr=lr, clip_norm=clip)
    if job.arm in HEADS:
        return learn_stream(
            lambda s: mlp((width, *HEADS[job.arm], n)), segments, loss=lambda m, b: F.cross_entropy(m(b.x), b.y),
            predict=lambda m, x: m(x), config=config, device=job.device,
        )  # fmt: skip
    made = {}
    for seed, task in tasks.items():
        key_dim, x = job.config.key_dim or setting["key_dim"], task.train.x
        other = {"other_keys": task.meta["other"], "far_keys": x + 10 * x.std(0)}
        kv = KeyValueBottleneck(width, *size, key_dim, n, generator=stream(seed, "init")).to(job.device)
        made[seed] = kv.initialize_keys(other.get(job.arm, x), generator=stream(seed, "keys")).freeze_keys()
    return learn_key_values(made, segments, config=config, device=job.device)

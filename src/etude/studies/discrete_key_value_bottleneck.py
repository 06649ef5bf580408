"""Discrete key-value bottleneck: do tables behind a frozen encoder learn class after class without forgetting?

All arms of a seed see the same frozen features, the same order of classes and the same batches, equally many of them;
only EWC, which is told where a segment ends, draws batches of its own.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from etude import continual
from etude.continual import FrozenFeatures
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._key_value_learning import HEADS, Records, learn, seed_task
from etude.studies._stream_plots import stream_plots

SETS = ("digits", "digits_conv", "cifar10", "wikilead", "wikilead_minilm")
TOGETHER = ("bottleneck", "tuned_rate", *HEADS)  # arms that learn the same rows i.i.d. as well


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
    ewc_weight: NonNegativeFloat = 1.0
    """Of the penalty of EWC; a hundred times as much diverges at the heads' rates."""


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
        "linear_ewc": Arm(
            "linear head with EWC, which is told the borders", role="reference", protocols=("digits_conv",)
        ),
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
        tasks = {s: seed_task(job, s) for s in job.seeds}
        sizes = {"small": (max(1, c.num_codebooks // 4), max(1, c.num_pairs // 4)), "one_pair": (c.num_codebooks, 1)}
        for books, pairs in c.grid if arm == "grid" else ():
            for seed, record in learn(job, tasks, (books, pairs)).items():
                yield Measurement(arm, seed, f"class_accuracy_{books}_{pairs}", 100 * record.class_accuracy, "points")
        if arm != "grid":
            size = sizes.get(arm, (c.num_codebooks, c.num_pairs))
            yield from _rows(job, learn(job, tasks, size))
            for seed, record in learn(job, tasks, size, together=True).items() if arm in TOGETHER else ():
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

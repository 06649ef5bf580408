"""What learning algorithm is in-context learning? Which textbook estimator does a trained transformer equal?

Random linear functions, new ones in every step; the learner is compared with known ones by what they predict.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from etude.data.randomness import stream
from etude.incontext import linear
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._linear_plots import linear_plots
from etude.training import Trained

PENALTIES = (1 / 16, 1 / 9, 1 / 4, 4 / 9, 1.0)  # also the noise variances: those of the weights are 1
RIDGES = tuple(f"ridge:{v!r}" for v in PENALTIES)
SIMPLE = ("gd:1", "sgd", "knn:3")
NAMES = ("ols", *SIMPLE, "average", "zero")


class LinearConfig(StudyConfig):
    """Sizes of the task, the nets and the runs."""

    dim: PositiveInt = 2
    num_points: Annotated[PositiveInt, Field(validate_default=True)] = 6
    """Pairs in a prompt, at least dim; comparisons are averaged over dim .. 2 dim pairs."""
    hidden_dim: PositiveInt = 64
    num_heads: Annotated[PositiveInt, Field(validate_default=True)] = 4
    """A divisor of hidden_dim."""
    layers_shallow: PositiveInt = 1
    layers_deep: PositiveInt = 2
    steps_shallow: PositiveInt = 2000
    steps_deep: PositiveInt = 3000
    steps_fixed: PositiveInt = 1000
    """For the control net, which learns one function by heart and is done long before."""
    noise_variance: NonNegativeFloat = 0.25
    """Of the noisy arm; the weights have variance 1."""
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 3e-3
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    num_tasks: PositiveInt = 512
    """Test functions a seed."""
    probe_dim: PositiveInt = 4
    """Dimension of the probed nets (protocol "extended"); their prompts hold at least twice as many pairs."""

    @field_validator("num_heads")
    @classmethod
    def _divides_the_width(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("hidden_dim", value) % value:
            raise ValueError(f"must divide hidden_dim = {info.data['hidden_dim']}")
        return value

    @field_validator("num_points")
    @classmethod
    def _enough_pairs(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("dim", 1):
            raise ValueError(f"must be at least dim = {info.data['dim']}")
        return value


class LinearStudy(Study):
    """All arms of a seed are tested on the same functions, inputs and queries."""

    configs = {
        "quick": LinearConfig(
            n_seeds=3, dim=1, num_points=3, hidden_dim=32, num_heads=2, steps_shallow=120, steps_deep=250,
            steps_fixed=80, lr=1e-2, num_tasks=256,
        ),
        "laptop": LinearConfig(),
        "gpu": LinearConfig(
            protocols=("default", "extended"), dim=8, num_points=20, hidden_dim=256, layers_deep=8, lr=5e-4,
            steps_shallow=4000, steps_deep=8000, steps_fixed=2000, batch_size=256, precision="bf16",
        ),
    }  # fmt: skip
    arms = {
        "constructed": Arm("gradient descent written into attention weights", protocols=("default",)),
        "one_step_short": Arm("the same with one step less", role="control", protocols=("default",)),
        "shallow": Arm("one layer, no noise", protocols=("default",)),
        "deep": Arm("deeper net, no noise", protocols=("default",)),
        "deep_noisy": Arm("deeper net, noisy pairs", protocols=("default",)),
        "fixed_w": Arm("deeper net trained on one function", role="control", protocols=("default",)),
        "noise_grid": Arm("one net for each noise level", protocols=("extended",)),
        "probed": Arm("layers of a net trained on random functions", protocols=("extended",)),
        "probed_fixed": Arm("layers of a net trained on one", role="baseline", protocols=("extended",)),
    }

    def task(self, protocol: str, config: LinearConfig) -> None:
        """Nothing to load: prompts are drawn."""

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Build or train the arm's learner and place it among the textbook ones."""
        c: LinearConfig = job.config
        if job.arm in ("constructed", "one_step_short"):
            for seed in job.seeds:
                X, y, _ = linear.regression_prompts(64, c.num_points, c.dim, noise=0.5, generator=stream(seed, "test"))
                for kind, metric in ((torch.float32, "max_difference"), (torch.float64, "max_difference_float64")):
                    missing = int(job.arm == "one_step_short")
                    error = linear.construction_error(X.to(kind), y.to(kind), (1, 5, 50), missing=missing)
                    yield Measurement(job.arm, seed, metric, error)
        elif job.arm == "noise_grid":
            yield from _noise_grid(job)
        elif job.arm.startswith("probed"):
            for done in _trained(job, dim=c.probe_dim):
                yield from _probes(job, done)
        else:
            noise = c.noise_variance**0.5 if job.arm == "deep_noisy" else 0.0
            for done in _trained(job, noise):
                yield from _distances(job, done, noise)

    def plots(self, results: Results) -> list[Plot]:
        """Distance to each reference against the number of pairs; noise against penalty; probes by layer."""
        return linear_plots(results, NAMES, PENALTIES)


def _trained(job: Job, noise: float = 0.0, *, dim: int | None = None) -> list[Trained]:
    c: LinearConfig = job.config
    shallow, fixed, d = job.arm == "shallow", job.arm in ("fixed_w", "probed_fixed"), dim or c.dim
    points = c.num_points if dim is None else max(c.num_points, 2 * dim)  # probes look behind 2 dim pairs
    return linear.train_learners(
        d, num_layers=c.layers_shallow if shallow else c.layers_deep, hidden_dim=c.hidden_dim, num_heads=c.num_heads,
        steps=c.steps_shallow if shallow else c.steps_fixed if fixed else c.steps_deep, batch_size=c.batch_size,
        noise=noise, num_points=points, weights=torch.ones(d) if fixed else None, lr=c.lr,
        precision=c.precision, seeds=job.seeds, device=job.device,
    )  # fmt: skip


def _distances(job: Job, done: Trained, noise: float) -> Iterator[Measurement | Artifact]:
    c: LinearConfig = job.config
    report = linear.identify(
        done.module, (*RIDGES, *NAMES), dim=c.dim, noise=noise, num_tasks=c.num_tasks,
        n_context=range(1, c.num_points + 1), generator=stream(done.seed, "test"),
    )  # fmt: skip
    span = range(c.dim, min(2 * c.dim, c.num_points) + 1)
    found = linear.placement(report, penalties=PENALTIES, simple=SIMPLE, n_context=span)
    yield from (Measurement(job.arm, done.seed, metric, value) for metric, value in found.items())
    spd: Any = {f"{p:.3f}": report.mean_spd(name, span) for p, name in zip(PENALTIES, RIDGES, strict=True)}
    yield Artifact(job.arm, done.seed, "ridge", {"noise": round(noise**2, 3), "spd": spd})
    for row in report.to_rows() if job.protocol == "default" else ():
        if row["reference"] in NAMES and math.isfinite(row["spd"]):
            yield Measurement(job.arm, done.seed, f"spd_by_n {row['reference']}", row["spd"], step=row["n"])


def _noise_grid(job: Job) -> Iterator[Measurement | Artifact]:
    """Mean distance, in places of the grid, between the best penalty and the noise; also for a net without noise."""
    places: dict[int, list[float]] = {seed: [] for seed in job.seeds}
    for variance in (0.0, *PENALTIES[:-1]):
        for done in _trained(job, variance**0.5):
            for item in _distances(job, done, variance**0.5):
                if isinstance(item, Artifact):
                    yield item._replace(name=f"ridge{variance:.3f}")
                elif item.metric == "ridge_index":
                    places[done.seed].append(item.value)
    for seed, (without, *found) in places.items():
        yield Measurement(job.arm, seed, "index_gap", sum(abs(f - i) for i, f in enumerate(found, 1)) / len(found))
        noiseless = sum(abs(without - i) for i in range(1, len(found) + 1)) / len(found)
        yield Measurement(job.arm, seed, "noiseless_gap", noiseless)


def _probes(job: Job, done: Trained) -> Iterator[Measurement]:
    dim = job.config.probe_dim
    for target, table in linear.probe_solutions(done.module, dim, generator=stream(done.seed, "test")).items():
        best = table.best(by="error")["error"]
        found = {
            f"probe_{target}": best,
            f"half_probe_{target}": best / 2,
            f"tokens_{target}": table["layer0"]["error"],
        }
        yield from (Measurement(job.arm, done.seed, metric, value) for metric, value in found.items())
        for layer, row in enumerate(table):
            yield Measurement(job.arm, done.seed, f"probe_{target}_by_layer", row["error"], step=layer)

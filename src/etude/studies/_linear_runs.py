"""How the study of in-context regression trains its learners and places them among the textbook ones."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from etude.data.randomness import stream
from etude.incontext import linear
from etude.lab.study import Artifact, Job, Measurement
from etude.training import Trained

PENALTIES = (1 / 16, 1 / 9, 1 / 4, 4 / 9, 1.0)  # also the noise variances: those of the weights are 1
RIDGES = tuple(f"ridge:{v!r}" for v in PENALTIES)
SIMPLE = ("gd:1", "sgd", "knn:3")
NAMES = ("ols", *SIMPLE, "average", "zero")
NET_PROBE_STEPS = 300


def construction(job: Job) -> Iterator[Measurement]:
    """Predictions of the transformer with weights set by hand against gradient descent."""
    c = job.config
    for seed in job.seeds:
        X, y, _ = linear.regression_prompts(64, c.num_points, c.dim, noise=0.5, generator=stream(seed, "test"))
        for kind, metric in ((torch.float32, "max_difference"), (torch.float64, "max_difference_float64")):
            missing = int(job.arm == "one_step_short")
            error = linear.construction_error(X.to(kind), y.to(kind), (1, 5, 50), missing=missing)
            yield Measurement(job.arm, seed, metric, error)


def trained(job: Job, noise: float = 0.0, *, dim: int | None = None, layers: int | None = None) -> list[Trained]:
    """The arm's learners, one a seed; `dim` and `layers` in place of the configured ones."""
    c = job.config
    shallow, fixed, d = job.arm == "shallow", job.arm in ("fixed_w", "probed_fixed"), dim or c.dim
    points = c.num_points if dim is None else max(c.num_points, 2 * dim)  # probes look behind 2 dim pairs
    return linear.train_learners(
        d, num_layers=layers or (c.layers_shallow if shallow else c.layers_deep), hidden_dim=c.hidden_dim,
        num_heads=c.num_heads, steps=c.steps_shallow if shallow else c.steps_fixed if fixed else c.steps_deep,
        batch_size=c.batch_size, noise=noise, num_points=points, weights=torch.ones(d) if fixed else None, lr=c.lr,
        precision=c.precision, seeds=job.seeds, device=job.device,
    )  # fmt: skip


def _span(c: Any) -> range:
    """Numbers of pairs that distances are averaged over."""
    return range(c.dim, min(2 * c.dim, c.num_points) + 1)


def _report(job: Job, done: Trained, noise: float) -> linear.Report:
    c = job.config
    return linear.identify(
        done.module, (*RIDGES, *NAMES), dim=c.dim, noise=noise, num_tasks=c.num_tasks,
        n_context=range(1, c.num_points + 1), generator=stream(done.seed, "test"),
    )  # fmt: skip


def distances(job: Job, done: Trained, noise: float) -> Iterator[Measurement | Artifact]:
    """Where a learner stands among the textbook ones, all in all and by the number of pairs."""
    report, span = _report(job, done, noise), _span(job.config)
    found = linear.placement(report, penalties=PENALTIES, simple=SIMPLE, n_context=span)
    yield from (Measurement(job.arm, done.seed, metric, value) for metric, value in found.items())
    spd: Any = {f"{p:.3f}": report.mean_spd(name, span) for p, name in zip(PENALTIES, RIDGES, strict=True)}
    yield Artifact(job.arm, done.seed, "ridge", {"noise": round(noise**2, 3), "spd": spd})
    for row in report.to_rows() if job.protocol == "default" else ():
        if row["reference"] in NAMES and math.isfinite(row["spd"]):
            yield Measurement(job.arm, done.seed, f"spd_by_n {row['reference']}", row["spd"], step=row["n"])


def depths(job: Job) -> Iterator[Measurement]:
    """Distance to each textbook learner, and to the best ridge, by the number of layers; no noise."""
    span = _span(job.config)
    for layers in job.config.depths:
        for done in trained(job, layers=layers):
            report = _report(job, done, 0.0)
            for label, name in (*zip(NAMES, NAMES, strict=True), ("best ridge", report.best(RIDGES, span))):
                value = report.mean_spd(name, span)
                yield Measurement(job.arm, done.seed, f"spd_by_depth {label}", value, step=layers)


def noise_grid(job: Job) -> Iterator[Measurement | Artifact]:
    """Mean distance, in places of the grid, between the best penalty and the noise; also for a net without noise."""
    places: dict[int, list[float]] = {seed: [] for seed in job.seeds}
    for variance in (0.0, *PENALTIES[:-1]):
        for done in trained(job, variance**0.5):
            for item in distances(job, done, variance**0.5):
                if isinstance(item, Artifact):
                    yield item._replace(name=f"ridge{variance:.3f}")
                elif item.metric == "ridge_index":
                    places[done.seed].append(item.value)
    for seed, (without, *found) in places.items():
        yield Measurement(job.arm, seed, "index_gap", sum(abs(f - i) for i, f in enumerate(found, 1)) / len(found))
        noiseless = sum(abs(without - i) for i in range(1, len(found) + 1)) / len(found)
        yield Measurement(job.arm, seed, "noiseless_gap", noiseless)


def probes(job: Job, done: Trained) -> Iterator[Measurement]:
    """What each layer's states give away: by a line at the query, and by a small net that reads all positions."""
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
    small_net = linear.probe_solutions(
        done.module, dim, read="attention", hidden_size=64, steps=NET_PROBE_STEPS, generator=stream(done.seed, "test")
    )
    for target, table in small_net.items():
        for layer, row in enumerate(table):
            yield Measurement(job.arm, done.seed, f"net_probe_{target}_by_layer", row["error"], step=layer)

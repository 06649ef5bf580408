"""What the study of rich representations measures besides probes: by size, by the nets' own heads, by weight decay."""

from collections.abc import Iterator
from typing import Any

import torch

from etude import training
from etude.lab.study import Artifact, Job, Measurement
from etude.studies._rich_nets import CATS, ensemble, joined, nets_of
from etude.studies._rich_problems import IMAGES, Representation, Transfer, reduced, ridge_probe

SWEEP = (0.0, 1e-4, 1e-3, 5e-3)
HEADS = ("single", "wide5", "logit_ensemble5", "cat10")
SIZED = ("single", "wide5", "cat5", "cat10")


def by_heads(job: Job, data: Transfer, seed: int) -> Iterator[Measurement]:
    """Accuracy with the heads that the nets were trained with, on source rows and under the shift.

    Several nets answer by the mean of their logits: joined features under the head ``[W_1 ... W_n] / n``, so that
    what "cat5" would read here is what "logit_ensemble5" does.
    """
    if job.arm not in HEADS:
        return
    net = ensemble(nets_of(job, data, seed, job.arm, CATS.get(job.arm, 1)))
    for name, rows in (("source", data.source_test), ("shifted", data.shifted)):
        if rows is not None:
            with torch.no_grad():
                right = training.accuracy(net(rows.x.to(job.device)), rows.y)
            yield Measurement(job.arm, seed, f"{name}_head_accuracy", 100 * right, "points")


def by_size(job: Job, data: Transfer, seed: int, rep: Representation) -> Iterator[Measurement]:
    """Target accuracy by number of features and by number of nets."""
    if job.arm not in SIZED or data.target is None or data.target_test is None:
        return
    y, y_test = data.target.y, data.target_test.y
    few, test = rep(data.target.x), rep(data.target_test.x)
    for dims in (8, 16, 32, 64, 128):
        if dims <= few.shape[1] and dims < few.shape[0]:
            small = reduced(few, test, dims)
            yield Measurement(
                job.arm, seed, "probe_by_features", ridge_probe(small[0], y, small[1], y_test), "points", dims
            )
    for n in {"cat5": range(1, 6), "cat10": (10,)}.get(job.arm, ()):
        end = n * job.config.features
        value = ridge_probe(few[:, :end], y, test[:, :end], y_test)
        yield Measurement(job.arm, seed, "probe_by_nets", value, "points", n)


def pictures(job: Job, data: Transfer, seed: int, rep: Representation) -> Iterator[Measurement | Artifact]:
    """CKA between five nets and, for the first seed, their matrix and the sweep over the weight decay."""
    if job.arm != "cat5" or data.target_test is None:
        return
    test = rep(data.target_test.x)
    parts = {str(i): p for i, p in enumerate(test.split(job.config.features, 1))}
    values = training.cka_matrix(parts, debiased=True).values
    yield Measurement(job.arm, seed, "cka_between_members", float(values[~torch.eye(5, dtype=torch.bool)].mean()))
    if seed == job.config.seeds[0] and job.protocol in IMAGES:
        rows: list[Any] = [{"a": i, "b": j, "cka": float(values[i, j])} for i in range(5) for j in range(5)]
        yield Artifact(job.arm, seed, "members", rows)
        yield Artifact(job.arm, seed, "decay", _sweep(job, data, seed))


def _sweep(job: Job, data: Transfer, seed: int) -> list[Any]:
    assert data.target is not None
    assert data.target_test is not None
    found: list[Any] = []
    for decay in SWEEP:
        for arm, count in (("cat5", 5), ("wide5", 1)):
            rep = joined(nets_of(job, data, seed, arm, count, weight_decay=decay), data)
            value = ridge_probe(rep(data.target.x), data.target.y, rep(data.target_test.x), data.target_test.y)
            found.append({"arm": arm, "weight decay": str(decay), "value": round(value, 2)})
    return found

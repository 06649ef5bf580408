"""What the study of wide and deep nets measures on spheres, where the best possible rule is known at every point."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from etude.data import dirichlet_on_sphere, numpy_stream
from etude.kernels import comparison, kernel_profile
from etude.lab.study import Artifact, Job, Measurement

PAIRS = {
    "d1": ((1, 2), (2, 1)), "d2": ((0.5, 0.5, 2.5), (2.5, 0.1, 0.5)), "d4": ((3, 1, 2, 1, 1), (1, 2, 2, 2, 3)),
    "d8": ((1, 2, 1, 2, 1, 1, 1, 1, 1), (1, 1, 1, 2, 3, 4, 2, 2, 1)),
}  # fmt: skip
LAYERS = {"one_layer": 1, "five_layers": 5}
RELU = {"relu_shallow": 5}


def sphere_scores(job: Job, seed: int) -> Iterator[comparison.Score]:
    """Every rule by number of points, nets by depth, and where asked of the pair, rectifiers and regression."""
    c, rules = job.config, job.task
    drawn = dirichlet_on_sphere(c.sizes[-1] + c.n_test, PAIRS[job.protocol], 0.4, seed)
    yield from comparison.learning_curves(rules, drawn, c.sizes, c.n_depth, device=job.device)
    near, test = drawn.take(slice(0, c.n_depth)), drawn.take(slice(c.sizes[-1], None))
    labels, dual = comparison.one_hot(near.y, 2), rules.duals["optimal"]
    fits = comparison.deep_fits(test.x, near.x, labels, dual, (1, 2, 5), ridge=c.ridge, device=job.device)
    value = {n: comparison.agreement(scores.argmax(1), test.y) for n, scores in fits.items()}
    yield from (comparison.Score("optimal", "accuracy_by_depth", v, n) for n, v in value.items())
    yield from (comparison.Score(arm, "depth_accuracy", value[n]) for arm, n in LAYERS.items())
    if job.protocol in ("d4", "d8"):
        drawn = dirichlet_on_sphere(2 * max(200, c.relu_test), PAIRS[job.protocol], 0.4, seed)
        layers = RELU | {"relu_deep": c.relu_layers}
        yield from comparison.rectifier_majority(rules, drawn, layers, counts=(15, 35), n_test=c.relu_test)
    if job.protocol == "d4":
        depths = c.regression_layers
        true, shuffled = comparison.regression_by_depth(
            dual, c.n_regression, 4, depths, seed, ridge=c.ridge, device=job.device
        )
        yield from (comparison.Score("regression_deep", "r2_by_depth", v, n) for n, v in true.items())
        yield comparison.Score("regression_shallow", "r2", true[depths[0]])
        yield comparison.Score("regression_deep", "r2", true[depths[-1]])
        yield comparison.Score("regression_shuffled", "r2", shuffled[depths[0]])


def profiles(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    """The order of each limit kernel, from its profile, and the profile itself for one seed."""
    distances = np.sort(10 ** numpy_stream(seed, "distances").uniform(-4, -2, 100))
    for arm, dual in job.task.duals.items():
        log_kernel, order = kernel_profile(dual, distances)
        yield Measurement(arm, seed, "order_error", (order - job.task.dim) / job.task.dim)
        if seed == job.config.seeds[0]:
            shown: Any = [{"step": float(r), "value": float(k)} for r, k in zip(distances, log_kernel, strict=True)]
            yield Artifact(arm, seed, "profile", shown[::5])

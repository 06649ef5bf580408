"""Wide and deep nets: does the right activation make infinite depth optimal, and what do other activations become?

Pairs of Dirichlet densities on spheres, where the best possible rule is known at every point; handwritten digits.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from etude.data import dirichlet_on_sphere, load_images, numpy_stream
from etude.kernels import SphereRules, comparison, kernel_profile
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig

PAIRS = {
    "d1": ((1, 2), (2, 1)), "d2": ((0.5, 0.5, 2.5), (2.5, 0.1, 0.5)), "d4": ((3, 1, 2, 1, 1), (1, 2, 2, 2, 3)),
    "d8": ((1, 2, 1, 2, 1, 1, 1, 1, 1), (1, 1, 1, 2, 3, 4, 2, 2, 1)),
}  # fmt: skip
LAYERS = {"one_layer": 1, "five_layers": 5}
RELU = {"relu_shallow": 5}


class WideDeepConfig(StudyConfig):
    """Nothing is trained: numbers of points and layers."""

    n_seeds: int = 20
    protocols: tuple[str, ...] = ("d1", "d2", "d4", "d8", "digits")
    sizes: tuple[PositiveInt, ...] = Field((100, 300, 1000, 3000), min_length=2)
    """Training points; the slope is taken over all of them, accuracies at the last."""
    n_test: PositiveInt = 2000
    n_depth: PositiveInt = 1000
    """Training points where depths and classifiers are compared; one of `sizes`. Of the 1,797 digits at most 1000."""
    ridge: NonNegativeFloat = 1e-6
    """On the diagonal of kernels of finite depth, on spheres."""
    ridges: tuple[PositiveFloat, ...] = Field((1e-6, 1e-1), min_length=1)
    """On real rows: the nets of finite depth take the best of these for the training rows."""
    relu_layers: PositiveInt = 1000
    relu_test: PositiveInt = 200
    n_regression: PositiveInt = 500
    regression_layers: tuple[PositiveInt, ...] = Field((1, 2, 5, 20, 60), min_length=1)
    train_share: float = Field(0.6, gt=0, lt=1)
    """Of the user's rows."""

    @field_validator("sizes")
    @classmethod
    def _ascending(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"sizes must ascend, since the test points follow the last, got {sizes}")
        return sizes

    @model_validator(mode="after")
    def _compared(self) -> "WideDeepConfig":
        if self.n_depth not in self.sizes:
            raise ValueError(
                f"n_depth must be one of sizes {self.sizes}, where all rules are fitted, got {self.n_depth}"
            )
        return self


class WideDeepStudy(Study):
    """All arms look at the same points, so one job a seed measures them all."""

    configs: ClassVar = {
        "quick": WideDeepConfig(
            n_seeds=3, protocols=("d2", "d4"), sizes=(100, 300, 1000), n_test=1000, relu_test=100,
            n_regression=200, regression_layers=(1, 5, 60),
        ),
        "laptop": WideDeepConfig(),
        "gpu": WideDeepConfig(sizes=(100, 300, 1000, 3000, 10_000, 30_000, 100_000), n_test=10_000, n_depth=10_000),
    }  # fmt: skip
    kinds = ("table", "images")
    arms: ClassVar = {
        "optimal": Arm("infinite net, activation made for the sphere"),
        "nearest": Arm("nearest neighbour", role="baseline", derived=True),
        "hilbert": Arm("Hilbert estimate", role="baseline", derived=True),
        "erf": Arm("infinite net, error function", role="ablation", derived=True),
        "sin": Arm("infinite net, sine", role="ablation", derived=True),
        "square": Arm("sixty layers of h2", derived=True),
        "one_layer": Arm("one hidden layer, same activation", role="baseline", derived=True),
        "five_layers": Arm("five hidden layers, same activation", role="baseline", derived=True),
        "relu_shallow": Arm("five rectifier layers", role="baseline", derived=True),
        "relu_deep": Arm("a thousand rectifier layers", derived=True),
        "regression_shallow": Arm("regression, one layer", role="baseline", derived=True),
        "regression_deep": Arm("regression, sixty layers", derived=True),
        "regression_shuffled": Arm("regression on shuffled targets", role="control", derived=True),
        "majority": Arm("commonest class", role="control", derived=True),
    }

    def task(self, protocol: str, config: WideDeepConfig) -> Any:
        """A sphere's rules, or the digits."""
        return load_images("digits") if protocol == "digits" else SphereRules(len(PAIRS[protocol][0]) - 1)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Draw the seed's points, let every rule vote."""
        for seed in job.seeds:
            if isinstance(job.task, SphereRules):
                yield from (Measurement(s.arm, seed, s.metric, s.value, step=s.step) for s in _sphere(job, seed))
                yield from _profiles(job, seed)
            else:
                yield from _real(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Regret against points, the kernels' profiles, and what depth does to accuracy and to regression."""
        import altair as alt

        def lines(rows: list[dict], x: str, y: str, scale: Any = "linear") -> dict:
            base = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
                x=alt.X("step:Q", title=x, scale=alt.Scale(type="log")), color=alt.Color("arm:N", title=None),
                y=alt.Y("mean(value):Q", title=y, scale=alt.Scale(type=scale)),
            )  # fmt: skip
            return base.facet(column=alt.Column("protocol:N", title="")).to_dict()

        regret = lines(results.select("regret"), "training points", "error above the Bayes rule", "log")
        points = [{**a, **p} for a in results.artifacts("profile") for p in a["value"]]
        depth = [r | {"arm": m} for m in ("accuracy_by_depth", "r2_by_depth") for r in results.select(m)]
        by_depth = lines([r for r in depth if r["value"] > -5], "hidden layers", "accuracy, or R squared")
        alike: list[dict] = [r | {"with": "majority"} for r in results.select("agreement_majority")]
        for other in ("nearest", "hilbert"):
            found = [r for r in results.select(f"disagreement_{other}") if r["arm"] != other]
            alike += [r | {"with": other, "value": 1 - r["value"]} for r in found]
        bars = alt.Chart(alt.Data(values=alike)).mark_bar().encode(
            x=alt.X("mean(value):Q", title="share of equal answers"), y=alt.Y("arm:N", title=None), yOffset="with:N",
            color=alt.Color("with:N", title="as"), column=alt.Column("protocol:N", title=""),
        )  # fmt: skip
        same = bars.properties(width=140).to_dict()
        return [
            Plot(
                "agreement",
                same,
                "Share of answers equal to the nearest neighbour's, to Hilbert's estimate, to the majority.",
            ),
            Plot("regret", regret, "Error above the best possible, against the number of training points."),
            Plot("profile", lines(points, "distance", "log kernel"), "A kernel's order is the slope of its profile."),
            Plot("depth", by_depth, "Accuracy and the fit of a smooth function, against depth."),
        ]


def _sphere(job: Job, seed: int) -> Iterator[comparison.Score]:
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


def _profiles(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    distances = np.sort(10 ** numpy_stream(seed, "distances").uniform(-4, -2, 100))
    for arm, dual in job.task.duals.items():
        log_kernel, order = kernel_profile(dual, distances)
        yield Measurement(arm, seed, "order_error", (order - job.task.dim) / job.task.dim)
        if seed == job.config.seeds[0]:
            shown: Any = [{"step": float(r), "value": float(k)} for r, k in zip(distances, log_kernel, strict=True)]
            yield Artifact(arm, seed, "profile", shown[::5])


def _real(job: Job, seed: int) -> Iterator[Measurement]:
    c, digits = job.config, job.protocol == "digits"
    task = job.task.task(seed, (min(c.n_depth, 1000), 0, 700) if digits else (c.train_share, 0.0, 1 - c.train_share))
    found = comparison.compare_on_rows(task, lift=job.task.kind == "table", depths=LAYERS, ridges=c.ridges)
    for arm, value in found.items():
        yield from (Measurement(arm, seed, metric, value) for metric in ("depth_accuracy", "accuracy"))

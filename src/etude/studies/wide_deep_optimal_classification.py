"""Wide and deep nets: does the right activation make infinite depth optimal, and what do other activations become?

Pairs of Dirichlet densities on spheres, where the best possible rule is known at every point; handwritten digits.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator, model_validator

from etude.data import load_images, load_table
from etude.kernels import SphereRules, comparison
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._wide_finite import nngp_errors, trained_accuracies
from etude.studies._wide_plots import wide_plots
from etude.studies._wide_spheres import LAYERS, PAIRS, profiles, sphere_scores


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
    """Of the user's rows and of tables."""
    finite_depths: tuple[PositiveInt, ...] = ()
    """Hidden layers of the nets of finite width whose kernel is compared with the infinite ones'."""
    finite_width: PositiveInt = 2048
    trained_depths: tuple[PositiveInt, ...] = ()
    """Hidden layers of the nets of finite width that are trained."""
    trained_width: PositiveInt = 1024
    trained_steps: PositiveInt = 2000

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
            n_regression=200, regression_layers=(1, 5, 60), finite_depths=(2, 3, 4),
        ),
        "laptop": WideDeepConfig(),
        "gpu": WideDeepConfig(
            protocols=("d1", "d2", "d4", "d8", "digits", "breast_cancer", "mnist"), n_test=10_000, n_depth=10_000,
            sizes=(100, 300, 1000, 3000, 10_000, 30_000, 100_000), finite_depths=(2, 3, 4), trained_depths=(5, 10, 20),
        ),
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
        "finite": Arm("finite nets, activation made for the sphere", role="reference", derived=True),
        "finite_unit": Arm("finite nets, rows of every layer of length 1", role="reference", derived=True),
        "trained": Arm("finite nets, trained by gradient descent", role="reference", derived=True),
        "majority": Arm("commonest class", role="control", derived=True),
    }

    def task(self, protocol: str, config: WideDeepConfig) -> Any:
        """A sphere's rules, a table or images."""
        if protocol in PAIRS:
            return SphereRules(len(PAIRS[protocol][0]) - 1)
        return load_table(protocol) if protocol == "breast_cancer" else load_images(protocol)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Draw the seed's points, let every rule vote."""
        for seed in job.seeds:
            if isinstance(job.task, SphereRules):
                yield from (Measurement(s.arm, seed, s.metric, s.value, step=s.step) for s in sphere_scores(job, seed))
                yield from profiles(job, seed)
                yield from nngp_errors(job, seed)
                yield from trained_accuracies(job, seed, PAIRS[job.protocol])
            else:
                yield from _real(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Regret against points, the kernels' profiles, what depth does to accuracy and to regression, agreement."""
        return wide_plots(results)


def _real(job: Job, seed: int) -> Iterator[Measurement]:
    c = job.config
    sizes: dict[str, Any] = {"digits": (min(c.n_depth, 1000), 0, 700), "mnist": (c.n_depth, 0, c.n_test)}
    task = job.task.task(seed, sizes.get(job.protocol, (c.train_share, 0.0, 1 - c.train_share)))
    found = comparison.compare_on_rows(task, lift=job.task.kind == "table", depths=LAYERS, ridges=c.ridges)
    for arm, value in found.items():
        yield from (Measurement(arm, seed, metric, value) for metric in ("depth_accuracy", "accuracy"))

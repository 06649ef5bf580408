"""What learning algorithm is in-context learning? Which textbook estimator does a trained transformer equal?

Random linear functions, new ones in every step; the learner is compared with known ones by what they predict.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._linear_plots import linear_plots
from etude.studies._linear_runs import NAMES, PENALTIES, construction, depths, distances, noise_grid, probes, trained


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
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 2, 4)
    """Layers of the nets of the arm of that name (protocol "extended")."""
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
            protocols=("default", "extended"), dim=8, num_points=20, hidden_dim=256, layers_deep=8,
            depths=(1, 2, 4, 8, 16), lr=5e-4, steps_shallow=4000, steps_deep=8000, steps_fixed=2000, batch_size=256,
            precision="bf16",
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
        "depths": Arm("one net for each depth, no noise", protocols=("extended",)),
        "probed": Arm("layers of a net trained on random functions", protocols=("extended",)),
        "probed_fixed": Arm("layers of a net trained on one", role="baseline", protocols=("extended",)),
    }

    def task(self, protocol: str, config: LinearConfig) -> None:
        """Nothing to load: prompts are drawn."""

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Build or train the arm's learner and place it among the textbook ones."""
        c: LinearConfig = job.config
        if job.arm in ("constructed", "one_step_short"):
            yield from construction(job)
        elif job.arm == "depths":
            yield from depths(job)
        elif job.arm == "noise_grid":
            yield from noise_grid(job)
        elif job.arm.startswith("probed"):
            for done in trained(job, dim=c.probe_dim):
                yield from probes(job, done)
        else:
            noise = c.noise_variance**0.5 if job.arm == "deep_noisy" else 0.0
            for done in trained(job, noise):
                yield from distances(job, done, noise)

    def plots(self, results: Results) -> list[Plot]:
        """Distance to each reference by number of pairs and by depth; noise against penalty; probes by layer."""
        return linear_plots(results, NAMES, PENALTIES)

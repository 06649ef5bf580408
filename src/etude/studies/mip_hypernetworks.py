"""Magnitude-invariant hypernetworks: does the condition's size spoil training, and do encoding and residual cure it?

Every arm of a seed gets the same batches; one job trains them all, as one claim counts steps to the default's loss.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from etude.data import load_images
from etude.data.images import ImageSet
from etude.lab.study import FIRST_SEED, Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._magnitude_grid import cells_won
from etude.studies._magnitude_plots import magnitude_plots
from etude.studies._magnitude_problems import Denoiser, ShiftedImages, ShrunkImages
from etude.studies._magnitude_registration import Registration
from etude.studies._magnitude_training import OPTIONS, GradientSpread, build, final_loss, fit, report_of

SIDES = {"digits": 8, "mnist_5k": 28, "mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar10_4k": 32}
NARROWEST = 5  # pixels that two convolutions of width 3 leave one of


class MagnitudeConfig(StudyConfig):
    """Adam at 3e-4 and SGD with momentum, as in the paper."""

    protocols: tuple[str, ...] = ("mnist_5k",)
    pool: PositiveInt = 2
    steps: PositiveInt = 500
    steps_sgd: PositiveInt = 300
    steps_denoiser: PositiveInt = 300
    steps_cnn: PositiveInt = 300
    """Updates of the convnet on shrunk images (task A2, which no claim rests on)."""
    steps_registration: NonNegativeInt = 0
    """Updates on pairs of images to be brought into register (for the GPU; no claim rests on it)."""
    steps_cell: PositiveInt = 60
    """Updates in each of the 18 cells of the grid."""
    grid_seeds: PositiveInt = 3
    """Seeds that run the grid."""
    noise_steps: PositiveInt = 200
    """Updates during which gradient norms are compared."""
    signals: Annotated[int, Field(ge=4)] = 4000
    """Signals to train the denoiser on; a quarter as many more test it."""
    lr_adam: PositiveFloat = 3e-4
    lr_sgd: PositiveFloat = 0.03
    lr_sgd_cell: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _wide_enough(self) -> Self:
        for name in self.protocols:
            side = SIDES.get(name, NARROWEST * self.pool) // self.pool
            if side < NARROWEST:
                raise ValueError(
                    f"pool={self.pool} leaves {side} x {side} pixels of {name}: its convnet needs {NARROWEST}"
                )
        return self


class MagnitudeStudy(Study):
    """Sizes of weights and gradients over conditions; losses of the default, its parts and MIP."""

    configs: ClassVar = {
        "quick": MagnitudeConfig(
            n_seeds=3, protocols=("digits",), pool=1, steps=100, steps_sgd=40, steps_denoiser=30, steps_cnn=5,
            steps_cell=4, noise_steps=40, signals=400,
        ),
        "laptop": MagnitudeConfig(),
        "gpu": MagnitudeConfig(
            n_seeds=10, pool=1, grid_seeds=5, steps=2000, steps_sgd=2000, steps_denoiser=2000, steps_cnn=2000,
            steps_registration=2000, steps_cell=500,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "default": Arm("weights from the bare condition, ordinary size at 1", role="baseline"),
        "mip": Arm("encoding and residual", derived=True),
        "encoding_only": Arm("cosine and sine of the condition", role="ablation", derived=True),
        "residual_only": Arm("a change of learned weights", role="ablation", derived=True),
        "default_gain": Arm("the default scaled by a fixed factor behind the head", role="ablation", derived=True),
        "default_reseeded": Arm("the default from another initialisation", role="control", derived=True),
        "mip_shuffled_condition": Arm("MIP told the condition of another set", role="control", derived=True),
    }
    kinds: ClassVar = ("images",)

    def task(self, protocol: str, config: MagnitudeConfig) -> ImageSet:
        """The image set itself; rows and shifts are drawn for each seed."""
        return load_images(protocol, pool=config.pool)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train every arm on shifted images, then with SGD, on the denoiser and the convnet, and over the grid."""
        for seed in job.seeds:
            images = ShiftedImages.of(job.task, seed)
            yield from _adam(job, seed, images)
            for arm in ("default", "mip", "mip_shuffled_condition"):
                loss = final_loss(fit(job, arm, seed, images, job.config.steps_sgd, "sgd", job.config.lr_sgd))
                yield Measurement(arm, seed, "ln_test_loss_sgd", math.log(loss))
                yield Measurement(arm, seed, "failed_sgd", float(not loss < 0.95 * math.log(images.classes)))
                for name, problem, steps in _others(job, seed):
                    loss = final_loss(fit(job, arm, seed, problem, steps, "adam", job.config.lr_adam))
                    yield Measurement(arm, seed, f"ln_test_loss_{name}", math.log(loss))
            if seed < FIRST_SEED + job.config.grid_seeds:
                yield from cells_won(job, seed, images)

    def plots(self, results: Results) -> list[Plot]:
        """Norm of the weights against the condition, loss by updates, gain over the grid."""
        return magnitude_plots(results)


def _others(job: Job, seed: int) -> Iterator[tuple[str, Any, int]]:
    """Tasks besides the shifted images, with their updates."""
    yield "denoiser", Denoiser.of(seed, job.config.signals), job.config.steps_denoiser
    yield "cnn", ShrunkImages.of(job.task, seed), job.config.steps_cnn
    if job.config.steps_registration:
        yield "registration", Registration.of(job.task, seed), job.config.steps_registration


def _adam(job: Job, seed: int, images: ShiftedImages) -> Iterator[Measurement]:
    c, goal = job.config, math.nan
    for arm in OPTIONS:
        before = report_of(build(arm, seed, images))
        spread = GradientSpread(images, seed, c.noise_steps)
        steps = min(c.steps, c.noise_steps) if arm == "default_reseeded" else c.steps  # it controls the spreads alone
        done = fit(job, arm, seed, images, steps, "adam", c.lr_adam, callbacks=[spread])
        after = report_of(done.module)
        goal = final_loss(done) if arm == "default" else goal
        reached = [p["step"] for p in done.curve if p["metric"] <= goal]
        yield Measurement(arm, seed, "cov_of_weight_norm_at_init", before.cov)
        yield Measurement(arm, seed, "r_squared_at_init", before.r_squared)
        if spread.found:  # none in fewer than 20 updates
            yield Measurement(arm, seed, "cov_of_gradient_norm", sum(spread.found) / len(spread.found))
        if arm == "default_reseeded":
            continue
        yield Measurement(arm, seed, "r_squared_of_weight_norm", after.r_squared)
        yield Measurement(arm, seed, "ln_test_loss", math.log(final_loss(done)))
        # 2 where the default's loss was not reached at all
        yield Measurement(arm, seed, "share_of_steps_to_default_loss", min(reached) / c.steps if reached else 2.0)
        for point in done.curve:
            yield Measurement(arm, seed, "test_loss", point["metric"], step=point["step"])
        for name, report in (("before", before), ("after", after)):
            for gamma, norm in zip(report.grid.tolist(), report.norms.tolist(), strict=True):
                yield Measurement(arm, seed, f"weight_norm_{name}", norm, step=gamma)

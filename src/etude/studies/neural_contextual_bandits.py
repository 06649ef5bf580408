"""Neural bandits: does inverse-gap weighting on a network's predictions beat UCB, Thompson sampling and plain greed?

Classification sets as bandits (the arms are the classes), synthetic rewards on the sphere; many seeds in one run.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt, field_validator

from etude.data import load_images, load_table
from etude.decision import ClassificationBandit, SyntheticBandit
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._bandit_plots import bandit_plots
from etude.studies._bandit_runs import LONG, NOISY, play_long, play_noisy, play_policy, regress

TWO = ("digits", "shuttle")


class BanditConfig(StudyConfig):
    """Rounds, network, and what the two extra claims need."""

    n_seeds: int = 20
    protocols: tuple[str, ...] = ("digits", "mushroom", "magic04", "shuttle", "square", "cosine")
    horizon: Annotated[int, Field(ge=8)] = 2000
    hidden_dim: PositiveInt = 64
    batch_size: PositiveInt = 32
    """Rows of the gradient step that follows every round."""
    long_horizons: tuple[PositiveInt, ...] = (500, 1000, 2000, 4000)
    """Rounds between which the slope of the regret is taken."""
    label_noise: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Of the arm `noisy_long`."""
    noise_levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.1, 0.2), min_length=1)
    """Between none and that, for the plot of regret by label noise; `horizon` rounds."""
    fit_steps: PositiveInt = 4000
    """Steps of the comparator of the regression regret."""

    @field_validator("long_horizons")
    @classmethod
    def _a_slope_lies_between_two(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or any(a >= b for a, b in pairwise(value)):
            raise ValueError(f"give at least two numbers of rounds, from the least to the largest, got {list(value)}")
        return value


class BanditStudy(Study):
    """All policies of a seed meet the same rounds and start from the same network."""

    configs: ClassVar = {
        "quick": BanditConfig(
            n_seeds=3, protocols=("digits", "square"), horizon=400, long_horizons=(100, 200, 400), fit_steps=600,
        ),
        "laptop": BanditConfig(),
        "gpu": BanditConfig(
            protocols=("digits", "mushroom", "magic04", "shuttle", "fashion_mnist", "form"), horizon=10_000,
            hidden_dim=100, long_horizons=(1250, 2500, 5000, 10_000), fit_steps=20_000,
        ),
    }  # fmt: skip
    kinds = ("table", "images")
    arms: ClassVar = {
        "fastcb": Arm("NeuFastCB", stacked=True),
        "squarecb": Arm("NeuSquareCB", stacked=True),
        "fastcb_perturbed": Arm("NeuFastCB, c_p = 1", role="ablation", stacked=True),
        "fastcb_plain": Arm("NeuFastCB, c_p = 0", role="ablation", stacked=True),
        "squarecb_perturbed": Arm("NeuSquareCB, c_p = 1", role="ablation", stacked=True, protocols=TWO),
        "squarecb_plain": Arm("NeuSquareCB, c_p = 0", role="ablation", stacked=True, protocols=TWO),
        "ucb": Arm("neural UCB", role="baseline", stacked=True),
        "ts": Arm("neural Thompson sampling", role="baseline", stacked=True),
        "epsilon": Arm("neural epsilon-greedy", role="baseline", stacked=True),
        "greedy": Arm("best prediction", role="baseline", stacked=True),
        "best_explorer": Arm("best of UCB, TS and epsilon when tuned", role="baseline", derived=True),
        "best_confidence": Arm("best of UCB and TS when tuned", role="baseline", derived=True),
        "ucb_reward": Arm("neural UCB, the net predicts rewards", role="reference", stacked=True, protocols=TWO),
        "epsilon_reward": Arm("epsilon-greedy, it predicts rewards", role="reference", stacked=True, protocols=TWO),
        "random": Arm("random arms", role="control", stacked=True),
        "clean_long": Arm("NeuFastCB, true labels", stacked=True, protocols=("digits",)),
        "noisy_long": Arm("NeuFastCB, noisy labels", role="baseline", stacked=True, protocols=("digits",)),
        "random_long": Arm("random arms", role="control", stacked=True, protocols=("digits",)),
        "noise_fastcb": Arm("NeuFastCB by label noise", role="reference", stacked=True, protocols=("digits",)),
        "noise_squarecb": Arm("NeuSquareCB by label noise", role="reference", stacked=True, protocols=("digits",)),
        "regression_perturbed": Arm("online regression, perturbed", stacked=True, protocols=("digits",)),
        "regression_plain": Arm("online regression", role="baseline", derived=True),
        "regression_frozen": Arm("initial network", role="control", derived=True),
    }

    def task(self, protocol: str, config: BanditConfig) -> ClassificationBandit | SyntheticBandit:
        """Rounds to be drawn."""
        if protocol in ("square", "cosine", "form"):
            return SyntheticBandit(protocol)  # type: ignore[arg-type]
        images = protocol in ("digits", "fashion_mnist")
        return self.user_task(load_images(protocol) if images else load_table(protocol), config)

    def user_task(self, data: Any, config: BanditConfig) -> ClassificationBandit:
        """Every row of a set is a context; nothing is fitted on it but means and deviations of columns."""
        rows = data.task(0, (len(data.y), 0, 0)).train if data.kind == "table" else data
        return ClassificationBandit(rows.x, rows.y, num_classes=len(data.classes), provenance=data.provenance)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Play the arm's rounds with all seeds at once."""
        if job.arm == "regression_perturbed":
            yield from regress(job)
        elif job.arm in LONG:
            yield from play_long(job)
        elif job.arm in NOISY:
            yield from play_noisy(job)
        else:
            yield from play_policy(job)

    def plots(self, results: Results) -> list[Plot]:
        """Regret against rounds with its band over seeds, with true and noisy labels, by label noise; bounds."""
        return bandit_plots(results, list(self.arms))

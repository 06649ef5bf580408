"""Neural bandits: does inverse-gap weighting on a network's predictions beat UCB, Thompson sampling and plain greed?

Classification sets as bandits (the arms are the classes), synthetic rewards on the sphere; many seeds in one run.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt, field_validator

from etude.data import load_images, load_table
from etude.decision import ClassificationBandit, SyntheticBandit, log_slope, regression_regret, simulate
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._bandit_settings import best_of, settings_of

TWO = ("digits", "shuttle")
LONG = ("clean_long", "noisy_long", "random_long")


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
            protocols=("digits", "mushroom", "magic04", "shuttle", "fashion_mnist"), horizon=10_000, hidden_dim=100,
            long_horizons=(1250, 2500, 5000, 10_000), fit_steps=20_000,
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
        "random": Arm("random arms", role="control", stacked=True),
        "clean_long": Arm("NeuFastCB, true labels", stacked=True, protocols=("digits",)),
        "noisy_long": Arm("NeuFastCB, noisy labels", role="baseline", stacked=True, protocols=("digits",)),
        "random_long": Arm("random arms", role="control", stacked=True, protocols=("digits",)),
        "regression_perturbed": Arm("online regression, perturbed", stacked=True, protocols=("digits",)),
        "regression_plain": Arm("online regression", role="baseline", derived=True),
        "regression_frozen": Arm("initial network", role="control", derived=True),
    }

    def task(self, protocol: str, config: BanditConfig) -> ClassificationBandit | SyntheticBandit:
        """Rounds to be drawn."""
        if protocol in ("square", "cosine"):
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
            yield from _regression(job)
        elif job.arm in LONG:
            yield from _long(job)
        else:
            yield from _policy(job)

    def plots(self, results: Results) -> list[Plot]:
        """Regret against rounds with its band over seeds, and the regret of clean and noisy labels."""
        import altair as alt

        def lines(rows: list[dict], title: str, scale: Any) -> Any:
            y, chart = alt.Scale(type=scale), alt.Chart(alt.Data(values=rows))
            axes = {"x": alt.X("step:Q", title="rounds", scale=y), "color": alt.Color("arm:N", title=None)}
            mean = chart.mark_line().encode(y=alt.Y("mean(value):Q", title=title, scale=y), **axes)
            band = chart.mark_errorband(extent="ci", opacity=0.2).encode(y=alt.Y("value:Q", title=title), **axes)
            return mean if scale == "log" else alt.layer(band, mean)

        curves = results.select("regret", arms=[a for a in self.arms if not a.startswith(("best", "random"))])
        facet = lines(curves, "cumulative regret", "linear").facet(facet="protocol:N", columns=2)
        facet = facet.resolve_scale(y="independent")
        noise = lines(results.select("regret_long"), "cumulative regret", "log")
        return [
            Plot("regret", facet.to_dict(), "Cumulative regret; random arms lie far above."),
            Plot("noise", noise.to_dict(), "The regret's growth with true and with noisy labels."),
        ]


def _policy(job: Job) -> Iterator[Measurement]:
    c: BanditConfig = job.config
    settings: Any = "random" if job.arm == "random" else settings_of(job.protocol, job.arm, job.task.n_arms)
    sizes: Any = {"hidden_dim": c.hidden_dim, "batch_size": c.batch_size, "device": job.device}
    regret = simulate(job.task, settings, job.seeds, c.horizon, **sizes).cumulative()
    best = zip(("best_explorer", "best_confidence"), best_of(job.protocol), strict=True)
    every = max(1, c.horizon // 20)
    for arm in [job.arm, *(name for name, chosen in best if chosen == job.arm)]:
        for seed, curve in zip(job.seeds, regret, strict=True):
            yield Measurement(arm, seed, "log_regret", float(curve[-1].clamp_min(0.5).log()))
            for t in range(every, c.horizon + 1, every):
                yield Measurement(arm, seed, "regret", float(curve[t - 1]), step=t)


def _long(job: Job) -> Iterator[Measurement]:
    c: BanditConfig = job.config
    env = job.task.with_noise(c.label_noise if job.arm == "noisy_long" else 0.0)
    settings: Any = "random" if job.arm == "random_long" else settings_of(job.protocol, "fastcb", env.n_arms)
    sizes: Any = {"hidden_dim": c.hidden_dim, "batch_size": c.batch_size, "device": job.device}
    regret = simulate(env, settings, job.seeds, c.long_horizons[-1], **sizes).cumulative()
    for seed, curve, slope in zip(job.seeds, regret, log_slope(regret, c.long_horizons), strict=True):
        yield Measurement(job.arm, seed, "regret_slope", float(slope))
        yield from (Measurement(job.arm, seed, "regret_long", float(curve[t - 1]), step=t) for t in c.long_horizons)


def _regression(job: Job) -> Iterator[Measurement]:
    c: BanditConfig = job.config
    lr = settings_of(job.protocol, "squarecb", job.task.n_arms).lr
    found = regression_regret(
        job.task, job.seeds, c.horizon, lr=lr, hidden_dim=c.hidden_dim, batch_size=c.batch_size, fit_steps=c.fit_steps,
        device=job.device,
    )  # fmt: skip
    steps = torch.logspace(0, 3, 10, base=2).mul(c.horizon / 8).round().long().tolist()
    for name, regret in found.items():
        for seed, slope in zip(job.seeds, log_slope(regret, steps), strict=True):
            yield Measurement(f"regression_{name}", seed, "regression_slope", float(slope))

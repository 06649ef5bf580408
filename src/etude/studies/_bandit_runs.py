"""How the bandit study plays its rounds and what it reports of them."""

from collections.abc import Iterator
from typing import Any

import torch

from etude.decision import log_slope, regression_regret, simulate
from etude.lab.study import Job, Measurement
from etude.studies._bandit_settings import best_of, settings_of

LONG = ("clean_long", "noisy_long", "random_long")
NOISY = {"noise_fastcb": "fastcb", "noise_squarecb": "squarecb"}  # arm -> its policy


def _sizes(job: Job) -> Any:
    c = job.config
    return {"hidden_dim": c.hidden_dim, "batch_size": c.batch_size, "device": job.device}


def play_policy(job: Job) -> Iterator[Measurement]:
    """Regret of a policy against rounds, under the name of the best explorer too where it is that."""
    c = job.config
    settings: Any = "random" if job.arm == "random" else settings_of(job.protocol, job.arm, job.task.n_arms)
    regret = simulate(job.task, settings, job.seeds, c.horizon, **_sizes(job)).cumulative()
    best = zip(("best_explorer", "best_confidence"), best_of(job.protocol), strict=True)
    every = max(1, c.horizon // 20)
    for arm in [job.arm, *(name for name, chosen in best if chosen == job.arm)]:
        for seed, curve in zip(job.seeds, regret, strict=True):
            yield Measurement(arm, seed, "log_regret", float(curve[-1].clamp_min(0.5).log()))
            for t in range(every, c.horizon + 1, every):
                yield Measurement(arm, seed, "regret", float(curve[t - 1]), step=t)


def play_long(job: Job) -> Iterator[Measurement]:
    """The slope of the regret, with true labels, with noisy ones or of random arms."""
    c = job.config
    env = job.task.with_noise(c.label_noise if job.arm == "noisy_long" else 0.0)
    settings: Any = "random" if job.arm == "random_long" else settings_of(job.protocol, "fastcb", env.n_arms)
    regret = simulate(env, settings, job.seeds, c.long_horizons[-1], **_sizes(job)).cumulative()
    for seed, curve, slope in zip(job.seeds, regret, log_slope(regret, c.long_horizons), strict=True):
        yield Measurement(job.arm, seed, "regret_slope", float(slope))
        yield from (Measurement(job.arm, seed, "regret_long", float(curve[t - 1]), step=t) for t in c.long_horizons)
        if job.arm == "noisy_long" and c.horizon <= len(curve):
            yield Measurement(job.arm, seed, "regret_by_noise", float(curve[c.horizon - 1]), step=c.label_noise)


def play_noisy(job: Job) -> Iterator[Measurement]:
    """Regret after all rounds at the levels of label noise that no other arm plays."""
    c, policy = job.config, NOISY[job.arm]
    ends = () if policy == "fastcb" else (c.label_noise,)  # fastcb's is a part of "noisy_long"
    for level in (*c.noise_levels, *ends):
        env = job.task.with_noise(level)
        settings = settings_of(job.protocol, policy, env.n_arms)
        regret = simulate(env, settings, job.seeds, c.horizon, **_sizes(job)).cumulative()
        for seed, curve in zip(job.seeds, regret, strict=True):
            yield Measurement(job.arm, seed, "regret_by_noise", float(curve[-1]), step=level)


def regress(job: Job) -> Iterator[Measurement]:
    """Slope of the regression regret of the net with and without perturbation and of the initial one."""
    c = job.config
    lr = settings_of(job.protocol, "squarecb", job.task.n_arms).lr
    found = regression_regret(
        job.task, job.seeds, c.horizon, lr=lr, hidden_dim=c.hidden_dim, batch_size=c.batch_size, fit_steps=c.fit_steps,
        device=job.device,
    )  # fmt: skip
    steps = torch.logspace(0, 3, 10, base=2).mul(c.horizon / 8).round().long().tolist()
    for name, regret in found.items():
        for seed, slope in zip(job.seeds, log_slope(regret, steps), strict=True):
            yield Measurement(f"regression_{name}", seed, "regression_slope", float(slope))

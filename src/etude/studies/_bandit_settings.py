"""Settings of the bandit study's policies, chosen on seeds 0 and 1 at T = 2000 and width 64, for all policies alike.

The grid: step size .03, .1, .3, 1; gamma / K of fastcb 10, 100; gamma / sqrt(K t) of squarecb 1, 10; c_p of both .1, 1;
nu of ucb and ts .001, .01, .1; epsilon .01, .05. The comment is the regret, the geometric mean of the two seeds.
"""

from typing import Any

from etude.decision import BanditSettings

TUNED: dict[str, dict[str, tuple[float, float, float | None]]] = {  # (lr, the policy's own, c_p)
    "digits": {
        "fastcb": (1.0, 10.0, 1.0),  # 316.2
        "squarecb": (1.0, 10.0, 0.1),  # 379.3
        "ucb": (0.3, 0.1, None),  # 284.8
        "ts": (1.0, 0.01, None),  # 319.3
        "epsilon": (1.0, 0.01, None),  # 404.1
        "greedy": (1.0, 0.0, None),  # 407.6
    },
    "mushroom": {
        "fastcb": (1.0, 100.0, 1.0),  # 20.5
        "squarecb": (1.0, 10.0, 0.1),  # 37.4
        "ucb": (1.0, 0.001, None),  # 23.5
        "ts": (1.0, 0.001, None),  # 20.9
        "epsilon": (1.0, 0.01, None),  # 36.3
        "greedy": (1.0, 0.0, None),  # 23.0
    },
    "magic04": {
        "fastcb": (1.0, 100.0, 0.1),  # 322.4
        "squarecb": (1.0, 10.0, 0.1),  # 330.0
        "ucb": (1.0, 0.1, None),  # 317.0
        "ts": (1.0, 0.01, None),  # 314.3
        "epsilon": (1.0, 0.01, None),  # 317.9
        "greedy": (1.0, 0.0, None),  # 314.5
    },
    "shuttle": {
        "fastcb": (1.0, 100.0, 0.1),  # 107.8
        "squarecb": (1.0, 10.0, 0.1),  # 130.4
        "ucb": (0.3, 0.01, None),  # 150.3
        "ts": (1.0, 0.01, None),  # 102.2
        "epsilon": (1.0, 0.01, None),  # 130.8
        "greedy": (1.0, 0.0, None),  # 114.7
    },
    "square": {
        "fastcb": (1.0, 100.0, 0.1),  # 120.1
        "squarecb": (1.0, 10.0, 0.1),  # 135.2
        "ucb": (1.0, 0.1, None),  # 126.5
        "ts": (1.0, 0.001, None),  # 117.3
        "epsilon": (1.0, 0.01, None),  # 123.5
        "greedy": (1.0, 0.0, None),  # 116.8
    },
    "cosine": {
        "fastcb": (1.0, 100.0, 0.1),  # 42.6
        "squarecb": (1.0, 10.0, 0.1),  # 54.8
        "ucb": (1.0, 0.01, None),  # 44.7
        "ts": (1.0, 0.001, None),  # 53.0
        "epsilon": (1.0, 0.01, None),  # 55.7
        "greedy": (1.0, 0.0, None),  # 51.0
    },
    "form": {
        "fastcb": (1.0, 10.0, 0.1),  # 105.9
        "squarecb": (1.0, 10.0, 0.1),  # 129.0
        "ucb": (1.0, 0.1, None),  # 108.7
        "ts": (1.0, 0.01, None),  # 118.6
        "epsilon": (1.0, 0.01, None),  # 129.8
        "greedy": (1.0, 0.0, None),  # 122.0
    },
}
# The same of a net that predicts rewards, as the public baselines' does; in the protocols of the pilot that showed it.
REWARD: dict[str, dict[str, tuple[float, float, float | None]]] = {
    "digits": {
        "ucb": (1.0, 0.1, None),  # 291.0
        "epsilon": (1.0, 0.01, None),  # 360.5
    },
    "shuttle": {
        "ucb": (1.0, 0.1, None),  # 94.5
        "epsilon": (1.0, 0.01, None),  # 128.8
    },
}
# The best of ucb, ts and epsilon, and of ucb and ts, by the same regrets.
BEST = {
    "digits": ("ucb", "ucb"),
    "mushroom": ("ts", "ts"),
    "magic04": ("ts", "ts"),
    "shuttle": ("ts", "ts"),
    "square": ("ts", "ts"),
    "cosine": ("ucb", "ucb"),
    "form": ("ucb", "ucb"),
}
STRENGTH = {"perturbed": 1.0, "plain": 0.0}  # c_p of the arms that ask what the perturbation does


def best_of(protocol: str) -> tuple[str, str]:
    """The policies behind "best_explorer" and "best_confidence"; those of digits where nothing was tuned."""
    return BEST.get(protocol, BEST["digits"])


def settings_of(protocol: str, arm: str, n_arms: int) -> BanditSettings:
    """A policy's settings, "fastcb_plain" and the like with their own strength of the perturbation, "ucb_reward" and
    "epsilon_reward" with their own tuning."""
    policy, _, variant = arm.partition("_")
    tuned = REWARD if variant == "reward" else TUNED
    lr, own, c_p = tuned.get(protocol, tuned["digits"])[policy]
    knobs: dict[str, dict[str, Any]] = {
        "fastcb": {"gamma": own * n_arms}, "squarecb": {"gamma": "sqrt", "gamma_scale": own}, "ucb": {"nu": own},
        "ts": {"nu": own}, "epsilon": {"epsilon": own}, "greedy": {},
    }  # fmt: skip
    strength = STRENGTH.get(variant, c_p or 0.0)
    predicts: Any = "reward" if variant == "reward" else "loss"
    return BanditSettings(policy, lr=lr, c_p=strength, predicts=predicts, **knobs[policy])  # type: ignore[arg-type]

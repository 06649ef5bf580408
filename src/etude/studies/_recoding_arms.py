"""The recodings that the study compares."""

from typing import Any

from etude.layers import recoding

NLL: dict[str, Any] = {"signal": "surprisal", "target": "gold"}
OFFICIAL: dict[str, Any] = NLL | {"score": "official"}
ARGMAX: dict[str, Any] = {"signal": "surprisal", "target": "argmax"}
ENTROPY: dict[str, Any] = {"signal": recoding.predictive_entropy(0.0, 1)}
"""As in the thesis, the output is decoded again from the recoded state."""
KEPT: dict[str, Any] = ENTROPY | {"redecode": False}
"""The first output stays, as under surprise: only later steps see the recoded state."""
RANDOM: dict[str, Any] = {"direction": "random"}
SIZES = {"001": 0.01, "01": 0.1, "1": 1.0, "5": 5.0}
SWEEP = {"nll_gold": (NLL, "001 01 1"), "official_score": (OFFICIAL, "01 1 5"), "nll_argmax": (ARGMAX, "001 01 1"),
         "entropy": (ENTROPY, "001 01 1"), "random_direction": (NLL | RANDOM, "01 1")}  # fmt: skip
TESTED = {f"{name}_alpha_{a}": o | {"step_size": SIZES[a]} for name, (o, sizes) in SWEEP.items() for a in sizes.split()}
TESTED["entropy_kept_alpha_1"] = KEPT | {"step_size": 1.0}
TESTED["random_direction_entropy"] = KEPT | RANDOM | {"step_size": 1.0}
TESTED["random_direction_redecoded"] = ENTROPY | RANDOM | {"step_size": 1.0}
GRID = {  # the thesis' settings
    "grid_surprisal": OFFICIAL | {"step_size": 5.0, "dropout": 0.169}, "grid_nll": NLL | {"step_size": 0.1},
    "grid_mc_dropout": {"signal": recoding.predictive_entropy(0.21, 10), "step_size": 0.001, "dropout": 0.155,
                        "weight_decay": 4.8e-5},
    "grid_ensemble": {"signal": "ensemble_entropy", "members": 10, "step_size": 0.001, "dropout": 0.155},
}  # fmt: skip

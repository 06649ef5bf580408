"""The grid of the study of magnitude-invariant hypernetworks: activations, norms of the generator, optimisers."""

import math
from collections.abc import Iterator

from etude.lab.study import Artifact, Job, Measurement
from etude.studies._magnitude_problems import ShiftedImages
from etude.studies._magnitude_training import final_loss, fit

GRID = [(a, n, o) for a in ("relu", "gelu", "tanh") for n in (None, "layer", "batch") for o in ("adam", "sgd")]


def cells_won(job: Job, seed: int, images: ShiftedImages) -> Iterator[Measurement | Artifact]:
    """Share of cells in which an arm's loss is below the default's, and the gain of MIP in each."""
    c, wins, cells = job.config, {"mip": 0, "mip_shuffled_condition": 0}, []
    for activation, norm, optimizer in GRID:
        lr = c.lr_adam if optimizer == "adam" else c.lr_sgd_cell
        loss = {
            arm: final_loss(fit(job, arm, seed, images, c.steps_cell, optimizer, lr, activation=activation, norm=norm))
            for arm in ("default", *wins)
        }
        for arm in wins:
            wins[arm] += math.isfinite(loss[arm]) and not loss["default"] <= loss[arm]
        gain = math.log(loss["default"] / loss["mip"])
        cells.append({"cell": f"{activation}, {norm or 'no'} norm", "optimizer": optimizer, "gain": round(gain, 4)})
    for arm, count in wins.items():
        yield Measurement(arm, seed, "share_of_cells_won", count / len(GRID))
    yield Artifact("mip", seed, "cells", cells)  # type: ignore[arg-type]

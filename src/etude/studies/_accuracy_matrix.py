"""The accuracy matrix of a stream, from a result to a study's artifact and from artifacts to rows of a plot."""

import math
from typing import Any

import numpy as np

from etude.continual import StreamResult
from etude.lab.study import Artifact, Results


def matrix_artifact(arm: str, seed: int, result: StreamResult) -> Artifact:
    """R as JSON; None where a task was not known yet."""
    rows: Any = [[None if math.isnan(v) else round(v, 4) for v in row] for row in result.R.tolist()]
    return Artifact(arm, seed, "matrix", rows)


def matrix_cells(results: Results, protocol: str) -> list[dict[str, Any]]:
    """One record an arm, task and time, for tasks learned so far: mean accuracy over seeds, in %."""
    cells = []
    for arm in dict.fromkeys(a["arm"] for a in results.artifacts("matrix", protocol=protocol)):
        found = [np.array(a["value"], dtype=float) for a in results.artifacts("matrix", protocol=protocol, arm=arm)]
        mean = np.mean(found, 0)
        cells += [
            {"arm": arm, "task": j + 1, "after": t + 1, "accuracy": round(100 * float(mean[t, j]), 1)}
            for t in range(len(mean)) for j in range(t + 1)
        ]  # fmt: skip
    return cells

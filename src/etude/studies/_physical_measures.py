"""What the study of physical local learning reports of an arm's outcomes on the boxes."""

import math
from collections.abc import Iterator

from etude.lab.study import Measurement
from etude.studies._physical_arms import Curve, Outcome


def costs_to(curve: Curve, share: float = 0.95) -> tuple[float, float]:
    """Physical runs and digital MACs at the first point that reaches `share` of the last accuracy."""
    goal = share * curve[-1][2]
    runs, macs, _ = next(point for point in curve if point[2] >= goal)
    return runs, macs


def measurements(arm: str, seed: int, found: dict[str, Outcome]) -> Iterator[Measurement]:
    """Accuracies over the boxes and of each, before and after a drift, and what they cost to reach."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    scores = {kind: outcome.accuracy for kind, outcome in found.items()}
    named = {"accuracy": mean([*scores.values()]), "accuracy_worst_box": min(scores.values())}
    named |= {f"accuracy_{kind}": score for kind, score in scores.items()}
    if {"optics", "microwave"} <= set(scores):
        named["accuracy_optics_microwave"] = mean([scores["optics"], scores["microwave"]])
    named["error"] = 100 - named["accuracy"]
    for when in ("before_drift", "after_drift"):
        values = [getattr(o, when) for o in found.values()]
        if all(map(math.isfinite, values)):
            named[f"accuracy_{when}"] = mean(values)
    yield from (Measurement(arm, seed, name, value, "points") for name, value in named.items())
    curves = [o.curve for o in found.values() if o.curve]
    if curves and arm != "no_physics":
        costs = [costs_to(curve) for curve in curves]
        yield Measurement(arm, seed, "ln_physical_runs", mean([math.log(max(r, 1)) for r, _ in costs]), "ln runs")
        yield Measurement(arm, seed, "ln_digital_macs", mean([math.log(max(m, 1)) for _, m in costs]), "ln MACs")
        for points in zip(*curves, strict=False):
            runs, _, score = (mean([p[i] for p in points]) for i in range(3))
            yield Measurement(arm, seed, "accuracy_by_runs", score, "points", step=runs)

"""The plots of the bandit study."""

from typing import Any

import altair as alt

from etude.decision import orthonormal_bounds
from etude.lab.study import Plot, Results
from etude.studies._bandit_runs import NOISY

NAMES = {
    "confidence": "NeuralUCB, NeuralTS", "squarecb": "NeuSquareCB", "fastcb": "NeuFastCB, L* = 0", "all": "all rounds",
}  # fmt: skip
BOUNDS = "Calculated, not measured (C5): leading terms of bounds on orthonormal contexts of 10 arms, no constants."


def _lines(rows: list[dict], y_title: str, scale: Any, *, x_title: str = "rounds") -> Any:
    y, chart = alt.Scale(type=scale), alt.Chart(alt.Data(values=rows))
    axes = {"x": alt.X("step:Q", title=x_title, scale=y), "color": alt.Color("arm:N", title=None)}
    mean = chart.mark_line().encode(y=alt.Y("mean(value):Q", title=y_title, scale=y), **axes)
    band = chart.mark_errorband(extent="ci", opacity=0.2).encode(y=alt.Y("value:Q", title=y_title), **axes)
    return mean if scale == "log" else alt.layer(band, mean)


def noise_rows(results: Results) -> list[dict[str, Any]]:
    """Regret by label noise: with true labels it is that of the policy itself after all its rounds."""
    rows = results.select("regret_by_noise")
    for arm, policy in NOISY.items():
        for protocol in dict.fromkeys(r["protocol"] for r in rows if r["arm"] == arm):
            curve = results.select("regret", protocol=protocol, arms=(policy,))
            last = max((r["step"] for r in curve), default=0)
            rows += [r | {"arm": arm, "step": 0.0} for r in curve if r["step"] == last]
    return [r | {"arm": NOISY.get(r["arm"], "fastcb")} for r in rows]  # the largest level is that of "noisy_long"


def _bounds(n_arms: int = 10) -> Any:
    """Bounds on orthonormal contexts against rounds, both axes logarithmic."""
    rows = [
        {"step": t, "value": value, "arm": NAMES[name]}
        for t in (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
        for name, value in orthonormal_bounds(t, n_arms).items()
    ]
    return _lines(rows, "leading term of the regret bound", "log")


def bandit_plots(results: Results, arms: list[str]) -> list[Plot]:
    """Regret against rounds with its band over seeds, with true and noisy labels, by label noise; bounds."""
    curves = results.select("regret", arms=[a for a in arms if not a.startswith(("best", "random"))])
    facet = _lines(curves, "cumulative regret", "linear").facet(facet="protocol:N", columns=2)
    facet = facet.resolve_scale(y="independent")
    noise = _lines(results.select("regret_long"), "cumulative regret", "log")
    plots = [
        Plot("regret", facet.to_dict(), "Cumulative regret; random arms lie far above."),
        Plot("noise", noise.to_dict(), "The regret's growth with true and with noisy labels."),
    ]
    if rows := noise_rows(results):
        levels = _lines(rows, "cumulative regret", "linear", x_title="share of wrong labels")
        caption = "Regret by label noise; noise L makes a wrong arm cheaper, by L K / (K - 1)."
        plots.append(Plot("noise_levels", levels.to_dict(), caption))
    plots.append(Plot("bounds", _bounds().to_dict(), BOUNDS))
    return plots

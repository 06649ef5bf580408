"""The plots of the study of wide and deep nets."""

from typing import Any

import altair as alt

from etude.lab.study import Plot, Results


def wide_plots(results: Results) -> list[Plot]:
    """Regret against points, the kernels' profiles, what depth does to accuracy and to regression, agreement; where
    finite nets were measured, how far they are from their kernel."""

    def lines(rows: list[dict], x: str, y: str, scale: Any = "linear") -> dict:
        base = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
            x=alt.X("step:Q", title=x, scale=alt.Scale(type="log")), color=alt.Color("arm:N", title=None),
            y=alt.Y("mean(value):Q", title=y, scale=alt.Scale(type=scale)),
        )  # fmt: skip
        return base.facet(column=alt.Column("protocol:N", title="")).to_dict()

    regret = lines(results.select("regret"), "training points", "error above the Bayes rule", "log")
    points = [{**a, **p} for a in results.artifacts("profile") for p in a["value"]]
    depth = [r | {"arm": m} for m in ("accuracy_by_depth", "r2_by_depth") for r in results.select(m)]
    depth += [r | {"arm": "accuracy of trained finite nets"} for r in results.select("trained_accuracy")]
    by_depth = lines([r for r in depth if r["value"] > -5], "hidden layers", "accuracy, or R squared")
    alike: list[dict] = [r | {"with": "majority"} for r in results.select("agreement_majority")]
    for other in ("nearest", "hilbert"):
        found = [r for r in results.select(f"disagreement_{other}") if r["arm"] != other]
        alike += [r | {"with": other, "value": 1 - r["value"]} for r in found]
    bars = alt.Chart(alt.Data(values=alike)).mark_bar().encode(
        x=alt.X("mean(value):Q", title="share of equal answers"), y=alt.Y("arm:N", title=None), yOffset="with:N",
        color=alt.Color("with:N", title="as"), column=alt.Column("protocol:N", title=""),
    )  # fmt: skip
    same = bars.properties(width=140).to_dict()
    plots = [
        Plot(
            "agreement",
            same,
            "Share of answers equal to the nearest neighbour's, to Hilbert's estimate, to the majority.",
        ),
        Plot("regret", regret, "Error above the best possible, against the number of training points."),
        Plot("profile", lines(points, "distance", "log kernel"), "A kernel's order is the slope of its profile."),
        Plot("depth", by_depth, "Accuracy and the fit of a smooth function, against depth."),
    ]
    if finite := results.select("nngp_error"):
        errors = lines(finite, "hidden layers", "mean error of the kernel", "log")
        plots.append(Plot("finite", errors, "How far the kernel of finite nets is from that of the infinite one."))
    return plots

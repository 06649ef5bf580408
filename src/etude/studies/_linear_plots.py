"""The plots of the study of in-context regression."""

from collections.abc import Sequence
from typing import Any

from etude.lab.study import Plot, Results


def linear_plots(results: Results, names: Sequence[str], penalties: Sequence[float]) -> list[Plot]:
    """Distance to each reference by number of pairs and by depth; noise against penalty; probes by layer."""
    import altair as alt

    def lines(rows: list[dict[str, Any]], x: str, y: str, color: str, scale: Any = "linear") -> Any:
        return alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
            x=alt.X("step:O", title=x), y=alt.Y("mean(value):Q", title=y, scale=alt.Scale(type=scale)),
            color=alt.Color(f"{color}:N", title=None),
        )  # fmt: skip

    rows = [{**r, "to": name} for name in names for r in results.select(f"spd_by_n {name}")]
    curves = lines(rows, "pairs in the prompt", "SPD / d", "to", "log").facet(column=alt.Column("arm:N", title=""))
    plots = [Plot("distance", curves.to_dict(), "Squared distance of the predictions to those of known learners.")]
    if rows := [{**r, "to": n} for n in (*names, "best ridge") for r in results.select(f"spd_by_depth {n}")]:
        depth = lines(rows, "layers", "SPD / d", "to", "log").to_dict()
        plots.append(Plot("depth", depth, "The same by the number of layers."))
    named = ("ridge", *(f"ridge{v:.3f}" for v in (0.0, *penalties)))
    found = [a["value"] for name in named for a in results.artifacts(name) if a["arm"] != "fixed_w"]
    cells = [{**a, "penalty": p, "value": v} for a in found for p, v in a["spd"].items()]
    heat = alt.Chart(alt.Data(values=cells)).mark_rect().encode(
        x=alt.X("penalty:O", title="ridge penalty"), y=alt.Y("noise:O", title="noise variance"),
        color=alt.Color("mean(value):Q", scale=alt.Scale(type="log", scheme="viridis"), title="SPD / d"),
    )  # fmt: skip
    plots.append(Plot("penalty", heat.to_dict(), "Distance to ridge regression: the best penalty and the noise."))
    read = [f"{kind}_{m}_by_layer" for kind in ("probe", "net_probe") for m in ("weights", "moment")]
    probes = [r for metric in read for r in results.select(metric)]
    if probes:
        probed = lines(probes, "layer", "relative error", "arm").encode(strokeDash="metric:N")
        plots.append(Plot("probes", probed.to_dict(), "Error of a linear probe, and of a small net, by layer."))
    return plots

"""The plots of the study of sparse recurrent nets."""

from collections.abc import Sequence

import altair as alt

from etude.lab.study import Plot, Results


def sparsity_plots(results: Results, cells: Sequence[str], parts: Sequence[str]) -> list[Plot]:
    """Accuracy against the share removed, recovery, accuracy against sources, correlations."""
    out = []
    for protocol in results.protocols:
        rows = [
            r | {"cell": cell, "part": part, "what": "pruned"}
            for cell in cells for part in parts for r in results.select(f"accuracy_{cell}_{part}", protocol=protocol)
        ]  # fmt: skip
        again = {"pruned_both_90_retrained": ("both", 0.9), "no_recurrent_retrained": ("recurrent", 1.0)}
        for arm, (part, amount) in again.items():
            for cell in cells:
                more = results.select(f"accuracy_{cell}", protocol=protocol, arms=(arm,))
                rows += [r | {"cell": cell, "part": part, "what": "retrained", "step": amount} for r in more]
        if rows:
            base = alt.Chart(alt.Data(values=rows)).encode(
                x=alt.X("step:Q", title="share removed"), y=alt.Y("mean(value):Q", title="accuracy, %"),
                color="cell:N", shape="what:N", strokeDash="what:N",
            )  # fmt: skip
            spec = base.mark_line(point=True).facet(column="part:N").to_dict()
            out.append(Plot(f"pruning-{protocol}", spec, "Accuracy by share removed; single points after retraining."))
        rows = [
            r | {"cell": cell} for cell in cells
            for r in results.select(f"retraining_{cell}", protocol=protocol, arms=("no_recurrent_retrained",))
        ]  # fmt: skip
        if rows:
            chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True)
            chart = chart.encode(x=alt.X("step:Q", title="updates"), y="mean(value):Q", color="cell:N")
            out.append(Plot(f"recovery-{protocol}", chart.to_dict(), "Retraining without any recurrent weight."))
    graphs = [row for a in results.artifacts("graphs") for row in a["value"]]
    if graphs:
        chart = alt.Chart(alt.Data(values=graphs)).mark_circle()
        chart = chart.encode(x="sources:Q", y=alt.Y("accuracy:Q").scale(zero=False), color="family:N")
        out.append(Plot("graphs", chart.to_dict(), "Accuracy of randomly wired nets by their number of sources."))
        rows = [r for r in results.rows if r["metric"].startswith("correlation_with_") and r["arm"] == "graph_rnn"]
        bars = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("metric:N", title=None))
        bar = bars.mark_bar().encode(x=alt.X("mean(value):Q", title="r with accuracy"))
        ends = bars.mark_errorbar(extent="ci").encode(x=alt.X("value:Q", title="r with accuracy"))
        out.append(Plot("correlations", (bar + ends).to_dict(), "Correlation of each property with accuracy."))
    return out

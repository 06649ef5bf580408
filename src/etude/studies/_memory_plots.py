"""The plots of the study of fast and slow learning."""

from etude.lab.study import Plot, Results

CURVES = (
    ("accuracy_by_presentation", "presentation of the class", "accuracy, %", "Accuracy by presentation; the label "
     "counter never looks at an item."),
    ("mse_by_point", "point", "squared error", "Squared error by point; training ends at the tenth."),
    ("accuracy_by_step_from_switch", "items from the switch", "accuracy, %", "New prototypes from 0 on, not trained."),
)  # fmt: skip


def memory_plots(results: Results) -> list[Plot]:
    """Curves by presentation, point and switch; what is written where; cosine over training."""
    import altair as alt

    out = []
    for protocol in results.protocols:
        for metric, x, y, caption in CURVES:
            if rows := results.select(metric, protocol=protocol):
                scale = alt.Scale(type="log" if metric == "mse_by_point" else "linear", zero=False)
                chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
                    x=alt.X("step:Q", title=x), y=alt.Y("mean(value):Q", title=y, scale=scale), color="arm:N"
                )  # fmt: skip
                out.append(Plot(f"{metric.replace('_', '-')}-{protocol}", chart.to_dict(), caption))
    rows = [
        r | {"inputs": name} for metric, name in
        (("gradient_cosine", "its own row"), ("gradient_cosine_permuted", "another row"))
        for r in results.select(metric) if r["step"] is not None
    ]  # fmt: skip
    if rows:
        chart = alt.Chart(alt.Data(values=rows)).mark_line().encode(
            x=alt.X("step:Q", title="updates"), y=alt.Y("mean(value):Q", title="cosine"), color="inputs:N"
        )  # fmt: skip
        out.append(Plot("cosine", chart.to_dict(), "Cosine of synthetic and true gradients over training."))
    shown = {a["arm"]: a for a in reversed(results.artifacts("writes"))}  # one seed an arm
    rows = [
        {"slot": j, "step": t, "written": v, "arm": arm}
        for arm, a in shown.items() for j, row in enumerate(a["value"]) for t, v in enumerate(row)
    ]  # fmt: skip
    if rows:
        chart = alt.Chart(alt.Data(values=rows)).mark_rect()
        chart = chart.encode(x="step:O", y="slot:O", color="written:Q").properties(height=160)
        caption = "Gate times write weights by slot in one episode whose task switches in the middle."
        out.append(Plot("writes", chart.facet(row="arm:N").to_dict(), caption))
    return out

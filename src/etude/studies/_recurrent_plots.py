"""The plots of the comparison of recurrent nets."""

import altair as alt

from etude.lab.study import Plot, Results


def recurrent_plots(results: Results) -> list[Plot]:
    """Accuracy against delay, gradient norm against lag, cost of an update."""
    delay = alt.X("step:Q", title="delay", scale=alt.Scale(type="symlog"))  # a delay may be 0
    lag, arm = alt.X("step:Q", title="lag"), alt.X("arm:N", title="")
    plots = []
    for metric, x, title in (
        ("accuracy_by_delay", delay, "Recall: accuracy (%) against the delay."),
        ("log_gradient_norm", lag, "Gradient of the last state (log10 of its norm) against the lag."),
        ("ms_per_update", arm, "Milliseconds an update."),
        ("parameters", arm, "Parameters."),
    ):
        if rows := [r for r in results.select(metric) if r["protocol"] in ("recall", "gradients")]:
            chart = alt.Chart(alt.Data(values=rows)).encode(x=x, y="mean(value):Q", color="arm:N")
            chart = chart.mark_bar() if x is arm else chart.mark_line(point=x is delay)
            plots.append(Plot(metric, chart.to_dict(), title))
    return plots

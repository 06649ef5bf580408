"""Plots of the study of continual-learning tools."""

from typing import Any

import altair as alt

from etude.lab.study import Plot, Results
from etude.studies._accuracy_matrix import matrix_cells

BARS = {
    "average_accuracy": "permuted tasks", "accuracy_balanced_100": "balanced, 100 kept",
    "accuracy_balanced_300": "balanced, 300 kept", "accuracy_first_task_large": "first task large",
    "accuracy_third_task_large": "third task large", "stream_average_accuracy": "no borders given",
}  # fmt: skip


def continual_plots(results: Results) -> list[Plot]:
    """Accuracy on each task over time, accuracies at the end, classes in the memories, plateaus found."""
    out = []
    for protocol in results.protocols:
        for plot in (_over_time(results, protocol), _bars(results, protocol), _memories(results, protocol),
                     _plateaus(results, protocol)):  # fmt: skip
            out += [] if plot is None else [plot]
    return out


def _over_time(results: Results, protocol: str) -> Plot | None:
    cells = matrix_cells(results, protocol)
    if not cells:
        return None
    chart = alt.Chart(alt.Data(values=cells)).mark_line().properties(width=120, height=100)
    spec = chart.encode(
        alt.X("after:O", title="after task"), alt.Y("accuracy:Q", title="accuracy, %"), alt.Color("task:O"),
        alt.Facet("arm:N", columns=5, title=""),
    ).to_dict()  # fmt: skip
    return Plot(f"over-time-{protocol}", spec, "Accuracy on each permuted task as later ones are learned.")


def _bars(results: Results, protocol: str) -> Plot | None:
    rows = [r | {"stream": label} for m, label in BARS.items() for r in results.select(m, protocol=protocol)]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(y=alt.Y("arm:N", title=None))
    layers = alt.layer(
        base.mark_bar().encode(x=alt.X("mean(value):Q", title="accuracy at the end, %")),
        base.mark_errorbar(extent="ci").encode(x=alt.X("value:Q", title="accuracy at the end, %")),
    ).properties(width=180)
    spec = layers.facet(facet=alt.Facet("stream:N", title=""), columns=3).resolve_scale(y="independent").to_dict()
    return Plot(f"accuracy-{protocol}", spec, "Accuracy at the end of each stream.")


def _memories(results: Results, protocol: str) -> Plot | None:
    rows: list[dict[str, Any]] = []
    for a in results.artifacts("memory", protocol=protocol):
        for name, counts in a["value"].items():
            rows += [{"arm": a["arm"], "stream": name, "class": c, "kept": n} for c, n in enumerate(counts)]
    if not rows:
        return None
    chart = alt.Chart(alt.Data(values=rows)).mark_bar().properties(width=140, height=90)
    spec = chart.encode(
        alt.X("class:O"), alt.Y("mean(kept):Q", title="samples kept"), alt.Row("arm:N", title=""),
        alt.Column("stream:N", title=""),
    ).to_dict()  # fmt: skip
    return Plot(f"memory-{protocol}", spec, "Classes in the memory at the end of the stream, mean of seeds.")


def _plateaus(results: Results, protocol: str) -> Plot | None:
    rows = [
        {"arm": a["arm"], "seed": a["seed"], "batch": b}
        for a in results.artifacts("plateaus", protocol=protocol) for b in a["value"]["plateaus"]
    ]  # fmt: skip
    borders = [b for a in results.artifacts("plateaus", protocol=protocol)[:1] for b in a["value"]["borders"]]
    if not rows:
        return None
    ticks = alt.Chart(alt.Data(values=rows)).mark_tick().encode(
        x=alt.X("batch:Q"), y=alt.Y("seed:O"), color=alt.Color("arm:N", title="importance updated")
    )  # fmt: skip
    rule = alt.Chart(alt.Data(values=[{"batch": b} for b in borders])).mark_rule(strokeDash=[4, 4]).encode(x="batch:Q")
    return Plot(f"plateaus-{protocol}", (ticks + rule).to_dict(), "Batches with a plateau; borders dashed.")

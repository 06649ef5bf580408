"""Plots of learning on a stream: classes by arrival, sizes of tables, touched parts, regions of a plane."""

from typing import Any

import altair as alt
import numpy as np

from etude.lab.study import Plot, Results

CURVES = ("bottleneck", "tuned_rate", "linear", "linear_paper_rate", "mlp")


def stream_plots(results: Results) -> list[Plot]:
    """The plots that the measurements of a run allow."""
    out = []
    for protocol in results.protocols:
        out += _classes(results, protocol) + _sizes(results, protocol) + _touched(results, protocol)
    return out + _regions(results)


def _classes(results: Results, protocol: str) -> list[Plot]:
    cells = []
    for arm in CURVES:
        found = [np.array(a["value"], float) for a in results.artifacts("by_arrival", protocol=protocol, arm=arm)]
        if found:
            mean = 100 * np.mean(found, 0)
            cells += [
                {"arm": arm, "after": t + 1, "class": c + 1, "accuracy": round(float(v), 1)}
                for t, row in enumerate(mean)
                for c, v in enumerate(row)
            ]
    if not cells:
        return []
    chart = alt.Chart(alt.Data(values=cells)).mark_rect().properties(width=130, height=130)
    spec = chart.encode(
        alt.X("class:O", title="class, by arrival"), alt.Y("after:O", title="after segment"),
        alt.Color("accuracy:Q", scale=alt.Scale(domain=[0, 100], scheme="viridis"), title="accuracy, %"),
        alt.Column("arm:N", sort=list(CURVES), title=""),
    ).to_dict()  # fmt: skip
    caption = "Accuracy on each class after each segment, mean over seeds: forgetting is a column that fades downwards."
    return [Plot(f"classes-{protocol}", spec, caption)]


def _sizes(results: Results, protocol: str) -> list[Plot]:
    rows: list[dict[str, Any]] = []
    for r in results.rows:
        if r["protocol"] == protocol and r["arm"] == "grid" and r["metric"].startswith("class_accuracy_"):
            books, pairs = r["metric"].split("_")[-2:]
            rows.append({"codebooks": int(books), "pairs": int(pairs), "accuracy": r["value"]})
    if not rows:
        return []
    spec = alt.Chart(alt.Data(values=rows)).mark_point().encode(
        alt.X("pairs:O", title="pairs a codebook"),
        alt.Y("accuracy:Q", scale=alt.Scale(zero=False), title="accuracy, %"),
        alt.Color("codebooks:O"),
    ).to_dict()  # fmt: skip
    return [Plot(f"sizes-{protocol}", spec, "Accuracy after the stream by number of codebooks and pairs.")]


def _touched(results: Results, protocol: str) -> list[Plot]:
    rows = results.select("touched_share", protocol=protocol, arms=("bottleneck", "small"))
    if not rows:
        return []
    spec = alt.Chart(alt.Data(values=rows)).mark_point().encode(
        alt.X("step:O", title="segment"), alt.Y("value:Q", title="share of cells touched"), alt.Color("arm:N"),
    ).to_dict()  # fmt: skip
    return [
        Plot(f"touched-{protocol}", spec, "Share of the cells that a segment fetches; all others stay as they are.")
    ]


def _regions(results: Results) -> list[Plot]:
    cells = []
    for a in results.artifacts("regions"):
        side = round(len(a["value"][0]) ** 0.5)
        for task, labels in enumerate(a["value"]):
            cells += [
                {"arm": a["arm"], "task": task + 1, "x": i // side, "y": i % side, "c": c} for i, c in enumerate(labels)
            ]
    if not cells:
        return []
    chart = alt.Chart(alt.Data(values=cells)).mark_rect().properties(width=110, height=110)
    spec = chart.encode(
        alt.X("x:O", axis=None), alt.Y("y:O", axis=None, sort="descending"),
        alt.Color("c:N", title="class", scale=alt.Scale(scheme="tableau10")),
        alt.Row("arm:N", title=""), alt.Column("task:O", title="after task"),
    ).to_dict()  # fmt: skip
    return [Plot("regions-toy", spec, "Class of each point of the plane after each of four tasks, first seed.")]

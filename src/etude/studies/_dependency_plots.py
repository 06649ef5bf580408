"""Plots of the study of dependency-preserving hypernetworks."""

import altair as alt
import numpy as np

from etude.lab.study import Plot, Results
from etude.studies._accuracy_matrix import matrix_cells


def dependency_plots(results: Results) -> list[Plot]:
    """Accuracy of each task after each, and final accuracy against size."""
    out = []
    for protocol in results.protocols:
        cells = matrix_cells(results, protocol)
        if cells:
            chart = alt.Chart(alt.Data(values=cells)).mark_rect().properties(width=110, height=110)
            spec = chart.encode(
                alt.X("task:O"), alt.Y("after:O", title="after task"),
                alt.Color("accuracy:Q", scale=alt.Scale(scheme="viridis"), title="accuracy, %"),
                alt.Facet("arm:N", columns=4, title=""),
            ).to_dict()  # fmt: skip
            caption = "Accuracy on each permuted task after each: forgetting is a column that fades downwards."
            out.append(Plot(f"matrix-{protocol}", spec, caption))
        ratios: dict[str, list[float]] = {}
        for r in results.select("parameter_ratio", protocol=protocol):
            ratios.setdefault(r["arm"], []).append(r["value"])
        rows = [
            r | {"ratio": round(float(np.mean(ratios[r["arm"]])), 3)}
            for r in results.select("final_accuracy_permuted", protocol=protocol) if r["arm"] in ratios
        ]  # fmt: skip
        if rows:
            x = alt.X("ratio:Q", title="parameters with all embeddings / those of the target")
            base = alt.Chart(alt.Data(values=rows)).encode(x=x, color="arm:N")
            y = alt.Y("value:Q", title="final accuracy, permuted tasks, %", scale=alt.Scale(zero=False))
            mean_y = alt.Y("mean(value):Q", title="final accuracy, permuted tasks, %", scale=alt.Scale(zero=False))
            chart = base.mark_errorbar(extent="ci").encode(y=y) + base.mark_point(filled=True).encode(y=mean_y)
            out.append(Plot(f"size-{protocol}", chart.to_dict(), "Final accuracy against the generator's size."))
    return out

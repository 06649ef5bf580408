"""The plots of the study of hallucination."""

import numpy as np

from etude.lab.study import Plot, Results
from etude.trust import hallucination as hl


def hallucination_plots(results: Results) -> list[Plot]:
    """Rate against miscalibration over the floor, rate against MF, and the classes of counts."""
    import altair as alt

    plots = []
    for name, caption in (("points", "Language models"), ("worlds", "Generators of worlds, Zipf exponent 1")):
        found = [a["value"] for a in results.artifacts(name)]
        if found:
            rows = [point for value in found for point in value["points"]]
            mf, slack = (float(np.mean([value[key] for value in found])) for key in ("monofact", "slack"))
            plots.append(Plot(name, hl.floor_plot(rows, mf, slack), f"{caption}: none may lie below the band."))
    rows = [row for a in results.artifacts("by_monofact") for row in a["value"]]
    if rows:
        chart = alt.Chart(alt.Data(values=rows)).mark_point().encode(
            x=alt.X("monofact:Q", title="MF"), y=alt.Y("rate:Q", title="hallucination rate"),
            color=alt.Color("name:N", title=None),
        )  # fmt: skip
        plots.append(Plot("monofact", chart.to_dict(), "Hallucination against facts seen once, by Zipf exponent."))
    audits = results.artifacts("audit")
    if audits:
        plots.append(Plot("audit", audits[0]["value"], "How often the facts of a corpus were seen, Zipf exponent 1."))
    return plots

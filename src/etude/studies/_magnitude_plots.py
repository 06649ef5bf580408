"""The plots of the study of magnitude-invariant hypernetworks."""

import altair as alt

from etude.lab.study import Plot, Results
from etude.studies._pictures import curves


def magnitude_plots(results: Results) -> list[Plot]:
    """Norm of the weights against the condition, loss by updates, gain over the grid."""
    out = []
    for protocol in results.protocols:
        norms = [
            r for m in ("weight_norm_before", "weight_norm_after")
            for r in results.select(m, protocol=protocol, arms=("default", "mip"))
        ]  # fmt: skip
        spec = curves(norms, "condition", "norm of the generated weights", strokeDash="metric:N")
        out.append(Plot(f"norms-{protocol}", spec.to_dict(), "Size of the weights, before and after training."))
        rows = results.select("test_loss", protocol=protocol)
        data, step = alt.Chart(alt.Data(values=rows)), alt.X("step:Q", title="updates")
        scale = alt.Scale(type="log", zero=False)
        band = data.mark_errorband(extent="ci", opacity=0.25).encode(step, alt.Y("value:Q", scale=scale), color="arm:N")
        line = data.mark_line().encode(step, alt.Y("mean(value):Q", title="test loss", scale=scale), color="arm:N")
        out.append(
            Plot(f"losses-{protocol}", (band + line).to_dict(), "Test loss by updates (Adam), mean and interval.")
        )
        cells = [c for a in results.artifacts("cells", protocol=protocol) for c in a["value"]]
        colours = alt.Scale(scheme="redblue", domainMid=0)
        if cells:
            heat = alt.Chart(alt.Data(values=cells)).mark_rect().encode(
                alt.X("optimizer:N"), alt.Y("cell:N", title=""),
                alt.Color("mean(gain):Q", title="ln loss, default - MIP", scale=colours),
            )  # fmt: skip
            out.append(Plot(f"grid-{protocol}", heat.to_dict(), "Paired gain of MIP in each cell of the grid."))
        ends = results.select("ln_test_loss_cnn", protocol=protocol)
        if ends:
            points = alt.Chart(alt.Data(values=ends)).mark_point().encode(
                alt.X("value:Q", title="ln test loss"), alt.Y("arm:N", title=""), alt.Color("arm:N", legend=None)
            )  # fmt: skip
            out.append(Plot(f"convnet-{protocol}", points.to_dict(), "A generated convnet on shrunk images, by seed."))
    return out

"""The plots of the comparison of hypernetworks."""

import altair as alt

from etude.lab.study import Plot, Results
from etude.studies._review_problems import DEGREES


def review_plots(results: Results) -> list[Plot]:
    """Accuracy against the share of trainable parameters, a line for the separate nets; calibration; the regression."""
    out = []
    for protocol in results.protocols:
        shares = {(r["arm"], r["seed"]): r["value"] for r in results.select("share_of_parameters", protocol=protocol)}
        rows = [
            {**r, "tasks": where, "net": r["arm"].removesuffix(f"_{where}"), "share": shares[r["arm"], r["seed"]]}
            for r in results.select("mean_test_accuracy", protocol=protocol)
            for where in DEGREES if r["arm"].endswith(f"_{where}")
        ]  # fmt: skip
        if rows:
            base = alt.Chart().encode(
                alt.X("share:Q", scale=alt.Scale(type="log"), title="trainable parameters / those of separate nets"),
                alt.Color("net:N", title=""),
            )
            bars = base.mark_errorbar(extent="ci").encode(alt.Y("value:Q", scale=alt.Scale(zero=False), title=""))
            points = base.mark_point(filled=True, size=60).encode(alt.Y("mean(value):Q", title="accuracy, points"))
            separate = alt.Chart().transform_filter("datum.net == 'independent'")
            line = separate.mark_rule(strokeDash=[4, 3]).encode(alt.Y("mean(value):Q"))
            band = separate.mark_rect(opacity=0.15).encode(alt.Y("ci0(value):Q"), alt.Y2("ci1(value):Q"))
            spec = alt.layer(band, line, bars, points, data=alt.Data(values=rows)).facet("tasks:N")
            out.append(
                Plot(
                    f"strategies-{protocol}", spec.to_dict(), "Accuracy and size; dashed, in its band: one net a task."
                )
            )
        for metric, title in (
            ("expected_calibration_error", "calibration error, points"),
            ("ood_auroc", "AUROC of unknown classes, points"),
            ("ln_test_mse", "ln of the test error"),
        ):
            found = results.select(metric, protocol=protocol)
            if found:
                chart = alt.Chart(alt.Data(values=found)).mark_point().encode(
                    alt.X("value:Q", title=title, scale=alt.Scale(zero=False)), alt.Y("arm:N", title=""),
                    alt.Color("arm:N", legend=None),
                )  # fmt: skip
                out.append(Plot(f"{metric}-{protocol}", chart.to_dict(), f"{title}, one point a seed."))
    return out

"""The plots of the study of guidance."""

import altair as alt

from etude.lab.study import Plot, Results
from etude.studies._pictures import curves, dots


def guidance_plots(results: Results, arms: list[str]) -> list[Plot]:
    """Accuracy by arm and its gap to the training rows, curves, and CKA of layers before and after."""
    out = []
    for protocol in results.protocols:
        names = [n for n in {r["metric"] for r in results.rows} if "accuracy_" in n and not n.startswith("curve")]
        rows = [r for n in names for r in results.select(n, protocol=protocol)]
        out.append(Plot(f"accuracy-{protocol}", dots(rows, "test accuracy, %", arms), "Test accuracy, one dot a seed."))
        for name, column, what, caption in (
            ("fit", "rows", "accuracy, %", "Accuracy on training and test rows, one dot a seed: the gap between them."),
            (
                "pairs",
                "pair",
                "similarity",
                "Similarity of each guided pair of layers in the last 20 guided updates.",
            ),
        ):
            found = [row | {"arm": a["arm"]} for a in results.artifacts(name, protocol=protocol) for row in a["value"]]
            if found:
                out.append(Plot(f"{name}-{protocol}", dots(found, what, arms, color=column), caption))
        accuracy = curves(results.select("curve_metric", protocol=protocol), "updates", "test accuracy, %")
        loss = curves(results.select("curve_val_loss", protocol=protocol), "updates", "test loss of the task")
        seen = curves(results.select("curve_loss", protocol=protocol), "updates", "training loss, arm's terms included")
        spec = (accuracy | loss | seen).to_dict()
        out.append(Plot(f"curves-{protocol}", spec, "Test accuracy, test loss and training loss over training."))
        found = [a for n in ("layers_before", "layers_after") for a in results.artifacts(n, protocol=protocol)]
        cells = [cell for a in found for cell in a["value"]]
        if cells:
            base = alt.Chart(alt.Data(values=cells)).mark_rect()
            spec = base.encode(
                alt.X("guide:O", title="guide's layer"), alt.Y("target:O", title="target's layer"),
                alt.Color("cka:Q", scale=alt.Scale(domain=[0, 1])), alt.Column("when:N", title="", sort=None),
            )  # fmt: skip
            out.append(Plot(f"layers-{protocol}", spec.to_dict(), "CKA of target and trained guide, layer by layer."))
    return out

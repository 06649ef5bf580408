"""The plots of the study of rich representations."""

import altair as alt

from etude.lab.study import Plot, Results
from etude.studies._pictures import curves, dots

LINES = ("single", "wide5", "logit_ensemble5", "distill5", "random_features")
SOURCE = ("single", "wide5", "cat5", "cat10", "logit_ensemble5", "distill5")
SHIFTED = ("shifted_head_accuracy", "shifted_probe_accuracy")


def rich_plots(results: Results, arms: list[str]) -> list[Plot]:
    """Target and source accuracy by number of nets, by features and by weight decay; CKA between seeds."""
    out = []
    for protocol in results.protocols:
        by_nets = [r | {"arm": "joined"} for r in results.select("probe_by_nets", protocol=protocol)]
        if by_nets:
            flat = results.select("target_probe_accuracy", protocol=protocol, arms=LINES)
            ends = [r | {"step": step} for r in flat for step in (1, 10)]
            left = curves(by_nets + ends, "number of nets", "target accuracy, %")
            source = results.select("source_accuracy", protocol=protocol, arms=SOURCE)
            x = alt.X("arm:N", title="", sort=None)
            right = alt.Chart(alt.Data(values=source)).mark_point().encode(
                x, alt.Y("value:Q", title="source accuracy, %", scale=alt.Scale(zero=False))
            )  # fmt: skip
            out.append(Plot(f"nets-{protocol}", (left | right).to_dict(), "Accuracy by number of joined nets."))
            spec = curves(results.select("probe_by_features", protocol=protocol), "features", "target accuracy, %")
            out.append(
                Plot(f"features-{protocol}", spec.to_dict(), "Accuracy on the main directions: more, or others?")
            )
        for name in ("target_probe_accuracy", "shifted_accuracy", *SHIFTED, "target_accuracy_fine_tuned"):
            if rows := results.select(name, protocol=protocol):
                spec = dots(rows, name.replace("_", " ") + ", %", arms)
                out.append(Plot(f"{name}-{protocol}", spec, "One dot a repeat."))
        for a in results.artifacts("members", protocol=protocol):
            base = alt.Chart(alt.Data(values=a["value"])).mark_rect()
            spec = base.encode(alt.X("a:O"), alt.Y("b:O"), alt.Color("cka:Q", scale=alt.Scale(domain=[0, 1]))).to_dict()
            out.append(Plot(f"members-{protocol}", spec, "CKA between the five nets on rows of the target."))
        for a in results.artifacts("decay", protocol=protocol):
            y = alt.Y("value:Q", title="target accuracy, %", scale=alt.Scale(zero=False))
            lines = alt.Chart(alt.Data(values=a["value"])).mark_line(point=True)
            spec = lines.encode(alt.X("weight decay:O"), y, alt.Color("arm:N")).to_dict()
            out.append(Plot(f"decay-{protocol}", spec, "Five nets and one wide net by weight decay, one repeat."))
    return out

"""The plots of the study of codebook features."""

from typing import Any

from torch import Tensor

from etude.data import TokenMachine
from etude.lab.study import Plot, Results
from etude.trust import CodebookModel

PLACES = {
    "jsd_removed": "all MLPs", "jsd_removed_mlp_1": "first MLP", "jsd_removed_mlp_2": "second MLP",
    "jsd_removed_attention": "all attention", "jsd_removed_all": "everything",
    "jsd_removed_other_state": "all MLPs, another state's codes",
}  # fmt: skip


def codebook_plots(results: Results) -> list[Plot]:
    """Loss against k, purity by layer, divergence removed by place, concepts written, codes with their states."""
    import altair as alt

    plots = []
    rows = [
        r for m in ("test_ce", "small_lm_ce", "large_lm_ce") for r in results.select(m) if "shuffled" not in r["arm"]
    ]
    rows = [r for r in rows if "untrained" not in r["arm"]]
    if rows:
        dots = alt.Chart(alt.Data(values=rows)).mark_point().encode(
            x=alt.X("value:Q", title="cross-entropy, nats a token", scale=alt.Scale(zero=False)),
            y=alt.Y("arm:N", title="", sort=None), color="metric:N",
        )  # fmt: skip
        plots.append(Plot("loss", dots.to_dict(), "Cross-entropy without codebooks and by codes a state."))
    rows = []
    for layer in range(1, 9):
        for kind in ("bigram", "trigram"):
            rows += [{**r, "layer": layer, "of": kind} for r in results.select(f"share_{kind}_pure layer {layer}")]
            rare = results.select(f"share_{kind}_pure_rare layer {layer}")
            rows += [{**r, "layer": layer, "of": kind, "arm": f"{r['arm']}, 99.5th"} for r in rare]
    if rows:
        lines = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
            x=alt.X("layer:O"), y=alt.Y("mean(value):Q", title="share that fires on one of them only"), color="arm:N",
            strokeDash=alt.StrokeDash("of:N", title=""),
        )  # fmt: skip
        title = "Pure codes by layer. Neurons fire above their 98th percentile, or (named so) 99.5th."
        plots.append(Plot("purity", lines.properties(width=200).to_dict(), title))
    rows = [{**r, "place": place} for m, place in PLACES.items() for r in results.select(m) if r["arm"] != "no_patch"]
    if rows:
        bars = alt.Chart(alt.Data(values=rows)).mark_bar().encode(
            x=alt.X("mean(value):Q", title="share of the divergence removed"), y=alt.Y("place:N", title="", sort=None),
            row=alt.Row("arm:N", title=""),
        )  # fmt: skip
        plots.append(Plot("forced", bars.to_dict(), "How far forced codes move the prediction to that of their state."))
    rows = [r | {"code": r["arm"]} for r in results.select("topic_rate")]
    rows += [r | {"code": "none forced"} for r in results.select("topic_rate_unforced")]
    if rows:
        bars = alt.Chart(alt.Data(values=rows)).mark_bar().encode(
            x=alt.X("mean(value):Q", title="share of written samples that hold the concept"),
            y=alt.Y("code:N", title="code forced", sort=None),
        )  # fmt: skip
        plots.append(Plot("steering", bars.to_dict(), "How often a concept is written, by the code that is forced."))
    for found in results.artifacts("codes"):
        table = alt.Chart(alt.Data(values=found["value"])).mark_text(align="left").encode(
            y=alt.Y("row:O", title="code", axis=alt.Axis(labels=False)), text="text:N",
        )  # fmt: skip
        plots.append(Plot("codes", table.properties(width=420).to_dict(), "Codes and where they fire most."))
    return plots


def top_codes(cb: CodebookModel, machine: TokenMachine, ids: Tensor, count: int = 12) -> Any:
    """The most used codes of the last MLP at tokens that complete a state, with the states they fire on."""
    name = [n for n in cb.names if n.endswith("ffn")][-1]
    found = cb.codes(ids)[name][:, machine.digits :: machine.digits, 0]
    states = machine.read(ids)
    table = []
    for row, code in enumerate(found.flatten().bincount().argsort(descending=True)[:count].tolist()):
        on = states[(found == code).any(-1)].bincount(minlength=len(machine.names))
        share = on.max() / on.sum()
        top = ", ".join(f"{machine.names[s]} ({int(on[s])})" for s in on.argsort(descending=True)[:3].tolist() if on[s])
        table.append({"row": row, "text": f"{name} code {code}: {top}; {float(share):.0%} on the first"})
    return table

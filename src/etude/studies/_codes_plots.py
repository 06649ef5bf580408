"""Plots of document codes and of word senses."""

from typing import Any

import numpy as np

from etude.lab.study import Plot, Results

BITS = {"binary32": 32, "binary128": 128, "itq32": 32, "hyperplanes32": 32, "sign128": 128, "autoencoder128": 128,
        "svd_itq128": 128, "real_binary28": 28, "random": 128}  # fmt: skip


def codes_plots(results: Results) -> list[Plot]:
    """Precision and recall, score by bits, histogram of distances, map of one word's senses."""
    import altair as alt

    out = []
    for protocol in results.protocols:
        if curve := _mean_curve(results.select("precision", protocol=protocol)):
            x = alt.X("recall:Q", scale=alt.Scale(type="log"))
            lines = alt.Chart(alt.Data(values=curve)).mark_line(point=True)
            spec = lines.encode(x, alt.Y("precision:Q"), alt.Color("arm:N", title="")).to_dict()
            out.append(Plot(f"precision-recall-{protocol}", spec, "Interpolated precision, mean over seeds."))
        rows = [r | {"bits": BITS[r["arm"]]} for r in results.select("map", protocol=protocol, arms=BITS)]
        if rows:
            points = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, opacity=0.6)
            x = alt.X("bits:Q", scale=alt.Scale(type="log", base=2, domain=[16, 256]), title="bits")
            y = alt.Y("value:Q", title="mean average precision", scale=alt.Scale(zero=False))
            spec = points.encode(x, y, alt.Color("arm:N", title="")).to_dict()
            out.append(Plot(f"map-bits-{protocol}", spec, "Mean average precision by length of the code, each seed."))
    for a in results.artifacts("histogram"):
        bars = alt.Chart(alt.Data(values=a["value"])).mark_line(interpolate="step")
        x, y = alt.X("distance:Q", title="Hamming distance"), alt.Y("share:Q", title="share of pairs")
        spec = bars.encode(x, y, alt.Color("what:N", title="")).to_dict()
        out.append(Plot(f"histogram-{a['protocol']}", spec, "Distances of queries to documents, first seed."))
    for a in results.artifacts("map"):
        base = alt.Chart(alt.Data(values=a["value"])).encode(alt.X("x:Q", axis=None), alt.Y("y:Q", axis=None))
        color = alt.Color("sense:N", title="neighbour of sense")
        size = alt.condition("datum.own", alt.value(160), alt.value(30))
        chart = base.mark_point(filled=True).encode(color, size=size) + base.mark_text(dy=-9).encode(text="label:N")
        caption = f"Senses of {a['value'][0]['label']!r} and their nearest neighbours, in a plane."
        out.append(Plot(f"senses-{a['protocol']}", chart.to_dict(), caption))
    return out


def _mean_curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float], list[float]] = {}
    for r in rows:
        groups.setdefault((r["arm"], r["step"]), []).append(r["value"])
    return [{"arm": arm, "recall": step, "precision": round(float(np.mean(v)), 5)} for (arm, step), v in groups.items()]

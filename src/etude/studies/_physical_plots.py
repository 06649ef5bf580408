"""The plots of the study of physical local learning."""

from typing import Any

from etude.lab.study import Plot, Results
from etude.studies._pictures import dots


def physical_plots(results: Results) -> list[Plot]:
    """Accuracy by arm, accuracy against physical runs, digital work to the same point, the drift in time."""
    import altair as alt

    out, log = [], alt.Scale(type="log")
    for protocol in results.protocols:
        rows = results.select("accuracy", protocol=protocol)
        arms = list(dict.fromkeys(r["arm"] for r in rows))
        out.append(Plot(f"accuracy-{protocol}", dots(rows, "test accuracy, %", arms), "Mean over the boxes."))
        curve = results.select("accuracy_by_runs", protocol=protocol, arms=("phyll", "ideal_bp", "pat", "spsa"))
        if curve:
            rows = [r | {"point": i} for r, i in zip(curve, _numbers(curve), strict=True)]
            out.append(Plot(f"runs-{protocol}", _by_point(rows).to_dict(), "Accuracy against runs of the boxes."))
        work = results.select("ln_digital_macs", protocol=protocol)
        if work:
            rows = [r | {"macs": 2.718281828 ** r["value"]} for r in work]
            bars = alt.Chart(alt.Data(values=rows)).mark_bar().encode(
                x=alt.X("mean(macs):Q", title="digital MACs to 95 % of the final accuracy", scale=log),
                y=alt.Y("arm:N", title=None, sort="-x"),
            )  # fmt: skip
            out.append(Plot(f"work-{protocol}", bars.to_dict(), "Digital multiply-accumulates, a twin's counted."))
        if deeper := results.select("accuracy_by_layers", protocol=protocol):
            layers = alt.Chart(alt.Data(values=deeper)).mark_line(point=True).encode(
                x=alt.X("step:Q", title="layers"),
                y=alt.Y("mean(value):Q", title="test accuracy, %", scale=alt.Scale(zero=False)),
            )  # fmt: skip
            out.append(Plot(f"layers-{protocol}", layers.to_dict(), "Local learning by number of layers."))
        drifting = results.select("accuracy_by_runs", protocol=protocol, arms=("gradual",))
        if drifting:
            rows = [r | {"point": i} for r, i in zip(drifting, _numbers(drifting), strict=True)]
            time = alt.Chart(alt.Data(values=rows)).mark_line().encode(
                x=alt.X("point:Q", title="point in training; the boxes turn by 90 degrees in the middle half"),
                y=alt.Y("mean(value):Q", title="test accuracy, %", scale=alt.Scale(zero=False)),
            )  # fmt: skip
            out.append(Plot(f"drift-{protocol}", time.to_dict(), "Local learning while the boxes turn."))
    return out


def _numbers(rows: list[dict[str, Any]]) -> list[int]:
    """The place of each row in its arm's and seed's curve."""
    seen: dict[tuple[str, int], int] = {}
    out = []
    for r in rows:
        key = (r["arm"], r["seed"])
        seen[key] = seen.get(key, -1) + 1
        out.append(seen[key])
    return out


def _by_point(rows: list[dict[str, Any]]) -> Any:
    """Mean curve over seeds, point by point."""
    import altair as alt

    places: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for r in rows:
        places.setdefault((r["arm"], r["point"]), []).append(r)
    means = [
        {"arm": arm, "runs": _mean(found, "step"), "accuracy": _mean(found, "value")}
        for (arm, _), found in places.items()
    ]
    return alt.Chart(alt.Data(values=means)).mark_line(point=True).encode(
        x=alt.X("runs:Q", title="physical runs (a twin's data counted)", scale=alt.Scale(type="log")),
        y=alt.Y("accuracy:Q", title="test accuracy, %", scale=alt.Scale(zero=False)),
        color=alt.Color("arm:N", title=None),
    )  # fmt: skip


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return sum(r[key] for r in rows) / len(rows)

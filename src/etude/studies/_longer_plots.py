"""The plots of the study of large batches."""

from etude.lab.study import Plot, Results
from etude.studies._pictures import curves, dots


def longer_plots(results: Results, regimes: list[str]) -> list[Plot]:
    """Accuracy by regime, error by updates and by the share of the run, distance by updates."""
    out = []
    for protocol in results.protocols:
        rows = [r for m in ("accuracy", "accuracy_running") for r in results.select(m, protocol=protocol)]
        spec = dots([r for r in rows if r["arm"] != "shuffled"], "test accuracy, %", regimes)
        out.append(Plot(f"regimes-{protocol}", spec, "Test accuracy, batch-norm statistics as kept and anew."))
        rows = results.select("error", protocol=protocol, arms=("small", "large", "large_lr_ghost", "adapted"))
        last = {r["arm"]: r["step"] for r in sorted(rows, key=lambda r: r["step"])}
        rows = [r | {"share": r["step"] / last[r["arm"]]} for r in rows]
        spec = curves(rows, "updates", "error, %", log=True) | curves(rows, "share: share of the run", "error, %")
        out.append(Plot(f"curves-{protocol}", spec.to_dict(), "Test error by updates and by share of the run."))
        if rows := [r for r in results.rows if r["metric"].startswith("distance_") and r["protocol"] == protocol]:
            spec = curves(rows, "updates", "distance", log=True, color="metric", strokeDash="arm:N")
            out.append(Plot(f"walk-{protocol}", spec.to_dict(), "Distance from the start, by batch size."))
    return out

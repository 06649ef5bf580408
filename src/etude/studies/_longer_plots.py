"""The plots of the study of large batches."""

from statistics import mean

from etude.lab.study import Plot, Results
from etude.studies._pictures import curves, dots

GAP = 0.5  # points; the margin of T1a
DRAWN = ("small", "large", "large_lr_ghost", "adapted")


def longer_plots(results: Results, regimes: list[str]) -> list[Plot]:
    """Accuracy by regime, error by updates and by the share of the run, distance by updates."""
    out = []
    for protocol in results.protocols:
        rows = [r for m in ("accuracy", "accuracy_running") for r in results.select(m, protocol=protocol)]
        spec = dots([r for r in rows if r["arm"] != "shuffled"], "test accuracy, %", regimes)
        caption = "Test accuracy, batch-norm statistics as kept and anew." + _gap(results, protocol)
        out.append(Plot(f"regimes-{protocol}", spec, caption))
        rows = results.select("error", protocol=protocol, arms=DRAWN)
        last = {r["arm"]: r["step"] for r in sorted(rows, key=lambda r: r["step"])}
        rows = [r | {"share": r["step"] / last[r["arm"]]} for r in rows]
        spec = curves(rows, "updates", "error, %", log=True) | curves(rows, "share: share of the run", "error, %")
        out.append(Plot(f"curves-{protocol}", spec.to_dict(), "Test error by updates and by share of the run."))
        kept = [a for a in results.artifacts("training_loss", protocol=protocol) if a["arm"] in DRAWN and a["value"]]
        rows = [p | {"arm": a["arm"], "share": p["step"] / a["value"][-1]["step"]} for a in kept for p in a["value"]]
        if rows:
            loss = "training loss"
            spec = curves(rows, "updates", loss, log=True) | curves(rows, "share: share of the run", loss)
            out.append(
                Plot(f"training-{protocol}", spec.to_dict(), "Training loss by updates and by share of the run.")
            )
        if rows := [r for r in results.rows if r["metric"].startswith("distance_") and r["protocol"] == protocol]:
            spec = curves(rows, "updates", "distance", log=True, color="metric", strokeDash="arm:N")
            out.append(Plot(f"walk-{protocol}", spec.to_dict(), "Distance from the start, by batch size."))
    return out


def _gap(results: Results, protocol: str) -> str:
    """What to say where the small batch is hardly ahead: then the cures have little to show."""
    small, large = (
        [r["value"] for r in results.select("accuracy", protocol=protocol, arms=(a,))] for a in ("small", "large")
    )
    if not small or not large or (gap := mean(small) - mean(large)) >= GAP:
        return ""
    return f" The small batch is ahead by {gap:.2f} points, less than {GAP}: there is no gap to close."

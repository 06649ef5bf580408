"""The plots of the study of pointer networks."""

from etude.lab.study import Plot, Results


def pointer_plots(results: Results) -> list[Plot]:
    """Scores against the number of points, answers beside the truth, and where the first answer points."""
    import altair as alt

    out = []
    if rows := [r for name in ("exact_by_n", "area_by_n") for r in results.select(name, arms=["ptr_range"])]:
        rows = [r | {"value": r["value"] * (100 if r["unit"] == "1" else 1)} for r in rows]
        sizes = sorted({r["step"] for r in rows})
        line = alt.Chart(alt.Data(values=rows)).mark_line(point=True)
        line = line.encode(alt.X("step:Q", title="points"), alt.Y("mean(value):Q", title="%"), color="metric:N")
        shade = alt.Chart(alt.Data(values=[{"low": sizes[0], "high": sizes[-1] // 2}])).mark_rect(opacity=0.12)
        spec = (shade.encode(x="low:Q", x2="high:Q") + line).to_dict()
        out.append(Plot("by-size", spec, "Exact hulls and area covered; trained sizes are shaded."))
    for found in results.artifacts("answers"):
        line = alt.Chart(alt.Data(values=found["value"])).mark_line(point=True).properties(width=130, height=130)
        chart = line.encode(alt.X("x:Q"), alt.Y("y:Q"), order="step:O", row="what:N", column="case:O")
        out.append(Plot(f"answers-{found['protocol']}", chart.to_dict(), "Answers of the net beside the truth."))
    for found in results.artifacts("weights", protocol="hull"):
        heat = alt.Chart(alt.Data(values=found["value"])).mark_rect()
        spec = heat.encode(x="slot:O", y="step:O", color="value:Q").to_dict()
        out.append(Plot("weights", spec, "Probability of each point at each step (0 = END), first case."))
    return out

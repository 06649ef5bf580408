"""The plots of the study of recoding."""

from collections.abc import Mapping

import altair as alt

from etude.lab.study import Plot, Results


def recoding_plots(results: Results, sizes: Mapping[str, float]) -> list[Plot]:
    """Signal before and after, perplexity against step size, 2 x 2, a sentence, later steps, the garden path."""
    out = []
    shown = ("nll_gold_alpha_01", "entropy_alpha_01", "random_direction_alpha_01")
    rows = [r | {"when": w} for w in ("before", "after") for r in results.select(f"signal_{w}", arms=shown)]
    if rows:
        chart = alt.Chart(alt.Data(values=rows)).mark_line()
        chart = chart.encode(
            x=alt.X("step:Q", title="position in the test text"), y=alt.Y("mean(value):Q", title="signal"),
            color="arm:N", strokeDash="when:N",
        )  # fmt: skip
        out.append(Plot("signal", chart.to_dict(), "The signal before and after the step, step size 0.1."))
    rows = [
        r | {"alpha": sizes[r["arm"]], "signal": r["arm"].split("_alpha")[0]}
        for r in results.select("perplexity_change", arms=[a for a in sizes if "_alpha_" in a])
    ]
    if rows:
        base = alt.Chart(alt.Data(values=rows)).mark_line(point=True)
        lines = base.encode(
            x=alt.X("alpha:Q", title="step size").scale(type="log"), color="signal:N",
            y=alt.Y("mean(value):Q", title="change of test perplexity, %"),
        )  # fmt: skip
        zero = alt.Chart(alt.Data(values=[{"value": 0}])).mark_rule(strokeDash=[4, 4]).encode(y="value:Q")
        out.append(Plot("step-size", (lines + zero).to_dict(), "Perplexity against step size; the rule: plain net."))
    rows = [
        r | {"trained": name, "tested": tested}
        for name in ("with", "without") for tested in ("with", "without")
        for r in results.select("perplexity", arms=(f"trained_{name}_tested_{tested}",))
    ]  # fmt: skip
    if rows:
        base = alt.Chart(alt.Data(values=rows)).encode(x="tested:N", y="trained:N")
        value = "mean(value):Q"
        table = base.mark_rect(opacity=0.3).encode(color=alt.Color(value, title="perplexity"))
        numbers = base.mark_text().encode(text=alt.Text(value, format=".2f"))
        out.append(
            Plot("two-by-two", (table + numbers).to_dict(), "Test perplexity, trained and tested with recoding.")
        )
    for a in results.artifacts("sentence")[:1]:
        words, plain, moved = a["value"]
        rows = [
            {"place": i, "word": f"{i:02d} {w}", "surprisal": s, "model": name}
            for name, column in (("plain", plain), ("recoded", moved))
            for i, (w, s) in enumerate(zip(words, column, strict=False))
        ]
        chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True)
        chart = chart.encode(
            x=alt.X("word:N", title=None, axis=alt.Axis(labelAngle=-60)), color="model:N",
            y=alt.Y("surprisal:Q", title="surprisal, nats"),
        )  # fmt: skip
        out.append(
            Plot("sentence", chart.to_dict(), "Surprisal of the test text's first words, surprise, step size 1.")
        )
    for metric, x, caption in (
        ("later_nll", "steps after the only recoded one", "Surprise after one step of recoding, step size 0.1."),
        ("garden_path_nll", "position from the cue", "Strings whose cue contradicts their likely reading; "
         "garden_path: the floor of any reader."),
    ):  # fmt: skip
        if rows := [r for r in results.select(metric) if r["step"] is not None]:
            chart = alt.Chart(alt.Data(values=rows)).mark_line(point=True).encode(
                x=alt.X("step:Q", title=x), y=alt.Y("mean(value):Q", title="nats").scale(zero=False), color="arm:N"
            )  # fmt: skip
            out.append(Plot(metric.replace("_", "-"), chart.to_dict(), caption))
    return out

"""The generated pages: `papers/<slug>.md` and `papers/verdicts.md` from the cards and the exported runs, and
`rooms/<room>.md` from the code."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from etude import ROOMS, catalogue
from etude.catalogue import Paper
from etude.lab.registry import runnable
from etude.lab.vega import to_svg

WORD = {"holds": "✓ holds", "fails": "✗ fails", "inconclusive": "~ inconclusive", None: "no verdict"}
TIERS = ("gpu", "laptop", "quick")


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-" if value is None else str(value)


def results_of(slug: str, results: Path) -> list[dict[str, Any]]:
    """The exported runs of a paper, largest tier first."""
    files = [results / slug / f"{tier}.json" for tier in TIERS]
    return [json.loads(f.read_text("utf-8")) for f in files if f.is_file()]


def _claims(paper: Paper, runs: list[dict[str, Any]]) -> list[str]:
    lines = ["## Claims", "", "| claim | statement | must be | paper says | expected |", "|---|---|---|---|---|"]
    for c in paper.claims:
        if c.status == "not_testable":
            rule = f"not testable here: {c.reason}"
        else:
            sign = {"greater": "> ", "less": "< ", "within": "within ±"}[c.relation or "greater"]
            rule = f"{c.metric.name if c.metric else ''} {sign}{c.margin:g} ({c.tier})"
        says = "-" if c.paper is None else f"{c.paper.text or _number(c.paper.value)} ({c.paper.source})"
        lines.append(f"| {c.id} | {_cell(c.statement)} | {_cell(rule)} | {_cell(says)} | {c.expects} |")
    for run in runs:
        lines += ["", f"### Measured, tier {run['tier']}", "", _run_line(run), ""]
        lines += ["| claim | data | verdict | effect [interval] | n | notes |", "|---|---|---|---|---|---|"]
        for v in run["verdicts"]:
            span = f"{_number(v['effect'])} [{_number(v['low'])}, {_number(v['high'])}] {'' if v['unit'] == '1' else v['unit']}"
            notes = "; ".join(v["notes"])
            lines.append(
                f"| {v['claim']} | {v['protocol']} | {WORD[v['verdict']]} | {span} | {v['n']} | {_cell(notes)} |"
            )
    notes = [c for c in paper.claims if c.notes]
    if notes:
        lines += ["", "### What we found", ""] + [f"- **{c.id}** {_cell(c.notes)}" for c in notes]
    return lines


def _overview(runs: list[dict[str, Any]]) -> str:
    """Every published verdict in one table; lists of their own come first for those that the card did not expect and
    for those that it expected to hold and that were not shown."""
    rows, surprises, not_shown, count = [], [], [], dict.fromkeys(WORD, 0)
    for run in runs:
        claims = {c.id: c for c in catalogue.load(run["slug"]).claims}
        for v in run["verdicts"]:
            claim = claims[v["claim"]]
            count[v["verdict"]] += 1
            says = "-" if claim.paper is None else claim.paper.text or _number(claim.paper.value)
            unit = "" if v["unit"] == "1" else f" {v['unit']}"
            effect = "-" if v["effect"] is None else f"{_number(v['effect'])}{unit}"
            row = (
                f"| {{doc}}`{run['slug']} <{run['slug']}>` | {v['claim']} | {v['protocol']} | {WORD[v['verdict']]} "
                f"| {effect} [{_number(v['low'])}, {_number(v['high'])}] | {v['n']} | {_cell(says)} | {claim.expects} |"
            )
            rows.append(row)
            if {claim.expects, v["verdict"]} == {"holds", "fails"}:
                surprises.append(row)
            elif claim.expects == "holds" and v["verdict"] != "holds":
                not_shown.append(row)
    head = [
        "| paper | claim | data | verdict | effect [interval] | seeds | paper says | expected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cost = ["| paper | tier | seconds of worker time | runs (arm and seed) | measured |", "|---|---|---|---|---|"]
    cost += [
        f"| {{doc}}`{r['slug']} <{r['slug']}>` | {r['tier']} | {sum(j['seconds'] for j in r['jobs']):.0f} "
        f"| {len(r['jobs'])} | {r['started'][:10]} |"
        for r in runs
    ]
    lines = [
        "# All verdicts",
        "",
        f"{len(runs)} papers measured, {sum(count.values())} verdicts: {count['holds']} hold, {count['fails']} fail, "
        f"{count['inconclusive']} inconclusive, {count[None]} without a word because the control did not lose. "
        "What was found of the reasons stands on each paper's page.",
        "",
        f"Intervals are of 95 % (90 % for `within`), each by itself: they are not corrected for the number of "
        f"{sum(count.values())} verdicts, so among so many some words are chance.",
    ]
    lines += ["", "## Not as expected", "", "Expected to hold and failing, or the other way round.", "", *head]
    lines += [*surprises, "", "## Expected to hold, not shown", "", "Inconclusive, or without a verdict.", "", *head]
    lines += [*not_shown, "", "## Every verdict", "", *head, *rows, "", "## What the runs cost", "", *cost]
    return "\n".join(lines) + "\n"


def _run_line(run: dict[str, Any]) -> str:
    env = run["record"]["environment"]
    seconds = sum(job["seconds"] for job in run["jobs"])
    return (
        f"`{run['record']['command']}`: {seconds:.0f} s of worker time on {env['machine']} "
        f"({env['device']}), torch {env['packages'].get('torch', '?')}, {run['started'][:10]}."
    )


def _paper_page(paper: Paper, folder: Path, results: Path) -> None:
    runs = results_of(paper.slug, results)
    links = [f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"] if paper.arxiv else []
    links += [f"[doi](https://doi.org/{paper.doi})"] if paper.doi else []
    links += [f"official code: `{paper.official_code}`"] if paper.official_code else []
    runs_here = paper.slug in runnable()
    lines = [
        f"# {paper.title}",
        "",
        f"{paper.authors}, {paper.year}. " + " · ".join(links),
        "",
        paper.summary.strip(),
        "",
    ]
    lines += [f"Room {{doc}}`../rooms/{paper.room}`; kind: {paper.kind}; tags: {', '.join(paper.tags)}.", ""]
    lines += [f"```shell\netude run {paper.slug}\n```", ""] if runs_here else ["Not runnable yet: it has no study.", ""]
    if paper.usage:
        lines += ["## Use it", "", f"```python\n{paper.usage.strip()}\n```", ""]
    lines += _claims(paper, runs)
    plots = runs[0]["record"].get("plots", []) if runs else []
    if plots:
        lines += ["", "## Plots", ""]
    for plot in plots:
        svg = folder / f"{paper.slug}-{plot['name']}.svg"
        text = to_svg(plot["spec"], plot["caption"]).replace(
            "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" ', 1
        )
        for name, colour in (("--ink", "#333"), ("--soft", "#777"), ("--rule", "#bbb")):
            text = text.replace(f"var({name})", colour)
        svg.write_text(text, "utf-8")
        lines += [f"![{_cell(plot['caption'])}]({svg.name})", "", f"*{_cell(plot['caption'])}*", ""]
    if paper.checklist:
        lines += ["", "## Checklist", "", "| box | status | where |", "|---|---|---|"]
        lines += [
            f"| {_cell(b.box)} | {b.status.replace('_', ' ')} | {_cell(f'`{b.where}`' if b.where else b.reason or '')} |"
            for b in paper.checklist
        ]
    if paper.notes:
        lines += ["", "## Decisions", "", paper.notes.strip()]
    (folder / f"{paper.slug}.md").write_text("\n".join(lines) + "\n", "utf-8")


def _room_page(room: str, folder: Path) -> None:
    module = importlib.import_module(f"etude.{room}")
    names = sorted(
        n
        for n, v in vars(module).items()
        if not n.startswith("_") and getattr(v, "__module__", "").startswith("etude.")
    )
    lines = [f"# etude.{room}", "", inspect.getdoc(module) or "", ""]
    papers = [p for p in catalogue.papers() if p.room == room]
    lines += ["Papers: " + ", ".join(f"{{doc}}`../papers/{p.slug}`" for p in papers) + ".", ""]
    if not names:
        lines.append("No method of this room is built yet.")
    for name in names:
        kind = "class" if inspect.isclass(getattr(module, name)) else "function"
        options = "\n   :members:" if kind == "class" else ""
        home = getattr(module, name).__module__.split(".")[1]
        if home != room and hasattr(importlib.import_module(f"etude.{home}"), name):
            options += "\n   :no-index:"  # the index leads to the room that the name comes from
        lines += [f"```{{eval-rst}}\n.. auto{kind}:: etude.{room}.{name}{options}\n```", ""]
    (folder / f"{room}.md").write_text("\n".join(lines), "utf-8")


def generate(docs: Path, results: Path) -> None:
    """Write every generated page."""
    papers, rooms = docs / "papers", docs / "rooms"
    for folder in (papers, rooms):
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
    for paper in catalogue.papers():
        _paper_page(paper, papers, results)
    for room in ROOMS:
        _room_page(room, rooms)
    table = ["# Papers", "", "| paper | title | room | runs |", "|---|---|---|---|"]
    for p in catalogue.papers():
        mark = "yes" if p.slug in runnable() else ""
        table.append(f"| {{doc}}`{p.slug} <{p.slug}>` | {_cell(p.title)} | {p.room} | {mark} |")
    measured = [results_of(p.slug, results)[:1] for p in catalogue.papers()]
    (papers / "verdicts.md").write_text(_overview([run for first in measured for run in first]), "utf-8")
    toc = "\n".join(["verdicts", *(p.slug for p in catalogue.papers())])
    (papers / "index.md").write_text("\n".join(table) + f"\n\n```{{toctree}}\n:hidden:\n{toc}\n```\n", "utf-8")
    toc = "\n".join(ROOMS)
    (rooms / "index.md").write_text(f"# Rooms\n\n```{{toctree}}\n:maxdepth: 1\n{toc}\n```\n", "utf-8")

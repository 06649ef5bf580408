"""The terminal's view of a paper, of the data sources and of the installation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax

from etude.catalogue.card import Paper
from etude.lab.console import STYLE, interval, plain_table, rule
from etude.lab.judge import Verdict
from etude.lab.ledger import known_ledger
from etude.lab.registry import runnable, study
from etude.lab.verdicts import verdicts


def known_verdicts(url: str | None, slug: str) -> list[Verdict]:
    """The ledger's verdicts, or none when there is no ledger yet (looking must not create one)."""
    return verdicts(known_ledger(url), slug)


def print_paper(console: Console, paper: Paper, said: Sequence[Verdict]) -> None:
    """Card, claims with verdicts, and the code that applies the method."""
    console.print(f"[bold]{escape(paper.title)}[/]  ({paper.authors}, {paper.year})")
    links = [f"arXiv {paper.arxiv}" if paper.arxiv else "", f"doi {paper.doi}" if paper.doi else "", paper.url or ""]
    code = f"code {paper.official_code}" if paper.official_code else ""
    facts = [f"{paper.room} / {paper.kind}", paper.venue or "", *links, code]
    console.print(escape("  ".join(f for f in facts if f)), style="dim")
    console.print(escape(" ".join(paper.summary.split())))
    table = plain_table("claim", "statement", "must be", "paper says", "data, tier", "verdict", "effect")
    for claim in paper.claims:
        mine = [v for v in said if v.claim == claim.id]
        figure = claim.paper
        says = "-" if figure is None else str(figure.text or figure.value or "-")
        margin = "-"
        if claim.status == "not_testable":
            margin = f"not testable: {claim.reason}"
        elif claim.margin is not None and claim.relation is not None:
            sign = {"greater": "> ", "less": "< ", "within": "within ±"}[claim.relation]
            margin = f"{sign}{claim.margin:g}"
        if not mine:
            table.add_row(claim.id, escape(claim.statement), escape(margin), escape(says), "", "[dim]not run[/]", "")
        for i, v in enumerate(mine):
            first = (claim.id, escape(claim.statement), rule(v), escape(says)) if i == 0 else ("", "", "", "")
            word = f"[{STYLE[v.verdict]}]{v.verdict or 'no verdict'}[/]"
            table.add_row(*first, f"{v.protocol}, {v.tier}", word, interval(v))
    console.print(table)
    notes = [f"{c.id}: {' '.join(c.notes.split())}" for c in paper.claims if c.notes]
    for note in notes:
        console.print(escape(note), style="dim")
    if paper.usage:
        console.print("\n[bold]Use it[/]")
        console.print(Syntax(paper.usage.strip(), "python", background_color="default"))
    runs = paper.slug in runnable()
    again = f"Re-test it: etude run {paper.slug} (its settings: etude show {paper.slug} --settings)"
    console.print(f"\n{again}" if runs else "\nNo study yet: not runnable.")


def study_settings(slug: str) -> dict[str, Any]:
    """What a run of a paper can be told: kinds of one's own data, and each setting with its value at every tier.

    Raises
    ------
    UsageError
        If no such paper exists, or it has no study yet.
    """
    found = study(slug)
    values = {tier: config.model_dump(mode="json") for tier, config in found.configs.items()}
    settings = [
        {"name": name, "values": {tier: v[name] for tier, v in values.items()}, "what": field.description or ""}
        for name, field in type(found.configs["quick"]).model_fields.items()
    ]
    return {"slug": slug, "kinds": list(found.kinds), "settings": settings}


def print_settings(console: Console, found: Mapping[str, Any]) -> None:
    """A table of `study_settings`."""
    tiers = list(found["settings"][0]["values"])
    table = plain_table("setting", *tiers, "what")
    for one in found["settings"]:
        cells = [escape(json.dumps(one["values"][t])) for t in tiers]
        table.add_row(one["name"], *cells, escape(" ".join(one["what"].split())))
    console.print(table)
    kinds = ", ".join(found["kinds"])
    console.print(f"Change one: etude run {found['slug']} --set {found['settings'][0]['name']}=...")
    console.print(
        f"Your own data (--data PATH): {kinds}" if kinds else "This study takes no data of your own (--data)."
    )


def source_records() -> list[dict[str, Any]]:
    """Every data set by name, for `etude data list`."""
    from etude.data.sources import available

    return [
        {"name": s.name, "title": s.title, "kind": s.kind, "state": s.state, "license": s.license, "bytes": s.bytes}
        for s in available()
    ]


def print_sources(console: Console, records: Sequence[Mapping[str, Any]]) -> None:
    table = plain_table("data set", "kind", "where", "size", "licence", "what")
    for r in records:
        size = f"{r['bytes'] / 2**20:.1f} MB"
        table.add_row(r["name"], r["kind"], r["state"], size, escape(r["license"]), escape(r["title"]))
    console.print(table)
    console.print("here: on this disk; package: with an installed package; download: fetched on first use; "
                  "bring: set ETUDE_DATA", style="dim")  # fmt: skip


def print_doctor(console: Console, found: Mapping[str, Any]) -> None:
    env = found["environment"]
    console.print(f"[bold]machine[/]  {env['machine']}, {env['cores']} cores, {env['system']}, Python {env['python']}")
    console.print("[bold]packages[/] " + ", ".join(f"{k} {v}" for k, v in env["packages"].items()))
    console.print("[bold]devices[/]  " + ", ".join(found["devices"]))
    for extra, there in found["extras"].items():
        remedy = "" if there else f"  {found['missing'][extra]}"
        console.print(f"[bold]extra[/]    {extra}: {'installed' if there else 'missing'}{escape(remedy)}")
    data = found["data"]
    here = [n for n, w in data["sets"].items() if w in ("here", "package")]
    console.print(f"[bold]data[/]     ETUDE_DATA={data['ETUDE_DATA'] or 'not set'}; at hand: {', '.join(sorted(here))}")
    console.print(f"[bold]ledger[/]   {found['ledger']}")

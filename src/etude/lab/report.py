"""The report: one self-contained HTML page of everything that the ledger holds."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from etude import __version__, catalogue
from etude.errors import UsageError
from etude.files import write_text
from etude.lab.console import interval, number, rule
from etude.lab.forest import forest_row
from etude.lab.judge import Verdict
from etude.lab.ledger import Ledger, now
from etude.lab.registry import runnable
from etude.lab.vega import figure
from etude.lab.verdicts import in_catalogue, own_data, run_verdicts

_ORDER = {"gpu": 0, "laptop": 1, "quick": 2}
GLYPH = {"holds": "✓", "fails": "✗", "inconclusive": "~", None: "!"}


def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("etude.lab", "templates")
    env = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"number": number, "minutes": _minutes, "megabytes": _megabytes}
    return env


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _megabytes(value: float | None) -> str:
    return "-" if not value else f"{value / 2**20:.0f} MB"


def _claim_row(v: Verdict, claim: catalogue.Claim) -> dict[str, Any]:
    paper = claim.paper.difference if claim.paper else None
    says = "" if claim.paper is None else claim.paper.text or number(_as_float(claim.paper.value))
    return {
        "v": v, "claim": claim, "glyph": GLYPH[v.verdict], "word": v.verdict or "no verdict",
        "interval": interval(v), "rule": rule(v), "says": says, "source": claim.paper.source if claim.paper else "",
        "strip": forest_row(v, paper), "small": forest_row(v, paper, 230.0),
        "surprise": {v.verdict, claim.expects} == {"holds", "fails"},
    }  # fmt: skip


def _as_float(value: float | str | None) -> float | None:
    return value if isinstance(value, float | int) else None


def _section(ledger: Ledger, run: Mapping[str, Any]) -> dict[str, Any]:
    paper = catalogue.load(run["slug"])
    by_id = {c.id: c for c in paper.claims}
    said = run_verdicts(ledger, run)
    record = run["record"]
    own = own_data(run)
    return {
        "own": own, "anchor": f"{paper.slug}-{run['tier']}" + (f"-{run['id'][:8]}" if own else ""),
        "paper": paper, "run": run, "record": record, "tier": run["tier"],
        "rows": [_claim_row(v, by_id[v.claim]) for v in said],
        "untested": [c for c in paper.claims if c.status == "not_testable"],
        "unmeasured": [
            c for c in paper.claims if c.status == "tested" and c.id not in {v.claim for v in said}
        ],
        "plots": [figure(p) for p in record.get("plots", [])],
        "stale": any(v.stale for v in said), "broken": run["state"] == "broken",
        "seeds": sorted({s for _, _, s in ledger.finished(run["id"])}),
    }  # fmt: skip


def report_html(ledger: Ledger) -> str:
    """The page as text: no request leaves it."""
    runs = [r for r in ledger.latest(states=("done", "broken", "skipped")) if in_catalogue(r["slug"])]
    runs.sort(key=lambda r: (r["slug"], _ORDER[r["tier"]]))
    sections = [_section(ledger, r) for r in runs]
    words = [row["word"] for s in sections for row in s["rows"]]
    counts = {w: words.count(w) for w in ("holds", "fails", "inconclusive", "no verdict")}
    quiet = [p for p in catalogue.papers() if p.slug not in {r["slug"] for r in runs}]
    files = resources.files("etude.lab") / "templates"
    return _environment().get_template("report.html.j2").render(
        sections=sections, counts=counts, total=len(words), written=now(), version=__version__, others=quiet,
        runnable=set(runnable()), css=(files / "report.css").read_text("utf-8"),
        script=(files / "report.js").read_text("utf-8"),
    )  # fmt: skip


def write_report(ledger: Ledger, folder: str | Path = "etude-report") -> Path:
    """Write `index.html` into a folder and return its path.

    Raises
    ------
    UsageError
        If the folder cannot be written.
    """
    target = Path(folder) / "index.html"
    html = report_html(ledger)
    try:
        write_text(target, html)
    except OSError as error:
        raise UsageError(f"cannot write the report to {target}: {error.strerror}; give another folder") from error
    return target

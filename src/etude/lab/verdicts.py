"""Verdicts of recorded runs: computed on reading, from the measurements and the cards."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude import catalogue
from etude.errors import UsageError
from etude.lab.digest import is_stale
from etude.lab.finite import finite
from etude.lab.judge import Verdict, verdict_for
from etude.lab.ledger import Ledger
from etude.lab.registry import present_digest


def run_verdicts(ledger: Ledger, run: Mapping[str, Any]) -> list[Verdict]:
    """All verdicts of one run, in the card's order of claims."""
    slug = run["slug"]
    paper = catalogue.load(slug)
    rows = ledger.measurements(run["id"])
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_protocol.setdefault(row["protocol"], []).append(row)
    own = own_data(run)
    stale = is_stale(run["record"], present_digest(slug, run["tier"]))
    out = []
    for claim in paper.claims:
        for protocol, mine in by_protocol.items():
            verdict = verdict_for(claim, mine, slug=slug, protocol=protocol, tier=run["tier"])
            if verdict is not None:
                notes = (*verdict.notes, *([f"your data: {own}"] if own else ()))
                notes = (*notes, "stale: the code moved since") if stale else notes
                out.append(replace(verdict, stale=stale, run=run["id"], notes=notes))
    return out


def plain_record(verdict: Verdict) -> dict[str, Any]:
    """A verdict's fields as the JSON of every database holds them: no NaN, which PostgreSQL refuses."""
    record: dict[str, Any] = finite(json.loads(json.dumps(verdict.record(), default=str)))
    return record


def own_data(run: Mapping[str, Any]) -> str | None:
    """Which data of the user's a run is on, by name and target; None where it is on the study's own."""
    user = run["record"].get("user_data")
    if not user:
        return None
    return Path(user["path"]).name + (f", target {user['target']}" if user.get("target") else "")


def verdicts(ledger: Ledger, slug: str | None = None, *, tier: str | None = None) -> list[Verdict]:
    """The newest finished run's verdicts for every paper and tier, sorted by slug.

    Raises
    ------
    UsageError
        If `slug` is not in the catalogue.
    """
    if slug is not None:
        catalogue.load(slug)
    if tier not in (None, "quick", "laptop", "gpu"):
        raise UsageError(f"unknown tier {tier!r}: choose one of quick, laptop, gpu")
    return [v for r in newest_runs(ledger, slug) if tier in (None, r["tier"]) for v in run_verdicts(ledger, r)]


def newest_runs(ledger: Ledger, slug: str | None = None) -> list[dict[str, Any]]:
    """The newest finished run of every paper of the catalogue and tier, by slug, the largest tier first."""
    order = {"gpu": 0, "laptop": 1, "quick": 2}
    runs = [r for r in ledger.latest(slug) if in_catalogue(r["slug"])]
    return sorted(runs, key=lambda r: (r["slug"], order[r["tier"]]))


def in_catalogue(slug: str) -> bool:
    """Whether a run's paper still has a card: one that has left it must not hide the runs of the others."""
    try:
        catalogue.load(slug)
    except UsageError:
        return False
    return True

"""The commands that re-test papers: run, and confirm where only the code has moved."""

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.markup import escape

from etude import catalogue
from etude.cli.console import Flag, Json, LedgerOption, emit, err, out, print_claims, print_hint
from etude.errors import UsageError


def run(
    *slugs: str, tier: str = "quick", seeds: int | None = None, data: Path | None = None, target: str | None = None,
    skip_bad: Annotated[bool, Flag] = False,
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (), jobs: int | None = None,
    on: str = "local", resume: Annotated[bool, Flag] = False, fresh: Annotated[bool, Flag] = False,
    ledger: LedgerOption = None, report: Path = Path("etude-report"), no_report: Annotated[bool, Flag] = False,
    quiet: Annotated[bool, Flag] = False, json_: Json = False,
) -> int:  # fmt: skip
    """Re-test papers' claims and write the report. Without a SLUG: every paper that runs.

    Parameters
    ----------
    slugs
        Papers to run.
    tier
        How much to spend: quick (seconds), laptop (minutes), gpu.
    seeds
        Repetitions, at least 3 (default: the tier's).
    data
        Your own data: a CSV or Parquet table, a folder of images, JSON-lines or a folder of texts.
    target
        The column to predict.
    skip_bad
        Leave out images that cannot be read instead of stopping.
    set_
        Change a setting of the study, as name=value; may be given several times.
    jobs
        Worker processes (default: one a core).
    on
        Where jobs run: local, or ray (a cluster; needs the extra).
    resume
        Continue an interrupted run and reuse finished ones (the default).
    fresh
        Measure again although nothing changed.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    report
        Folder of the HTML report.
    no_report
        Write no report.
    quiet
        No progress.
    json_
        One JSON document on standard output.
    """
    for slug in slugs:
        catalogue.load(slug)  # a wrong name is said before anything heavy is loaded or a ledger made
    from etude.lab.console import StudyProgress
    from etude.lab.jobs import UserData
    from etude.lab.ledger import Ledger
    from etude.lab.registry import runnable
    from etude.lab.runner import run_studies

    if resume and fresh:
        raise UsageError("--resume and --fresh contradict each other: give one")
    if target is not None and data is None:
        raise UsageError("--target names a column of your data: give --data PATH as well")
    settings = dict(_setting(s) for s in set_)
    user = UserData(str(data), target, "skip" if skip_bad else "raise") if data is not None else None
    store = Ledger(ledger)
    with StudyProgress(quiet or json_) as progress:
        results = run_studies(
            slugs or runnable(), tier, ledger=store, seeds=seeds, settings=settings, user=user, jobs=jobs, on=on,
            fresh=fresh, on_event=progress,
        )  # fmt: skip
    said = [v for r in results if r.state != "broken" for v in r.verdicts]
    if json_:
        emit([r.record() for r in results])
    else:
        print_claims(said)
        for r in results:
            if r.reused:
                out.print(f"[dim]{r.slug}: taken from the ledger, nothing changed since (--fresh measures again)[/]")
    for r in results:
        for protocol, why in r.skipped.items():
            err.print(f"[yellow]skipped[/] {r.slug}, {protocol}: {escape(why)}", soft_wrap=True)
        if r.errors:
            more = f" (and {len(r.errors) - 1} more)" if len(r.errors) > 1 else ""
            if user is not None:
                more += f"; if your data are too few for it, set smaller sizes: etude show {r.slug} --settings"
            err.print(f"[red]broken[/] {r.slug}: {escape(r.errors[0])}{escape(more)}", soft_wrap=True)
    if not no_report:  # last: what was measured is told even where the report cannot be written
        from etude.lab.report import write_report

        page = write_report(store, report)
        if not json_:
            out.print(f"Report: {page}", soft_wrap=True)
    if not json_ and not slugs:
        print_hint(store)
    wholly_skipped = [r for r in results if r.state == "skipped" and r.slug in slugs]
    return 3 if any(r.state == "broken" for r in results) or wholly_skipped else 0


def confirm(
    *slugs: str, tier: str = "laptop", seeds: int = 1, within: float = 0.0, beside: Path | None = None,
    jobs: int | None = None,
    ledger: LedgerOption = None, quiet: Annotated[bool, Flag] = False, json_: Json = False,
) -> int:  # fmt: skip
    """Measure one seed of stale runs again: where every number is the same, the run stands for the present code too.

    Parameters
    ----------
    slugs
        Papers (default: all whose newest run of the tier is stale).
    tier
        The tier of the runs.
    seeds
        How many seeds of every arm and protocol are measured again.
    within
        Largest relative difference that counts as the same (default: none at all); it stands in the record.
    beside
        A checkout of the code that the runs stand for: it is measured here too, and the two are compared. For a
        machine that rounds otherwise than the one of the run.
    jobs
        Worker processes (default: one a core).
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    quiet
        No progress.
    json_
        One JSON document on standard output.
    """
    from etude.lab.confirm import confirm as measure_again
    from etude.lab.console import StudyProgress
    from etude.lab.digest import is_stale
    from etude.lab.ledger import Ledger
    from etude.lab.registry import present_digest, runnable

    store = Ledger(ledger)
    stale = [
        r["slug"] for r in store.latest() if r["tier"] == tier and r["slug"] in runnable()
        and not r["record"].get("user_data") and is_stale(r["record"], present_digest(r["slug"], tier))
    ]  # fmt: skip
    found = []
    for slug in slugs or stale:
        with StudyProgress(quiet or json_) as progress:
            found.append(
                measure_again(
                    slug, tier, ledger=store, seeds=seeds, within=within, jobs=jobs, beside=beside, on_event=progress
                )
            )
        if not json_:
            out.print(found[-1].sentence(), soft_wrap=True, highlight=False)
    if json_:
        emit([f.record() for f in found])
    elif not found:
        out.print(f"No {tier} run in the ledger is stale.")
    return 0 if all(f.holds for f in found) else 3


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text!r}: write it as name=value")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):  # no JSON, an integer of too many digits, or lists too deep
        return name.strip(), value


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(run)
    app.command(confirm)

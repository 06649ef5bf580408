"""Commands about what the ledger holds and about peers: verdicts, report, export, import-results, bench."""

from pathlib import Path
from typing import Annotated

from cyclopts import App

from etude import catalogue
from etude.cli.console import Flag, Json, LedgerOption, Tier, emit, err, out, print_claims, print_hint
from etude.errors import UsageError


def verdicts(
    slug: str | None = None, *, tier: str | None = None, ledger: LedgerOption = None, json_: Json = False
) -> None:
    """Show the newest verdicts of the ledger.

    Parameters
    ----------
    slug
        Only this paper.
    tier
        Only this tier.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    json_
        One JSON document on standard output.
    """
    from etude.lab.ledger import known_ledger
    from etude.lab.verdicts import verdicts as read

    store = known_ledger(ledger)
    said = read(store, slug, tier=tier)
    if json_:
        return emit([v.record() for v in said])
    if not said:
        return out.print("No verdicts yet. Next: etude run, or etude import-results to load the published runs.")
    print_claims(said)
    if slug is None:
        print_hint(store)


def report(folder: Path = Path("etude-report"), *, ledger: LedgerOption = None) -> None:
    """Write the HTML report of everything in the ledger.

    Parameters
    ----------
    folder
        Where index.html goes.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.lab.ledger import known_ledger
    from etude.lab.report import write_report

    out.print(f"Report: {write_report(known_ledger(ledger), folder)}", soft_wrap=True)


def export(
    folder: Path = Path("results"), *, slug: str | None = None, tier: Tier | None = None,
    own_data: Annotated[bool, Flag] = False, ledger: LedgerOption = None,
) -> None:  # fmt: skip
    """Write the newest finished runs as self-contained JSON files.

    Parameters
    ----------
    folder
        Where they go, as PAPER/TIER.json.
    slug
        Only this paper.
    tier
        Only this tier.
    own_data
        Also runs on your own data (left out otherwise).
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.lab.export import export as write
    from etude.lab.ledger import known_ledger

    if slug is not None:
        catalogue.load(slug)
    files = write(known_ledger(ledger), folder, slug=slug, tier=tier, own_data=own_data)
    for path in files:
        out.print(str(path), soft_wrap=True)
    if not files:
        out.print("Nothing to export: the ledger holds no finished run. Next: etude run")


def import_results(folder: Path = Path("results"), *, ledger: LedgerOption = None) -> None:
    """Rebuild a ledger from exported runs; runs that it holds already are left alone.

    Parameters
    ----------
    folder
        A folder of result files, or one file.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.lab.export import import_results as read
    from etude.lab.ledger import Ledger

    new, known = read(Ledger(ledger), folder)
    out.print(f"{new} run{'s' * (new != 1)} imported, {known} known already")


def bench(*names: str, folder: Path = Path("benchmarks"), repeats: int = 5, json_: Json = False) -> None:
    """Measure ours beside the named peers, and the figures to reach, and write the table RESULTS.md.

    Parameters
    ----------
    names
        Only these benchmark files (default: all).
    folder
        Where the benchmark files lie.
    repeats
        Alternations of ours and the peer, at least 5.
    json_
        One JSON document on standard output.
    """
    from etude.lab import bench as lab_bench

    if repeats < 5:
        raise UsageError(f"--repeats {repeats}: a spread needs at least 5 alternations")
    rows: list[lab_bench.Row] = []
    files = [file for name in names or (None,) for file in lab_bench.find(folder, name)]
    for file in dict.fromkeys(files):
        done = []
        for row in lab_bench.run(folder, file.stem, repeats=repeats):
            done.append(row)
            err.print(f"{file.stem}: {row[1]}")
        path = lab_bench.save(folder, done)  # a file at a time: what is measured stays when a later one breaks
        rows += done
    if json_:
        return emit([{"benchmark": stem} | r._asdict() for stem, r in rows])
    out.print(f"Table: {path}", soft_wrap=True)


def register(app: App) -> None:
    """Add the commands to the command line."""
    for command in (verdicts, report, export, import_results, bench):
        app.command(command)

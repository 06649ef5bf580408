"""The command line. Exit codes: 0 done, 2 wrong use, 3 a study or its surroundings broke, 130 interrupted."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markup import escape

from etude import __version__, catalogue
from etude.errors import EtudeError, UsageError
from etude.page.commands import register as register_page

Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Parameter(negative=())
LedgerOption = Annotated[str | None, Parameter(name="--ledger")]
Tier = Literal["quick", "laptop", "gpu"]

app = App(
    name="etude",
    version=__version__,
    suppress_keyboard_interrupt=False,
    help="Papers you can run: does this paper's method work?",
)
data_app = App(name="data", help="Data sets: which there are, fetching and checking them.")
app.command(data_app)
register_page(app)
# Without a terminal (a pipe, a log) a table is as wide as it needs to be readable.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, highlight=False)


def _emit(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, default=str, allow_nan=False) + "\n")


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v - v != 0 else v for k, v in record.items()}


@app.command
def papers(
    *, room: str | None = None, text: str = "", runs: Annotated[bool, Flag] = False,
    all_: Annotated[bool, Parameter(name="--all", negative=())] = False, json_: Json = False,
) -> None:  # fmt: skip
    """List the catalogue: all papers, or those of a room, matching words, or with a study (--runs).

    Parameters
    ----------
    room
        Only papers of this room (layers, training, trust ...).
    text
        Only papers that match these words.
    runs
        Only papers that run.
    all_
        All papers, runnable or not (the default).
    json_
        One JSON document on standard output.
    """
    from etude import ROOMS
    from etude.lab.registry import runnable

    if runs and all_:
        raise UsageError("--runs and --all contradict each other: give one")
    if room is not None and room not in ROOMS:
        raise UsageError(f"unknown room {room!r}: choose one of {', '.join(ROOMS)}")
    can = set(runnable())
    found = [p for p in catalogue.search(text, room=room) if not runs or p.slug in can]
    if json_:
        return _emit([
            {"slug": p.slug, "title": p.title, "room": p.room, "kind": p.kind, "year": p.year,
             "runs": p.slug in can, "claims": len(p.claims)} for p in found
        ])  # fmt: skip
    from etude.lab.console import plain_table

    table = plain_table("paper", "title", "room", "kind", "year", "claims", "runs")
    for p in found:
        mark = "[green]yes[/]" if p.slug in can else "[dim]not runnable yet[/]"
        table.add_row(p.slug, escape(p.title), p.room, p.kind, str(p.year), str(len(p.claims)), mark)
    out.print(table)
    out.print(f"{len(found)} papers, {sum(p.slug in can for p in found)} run. Next: etude show SLUG")


@app.command
def show(slug: str, *, ledger: LedgerOption = None, json_: Json = False) -> None:
    """Show a paper: its card, its claims with the newest verdicts, how to use the method.

    Parameters
    ----------
    slug
        The paper, e.g. pointer-networks.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    json_
        One JSON document on standard output.
    """
    from etude.lab.paperview import known_verdicts, print_paper

    paper = catalogue.load(slug)
    said = known_verdicts(ledger, slug)
    if json_:
        return _emit(paper.model_dump(mode="json") | {"verdicts": [_finite(v.record()) for v in said]})
    print_paper(out, paper, said)


@app.command
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
    page = None
    if not no_report:
        from etude.lab.report import write_report

        page = write_report(store, report)
    said = [v for r in results for v in r.verdicts]
    if json_:
        _emit([r.record() | {"verdicts": [_finite(v.record()) for v in r.verdicts]} for r in results])
    else:
        _print_claims(said)
        for r in results:
            if r.reused:
                out.print(f"[dim]{r.slug}: taken from the ledger, nothing changed since (--fresh measures again)[/]")
    for r in results:
        for protocol, why in r.skipped.items():
            err.print(f"[yellow]skipped[/] {r.slug}, {protocol}: {escape(why)}", soft_wrap=True)
        if r.errors:
            more = f" (and {len(r.errors) - 1} more)" if len(r.errors) > 1 else ""
            err.print(f"[red]broken[/] {r.slug}: {escape(r.errors[0])}{more}", soft_wrap=True)
    if page is not None and not json_:
        out.print(f"Report: {page}", soft_wrap=True)
    wholly_skipped = [r for r in results if r.state == "skipped" and r.slug in slugs]
    return 3 if any(r.state == "broken" for r in results) or wholly_skipped else 0


def _print_claims(said: list[Any]) -> None:
    from etude.lab.console import below_tier, claims_table, count

    out.print(claims_table(said))
    out.print(count(said))
    if line := below_tier(said):
        out.print(line, style="dim")


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {text!r}: write it as name=value")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value


@app.command
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
    from etude.lab.ledger import Ledger
    from etude.lab.verdicts import verdicts as read

    said = read(Ledger(ledger), slug, tier=tier)
    if json_:
        return _emit([_finite(v.record()) for v in said])
    if not said:
        return out.print("No verdicts yet. Next: etude run, or etude import-results to load the published runs.")
    _print_claims(said)


@app.command
def report(folder: Path = Path("etude-report"), *, ledger: LedgerOption = None) -> None:
    """Write the HTML report of everything in the ledger.

    Parameters
    ----------
    folder
        Where index.html goes.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    """
    from etude.lab.ledger import Ledger
    from etude.lab.report import write_report

    out.print(f"Report: {write_report(Ledger(ledger), folder)}", soft_wrap=True)


@app.command
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
    from etude.lab.ledger import Ledger

    if slug is not None:
        catalogue.load(slug)
    files = write(Ledger(ledger), folder, slug=slug, tier=tier, own_data=own_data)
    for path in files:
        out.print(str(path), soft_wrap=True)
    if not files:
        out.print("Nothing to export: the ledger holds no finished run. Next: etude run")


@app.command
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
    out.print(f"{new} runs imported, {known} known already")


@app.command
def bench(name: str | None = None, *, folder: Path = Path("benchmarks"), repeats: int = 5, json_: Json = False) -> None:
    """Measure ours beside the named peers and write the table RESULTS.md.

    Parameters
    ----------
    name
        Only this benchmark file.
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
    rows = []
    for stem, ratio in lab_bench.run(folder, name, repeats=repeats):
        rows.append((stem, ratio))
        err.print(f"{stem}: {ratio.name}: {ratio.ratio:.2f}x of {ratio.peer_name} {ratio.verdict}")
    path = lab_bench.save(folder, rows)
    if json_:
        return _emit([{"benchmark": stem} | r._asdict() for stem, r in rows])
    out.print(f"Table: {path}", soft_wrap=True)


@app.command
def new(slug: str, *, room: str = "layers", folder: Path | None = None) -> None:
    """Scaffold a new paper: card, method, study, test.

    Parameters
    ----------
    slug
        Lower-case words joined by hyphens.
    room
        The room of its method.
    folder
        The checkout (default: the one that etude is imported from).
    """
    from etude.lab.scaffold import scaffold

    for path in scaffold(slug, room, folder):
        out.print(str(path), soft_wrap=True)
    out.print(f"Next: fill the card in, then etude run {slug}")


@data_app.command(name="list")
def data_list(*, json_: Json = False) -> None:
    """List the data sets by name, and where each would come from.

    Parameters
    ----------
    json_
        One JSON document on standard output.
    """
    from etude.lab.paperview import print_sources, source_records

    records = source_records()
    _emit(records) if json_ else print_sources(out, records)


@data_app.command(name="fetch")
def data_fetch(name: str) -> None:
    """Fetch a data set into the cache and check it.

    Parameters
    ----------
    name
        The data set, e.g. mnist.
    """
    from etude.data.sources import fetch

    for path in fetch(name).paths.values():
        out.print(str(path), soft_wrap=True)


@data_app.command(name="verify")
def data_verify(name: str | None = None) -> int:
    """Check the files of a data set (or of all that are here) against their checksums.

    Parameters
    ----------
    name
        Only this data set.
    """
    from etude.data.sources import available, verify

    altered = False
    for each in [name] if name else [s.name for s in available()]:
        status = verify(each)
        altered |= status.state == "altered"
        if name or status.state != "missing":
            out.print(f"{each}: {status.state}")
            if status.state != "complete":
                for file, found in status.files.items():
                    out.print(f"  {file}: {found}", soft_wrap=True)
    return 3 if altered else 0


@app.command
def doctor(*, json_: Json = False) -> None:
    """Say what is installed, which extras, which data, which devices.

    Parameters
    ----------
    json_
        One JSON document on standard output.
    """
    from etude.lab.doctor import examine
    from etude.lab.paperview import print_doctor

    found = examine()
    _emit(found) if json_ else print_doctor(out, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one line, never a traceback."""
    try:
        code = app(list(sys.argv[1:] if argv is None else argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _complain(" ".join(str(error).split()), 2)
    except EtudeError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted: what is finished stays in the ledger; the same command continues it", 130)
    except BrokenPipeError:
        return 0
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int) -> int:
    err.print(f"[red]etude:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

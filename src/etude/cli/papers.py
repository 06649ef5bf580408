"""Commands about the catalogue and the installation: papers, show, new, doctor."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.markup import escape

from etude import catalogue
from etude.cli.console import Flag, Json, LedgerOption, emit, out
from etude.errors import UsageError


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
        return emit([
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


def show(
    slug: str, *, settings: Annotated[bool, Flag] = False, ledger: LedgerOption = None, json_: Json = False
) -> None:  # fmt: skip
    """Show a paper: its card, its claims with the newest verdicts, how to use the method.

    Parameters
    ----------
    slug
        The paper, e.g. pointer-networks.
    settings
        Show instead what `etude run SLUG --set name=value` can change, with the values of each tier, and which kinds
        of data `--data` takes.
    ledger
        Path or URL of the ledger (default: ETUDE_LEDGER or etude.sqlite).
    json_
        One JSON document on standard output.
    """
    from etude.lab.paperview import known_verdicts, print_paper, print_settings, study_settings

    paper = catalogue.load(slug)
    if settings:
        found = study_settings(slug)
        return emit(found) if json_ else print_settings(out, found)
    said = known_verdicts(ledger, slug)
    if json_:
        return emit(paper.model_dump(mode="json") | {"verdicts": [v.record() for v in said]})
    print_paper(out, paper, said)


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
    emit(found) if json_ else print_doctor(out, found)


def register(app: App) -> None:
    """Add the commands to the command line."""
    for command in (papers, show, new, doctor):
        app.command(command)

"""The library's face of the command line: `etude.run`, `etude.verdicts`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.judge import Verdict
from etude.lab.ledger import Ledger
from etude.lab.registry import runnable
from etude.lab.runner import Event, RunResult, raise_broken, run_studies
from etude.lab.verdicts import verdicts as ledger_verdicts


def run(
    slug: str | Sequence[str] | None = None,
    tier: str = "quick",
    *,
    seeds: int | None = None,
    data: str | Path | None = None,
    target: str | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    settings: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    on: Literal["local", "ray"] = "local",
    fresh: bool = False,
    ledger: Ledger | str | Path | None = None,
    on_event: Event | None = None,
) -> RunResult | list[RunResult]:
    """Re-test a paper's claims, as `etude run` does.

    Parameters
    ----------
    slug
        One paper (the result is one `RunResult`), several, or None for every paper that runs.
    tier
        "quick", "laptop" or "gpu".
    seeds
        Repetitions, at least 3; None takes the tier's.
    data, target
        Your own table, folder of images or documents, and the column to predict.
    on_bad
        "skip" leaves out images that cannot be read.
    settings
        Changes to the tier's configuration, by field name.
    jobs, on
        Worker processes (None: one a core) and where they run.
    fresh
        Measure again although the ledger holds a finished run of the same code and configuration.
    ledger
        A `Ledger`, a path or a URL; None takes `ETUDE_LEDGER` or ``etude.sqlite``.

    Raises
    ------
    UsageError, DataError
        For wrong arguments or data, before anything runs.
    StudyError
        If a study broke; what was measured stays in the ledger.
    """
    slugs = [slug] if isinstance(slug, str) else list(runnable() if slug is None else slug)
    if target is not None and data is None:
        raise UsageError(f"target {target!r} names a column of your data: give data as well")
    if data == "":
        raise UsageError("data is empty: give the path of your data")
    user = UserData(str(data), target, on_bad) if data is not None else None
    results = run_studies(
        slugs, tier, ledger=ledger, seeds=seeds, settings=settings, user=user, jobs=jobs, on=on, fresh=fresh,
        on_event=on_event,
    )  # fmt: skip
    raise_broken(results)
    return results[0] if isinstance(slug, str) else results


def verdicts(slug: str | None = None, *, tier: str | None = None, ledger: str | Path | None = None) -> list[Verdict]:
    """The newest verdicts that the ledger holds, of one paper or of all."""
    return ledger_verdicts(Ledger(ledger), slug, tier=tier)

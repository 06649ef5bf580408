"""The record outlives the store: every published run as one self-contained JSON file.

`results/<slug>/<tier>.json` holds the newest finished run of a tier on the study's own data; a ledger is
rebuilt from such files. Runs on a user's own data are never exported unless asked for.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from etude.catalogue.card import TIERS
from etude.errors import EtudeError, UsageError
from etude.files import write_text
from etude.lab.finite import finite
from etude.lab.ledger import Ledger
from etude.lab.study import Artifact, Measurement
from etude.lab.verdicts import in_catalogue, run_verdicts

RESULT_SCHEMA = 1


def _date(text: str) -> str:
    """A run's start as the ledger writes it: kept as text, by which runs are put in order."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None or not 2000 <= moment.year < 2200:
        raise ValueError(f"{text!r} is no moment with a time zone, written as 2026-11-23T07:00:00Z")
    return text


# Parts of a record that are read, and what they must be where they are there.
_RECORD: dict[str, type] = {"config": dict, "environment": dict, "data": list, "plots": list}


def _record(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record, as far as verdicts, report and page read it."""
    for name, kind in _RECORD.items():
        if not isinstance(record.get(name, kind()), kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(record[name]).__name__}")
    if not isinstance(record.get("environment", {}).get("packages", {}), dict):
        raise ValueError("environment.packages must be a dict")
    confirmed = record.get("confirmed") or []
    if not isinstance(confirmed, list) or not all(
        isinstance(c, dict) and {"code_digest", "date", "numbers", "jobs"} <= c.keys() for c in confirmed
    ):
        raise ValueError("every confirmation needs a code_digest, a date, numbers and jobs")
    if not all(_is_plot(p) for p in record.get("plots", [])):
        raise ValueError("every plot needs a name, a caption and a spec")
    return record


def _is_plot(plot: Any) -> bool:
    kinds = {"name": str, "caption": str, "spec": dict}
    return isinstance(plot, dict) and all(isinstance(plot.get(key), kind) for key, kind in kinds.items())


Seconds = Annotated[float, Field(ge=0, lt=1e9)]  # a lifetime at most: NaN and infinity are no durations
Seed = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # what every database holds


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    protocol: str
    arm: str
    seed: Seed
    metric: str
    value: float | Literal["nan", "inf", "-inf"]
    unit: str
    step: float | None = None


class _JobRow(BaseModel):
    protocol: str
    arm: str
    seed: Seed
    seconds: Seconds
    peak_bytes: Annotated[int, Field(ge=0, lt=2**63)]


class _ArtifactRow(BaseModel):
    protocol: str
    arm: str
    seed: Seed
    name: str
    value: Any


class ResultFile(BaseModel):
    """The exported form of a run."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int
    run: str
    slug: str
    tier: Literal["quick", "laptop", "gpu"]
    state: Literal["done", "broken", "skipped", "running"]
    started: Annotated[str, AfterValidator(_date)]
    seconds: Seconds
    key: str
    record: Annotated[dict[str, Any], AfterValidator(_record)]
    jobs: list[_JobRow]
    measurements: list[_Row]
    artifacts: list[_ArtifactRow]
    verdicts: list[dict[str, Any]] = []


def export_run(ledger: Ledger, run_id: str) -> dict[str, Any]:
    """One run as plain JSON values; measurements that JSON has no word for become "nan", "inf", "-inf".

    Elsewhere (the means of verdicts, data of plots) such a number is null.
    """
    run = ledger.run(run_id)
    rows = ledger.measurements(run_id)
    for r in rows:
        if r["value"] != r["value"] or abs(r["value"]) == float("inf"):
            r["value"] = str(r["value"])
    jobs = [{k: j[k] for k in _JobRow.model_fields} for j in ledger.jobs(run_id)]
    return {
        "schema_version": RESULT_SCHEMA, "run": run_id, "slug": run["slug"], "tier": run["tier"],
        "state": run["state"], "started": run["started"], "seconds": run["seconds"], "key": run["key"],
        "record": finite(run["record"]), "verdicts": [finite(v.record()) for v in run_verdicts(ledger, run)],
        "jobs": jobs, "measurements": rows, "artifacts": finite(ledger.artifacts(run_id)),
    }  # fmt: skip


def export(
    ledger: Ledger, folder: str | Path = "results", *, slug: str | None = None, tier: str | None = None,
    own_data: bool = False,
) -> list[Path]:  # fmt: skip
    """Write the newest finished run of every (paper, tier); returns the files written."""
    written = []
    for run in ledger.latest(slug):
        user = run["record"].get("user_data")
        if (tier not in (None, run["tier"])) or (user and not own_data) or not in_catalogue(run["slug"]):
            continue
        name = f"{run['tier']}.json" if not user else f"{run['tier']}-user-{run['id'][:8]}.json"
        path = Path(folder) / run["slug"] / name
        try:
            write_text(path, _dump(export_run(ledger, run["id"])))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}; give another folder") from error
        written.append(path)
    return written


def _dump(record: dict[str, Any]) -> str:
    """JSON with one line a row of the long lists, so that a diff of two runs can be read."""
    long = ("jobs", "measurements", "artifacts", "verdicts")
    head = json.dumps({k: v for k, v in record.items() if k not in long}, indent=1, allow_nan=False)
    parts = [head[:-2]]
    for name in long:
        lines = ",\n  ".join(json.dumps(r, separators=(",", ":"), allow_nan=False) for r in record[name])
        parts.append(f',\n "{name}": [{"" if not lines else chr(10) + "  " + lines}]')
    return "".join(parts) + "\n}\n"


def unread_hint(ledger: Ledger, folder: str | Path = "results") -> str | None:
    """What to say where the folder holds papers' runs of a tier that the ledger has none of; None where it has all."""
    here = {(run["slug"], run["tier"]) for run in ledger.latest()}
    files = {(path.parent.name, path.stem) for path in Path(folder).glob("*/*.json") if path.stem in TIERS}
    papers = {slug for slug, _ in files - here if in_catalogue(slug)}
    if not papers:
        return None
    named = f"{len(papers)} papers" if len(papers) > 1 else next(iter(papers))
    return f"{folder}/ has published runs of {named} that this ledger lacks: etude import-results adds their verdicts"


class ResultError(EtudeError):
    """A result file cannot be read."""

    exit_code = 3


def read_result(path: Path) -> ResultFile:
    """Read one exported run.

    Raises
    ------
    ResultError
        If the file is not JSON, lacks a field, or comes from a newer schema; the message names the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also an integer of too many digits, lists too deep
        raise ResultError(f"{path} is not a result file: {error}; export it again with etude export") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > RESULT_SCHEMA:
        raise ResultError(f"{path} has schema {version}, this Etude knows {RESULT_SCHEMA}: update Etude")
    try:
        result = ResultFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "top level"
        raise ResultError(f"{path} is damaged at {where}: {first['msg']}; export it again with etude export") from error
    jobs = {(j.protocol, j.seed) for j in result.jobs}
    rows: list[_Row | _ArtifactRow] = [*result.measurements, *result.artifacts]
    for row in rows:
        if (row.protocol, row.seed) not in jobs:
            raise ResultError(
                f"{path} is damaged at jobs: no job measured protocol {row.protocol!r}, seed {row.seed}, of which it "
                "has numbers; export it again with etude export"
            )
    return result


def import_results(ledger: Ledger, folder: str | Path = "results") -> tuple[int, int]:
    """Rebuild a ledger from exported files: all are read before the first is stored.

    Returns
    -------
    (new, known)
        Runs stored, and runs that the ledger held already.
    """
    root = Path(folder)
    files = sorted(root.rglob("*.json")) if root.is_dir() else [root]
    if not files or not root.exists():
        raise UsageError(f"{root} holds no result files (*.json)")
    read = [read_result(f) for f in files]
    known = {r["id"]: r["record"] for r in ledger.runs()}
    new = 0
    for result in read:
        if result.run in known:
            confirmed = result.record.get("confirmed")
            if confirmed and confirmed != known[result.run].get("confirmed"):
                ledger.update(result.run, confirmed=confirmed)
            continue
        _store(ledger, result)
        known[result.run] = result.record  # a copy of the file may lie beside it
        new += 1
    return new, len(read) - new


def _store(ledger: Ledger, result: ResultFile) -> None:
    ledger.begin(result.slug, result.tier, result.key, result.record, run_id=result.run, started=result.started)
    by_job: dict[tuple[str, int], list[Measurement | Artifact]] = {}
    for m in result.measurements:
        item = Measurement(m.arm, m.seed, m.metric, float(m.value), m.unit, m.step)
        by_job.setdefault((m.protocol, m.seed), []).append(item)
    for a in result.artifacts:
        by_job.setdefault((a.protocol, a.seed), []).append(Artifact(a.arm, a.seed, a.name, a.value))
    try:
        for j in result.jobs:  # measurements of a (protocol, seed) go in with its first job
            items = by_job.pop((j.protocol, j.seed), [])
            ledger.commit(result.run, j.protocol, j.arm, [j.seed], items, seconds=j.seconds, peak_bytes=j.peak_bytes)
        ledger.update(result.run, state=result.state, seconds=result.seconds)
    except BaseException:
        ledger.delete(result.run)
        raise

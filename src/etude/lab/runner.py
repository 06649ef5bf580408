"""Running studies: jobs out to a pool, every finished seed committed at once, verdicts at the end."""

import difflib
import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from etude.catalogue.card import TIERS
from etude.data.registry import sources
from etude.errors import EtudeError, SourceUnavailable, StudyError, UsageError
from etude.lab.digest import code_digest
from etude.lab.environment import cores, environment
from etude.lab.jobs import USER, Done, Ticket, UserData, execute, tickets
from etude.lab.judge import Verdict
from etude.lab.ledger import Ledger, canonical
from etude.lab.pools import Finished, Pool, make_pool
from etude.lab.registry import study
from etude.lab.study import Results, Study, StudyConfig
from etude.lab.verdicts import run_verdicts

Event = Callable[[str, str, int, int], None]  # what ("start", "seed", "end"), slug, done, total


@dataclass
class RunResult:
    """One study's run as the ledger holds it."""

    slug: str
    tier: str
    run_id: str
    state: str
    """done, broken, skipped, or running (interrupted)."""
    seconds: float
    """Worker time of its finished jobs."""
    verdicts: list[Verdict]
    skipped: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    reused: bool = False
    """True when the ledger held a finished run of the same code and configuration."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The JSON form: everything but the single measurements."""
        return {
            "slug": self.slug, "tier": self.tier, "run": self.run_id, "state": self.state, "seconds": self.seconds,
            "reused": self.reused, "skipped": self.skipped, "errors": self.errors,
            "verdicts": [v.record() for v in self.verdicts],
        }  # fmt: skip


@dataclass
class _Active:
    """A study while it runs."""

    the_study: Study
    tier: str
    config: StudyConfig
    run_id: str
    todo: int
    total: int
    peak_bytes: int = 0
    errors: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)


def configure(
    the_study: Study, tier: str, *, seeds: int | None = None, settings: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The tier's configuration with the user's changes.

    Raises
    ------
    UsageError
        For an unknown tier, setting or protocol, a value that does not fit, or fewer than 3 seeds.
    """
    if tier not in the_study.configs:
        raise UsageError(f"unknown tier {tier!r}: {the_study.slug} has {', '.join(the_study.configs)}")
    base = the_study.configs[tier]
    changes = dict(settings or {})
    if seeds is not None:
        if not isinstance(seeds, int):
            raise UsageError(f"seeds {seeds!r} is no whole number")
        if seeds < 3:
            raise UsageError(f"--seeds {seeds}: a verdict needs at least 3 seeds")
        if changes.get("n_seeds", seeds) != seeds:
            raise UsageError(f"--seeds {seeds} and --set n_seeds={changes['n_seeds']} contradict each other: give one")
        changes["n_seeds"] = seeds
    unknown = sorted(set(changes) - set(type(base).model_fields))
    if unknown:
        raise UsageError(f"{the_study.slug} has no setting {unknown[0]!r}; it has {', '.join(type(base).model_fields)}")
    try:
        config = type(base).model_validate(base.model_dump() | changes, strict=False)
    except ValidationError as error:
        raise UsageError(f"{the_study.slug}: {_misfit(error)}") from error
    if config.n_seeds < 3:
        raise UsageError(f"--set n_seeds={config.n_seeds}: a verdict needs at least 3 seeds")
    known = dict.fromkeys(p for c in the_study.configs.values() for p in c.protocols)
    for name in config.protocols:
        if name not in known and name not in sources():  # a study of images takes other sets of images by their names
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known)}"
            raise UsageError(f"{the_study.slug} has no protocol {name!r}; {hint}")
    return config


def _misfit(error: ValidationError) -> str:
    """The first thing that does not fit, by the setting's name; a rule over several settings names them itself."""
    first = error.errors()[0]
    text, given = first["msg"].removeprefix("Value error, "), first["input"]
    if not first["loc"]:
        return text
    where = ".".join(str(p) for p in first["loc"])
    if first["type"] == "tuple_type":
        listed = json.dumps([_word(v) for v in given.split(",")] if isinstance(given, str) else [given], default=str)
        text += f"; a list is written as JSON: --set '{where}={listed}'"
    return f"setting {where} = {given!r}: {text}"


def _word(text: str) -> Any:
    """One entry of a list as `--set` would read it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.strip()


def run_key(slug: str, tier: str, config: StudyConfig, code: str, user: UserData | None, data: str = "") -> str:
    """What must agree for a run to be resumed or reused: code, configuration, tier and data."""
    parts = [slug, tier, config.digest(), code, canonical(user.__dict__) if user else "", data]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


def check_user_data(the_study: Study, user: UserData, config: StudyConfig) -> str:
    """Load the user's data once, refuse what the study cannot make a task of, return a content digest."""
    from etude.data.user import load_user

    if not the_study.kinds:
        raise UsageError(f"{the_study.slug} takes no data of yours: its task is a generator of its own")
    data = load_user(user.path, target=user.target, on_bad=user.on_bad)
    if data.kind not in the_study.kinds:
        raise UsageError(f"{the_study.slug} takes {' or '.join(the_study.kinds)}, but {user.path} holds {data.kind}")
    try:
        the_study.user_task(data, config)
    except ValueError as error:  # too few rows or classes, say
        raise UsageError(f"{the_study.slug} cannot use {user.path}: {error}") from error
    return _content_digest(Path(user.path).expanduser())


def _content_digest(path: Path) -> str:
    """Digest of the files that are read as data; what else lies in the folder makes no run a new one."""
    from etude.data.cache import file_sha256
    from etude.data.user import IN_FOLDERS

    total = hashlib.sha256()
    inside = (p for p in path.rglob("*") if p.suffix.lower() in IN_FOLDERS)
    for file in sorted(p for p in ([path] if path.is_file() else inside) if p.is_file()):
        total.update(str(file.relative_to(path.parent)).encode())
        if os.access(file, os.R_OK):  # otherwise it was left out, or refused, when the data were loaded
            total.update(bytes.fromhex(file_sha256(file)))
    return total.hexdigest()[:16]


def run_studies(
    slugs: Sequence[str],
    tier: str = "quick",
    *,
    ledger: Ledger | str | Path | None = None,
    seeds: int | None = None,
    settings: Mapping[str, Any] | None = None,
    user: UserData | None = None,
    jobs: int | None = None,
    on: str = "local",
    device: str | None = None,
    fresh: bool = False,
    on_event: Event | None = None,
) -> list[RunResult]:
    """Run studies at a tier; one queue of single-threaded jobs over all of them.

    A finished run of the same code, configuration and data is reused, unless a set that it lacked can be had now;
    an interrupted one is continued, and `fresh` measures again. An exception in a job breaks its study, not the others.

    Raises
    ------
    UsageError
        For a wrong slug, tier, setting or data kind, before anything runs.
    """
    if tier not in TIERS:
        raise UsageError(f"unknown tier {tier!r}: choose one of {', '.join(TIERS)}")
    if on not in ("local", "ray"):
        raise UsageError(f"--on {on!r}: choose local or ray")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: need at least 1")
    store = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    device = device or _device(tier)
    workers = jobs or cores()
    tell = on_event or (lambda *_: None)
    results: dict[str, RunResult] = {}
    active: dict[str, _Active] = {}
    queue: list[Ticket] = []
    asked: list[tuple[Study, StudyConfig, str]] = []
    for slug in dict.fromkeys(slugs):  # all are checked before the first one's run is opened
        found = study(slug)
        config = configure(found, tier, seeds=seeds, settings=settings)
        asked.append((found, config, check_user_data(found, user, config) if user else ""))
    for found, config, data in asked:
        slug = found.slug
        code = code_digest(slug, tier)
        key = run_key(slug, tier, config, code, user, data)
        old = None if fresh else store.find(key)
        if old and old["state"] == "done" and not _can_be_had(found, config, old["record"].get("skipped") or {}):
            results[slug] = _result(store, old["id"], reused=True)
            continue
        done = store.finished(old["id"]) if old else set()
        command = _command(slug, tier, seeds, settings, user)
        if old:
            run_id = old["id"]
            store.update(run_id, state="running", environment=environment(device, workers), error=None)
        else:
            record: dict[str, Any] = {
                "config": config.model_dump(mode="json"), "config_digest": config.digest(), "code_digest": code,
                "environment": environment(device, workers), "data": [], "command": command, "plots": [],
                "user_data": {**user.__dict__, "digest": data} if user else None,
            }  # fmt: skip
            run_id = store.begin(slug, tier, key, record)
        todo = tickets(found, config, tier, device=device, workers=workers, done=done, user=user)
        total = sum(len(t.seeds) for t in tickets(found, config, tier, user=user))
        left = sum(len(t.seeds) for t in todo)
        active[slug] = _Active(found, tier, config, run_id, left, total)
        queue += todo
        tell("start", slug, total - left, total)
        if not todo:
            results[slug] = _finish(store, active.pop(slug), tell)
    if queue:
        _drain(store, make_pool(workers, on, device), queue, active, results, tell)
    return [results[s] for s in dict.fromkeys(slugs)]


def run_study(slug: str, tier: str = "quick", **options: Any) -> RunResult:
    """`run_studies` for one study."""
    return run_studies([slug], tier, **options)[0]


def _can_be_had(the_study: Study, config: StudyConfig, skipped: Iterable[str]) -> bool:
    """Whether the data of a protocol that a finished run skipped are there now."""
    for protocol in skipped:
        try:
            the_study.task(protocol, config)
        except SourceUnavailable:
            continue
        except Exception:  # whatever else is wrong, its job says
            return True
        return True
    return False


def _device(tier: str) -> str:
    if tier != "gpu":
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        raise UsageError("tier gpu needs a CUDA device, and torch finds none; use --tier laptop")
    return "cuda"


def _drain(
    store: Ledger,
    pool: Pool,
    queue: list[Ticket],
    active: dict[str, _Active],
    results: dict[str, RunResult],
    tell: Event,
) -> None:
    try:
        for ticket in queue:
            pool.submit(execute, ticket, key=ticket)
        for outcome in pool.as_completed():
            ticket = outcome.key
            state = active[ticket.slug]
            _take(store, state, ticket, outcome)
            state.todo -= len(ticket.seeds)
            tell("seed", ticket.slug, state.total - state.todo, state.total)
            if state.todo == 0:
                results[ticket.slug] = _finish(store, active.pop(ticket.slug), tell)
    finally:
        pool.close()
        for state in active.values():  # interrupted: the ledger keeps what is finished
            store.update(state.run_id, seconds=_spent(store, state.run_id))


def _take(store: Ledger, state: _Active, ticket: Ticket, outcome: Finished) -> None:
    state.peak_bytes = max(state.peak_bytes, outcome.peak_bytes)
    if isinstance(outcome.error, SourceUnavailable):
        state.skipped[ticket.protocol] = str(outcome.error)
        return
    if outcome.error is not None or not isinstance(outcome.value, Done):
        seeds = ",".join(map(str, ticket.seeds))
        kind = "" if isinstance(outcome.error, EtudeError) else f"{type(outcome.error).__name__}: "
        state.errors.append(f"{ticket.protocol}/{ticket.arm}/seed {seeds}: {kind}{outcome.error}")
        return
    for entry in outcome.value.provenance:
        state.provenance[canonical(entry)] = entry
    store.commit(
        state.run_id, ticket.protocol, ticket.arm, ticket.seeds, outcome.value.items,
        seconds=outcome.seconds, peak_bytes=outcome.peak_bytes,
    )  # fmt: skip
    plans = Counter(store.run(state.run_id)["record"].get("plans")) + Counter(outcome.value.plans)
    store.update(state.run_id, plans=dict(plans))  # at once: a run that is killed must not lose them


def _finish(store: Ledger, state: _Active, tell: Event) -> RunResult:
    rows = store.measurements(state.run_id)
    plots: list[dict[str, Any]] = []
    if rows and not state.errors:
        try:
            drawn = state.the_study.plots(Results(rows, store.artifacts(state.run_id)))
            plots = [p._asdict() for p in drawn]
        except Exception as error:  # a plot that cannot be drawn must not lose the measurements
            state.errors.append(f"plots: {type(error).__name__}: {error}")
    word = "broken" if state.errors else "done" if rows else "skipped"
    record = store.run(state.run_id)["record"]
    old = {canonical(e): e for e in record.get("data", [])}
    store.update(
        state.run_id, state=word, seconds=_spent(store, state.run_id), plots=plots,
        data=list((old | state.provenance).values()), skipped=state.skipped, error=state.errors or None,
        peak_bytes=max(state.peak_bytes, max((j["peak_bytes"] for j in store.jobs(state.run_id)), default=0)),
    )  # fmt: skip
    tell("end", state.the_study.slug, state.total, state.total)
    return _result(store, state.run_id)


def _spent(store: Ledger, run_id: str) -> float:
    """Worker time of all finished jobs, before an interruption and after it."""
    return float(sum(j["seconds"] for j in store.jobs(run_id)))


def _result(store: Ledger, run_id: str, reused: bool = False) -> RunResult:
    run = store.run(run_id)
    record = run["record"]
    return RunResult(
        run["slug"], run["tier"], run_id, run["state"], run["seconds"], run_verdicts(store, run),
        dict(record.get("skipped") or {}), list(record.get("error") or []), reused, store.measurements(run_id),
    )  # fmt: skip


def _command(slug: str, tier: str, seeds: int | None, settings: Mapping[str, Any] | None, user: UserData | None) -> str:
    parts = ["etude", "run", slug, "--tier", tier]
    parts += ["--seeds", str(seeds)] if seeds is not None else []
    for name, value in (settings or {}).items():
        parts += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    if user:
        parts += ["--data", user.path] + (["--target", user.target] if user.target else [])
        parts += ["--skip-bad"] if user.on_bad == "skip" else []
    return shlex.join(parts)


def raise_broken(results: Sequence[RunResult]) -> None:
    """Raise `StudyError` with the first error of every broken study."""
    broken = [f"{r.slug}: {r.errors[0]}" for r in results if r.state == "broken"]
    if broken:
        raise StudyError("; ".join(broken))


__all__ = ["USER", "RunResult", "UserData", "configure", "raise_broken", "run_studies", "run_study"]

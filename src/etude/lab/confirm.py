"""Confirming a run: the code behind it has moved, and some of its jobs, measured again, give the very same numbers.

A digest cannot tell a mended error message from another formula. Measuring every seed again settles it at full price;
one seed of every arm and protocol settles nearly as much for a fraction. The run keeps its numbers and its own digest,
and its record says which later code was held against it, on which seeds, and how many numbers were equal. On another
processor, where not even the run's own code gives its numbers again, the earlier code is measured beside the present.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etude.errors import SourceUnavailable, StudyError, UsageError
from etude.lab.beside import measure_beside
from etude.lab.digest import code_digest, is_stale
from etude.lab.environment import cores, environment, instructions, processor
from etude.lab.jobs import Done, Ticket, execute, tickets
from etude.lab.ledger import Ledger, now
from etude.lab.pools import make_pool
from etude.lab.registry import study
from etude.lab.runner import Event
from etude.lab.study import Measurement

CLOCK = ("ms", "s", "speed_ratio")  # units and metrics of what a clock has measured: no two runs agree on these
Key = tuple[str, str, int, str, float | None]  # protocol, arm, seed, metric, step


@dataclass
class Confirmation:
    """What measuring a part of a run again has shown."""

    slug: str
    tier: str
    run_id: str
    code: str
    """The digest of the present code."""
    seeds: tuple[int, ...]
    jobs: int = 0
    within: float = 0.0
    """Largest relative difference that still counts as the same; 0: to the last bit."""
    equal: int = 0
    """Numbers that came out the same."""
    largest: float = 0.0
    """Largest relative difference among them."""
    differ: list[str] = field(default_factory=list)
    """What did not: a line each."""
    instructions: tuple[str | None, str] = (None, "")
    """The vector instructions of the run, where its record has them, and of this machine."""
    machines: tuple[str | None, str] = (None, "")
    """The processor of the run and this one."""
    beside: str | None = None
    """The digest of the earlier code whose numbers on this machine were compared; None: the run's own were."""

    @property
    def holds(self) -> bool:
        return self.equal > 0 and not self.differ

    def sentence(self) -> str:
        """For the terminal."""
        name = f"{self.slug}, {self.tier}"
        if self.holds:
            how = f"all within {self.largest:.1g}" if self.largest else "all equal"
            to = " to those of the earlier code on this machine" if self.beside else ""
            return f"{name}: {self.equal} numbers of {self.jobs} jobs measured again, {how}{to}: confirmed"
        if not self.differ:
            return f"{name}: nothing was measured again"
        theirs, ours = self.instructions
        other = theirs not in (None, ours) or self.machines[0] not in (None, self.machines[1])
        rounding = (
            f". The run computed on {self.machines[0] or 'a machine'} with {theirs or 'unknown'} instructions "
            f"and this is {self.machines[1]} with {ours}, which rounds otherwise: "
            '"Another processor" in docs/verdicts.md says how to compare like with like (--beside)'
        )
        return (
            f"{name}: {len(self.differ)} of {self.equal + len(self.differ)} numbers differ ({self.differ[0]}): "
            f"measure again with etude run {self.slug} --tier {self.tier}"
            f"{rounding if other and not self.beside else ''}"
        )

    def record(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"holds": self.holds}


def confirm(
    slug: str,
    tier: str = "laptop",
    *,
    ledger: Ledger,
    seeds: int = 1,
    within: float = 0.0,
    jobs: int | None = None,
    beside: str | Path | None = None,
    on_event: Event | None = None,
) -> Confirmation:
    """Measure the first `seeds` seeds of every arm and protocol of the newest run again and compare each number.

    Arms that train many seeds in one call take all of theirs, as the run did. If every number is equal, or `within` a
    relative difference (where arithmetic changed in its last digits), the run's record gets the confirmation and the
    largest difference; otherwise the run stays as it is.

    Where this machine rounds otherwise than the run's, no code gives the run's numbers again. `beside` is then a
    checkout of code that the run stands for: both are measured here, and their numbers compared with each other.

    Raises
    ------
    UsageError
        If there is no finished run of the tier, its configuration no longer fits the study, or the run does not stand
        for the code of `beside`.
    StudyError
        If a job breaks.
    """
    the_study = study(slug)
    runs = [r for r in ledger.latest(slug) if r["tier"] == tier and not r["record"].get("user_data")]
    if not runs:
        raise UsageError(f"the ledger has no finished {tier} run of {slug}: etude run {slug} --tier {tier}")
    run, record = runs[0], runs[0]["record"]
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: need at least 1")
    if not 0 <= within < 0.01:
        raise UsageError(f"--within {within}: a relative difference from 0 to below 0.01")
    try:
        config = type(the_study.configs[tier]).model_validate(record["config"])
    except ValueError as error:
        again = f"etude run {slug} --tier {tier} --fresh"
        raise UsageError(f"{slug} has other settings than the run of {run['started']}: {again}") from error
    few = config.seeds[:seeds]
    device = record["environment"].get("device", "cpu")
    shared = record["environment"].get("workers") or 1
    todo = [
        t for t in tickets(the_study, config, tier, device=device, workers=shared)
        if len(t.seeds) > 1 or t.seeds[0] in few
    ]  # fmt: skip
    found = Confirmation(slug, tier, run["id"], code_digest(slug, tier), tuple(few), len(todo), within)
    found.instructions = _instructions_of(record), instructions()
    found.machines = record["environment"].get("machine"), processor()
    before = {_key(r): r["value"] for r in ledger.measurements(run["id"]) if not {r["unit"], r["metric"]} & {*CLOCK}}
    if beside is not None:
        earlier = measure_beside(
            beside, slug, tier, record["config"], few, workers=jobs or cores(), shared=shared, device=device,
            clock=CLOCK,
        )  # fmt: skip
        if is_stale(record, earlier.code):
            raise UsageError(
                f"--beside {beside}: the run of {run['started']} does not stand for that code ({earlier.code}); "
                f"give a checkout of the commit that made or confirmed it"
            )
        found.beside, before = earlier.code, earlier.numbers
    _measure(todo, found, before, jobs or cores(), device, on_event or (lambda *_: None))
    if found.holds:
        entry = {
            "code_digest": found.code, "date": now(), "seeds": list(found.seeds), "jobs": found.jobs,
            "numbers": found.equal, "largest": found.largest, "environment": environment(device, jobs or cores()),
        }  # fmt: skip
        if found.beside:
            entry["beside"] = found.beside
        kept = [c for c in record.get("confirmed") or () if c["code_digest"] != found.code]
        ledger.update(run["id"], confirmed=[*kept, entry])
    return found


def _instructions_of(record: Mapping[str, Any]) -> str | None:
    """Of the run, or where it was made before they were recorded, those that gave its very numbers again."""
    again = [c for c in record.get("confirmed") or () if c.get("largest") == 0 and not c.get("beside")]
    equal = [c.get("environment") or {} for c in again]
    known = [e["instructions"] for e in (record["environment"], *equal) if e.get("instructions")]
    return known[0] if known else None


def _measure(
    todo: list[Ticket], found: Confirmation, before: dict[Key, float], workers: int, device: str, tell: Event
) -> None:
    pool = make_pool(workers, "local", device)
    done, total, after, measured = 0, len(todo), dict[Key, float](), list[Ticket]()
    tell("start", found.slug, 0, total)
    try:
        for ticket in todo:
            pool.submit(execute, ticket, key=ticket)
        for outcome in pool.as_completed():
            protocol = outcome.key.protocol
            if isinstance(outcome.error, SourceUnavailable) and not any(k[0] == protocol for k in before):
                continue  # it could not be had then either
            if outcome.error is not None or not isinstance(outcome.value, Done):
                arm = f"{protocol}/{outcome.key.arm}"
                raise StudyError(f"{found.slug}: {arm} broke while it was measured again: {outcome.error}")
            for item in outcome.value.items:
                if isinstance(item, Measurement) and not {item.unit, item.metric} & {*CLOCK}:
                    after[protocol, item.arm, item.seed, item.metric, item.step] = float(item.value)
            measured.append(outcome.key)
            done += 1
            tell("seed", found.slug, done, total)
    finally:
        pool.close()
    _compare(found, before, after, measured)
    tell("end", found.slug, total, total)


def _compare(found: Confirmation, before: Mapping[Key, float], after: Mapping[Key, float], todo: list[Ticket]) -> None:
    """Every number that was measured again against the run's, and the run's that did not come again."""
    told = {key[:3] for key in after} | {(t.protocol, t.arm, seed) for t in todo for seed in t.seeds}
    for key in sorted(after.keys() | {k for k in before if k[:3] in told}, key=str):
        old, new = before.get(key), after.get(key)
        gap = math.inf if old is None or new is None else _difference(old, new)
        if gap <= found.within:
            found.equal += 1
            found.largest = max(found.largest, gap)
        else:
            protocol, arm, seed, metric, step = key
            where = f"{protocol}/{arm}, seed {seed}, {metric}" + ("" if step is None else f" at {step:g}")
            found.differ.append(f"{where}: {old} in the run, {new} now")


def _difference(a: float, b: float) -> float:
    """Relative; 0 for equal numbers and for two NaN, infinite where only one is a number."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b) / max(abs(a), abs(b))
    return gap if math.isfinite(gap) else math.inf


def _key(row: Mapping[str, Any]) -> Key:
    return row["protocol"], row["arm"], row["seed"], row["metric"], row["step"]


__all__ = ["Confirmation", "confirm"]

"""An earlier checkout's numbers on this machine: what a run is confirmed by where the machine rounds otherwise.

Run as a file, with the other checkout's sources first on the path, so that everything imported here is that checkout's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Earlier(NamedTuple):
    """What another checkout measured here."""

    code: str
    """Digest of its code, as it works it out itself."""
    numbers: dict[tuple[str, str, int, str, float | None], float]
    """By protocol, arm, seed, metric and step; without what a clock has measured."""


def measure_beside(
    checkout: str | Path, slug: str, tier: str, config: Mapping[str, Any], seeds: Sequence[int], *, workers: int,
    shared: int, device: str, clock: Sequence[str],
) -> Earlier:  # fmt: skip
    """Measure the jobs of `seeds` with the code of a checkout, in processes of its own.

    Raises
    ------
    UsageError
        If the folder is no checkout of Etude.
    StudyError
        If a job breaks there.
    """
    from etude.errors import StudyError, UsageError

    sources = Path(checkout).expanduser().resolve() / "src"
    if not (sources / "etude" / "lab").is_dir():
        raise UsageError(f"--beside {checkout} is no checkout of Etude: git worktree add FOLDER COMMIT makes one")
    asked = {
        "slug": slug, "tier": tier, "config": dict(config), "seeds": list(seeds), "workers": workers, "shared": shared,
        "device": device, "clock": list(clock),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        order, answer = Path(folder, "order.json"), Path(folder, "answer.json")
        order.write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-P", __file__, str(order), str(answer)]  # -P: this folder has a queue.py
        done = subprocess.run(
            command, env=os.environ | {"PYTHONPATH": str(sources)}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not answer.is_file():
            last = (done.stderr.strip() or "no answer").splitlines()[-1]
            raise StudyError(f"{slug} could not be measured with the code of {checkout}: {last}")
        said = json.loads(answer.read_text(encoding="utf-8"))
    numbers = {(p, arm, int(seed), metric, step): float(value) for p, arm, seed, metric, step, value in said["numbers"]}
    return Earlier(said["code"], numbers)


def _measure(order: Mapping[str, Any]) -> dict[str, Any]:
    from etude.errors import SourceUnavailable
    from etude.lab.digest import code_digest
    from etude.lab.jobs import execute, tickets
    from etude.lab.pools import make_pool
    from etude.lab.registry import study
    from etude.lab.study import Measurement

    the_study, device, clock = study(order["slug"]), order["device"], set(order["clock"])
    known = type(the_study.configs[order["tier"]]).model_fields
    config = type(the_study.configs[order["tier"]]).model_validate(
        {name: value for name, value in order["config"].items() if name in known}
    )
    pool = make_pool(order["workers"], "local", device)
    rows = []
    try:
        for ticket in tickets(the_study, config, order["tier"], device=device, workers=order["shared"]):
            if len(ticket.seeds) > 1 or ticket.seeds[0] in order["seeds"]:
                pool.submit(execute, ticket, key=ticket)
        for outcome in pool.as_completed():
            if isinstance(outcome.error, SourceUnavailable):
                continue
            if outcome.error is not None:
                raise SystemExit(f"{outcome.key.protocol}/{outcome.key.arm} broke: {outcome.error}")
            for item in outcome.value.items:
                if isinstance(item, Measurement) and not {item.unit, item.metric} & clock:
                    key = [outcome.key.protocol, item.arm, item.seed, item.metric, item.step]
                    rows.append([*key, repr(float(item.value))])
    finally:
        pool.close()
    return {"code": code_digest(order["slug"], order["tier"]), "numbers": rows}


if __name__ == "__main__":
    given, to = map(Path, sys.argv[1:])
    to.write_text(json.dumps(_measure(json.loads(given.read_text(encoding="utf-8")))), encoding="utf-8")

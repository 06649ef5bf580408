"""What the ledger's newest runs say now, for the page's tables and badges; the log beside it is their history."""

import threading
from datetime import datetime
from typing import Any

from etude.lab.judge import Verdict
from etude.lab.ledger import Ledger
from etude.lab.verdicts import newest_runs, plain_record, run_verdicts


class CurrentVerdicts:
    """The newest finished run of every paper and tier, judged. A run is judged once a process; another thread's
    question waits for the answer rather than judging beside it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._done: frozenset[str] | None = None
        self._judged: dict[str, list[Verdict]] = {}
        self._newest: list[Verdict] = []
        self._by_slug: dict[str, list[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def verdicts(self) -> list[Verdict]:
        """Of all runs, a reader's own data among them."""
        self._read()
        return self._newest

    def by_slug(self) -> dict[str, list[dict[str, Any]]]:
        """Records by slug, largest tier first; `at` is when the run ended, in seconds since 1970.

        Without those of a reader's own data, which are nobody else's business.
        """
        self._read()
        return self._by_slug

    def _read(self) -> None:
        done = frozenset(run for run, state in self.ledger.states() if state == "done")
        if done == self._done:
            return
        with self._lock:
            if done != self._done:
                self._judge()
                self._done = done

    def _judge(self) -> None:
        runs = newest_runs(self.ledger)
        judged = {r["id"]: self._judged.get(r["id"]) or run_verdicts(self.ledger, r) for r in runs}
        by_slug: dict[str, list[dict[str, Any]]] = {}
        for r in runs:
            ended = int(datetime.fromisoformat(r["started"]).timestamp() + (r["seconds"] or 0))
            for v in judged[r["id"]]:
                if v.protocol != "user":
                    record = plain_record(v) | {"at": ended, "run": r["id"]}
                    by_slug.setdefault(r["slug"], []).append(record)
        self._judged, self._by_slug = judged, by_slug
        self._newest = [v for r in runs for v in judged[r["id"]]]

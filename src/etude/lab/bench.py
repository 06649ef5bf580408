"""Ours against a named peer: in turn, in one process tree, same data and threads, ratio with its spread.

A file `benchmarks/<name>.py` defines ``cases() -> list[Case | Figure]``; `etude bench` runs it and writes the table.
A `Figure` has no peer: a number of ours (a time, a share, a rate) with the bound that it must keep.
"""

import atexit
import functools
import importlib.util
import json
import math
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from etude.errors import UsageError
from etude.files import write_text
from etude.lab.environment import cores, processor, versions


@dataclass(frozen=True)
class Case:
    """One comparison. `same` tells whether both results are equal to the tolerance that the file states;
    `target` is the ratio peer / ours to reach (an overhead of at most 10 % is a target of 0.91)."""

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    same: Callable[[Any, Any], bool] | None = None
    target: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A number to reach. `measure` returns it once; it is called `repeats` times and the median is judged.

    `at_most` tells whether `target` is an upper bound (seconds, bytes) or a lower one (a rate, a recall); None is a
    number that is only shown. `once` is for what costs too much to repeat, or comes out the same every time.
    """

    name: str
    measure: Callable[[], float]
    unit: str
    target: float | None = None
    at_most: bool = True
    once: bool = False
    note: str = ""


@functools.cache
def scratch_folder() -> Path:
    """A folder for the benchmarks of this process; removed when Python ends."""
    made = Path(tempfile.mkdtemp(prefix="etude-bench-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


class Reading(NamedTuple):
    """What a figure came to: median, lowest and highest over the repeats."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    repeats: int
    target: float | None
    at_most: bool
    note: str

    @property
    def verdict(self) -> str:
        """ "reached" or "missed" by the median."""
        if self.target is None:
            return ""
        return "reached" if (self.value <= self.target if self.at_most else self.value >= self.target) else "missed"

    def __str__(self) -> str:
        return f"{self.name}: {self.value:.4g} {self.unit} {self.verdict}".rstrip()


class Ratio(NamedTuple):
    """Times of both sides in seconds, and the ratio peer / ours over the alternations."""

    name: str
    peer_name: str
    ours_s: float
    peer_s: float
    ratio: float
    low: float
    high: float
    repeats: int
    equal: bool | None
    target: float | None
    note: str

    @property
    def verdict(self) -> str:
        """ "reached", "missed" or "open" (the spread covers the target)."""
        if self.target is None:
            return ""
        low, high = (self.low, self.high)
        return "reached" if low >= self.target else "missed" if high < self.target else "open"

    def __str__(self) -> str:
        return f"{self.name}: {self.ratio:.2f}x of {self.peer_name} {self.verdict}".rstrip()


def compare(
    ours: Callable[[], Any], peer: Callable[[], Any], *, repeats: int = 5, min_seconds: float = 0.1
) -> tuple[list[float], list[float], Any, Any]:
    """Time both in turn after one warm-up each; a call shorter than `min_seconds` is repeated inside a turn.

    Returns the times a call of both sides, and both last results.
    """
    if repeats < 5:
        raise ValueError(f"a spread needs at least 5 alternations, got {repeats}")
    results = []
    inner = []
    for call in (ours, peer):
        call()
        start = time.perf_counter()
        results.append(call())
        inner.append(max(1, round(min_seconds / max(1e-9, time.perf_counter() - start))))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            call = (ours, peer)[side]
            start = time.perf_counter()
            for _ in range(inner[side]):
                call()
            times[side].append((time.perf_counter() - start) / inner[side])
    return times[0], times[1], results[0], results[1]


def measure(case: Case, *, repeats: int = 5) -> Ratio:
    """Run one case: medians, and the ratio's lowest and highest over the alternations."""
    a, b, mine, theirs = compare(case.ours, case.peer, repeats=repeats)
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    equal = None if case.same is None else bool(case.same(mine, theirs))
    return Ratio(
        case.name, case.peer_name, statistics.median(a), statistics.median(b), statistics.median(ratios), min(ratios),
        max(ratios), repeats, equal, case.target, case.note,
    )  # fmt: skip


def read_off(figure: Figure, *, repeats: int = 5) -> Reading:
    """Measure one figure `repeats` times (a `once` figure a single time).

    Raises
    ------
    ValueError
        If it comes out as something that is not a finite number.
    """
    values = [float(figure.measure()) for _ in range(1 if figure.once else repeats)]
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{figure.name}: measured {values}, which is no number to judge")
    return Reading(
        figure.name, figure.unit, statistics.median(values), min(values), max(values), len(values), figure.target,
        figure.at_most, figure.note,
    )  # fmt: skip


def find(folder: str | Path = "benchmarks", name: str | None = None) -> list[Path]:
    """The benchmark files, or the one called `name` (hyphens and underscores are the same).

    Raises
    ------
    UsageError
        If the folder or the benchmark does not exist (the message lists what there is).
    """
    root = Path(folder)
    files = sorted(p for p in root.glob("*.py") if not p.name.startswith("_")) if root.is_dir() else []
    if not files:
        raise UsageError(f"no benchmarks in {root}: run this in a checkout of Etude, or give --folder")
    if name is None:
        return files
    chosen = [p for p in files if p.stem == name.replace("-", "_")]
    if not chosen:
        raise UsageError(f"unknown benchmark {name!r}; there are {', '.join(p.stem for p in files)}")
    return chosen


def load_cases(path: Path) -> list[Case | Figure]:
    """The cases of one benchmark file (peers that are not installed are left out by the file itself)."""
    spec = importlib.util.spec_from_file_location(f"etude_benchmark_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "cases"):
        raise UsageError(f"{path} defines no cases()")
    return list(module.cases())


Row = tuple[str, Ratio | Reading]


def run(folder: str | Path = "benchmarks", name: str | None = None, *, repeats: int = 5) -> Iterator[Row]:
    """Measure every case and figure, yielding (file stem, result) as they come."""
    for path in find(folder, name):
        for case in load_cases(path):
            read = read_off(case, repeats=repeats) if isinstance(case, Figure) else measure(case, repeats=repeats)
            yield path.stem, read


STORE = "results.json"


def _stored(record: dict[str, Any]) -> Ratio | Reading:
    return Reading(**record) if "unit" in record else Ratio(**record)


def save(folder: str | Path, rows: list[Row]) -> Path:
    """Merge new results into `results.json` (a benchmark's old rows go) and write the table RESULTS.md anew."""
    root = Path(folder)
    store = root / STORE
    old = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else []
    fresh = {stem for stem, _ in rows}
    kept = [(stem, _stored(r)) for stem, r in old if stem not in fresh]
    merged: list[Row] = sorted(kept + rows, key=lambda row: row[0])
    write_text(store, json.dumps([(s, r._asdict()) for s, r in merged], indent=1) + "\n")
    target = root / "RESULTS.md"
    write_text(target, table(merged))
    return target


PEERS = ("vector-quantize-pytorch", "gensim", "faiss-cpu", "transformers", "ray")


def table(rows: list[Row]) -> str:
    """The committed tables, in Markdown: ratios, then figures where there are any."""
    packages = ", ".join(f"{k} {v}" for k, v in (versions() | versions(PEERS)).items())
    lines = [
        "# Ours beside the named peers",
        "",
        "Generated by `etude bench`; do not edit. Both sides run in turn in one process tree after a warm-up; times",
        "are medians a call, the ratio is peer / ours (above 1: ours is faster) with its lowest and highest.",
        "",
        f"Machine: {processor()}, {cores()} cores; Python {platform.python_version()}; {packages}.",
        "",
        "| benchmark | case | peer | ours | peer's | ratio | spread | turns | same result | target | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    figures = []
    for stem, r in rows:
        if isinstance(r, Reading):
            figures.append((stem, r))
            continue
        equal = {None: "not compared", True: "yes", False: "**no**"}[r.equal]
        target = "" if r.target is None else f"{r.target:g}x"
        name = f"{r.name} ({r.note})" if r.note else r.name
        lines.append(
            f"| {stem} | {name} | {r.peer_name} | {_seconds(r.ours_s)} | {_seconds(r.peer_s)} | {r.ratio:.2f}x "
            f"| {r.low:.2f}-{r.high:.2f} | {r.repeats} | {equal} | {target} | {r.verdict} |"
        )
    if figures:
        lines += ["", "## Figures to reach", "", "Medians with lowest and highest over the repeats.", ""]
        lines += ["| benchmark | figure | measured | spread | repeats | target | |", "|---|---|---|---|---|---|---|"]
    for stem, f in figures:
        target = "" if f.target is None else f"{'<=' if f.at_most else '>='} {f.target:g} {f.unit}"
        name = f"{f.name} ({f.note})" if f.note else f.name
        lines.append(
            f"| {stem} | {name} | {f.value:.4g} {f.unit} | {f.low:.4g}-{f.high:.4g} | {f.repeats} | {target} "
            f"| {f.verdict} |"
        )
    return "\n".join(lines) + "\n"


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"

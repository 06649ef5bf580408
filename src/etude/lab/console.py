"""What the terminal shows: progress while studies run, and the table of claims."""

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from etude.lab.judge import Verdict

SMALL = "smaller than the claim's tier"
STYLE = {"holds": "bold green", "fails": "bold red", "inconclusive": "yellow", None: "magenta"}


class StudyProgress(AbstractContextManager["StudyProgress"]):
    """One bar a study on standard error; without a terminal, one line when a study starts and ends."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bars: dict[str, Any] = {}
        self._began: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("seeds x arms"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console, disable=quiet or not self._console.is_terminal, expand=True,
        )  # fmt: skip
        self._plain = not quiet and not self._console.is_terminal

    def __enter__(self) -> "StudyProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, what: str, slug: str, done: int, total: int) -> None:
        if what == "start":
            self._began[slug] = time.perf_counter()
            self._bars[slug] = self._progress.add_task(slug, total=total, completed=done)
            if self._plain:
                resumed = f", {done} done already" if done else ""
                self._console.print(f"{slug}: {total} jobs{resumed}", highlight=False)
        elif slug in self._bars:
            self._progress.update(self._bars[slug], completed=done, total=total)
            if what == "end" and self._plain:
                seconds = time.perf_counter() - self._began[slug]
                self._console.print(f"{slug}: finished after {seconds:.0f} s", highlight=False)


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table without frames: a rule below the header, nothing else."""
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        plain = name in ("paper", "claim", "verdict", "data", "data set")
        table.add_column(name, overflow="fold", no_wrap=plain, justify="right" if name in ("n", "size") else "left")
    return table


def number(value: float | None, signed: bool = False) -> str:
    """Three significant digits, no needless zeros."""
    if value is None:
        return "-"
    text = f"{value:+.3g}" if signed else f"{value:.3g}"
    return text


def interval(v: Verdict) -> str:
    """Effect with its interval, e.g. ``+1.26 [0.99, 1.53] points``."""
    if v.effect is None:
        return "-"
    unit = "" if v.unit == "1" else f" {v.unit}"
    return f"{number(v.effect, True)} [{number(v.low)}, {number(v.high)}]{unit}"


def rule(v: Verdict) -> str:
    """The relation and margin, e.g. ``> 0.5``."""
    if v.margin is None or v.relation is None:
        return "-"
    return {"greater": f"> {v.margin:g}", "less": f"< {v.margin:g}", "within": f"within ±{v.margin:g}"}[v.relation]


def claims_table(verdicts: Sequence[Verdict], title: str | None = None) -> Table:
    """The table that a run ends with."""
    table = plain_table(
        "paper", "claim", "data", "tier", "verdict", "effect [interval]", "must be", "paper says", "n", "notes",
        title=title,
    )  # fmt: skip
    last = None
    for v in verdicts:
        word = Text(v.verdict or "no verdict", style=STYLE[v.verdict])
        says = v.paper_value if isinstance(v.paper_value, str) else number(v.paper_value)
        table.add_row(
            v.slug if v.slug != last else "", v.claim, v.protocol, v.tier, word, interval(v), rule(v), says, str(v.n),
            "; ".join(n for n in v.notes if not n.startswith(SMALL)),
        )  # fmt: skip
        last = v.slug
    return table


def below_tier(verdicts: Iterable[Verdict]) -> str:
    """The line below a table that holds verdicts of a tier smaller than their claims ask for; empty without any."""
    below = sum(any(n.startswith(SMALL) for n in v.notes) for v in verdicts)
    if not below:
        return ""
    return f"{below} of these are at a tier smaller than the claim asks for: they show the direction, no more."


def count(verdicts: Iterable[Verdict]) -> str:
    """One line that sums the words up."""
    words = [v.verdict or "without verdict" for v in verdicts]
    order = ("holds", "fails", "inconclusive", "without verdict")
    return f"{len(words)} claims: " + ", ".join(f"{words.count(w)} {w}" for w in order if w in words)

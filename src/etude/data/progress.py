"""Progress of anything that may take longer than two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")
DELAY_SECONDS = 2.0


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`; after two seconds show `what`, a bar and the time to go on the terminal.

    Nothing is shown without a terminal. The bar goes away when the loop ends, breaks or raises.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    quiet = not sys.stderr.isatty()
    start, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is not None:
                bar.update(task, completed=done)
            elif not quiet and time.monotonic() - start > DELAY_SECONDS:
                bar = _bar()
                task = bar.add_task(what, total=total, completed=done)
                bar.start()
            yield item
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)

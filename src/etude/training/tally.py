"""A count of the plans under which seeds were trained, for whoever keeps the record."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_counts: ContextVar[Counter[str] | None] = ContextVar("plans", default=None)


@contextmanager
def counted_plans() -> Iterator[Counter[str]]:
    """How many seeds were trained under each plan while the block ran, as `train` decided."""
    counts: Counter[str] = Counter()
    token = _counts.set(counts)
    try:
        yield counts
    finally:
        _counts.reset(token)


def tally(plan: str, seeds: int) -> None:
    """Count seeds of a plan, if anybody asked for it."""
    counts = _counts.get()
    if counts is not None:
        counts[plan] += seeds

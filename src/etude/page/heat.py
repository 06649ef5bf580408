"""Trending: an exponentially decayed sum of events, kept as a logarithm so that its order never needs recomputing.

With half-life h and events (w_i, t_i) the score is ``S(t) = sum_i w_i 2^{-(t - t_i)/h}``. All papers decay at the same
rate, so their order at every moment is that of ``heat = log2 sum_i w_i 2^{(t_i - T)/h}`` with a fixed epoch T, and
``S(t) = 2^{heat - (t - T)/h}``. One event updates heat by one `logaddexp2`; taking an event back rebuilds it from the
remaining ones, since a subtraction would lose precision.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

EPOCH = 1_577_836_800  # 2020-01-01 UTC
HALF_LIVES = {"heat_12": 12.0, "heat_72": 72.0, "heat_720": 720.0}  # hours: hot now, trending, slow burn
NEW, NEW_BULK = 2.0, 0.5
WEIGHTS = {"vote": 1.0, "vote_damped": 0.25, "save": 0.5, "note": 0.5, "study": 1.5, "verdict": 3.0}
YOUNG_ACCOUNT_SECONDS = 24 * 3600
NETWORK_FREE_VOTES = 3  # of one network prefix on one paper in 24 h; later ones are damped
NOTHING = -1e300  # log2 of no event at all


class Event(NamedTuple):
    """A weight at a time (seconds since 1970)."""

    weight: float
    at: float


def logaddexp2(a: float, b: float) -> float:
    """``log2(2^a + 2^b)`` without overflow."""
    high, low = max(a, b), min(a, b)
    return high + math.log2(1.0 + 2.0 ** (low - high)) if high - low < 1024 else high


def term(weight: float, at: float, half_life_hours: float) -> float:
    """``log2 w + (t - T) / h`` of one event; `NOTHING` for a weight of 0."""
    if weight < 0 or not math.isfinite(weight):
        raise ValueError(f"an event's weight must be finite and at least 0, got {weight}")
    return NOTHING if weight == 0 else math.log2(weight) + (at - EPOCH) / (3600 * half_life_hours)


def heat(events: Iterable[Event], half_life_hours: float) -> float:
    """Heat of a set of events; their order does not matter."""
    total = NOTHING
    for e in events:
        total = logaddexp2(total, term(e.weight, e.at, half_life_hours))
    return total


def heats(events: Iterable[Event]) -> dict[str, float]:
    """All three columns of a paper."""
    kept = list(events)
    return {column: heat(kept, h) for column, h in HALF_LIVES.items()}


def added(old: dict[str, float], event: Event) -> dict[str, float]:
    """The three columns after one more event."""
    return {column: logaddexp2(old[column], term(event.weight, event.at, h)) for column, h in HALF_LIVES.items()}


def score(value: float, now: float, half_life_hours: float = 72.0) -> float:
    """What the page shows: ``S(now)``."""
    exponent = value - (now - EPOCH) / (3600 * half_life_hours)
    return 0.0 if exponent < -1000 else 2.0 ** min(exponent, 1000.0)


def rank(row: dict[str, Any]) -> tuple[float, int, int]:
    """A paper's place by heat, the lower the better: ties go to the latest to come, then as they were imported."""
    return -row["heat_72"], -row["submitted_at"], row["id"]


def code_stars(new_stars: int) -> float:
    """Weight of a day's new stars of the code: 0.3 ln(1 + n)."""
    return 0.3 * math.log1p(max(0, new_stars))


FORMULA = (
    "score = sum of w * 2^(-(now - t) / 72 h) over what happened: new here 2 (bulk import 0.5), upvote 1 (0.25 from "
    "accounts younger than a day, and from the 4th vote of one network on a paper in a day), saved 0.5, note on a "
    "claim 0.5, a study finished 1.5, a verdict published or changed 3, n new stars of the code on a day 0.3 ln(1 + n) "
    "where they are looked up; page views count nothing"
)

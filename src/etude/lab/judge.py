"""The verdict: computed from paired differences over seeds, three words, never typed by hand."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from etude.catalogue.card import Claim, Control
from etude.lab.statistics import t_interval

Word = Literal["holds", "fails", "inconclusive"]
Relation = Literal["greater", "less", "within"]


class Judgement(NamedTuple):
    """What `judge` says of the differences: the word, the mean and its interval."""

    word: Word
    effect: float
    low: float
    high: float
    n: int
    notes: tuple[str, ...]


def judge(difference: ArrayLike, relation: Relation, margin: float, alpha: float = 0.05) -> Judgement:
    """Judge paired differences (method - baseline, one a seed) against a margin fixed before the run.

    A paired t interval; `within` by two one-sided tests at `alpha` (a 1 - 2 alpha interval inside the margins).
    Under a true difference on the margin it says *holds* at most `alpha` / 2 of the time (`alpha` for `within`).

    Parameters
    ----------
    difference
        Shape (seeds,), at least 3 seeds, all finite.
    relation
        "greater": holds when the interval lies above `margin`, fails when it lies below; "less" the
        other way round; "within": holds inside [-margin, margin], fails wholly outside.

    Raises
    ------
    ValueError
        With fewer than 3 seeds, a NaN, an unknown relation, a margin that is no number, or a negative one with
        "within".
    """
    d = np.asarray(difference, dtype=np.float64)
    if d.ndim != 1 or d.size < 3:
        raise ValueError(f"a verdict needs paired differences of at least 3 seeds, got shape {d.shape}")
    if relation not in ("greater", "less", "within"):
        raise ValueError(f"relation must be greater, less or within, got {relation!r}")
    if math.isnan(margin):
        raise ValueError("the margin must be a number, got nan")
    if relation == "within" and margin < 0:
        raise ValueError(f"relation within needs a margin of at least 0, got {margin}")
    level = 1 - 2 * alpha if relation == "within" else 1 - alpha
    effect, low, high, n = t_interval(d, level)
    if relation == "greater":
        holds, fails = low > margin, high < margin
    elif relation == "less":
        holds, fails = high < margin, low > margin
    else:
        holds, fails = -margin <= low and high <= margin, low > margin or high < -margin
    word: Word = "holds" if holds else "fails" if fails else "inconclusive"
    return Judgement(word, effect, low, high, n, _notes(relation, margin, low, high))


def _notes(relation: Relation, margin: float, low: float, high: float) -> tuple[str, ...]:
    sign = {"greater": 1.0, "less": -1.0}.get(relation)
    if sign is None:
        return ()
    low, high, margin = (low, high, margin) if sign > 0 else (-high, -low, -margin)
    if margin > 0 and low > 0 and high < margin:
        return ("smaller than claimed",)
    if margin >= 0 and high < 0:
        return ("reversed",)
    return ()


@dataclass(frozen=True)
class Verdict:
    """One row of the claims table."""

    slug: str
    claim: str
    protocol: str
    tier: str
    verdict: str | None
    """holds, fails, inconclusive; None when no verdict may be shown (see `notes`)."""
    effect: float | None
    low: float | None
    high: float | None
    n: int
    margin: float | None
    relation: str | None
    paper_value: float | str | None
    unit: str
    expects: str
    notes: tuple[str, ...] = ()
    method_mean: float | None = None
    baseline_mean: float | None = None
    control_mean: float | None = None
    stale: bool = False
    run: str | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}


class _Table:
    """Final values by (arm, metric) -> {seed: value}; points of a curve do not count."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.values: dict[tuple[str, str], dict[int, float]] = {}
        for r in rows:
            if r.get("step") is None:
                self.values.setdefault((r["arm"], r["metric"]), {})[int(r["seed"])] = float(r["value"])

    def side(self, reference: str | float, metric: str) -> dict[int, float] | float | None:
        if not isinstance(reference, str):
            return float(reference)
        arm, _, own = reference.partition("@")
        return self.values.get((arm, own or metric))


def _paired(a: dict[int, float] | float, b: dict[int, float] | float) -> tuple[list[int], np.ndarray]:
    """The seeds that both have, and their differences; two that differ by rounding alone are equal."""
    seeds = [set(x) for x in (a, b) if isinstance(x, dict)]
    common = sorted(set.intersection(*seeds)) if seeds else []

    def at(x: dict[int, float] | float) -> np.ndarray:
        return np.array([x[s] if isinstance(x, dict) else x for s in common], dtype=np.float64)

    d, size = at(a) - at(b), np.maximum(np.abs(at(a)), np.abs(at(b)))
    d[np.isfinite(size) & (np.abs(d) <= 4 * np.finfo(float).eps * size)] = 0.0  # two ways to round one number
    return common, d


def _mean(x: dict[int, float] | float | None) -> float | None:
    """Over seeds in their order, so that a run that was imported says the same to the last digit."""
    return x if not isinstance(x, dict) else float(np.mean([x[s] for s in sorted(x)]))


def _diverged(x: dict[int, float] | float) -> bool:
    return not np.isfinite(list(x.values()) if isinstance(x, dict) else x).all()


def control_loses(control: Control, claim: Claim, table: "_Table", alpha: float = 0.05) -> bool | None:
    """Whether the control arm lost as it must; None when it was not measured on 3 seeds."""
    assert claim.metric and claim.arms and claim.relation and claim.margin is not None
    ours = table.side(control.arm, claim.metric.name)
    if ours is None:
        return None
    if control.loses_to is None:
        other = table.side(claim.arms.baseline, claim.metric.name)
        if other is None:
            return None
        _, d = _paired(ours, other)
        if d.size < 3:
            return None
        if not np.isfinite(d).all():
            return _diverged(ours)
        return judge(d, claim.relation, claim.margin, alpha).word != "holds"
    winner = table.side(control.loses_to, claim.metric.name)
    if winner is None:
        return None
    _, d = _paired(winner, ours)
    if d.size < 3:
        return None
    if not np.isfinite(d).all():
        return _diverged(ours) and not _diverged(winner)
    gain = d if claim.metric.better == "higher" else -d
    return t_interval(gain, 1 - alpha).low > 0


def verdict_for(
    claim: Claim, rows: Iterable[Mapping[str, Any]], *, slug: str, protocol: str, tier: str
) -> Verdict | None:
    """The verdict on one claim under one protocol, or None when its arms were not measured there."""
    if claim.status != "tested" or (claim.protocols and protocol not in claim.protocols):
        return None
    assert claim.metric and claim.arms and claim.relation and claim.margin is not None
    table = _Table(rows)
    method = table.side(claim.arms.method, claim.metric.name)
    baseline = table.side(claim.arms.baseline, claim.metric.name)
    if method is None or baseline is None:
        return None
    seeds, d = _paired(method, baseline)
    control = claim.arms.control
    notes: list[str] = []
    order = ("quick", "laptop", "gpu")
    if order.index(tier) < order.index(claim.tier):
        notes.append(f"smaller than the claim's tier ({claim.tier})")
    paper = claim.paper
    paper_value: float | str | None
    if paper is None:
        paper_value = None
    elif paper.difference is not None:
        paper_value = paper.difference
    else:
        paper_value = paper.value if paper.value is not None else paper.text

    def row(word: str | None, effect: float | None, low: float | None, high: float | None) -> Verdict:
        assert claim.metric and claim.arms
        return Verdict(
            slug=slug, claim=claim.id, protocol=protocol, tier=tier, verdict=word, effect=effect, low=low, high=high,
            n=len(seeds), margin=claim.margin, relation=claim.relation, paper_value=paper_value,
            unit=claim.metric.unit, expects=claim.expects, notes=tuple(notes), method_mean=_mean(method),
            baseline_mean=_mean(baseline),
            control_mean=_mean(table.side(control.arm, claim.metric.name)) if control else None,
        )  # fmt: skip

    half = sorted(set[int]().union(*(x for x in (method, baseline) if isinstance(x, dict))) - set(seeds))
    if half:
        notes.append(f"without seeds {half}: not measured in both arms")
    if d.size < 3:
        notes.append(f"too few seeds ({d.size}, a verdict needs 3)")
        return row(None, None, None, None)
    if not np.isfinite(d).all():
        bad = [s for s, x in zip(seeds, d) if not np.isfinite(x)]
        notes.append(f"diverged: seeds {bad}")
        return row("inconclusive", None, None, None)
    said = judge(d, claim.relation, claim.margin)
    notes += said.notes
    if control is not None:
        lost = control_loses(control, claim, table)
        if not lost:
            what = "did not lose" if lost is False else "was not measured"
            notes.append(f"study broken: the control arm {control.arm} {what}")
            return row(None, said.effect, said.low, said.high)
    return row(said.word, said.effect, said.low, said.high)

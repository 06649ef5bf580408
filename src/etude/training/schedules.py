"""Step-size schedules counted in updates, and the rules that carry a schedule to another batch size.

A schedule is a function of the update's number (0 for the first) that returns the factor of `lr`.

Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741 (`scale_lr`, `adapt_regime`); Vaswani et al.
2017, arXiv 1706.03762, section 5.3 (`"noam"`); Loshchilov & Hutter 2017, arXiv 1608.03983 (`"cosine"`).
Differs from the paper: `"noam"` and `"rsqrt"` are scaled to reach 1 at the end of the warm-up.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

Kind = Literal["constant", "cosine", "linear", "step", "rsqrt", "noam"]
KINDS: tuple[str, ...] = get_args(Kind)
Boundaries = Sequence[int] | Mapping[int, float]
Schedule = Callable[[int], float]


def make_schedule(
    kind: str,
    total_steps: int | None,
    *,
    warmup_steps: int = 0,
    boundaries: Boundaries | None = None,
) -> Schedule:
    """The factor of the learning rate at each update.

    Parameters
    ----------
    kind
        ``"constant"``; ``"cosine"`` and ``"linear"`` (from 1 after the warm-up to 0 at `total_steps`);
        ``"step"`` (see `boundaries`); ``"rsqrt"``, also called ``"noam"``: ``sqrt(w / max(t, w))``
        with ``w = max(warmup_steps, 1)``.
    total_steps
        Updates in all; None only for kinds that do not need to know the end.
    warmup_steps
        The factor rises linearly over this many updates; update ``warmup_steps - 1`` has the full one.
    boundaries
        For ``"step"``: a sequence of updates, at each of which the factor is divided by 10, or a
        mapping from update to the factor that holds from there on. Warm-up multiplies it.

    Raises
    ------
    ValueError
        For an unknown kind, a negative length, a warm-up longer than the run, or missing boundaries.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}: choose one of {', '.join(KINDS)}")
    if total_steps is not None and total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0, got {warmup_steps}")
    if kind in ("cosine", "linear") and total_steps is None:
        raise ValueError(f"schedule {kind!r} needs total_steps: set steps, epochs or seconds")
    if total_steps is not None and kind in ("cosine", "linear") and warmup_steps >= total_steps:
        raise ValueError(f"warmup_steps ({warmup_steps}) must be smaller than the run ({total_steps} updates)")
    if (kind == "step") != (boundaries is not None):
        raise ValueError(f"boundaries go with schedule 'step' and it needs them; got {kind!r} and {boundaries!r}")
    after = _after_warmup(kind, total_steps, warmup_steps, boundaries)
    return after if warmup_steps == 0 else partial(_warmed_up, after, warmup_steps)


# A schedule is a partial of one of these, so that whatever holds it can be pickled and copied.


def _after_warmup(kind: str, total: int | None, warmup: int, boundaries: Boundaries | None) -> Schedule:
    if kind == "constant":
        return _constant
    if kind in ("rsqrt", "noam"):
        return partial(_rsqrt, max(warmup, 1))
    if kind == "step":
        assert boundaries is not None
        return partial(_stepped, _step_table(boundaries))
    assert total is not None
    return partial(_linear if kind == "linear" else _cosine, warmup, total - warmup)


def _warmed_up(after: Schedule, warmup: int, t: int) -> float:
    return after(t) * min(1.0, (t + 1) / warmup)


def _constant(t: int) -> float:
    return 1.0


def _rsqrt(rise: int, t: int) -> float:
    return math.sqrt(rise / max(t + 1, rise))


def _stepped(table: Sequence[tuple[int, float]], t: int) -> float:
    factor = 1.0
    for start, value in table:
        if t < start:
            break
        factor = value
    return factor


def _linear(warmup: int, length: int, t: int) -> float:
    return 1.0 - _progress(warmup, length, t)


def _cosine(warmup: int, length: int, t: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * _progress(warmup, length, t)))


def _progress(warmup: int, length: int, t: int) -> float:
    return min(max((t - warmup) / length, 0.0), 1.0)


def _step_table(boundaries: Boundaries) -> list[tuple[int, float]]:
    if isinstance(boundaries, Mapping):
        table = sorted((int(start), float(factor)) for start, factor in boundaries.items())
    else:
        table = [(int(start), 0.1 ** (i + 1)) for i, start in enumerate(sorted(boundaries))]
    if any(start < 0 for start, _ in table):
        raise ValueError(f"boundaries are updates and at least 0, got {[start for start, _ in table]}")
    return table


def scale_lr(lr: float, batch: int, base_batch: int, rule: str = "sqrt") -> float:
    """The learning rate for batches of `batch` rows when `lr` is right for `base_batch` rows.

    Parameters
    ----------
    rule
        ``"sqrt"`` keeps the covariance of the weight update (Hoffer et al. 2017, section 4);
        ``"linear"`` keeps the mean path per row; ``"none"`` returns `lr`.

    Raises
    ------
    ValueError
        For a batch size below 1, a learning rate that is not positive, or an unknown rule.
    """
    if not (1 <= batch < math.inf and 1 <= base_batch < math.inf):
        raise ValueError(f"batch sizes must be at least 1, got batch={batch} and base_batch={base_batch}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    powers = {"sqrt": 0.5, "linear": 1.0, "none": 0.0}
    if rule not in powers:
        raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(powers)}")
    return lr * (batch / base_batch) ** powers[rule]


@dataclass(frozen=True)
class Regime:
    """A learning-rate schedule by epochs, carried to another batch size."""

    boundaries: dict[int, float]  # epoch -> lr from there on
    epochs: int
    ratio: int  # ceil(batch / base_batch): by this the epochs were multiplied
    batch: int

    def steps_per_epoch(self, num_rows: int, *, drop_last: bool = False) -> int:
        """Updates of one pass over `num_rows` rows."""
        steps = num_rows // self.batch if drop_last else math.ceil(num_rows / self.batch)
        if steps < 1:
            raise ValueError(f"{num_rows} rows make no batch of {self.batch}")
        return steps

    def updates(self, num_rows: int, *, drop_last: bool = False) -> tuple[dict[int, float], int]:
        """Boundaries (update -> lr) and the total, both in updates, for a training set of `num_rows`."""
        per_epoch = self.steps_per_epoch(num_rows, drop_last=drop_last)
        return {epoch * per_epoch: lr for epoch, lr in self.boundaries.items()}, self.epochs * per_epoch

    def factors(self, num_rows: int, *, drop_last: bool = False) -> dict[int, float]:
        """Boundaries (update -> factor of the first lr): the `boundaries` of `TrainConfig`."""
        table, _ = self.updates(num_rows, drop_last=drop_last)
        first = table[min(table)]
        return {update: lr / first for update, lr in table.items()}


def adapt_regime(boundaries: Mapping[int, float], batch: int, base_batch: int, epochs: int) -> Regime:
    """Stretch a schedule so that a larger batch makes as many updates in each phase.

    Every boundary and the total are multiplied by ``ceil(batch / base_batch)``
    (Hoffer et al. 2017, section 5, "regime adaptation").

    Parameters
    ----------
    boundaries
        Epoch -> learning rate from there on, e.g. ``{0: .1, 6: .01, 9: .001}``; it has epoch 0.
    epochs
        Length of the run at `base_batch`.

    Raises
    ------
    ValueError
        For sizes below 1, boundaries without epoch 0 or after the end, or rates that are negative or not finite.
    """
    if not (1 <= batch < math.inf and 1 <= base_batch < math.inf):
        raise ValueError(f"batch sizes must be at least 1, got batch={batch} and base_batch={base_batch}")
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if 0 not in boundaries:
        raise ValueError(f"boundaries need the learning rate of epoch 0, got epochs {sorted(boundaries)}")
    if min(boundaries) < 0 or max(boundaries) >= epochs:
        raise ValueError(f"boundaries must lie in 0..{epochs - 1}, got {sorted(boundaries)}")
    if not boundaries[0] > 0 or not all(0 <= lr < math.inf for lr in boundaries.values()):
        raise ValueError(f"learning rates must be finite and at least 0, the first above 0, got {dict(boundaries)}")
    ratio = math.ceil(batch / base_batch)
    stretched = {epoch * ratio: float(lr) for epoch, lr in sorted(boundaries.items())}
    return Regime(boundaries=stretched, epochs=epochs * ratio, ratio=ratio, batch=batch)

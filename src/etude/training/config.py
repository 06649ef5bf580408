"""What a training run is told: lengths, optimiser, schedule, precision, stopping."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from etude.training.optimizers import OPTIMIZERS, SETTINGS
from etude.training.schedules import KINDS

PRECISIONS = ("fp32", "bf16", "auto")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `train` and `Updater`. Lengths of time are updates; an update may read several batches.

    Parameters
    ----------
    steps, epochs, seconds
        The length of the run: exactly one of them (an `Updater` with a constant schedule needs none).
        `seconds` is turned into updates once, by a timed start; the number stands in `Trained.steps`.
    batch_size
        Rows a batch; ignored where the data bring their own batches.
    optimizer
        A name of `OPTIMIZERS`, or a callable that makes an optimiser from parameter groups.
    lr
        Learning rate; for a module of several nets under `step=` also a mapping from child to rate. A callable
        optimiser is told it where it is not the default, and else keeps its own.
    momentum, nesterov, betas, eps
        Of the named optimisers that have them; None for `eps` is the optimiser's own. A callable brings its own.
    schedule, warmup_steps, boundaries
        See `etude.training.make_schedule`.
    weight_decay, decay
        Strength, and what it acts on: ``"weights"`` leaves out biases, norms and codes, ``"all"`` nothing.
    clip_norm, clip_value
        Bounds of the gradient's global norm and of its entries.
    accumulate
        Batches an update: their mean gradient is taken.
    precision
        ``"fp32"``, ``"bf16"`` (autocast), or ``"auto"``: the quicker of both here, as measured.
    ema_decay
        Weight of the old value in the moving average of the weights; evaluation and the result use it.
    eval_every
        Updates between two points of the curve; default: an epoch with `epochs`, else a 20th of the run.
    patience
        Stop after this many evaluations without a better value and go back to the best weights.
    better
        Whether a higher or a lower `metric` is better; without a metric, the validation loss counts.
    stop_when
        Called with the state after each evaluation; True ends this seed's run.
    freeze_batchnorm
        Batch norm runs on its stored statistics and does not change them.
    drop_last
        Leave out the last batch of an epoch when it is not full.
    """

    steps: int | None = None
    epochs: float | None = None
    seconds: float | None = None
    batch_size: int = 64
    optimizer: str | Callable[..., Any] = "adam"
    lr: float | Mapping[str, float] = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float | None = None
    schedule: str = "constant"
    boundaries: Sequence[int] | Mapping[int, float] | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0
    decay: str = "weights"
    clip_norm: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    precision: str = "fp32"
    ema_decay: float | None = None
    patience: int | None = None
    better: str = "higher"
    stop_when: Callable[[Any], bool] | None = None
    eval_every: int | None = None
    freeze_batchnorm: bool = False
    drop_last: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of steps, epochs and seconds, not {' and '.join(given)}")
        for name in ("steps", "epochs", "seconds", "clip_norm", "clip_value", "patience", "eval_every", "eps"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        for name in ("steps", "batch_size", "accumulate", "eval_every"):
            value = getattr(self, name)
            if value is not None and (not 1 <= value < math.inf or value != int(value)):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
        rates = self.lr.values() if isinstance(self.lr, Mapping) else [self.lr]
        if not all(rate >= 0 and math.isfinite(rate) for rate in rates):
            raise ValueError(f"lr must be finite and at least 0, got {self.lr}")
        _choice("optimizer", self.optimizer, tuple(OPTIMIZERS)) if isinstance(self.optimizer, str) else None
        _choice("schedule", self.schedule, KINDS)
        _choice("precision", self.precision, PRECISIONS)
        _choice("decay", self.decay, ("weights", "all"))
        _choice("better", self.better, ("higher", "lower"))
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is the weight of the old value and lies in [0, 1), got {self.ema_decay}")
        for name in ("weight_decay", "momentum", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are two numbers in [0, 1), got {self.betas}")
        if self.nesterov and not self.momentum > 0:
            raise ValueError("nesterov looks ahead along the momentum: give momentum above 0")
        changed = [f.name for f in fields(self) if f.name in SETTINGS and getattr(self, f.name) != f.default]
        idle = [name for name in changed if self.optimizer not in SETTINGS[name]]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} would change nothing in optimizer {self.optimizer!r}: "
                f"{idle[0]} goes with {', '.join(SETTINGS[idle[0]])}"
            )


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")

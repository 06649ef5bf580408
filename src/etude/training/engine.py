"""The training loop, over one model or many seeds."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import fork_global, seeded_build, stream
from etude.data.tasks import Split
from etude.training.config import TrainConfig
from etude.training.feed import Feed, as_split, make_feed, move
from etude.training.updater import Loss, Updater, total_loss

Build = nn.Module | Callable[[int], nn.Module]
EVAL_ROWS = 1024


@dataclass
class Trained:
    """One seed's result: the module (in eval mode), its curve and how it was made.

    `curve` has one dictionary a point: step, loss (mean since the last point), and val_loss and metric
    where there is validation data. `stopped`: "done", "patience", "stop_when", "callback" or "diverged".
    """

    module: nn.Module
    seed: int
    curve: list[dict[str, float]]
    plan: str
    seconds: float
    diverged: bool = False
    steps: int = 0
    stopped: str = "done"
    precision: str = "fp32"


@dataclass
class State:
    """What callbacks see. `model` is the live module; call `stop()` to end this seed's run."""

    model: nn.Module
    seed: int
    step: int = 0
    loss: float = math.nan
    point: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    updater: Updater | None = None
    stopped: str = ""

    def stop(self, reason: str = "callback") -> None:
        """End this seed's run after the present update."""
        self.stopped = self.stopped or reason


@dataclass(frozen=True)
class Problem:
    """Everything but the seeds."""

    build: Build
    data: Any
    loss: Loss | None
    config: TrainConfig
    step: Callable[..., Any] | None
    penalty: Callable[[nn.Module], Tensor] | None
    val: Any
    metric: Callable[[nn.Module, Any], float] | None
    callbacks: tuple[Any, ...]
    device: torch.device

    def module(self, seed: int, *, alone: bool) -> nn.Module:
        if isinstance(self.build, nn.Module):
            return (self.build if alone else copy.deepcopy(self.build)).to(self.device)
        build = self.build
        return seeded_build(lambda: build(seed), stream(seed, "init")).to(self.device)

    def feed(self, seed: int) -> Feed:
        config = self.config
        return make_feed(self.data, seed, batch_size=config.batch_size, drop_last=config.drop_last, device=self.device)

    def validation(self, seed: int) -> Any:
        val = self.val(seed) if callable(self.val) else self.val
        return None if val is None else move(as_split(val), self.device)

    def lengths(self, feed: Feed) -> tuple[int, int]:
        """Updates in all, and updates between two points of the curve."""
        config = self.config
        if config.epochs is not None:
            if feed.steps_per_epoch is None:
                raise ValueError("epochs need data with an end: give steps instead")
            total = max(1, math.ceil(config.epochs * feed.steps_per_epoch / config.accumulate))
            every = max(1, math.ceil(feed.steps_per_epoch / config.accumulate))
        else:
            assert config.steps is not None
            total = config.steps
            every = max(1, total // 20)
        return total, config.eval_every or every


@torch.no_grad()
def evaluate(model: nn.Module, loss: Loss, split: Any, rows: int = EVAL_ROWS) -> float:
    """Mean loss over a split, in eval mode, by batches weighted with their rows."""
    n, total = len(split[0]), 0.0
    for first in range(0, n, rows):
        part = type(split)(*(None if c is None else c[first : first + rows] for c in split))
        total += float(total_loss(loss(model, part))) * len(part[0])
    return total / n


def train(
    build: Build,
    data: Any,
    *,
    loss: Loss | None = None,
    config: TrainConfig,
    seeds: Sequence[int] = (0,),
    step: Callable[..., Any] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    val: Any = None,
    metric: Callable[[nn.Module, Any], float] | None = None,
    callbacks: Sequence[Any] = (),
    plan: str = "auto",
    device: str | torch.device = "cpu",
) -> list[Trained]:
    """Train one model for each seed.

    Parameters
    ----------
    build
        ``build(seed)`` returns a module and runs under ``stream(seed, "init")``. Or a module: trained in
        place for one seed, copied for several.
    data
        A `Split` or an (x, y) pair (shuffled by ``stream(seed, "order")``), a function from seed to
        one, `sampled(draw)` (draws from ``stream(seed, "data")``), or an iterable of batches.
    loss
        ``loss(model, batch)`` returns a scalar or a dictionary of terms whose sum is minimised.
    step
        ``step(nets, optimizers, batch, generator)`` replaces the update.
    val, metric
        Validation data (or a function from seed to them) and ``metric(model, val)``, a number.
    callbacks
        Objects with any of ``on_step(state)``, ``on_eval(state)``, ``on_end(state)``.

    Raises
    ------
    ValueError
        For settings or data that do not fit.
    """
    seeds = tuple(int(s) for s in seeds)
    if len(set(seeds)) != len(seeds) or not seeds:
        raise ValueError(f"seeds must be different numbers, at least one, got {seeds}")
    if loss is None and step is None:
        raise ValueError("give a loss, or a step that replaces the update")
    if config.steps is None and config.epochs is None and config.seconds is None:
        raise ValueError("give the length of the run: steps, epochs or seconds")
    if config.patience is not None and val is None:
        raise ValueError("patience needs validation data: give val")
    if plan not in ("auto", "sequential", "processes", "stacked", "vmap"):
        raise ValueError(f"unknown plan {plan!r}: choose auto, sequential, processes, stacked or vmap")
    problem = Problem(build, data, loss, config, step, penalty, val, metric, tuple(callbacks), torch.device(device))
    return [train_one(problem, seed, alone=len(seeds) == 1) for seed in seeds]


def train_one(problem: Problem, seed: int, *, alone: bool = False) -> Trained:
    """The reference: one seed from its first update to its last."""
    started = time.perf_counter()
    config = problem.config
    model, feed, val = problem.module(seed, alone=alone), problem.feed(seed), problem.validation(seed)
    total, every = problem.lengths(feed)
    assert problem.loss is not None
    updater = Updater(model, problem.loss, config, seed=seed, penalty=problem.penalty, total_steps=total)
    state = State(model, seed, updater=updater)
    on_step = [c.on_step for c in problem.callbacks if hasattr(c, "on_step")]
    on_eval = [c.on_eval for c in problem.callbacks if hasattr(c, "on_eval")]
    better = 1.0 if problem.metric is not None and config.better == "higher" else -1.0
    best, best_state, waited = -math.inf, None, 0
    running, count, diverged = 0.0, 0, False
    updater.train_mode()
    with updater.noise.on():
        while state.step < total and not state.stopped:
            loss, _ = updater.apply([feed.next() for _ in range(config.accumulate)])
            running, count = running + loss, count + 1
            state.loss = loss
            if not math.isfinite(loss):
                diverged = True
                state.stop("diverged")
                break
            state.step += 1
            for call in on_step:
                call(state)
            if state.step % every and state.step < total:
                continue
            point: dict[str, float] = {"step": state.step, "loss": float(running) / count}
            running, count = 0.0, 0
            shown = model if updater.ema is None else updater.ema.module
            with fork_global(stream(seed, "eval", state.step)):
                shown.eval()
                if val is not None:
                    point["val_loss"] = evaluate(shown, problem.loss, val)
                    if problem.metric is not None:
                        with torch.no_grad():
                            point["metric"] = float(problem.metric(shown, val))
                state.point = point
                state.curve.append(point)
                for call in on_eval:
                    call(state)
            if config.patience is not None:
                value = better * point.get("metric", point["val_loss"])
                if value > best:
                    best, waited = value, 0
                    best_state = {k: v.clone() for k, v in shown.state_dict().items()}
                else:
                    waited += 1
                    if waited >= config.patience:
                        state.stop("patience")
            if config.stop_when is not None and config.stop_when(state):
                state.stop("stop_when")
            updater.train_mode()
    result = model
    if updater.ema is not None:
        model.load_state_dict(updater.ema.state_dict())
    if best_state is not None and not diverged:
        result.load_state_dict(best_state)
    diverged = diverged or not all(bool(torch.isfinite(p).all()) for p in result.parameters())
    for callback in problem.callbacks:
        if hasattr(callback, "on_end"):
            callback.on_end(state)
    return Trained(
        result.eval(), seed, state.curve, "sequential", time.perf_counter() - started, diverged, state.step,
        "diverged" if diverged else state.stopped or "done", updater.precision,
    )  # fmt: skip


__all__ = ["Split", "State", "TrainConfig", "Trained", "train"]

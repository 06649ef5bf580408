"""One seed's run: what it is given, its bookkeeping, and the reference loop."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import fork_global, seeded_build, stream
from etude.training.config import TrainConfig
from etude.training.feed import Feed, as_split, float_images, make_feed, move
from etude.training.updater import Loss, StepUpdater, Updater, total_loss

Build = nn.Module | Callable[[int], nn.Module]
EVAL_ROWS = 1024


@dataclass
class Trained:
    """One seed's result: the module (in eval mode), its curve and how it was made.

    `curve` has one dictionary a point: step, loss (mean since the last point), and val_loss and metric
    where there is validation data. `stopped`: "done", "patience", "stop_when", "callback" or "diverged".
    """

    module: Any  # what `build` returned
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
    """What callbacks see: `model` is the live module, `step` the updates done, `point` the newest of `curve`."""

    model: Any
    seed: int
    total: int = 0  # updates of the whole run
    config: TrainConfig | None = None
    step: int = 0
    latest: Any = math.nan
    curve: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""
    snapshot: Callable[[], dict[str, Any]] | None = None
    restore: Callable[[dict[str, Any]], None] | None = None

    @property
    def loss(self) -> float:
        """The latest update's loss (waits for the device)."""
        return float(self.latest)

    @property
    def point(self) -> dict[str, float]:
        return self.curve[-1] if self.curve else {}

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
    alone: bool  # one seed: a module that was given is trained in place

    def module(self, seed: int, *, trial: bool = False) -> nn.Module:
        if isinstance(self.build, nn.Module):
            return (self.build if self.alone and not trial else copy.deepcopy(self.build)).to(self.device)
        build = self.build
        made = seeded_build(lambda: build(seed), stream(seed, "init"))
        if not isinstance(made, nn.Module):
            raise ValueError(f"build({seed}) must return a module, got {type(made).__name__}")
        return made.to(self.device)

    def feed(self, seed: int) -> Feed:
        config = self.config
        return make_feed(self.data, seed, batch_size=config.batch_size, drop_last=config.drop_last, device=self.device)

    def validation(self, seed: int) -> Any:
        val = self.val(seed) if callable(self.val) else self.val
        return None if val is None else float_images(move(as_split(val), self.device))

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

    def updater(self, model: nn.Module, seed: int, total: int) -> Updater:
        if self.step is not None:
            return StepUpdater(model, self.step, self.config, seed=seed, total_steps=total)
        assert self.loss is not None
        return Updater(model, self.loss, self.config, seed=seed, penalty=self.penalty, total_steps=total)


@torch.no_grad()
def evaluate(model: nn.Module, loss: Loss, split: Any, rows: int = EVAL_ROWS) -> float:
    """Mean loss over a split by batches weighted with their rows; the model's mode is left as it is."""
    n, total = len(split[0]), 0.0
    for first in range(0, n, rows):
        part = type(split)(*(None if c is None else c[first : first + rows] for c in split))
        total += float(total_loss(loss(model, part))) * len(part[0])
    return total / n


class Lane:
    """The bookkeeping of one seed, the same under every plan: curve, early stopping, callbacks, best weights."""

    def __init__(self, problem: Problem, seed: int, model: nn.Module, total: int, every: int) -> None:
        self.problem, self.total, self.every = problem, total, every
        self.state = State(model, seed, total, problem.config)
        self.evaluating = False
        self.val = problem.validation(seed)
        self.running: Any = 0.0
        self.count = 0
        self.diverged = False
        higher = problem.metric is not None and problem.config.better == "higher"
        self.sign = 1.0 if higher else -1.0
        self.best, self.waited = -math.inf, 0
        self.best_state: dict[str, Tensor] | None = None
        self.on_step = self._calls("on_step")
        self.on_eval = self._calls("on_eval")

    def _calls(self, name: str) -> list[Callable[[State], None]]:
        return [getattr(c, name) for c in self.problem.callbacks if hasattr(c, name)]

    def start(self) -> None:
        for call in self._calls("on_start"):
            call(self.state)

    def diverge(self) -> None:
        """The loss of the update that was to come is not finite."""
        self.diverged = True
        self.state.stop("diverged")

    def after_update(self, loss: Any) -> bool:
        """Book an update; True when a point of the curve is due."""
        state = self.state
        self.running = self.running + loss
        self.count += 1
        state.latest = loss
        state.step += 1
        for call in self.on_step:
            call(state)
        return state.step % self.every == 0 or state.step >= self.total or bool(state.stopped)

    def evaluate(self, shown: nn.Module) -> None:
        """A point of the curve from `shown`, the module with the weights that count (left in eval mode)."""
        problem, config, state = self.problem, self.problem.config, self.state
        point: dict[str, float] = {"step": state.step, "loss": float(self.running) / max(1, self.count)}
        self.running, self.count = 0.0, 0
        if not math.isfinite(point["loss"]):
            self.diverge()
        self.evaluating = True
        with fork_global(stream(state.seed, "eval", state.step)):
            shown.eval()
            if self.val is not None:
                if problem.loss is not None:
                    point["val_loss"] = evaluate(shown, problem.loss, self.val)
                if problem.metric is not None:
                    with torch.no_grad():
                        point["metric"] = float(problem.metric(shown, self.val))
            state.curve.append(point)
            if config.patience is not None and not self.diverged:
                self._compare(point, shown, config.patience)
            if config.stop_when is not None and config.stop_when(state):
                state.stop("stop_when")
            for call in self.on_eval:
                call(state)
        self.evaluating = False

    def _compare(self, point: dict[str, float], shown: nn.Module, patience: int) -> None:
        value = self.sign * point.get("metric", point.get("val_loss", math.nan))
        if value > self.best:
            self.best, self.waited = value, 0
            self.best_state = {k: v.clone() for k, v in shown.state_dict().items()}
            return
        self.waited += 1
        if self.waited >= patience:
            self.state.stop("patience")

    def finish(self, plan: str, seconds: float, precision: str, ema: Mapping[str, Tensor] | None) -> Trained:
        """Put the weights that count into the module and close the books."""
        model, state = self.state.model, self.state
        if ema is not None:
            model.load_state_dict(ema)
        if self.best_state is not None and not self.diverged:
            model.load_state_dict(self.best_state)
        model.eval()
        finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
        if not finite and not self.diverged:
            self.diverged, state.stopped = True, "diverged"
        for call in self._calls("on_end"):
            call(state)
        for p in model.parameters():
            p.grad = None
        stopped = "diverged" if self.diverged else state.stopped or "done"
        return Trained(model, state.seed, state.curve, plan, seconds, self.diverged, state.step, stopped, precision)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.state.step,
            "curve": self.state.curve,
            "stopped": self.state.stopped,
            "running": float(self.running),
            "count": self.count,
            "diverged": self.diverged,
            "best": self.best,
            "waited": self.waited,
            "best_state": self.best_state,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.state.step, self.state.curve = int(saved["step"]), list(saved["curve"])
        self.state.stopped, self.diverged = saved["stopped"], bool(saved["diverged"])
        self.running, self.count = float(saved["running"]), int(saved["count"])
        self.best, self.waited, self.best_state = float(saved["best"]), int(saved["waited"]), saved["best_state"]


def train_one(problem: Problem, seed: int) -> Trained:
    """The reference: one seed from its first update to its last."""
    started = time.perf_counter()
    model, feed = problem.module(seed), problem.feed(seed)
    total, every = problem.lengths(feed)
    updater = problem.updater(model, seed, total)
    lane = Lane(problem, seed, model, total, every)
    state, accumulate = lane.state, problem.config.accumulate

    def snapshot() -> dict[str, Any]:
        if not lane.evaluating:
            updater.noise.capture()
        return {"updater": updater.state_dict(), "feed": feed.state_dict(), "lane": lane.state_dict()}

    def restore(saved: dict[str, Any]) -> None:
        updater.load_state_dict(saved["updater"])
        lane.load_state_dict(saved["lane"])
        if state.step < total and not state.stopped:  # no more batches of a run that has ended
            feed.load_state_dict(saved["feed"])

    state.snapshot, state.restore = snapshot, restore
    updater.train_mode()
    lane.start()
    with updater.noise.on():
        while state.step < total and not state.stopped:
            batches = [feed.next()] if accumulate == 1 else [feed.next() for _ in range(accumulate)]
            loss, _ = updater.apply(batches)
            if updater.skipped:
                lane.diverge()
                state.latest = loss
                break
            if lane.after_update(loss):
                updater.noise.capture()
                lane.evaluate(model if updater.ema is None else updater.ema.module)
                updater.train_mode()
    ema = None if updater.ema is None else updater.ema.state_dict()
    return lane.finish("sequential", time.perf_counter() - started, updater.precision, ema)

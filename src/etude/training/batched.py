"""Many seeds in one loop: their weights lie in tensors with a leading axis of seeds.

`batched_nets` computes the losses of all seeds; everything else is here: clipping for each seed, one optimiser over
the stacked tensors (all named optimisers work entry by entry), moving averages, points of the curve. Each
seed's module stays alive as views of the stacked tensors, so that evaluation and callbacks see it; a
seed that stops early or diverges leaves the stack with its weights, and the others go on.
"""

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from etude.training.batched_feed import BatchedFeed, CannotBatch
from etude.training.batched_nets import Net, Stacked, Vmapped
from etude.training.optimizers import make_optimizer, parameter_groups
from etude.training.run import Lane, Problem, Trained
from etude.training.schedules import make_schedule

KINDS: dict[str, Any] = {"stacked": Stacked, "vmap": Vmapped}


class Batched:
    """The runs of `seeds`, updated together.

    Raises
    ------
    CannotBatch
        If this net, loss or data cannot be batched over seeds (some reasons show in the first update only).
    """

    def __init__(self, problem: Problem, seeds: Sequence[int], kind: str) -> None:
        config = problem.config
        if problem.loss is None:
            raise CannotBatch("step replaces the update, one seed at a time")
        if not isinstance(config.optimizer, str):
            raise CannotBatch("an optimiser of your own may mix the seeds' entries: name one")
        if any(getattr(c, "one_seed", False) for c in problem.callbacks):
            raise CannotBatch("a callback (a checkpoint?) is for one seed at a time")
        if not isinstance(config.lr, (int, float)):
            raise CannotBatch("lr as a mapping goes with step= and several nets: give one number")
        self.lr = config.lr
        self.problem, self.config, self.kind = problem, config, kind
        modules = [problem.module(seed) for seed in seeds]
        feeds = [problem.feed(seed) for seed in seeds]
        self.total, self.every = problem.lengths(feeds[0])
        self.feed = BatchedFeed(feeds)
        self.net: Net = KINDS[kind](problem, modules, seeds)
        self.lanes = [Lane(problem, s, m, self.total, self.every) for s, m in zip(seeds, modules)]
        self.optimizer = self._optimizer(modules[0])
        self.schedule = make_schedule(
            config.schedule, self.total, warmup_steps=config.warmup_steps, boundaries=config.boundaries
        )
        self.constant = config.schedule == "constant" and config.warmup_steps == 0
        self.ema: dict[str, Tensor] | None = None
        self.shown = modules
        if config.ema_decay is not None:
            self.ema = {name: p.detach().clone() for name, p in self.net.parameters.items()}
            self.shown = [copy.deepcopy(m).requires_grad_(False) for m in modules]
        self.step = 0
        self.waits = problem.device.type == "cuda"
        self.running = torch.zeros(len(seeds), dtype=torch.float64, device=problem.device)
        self.count = 0
        self.listening = any(hasattr(c, "on_step") for c in problem.callbacks)
        self.results: dict[int, Trained] = {}
        self.started, self.seeds = time.perf_counter(), len(seeds)
        self._attach()
        self.net.train_mode(config.freeze_batchnorm)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        names = {id(p): name for name, p in module.named_parameters()}
        groups = parameter_groups(module, self.config.weight_decay, decay=self.config.decay)
        for group in groups:
            group["params"] = [self.net.parameters[names[id(p)]] for p in group["params"]]
        self.trained = [p for group in groups for p in group["params"]]
        return make_optimizer(groups, self.config)

    def run(self) -> list[Trained]:
        """Train to the end; results in the order of the seeds."""
        for lane in self.lanes:
            lane.start()
        order = [lane.state.seed for lane in self.lanes]
        while self.lanes:
            self.update()
            self._book()
        return [self.results[seed] for seed in order]

    def update(self) -> None:
        """One update of every seed; seeds whose loss is not finite leave before it."""
        for p in self.trained:
            p.grad = None
        share = 1.0 / self.config.accumulate
        total: Any = 0.0
        for _ in range(self.config.accumulate):
            batch = self.feed.next()
            with self._autocast():
                losses = self.net.losses(batch)
            (losses.sum() if share == 1.0 else losses.sum() * share).backward()
            total = total + losses.detach() * share
        self.losses = total
        bad: list[int] = []
        if not self.waits and not bool(torch.isfinite(total).all()):
            bad = [i for i, ok in enumerate(torch.isfinite(total).tolist()) if not ok]
            for i in bad:
                self.lanes[i].diverge()
                self.lanes[i].state.step, self.lanes[i].state.latest = self.step, float(total[i])
                self._finish(i)
        self._clip()
        if not self.constant:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * self.schedule(self.step)
        self.optimizer.step()
        if self.ema is not None and self.config.ema_decay is not None:
            live = [p.detach() for p in self.net.parameters.values()]
            torch._foreach_lerp_(list(self.ema.values()), live, 1 - self.config.ema_decay)
        self.step += 1
        self.running += total
        self.count += 1
        if bad:
            self._keep([i for i in range(len(self.lanes)) if i not in bad])

    def _book(self) -> None:
        due = self.step % self.every == 0 or self.step >= self.total
        if not (due or self.listening):
            return
        for i, lane in enumerate(self.lanes):
            lane.state.step, lane.state.latest = self.step, self.losses[i]
            for call in lane.on_step:
                call(lane.state)
        stopped = [bool(lane.state.stopped) for lane in self.lanes]
        if not (due or any(stopped)):
            return
        for i, lane in enumerate(self.lanes):
            if due or stopped[i]:
                lane.running, lane.count = self.running[i], self.count
                lane.evaluate(self.shown[i])
                lane.state.model.train()
        if due:
            self.running.zero_()
            self.count = 0
        ended = [i for i, lane in enumerate(self.lanes) if lane.state.stopped or self.step >= self.total]
        for i in ended:
            self._finish(i)
        if ended:
            self._keep([i for i in range(len(self.lanes)) if i not in ended])

    def _clip(self) -> None:
        """Clip each seed's gradient by itself."""
        value, norm = self.config.clip_value, self.config.clip_norm
        if value is None and norm is None:
            return
        gradients = [p.grad for p in self.trained if p.grad is not None]
        if value is not None:
            torch._foreach_clamp_min_(gradients, -value)
            torch._foreach_clamp_max_(gradients, value)
        if norm is not None:
            parts = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]
            norms = torch.linalg.vector_norm(torch.stack(parts), dim=0)
            factors = (norm / (norms + 1e-6)).clamp(max=1.0)
            for g in gradients:
                g.mul_(factors.view(-1, *([1] * (g.ndim - 1))))

    def _autocast(self) -> Any:
        bf16 = self.config.precision == "bf16"
        return torch.autocast(self.problem.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _attach(self) -> None:
        """Let every seed's module (and its averaged twin) be views of the stacked tensors."""
        for i, (lane, shown) in enumerate(zip(self.lanes, self.shown)):
            views = self.net.views(i)
            _point(lane.state.model, views)
            if self.ema is not None:
                with self.net.holding(self.ema):
                    _point(shown, self.net.views(i) | {n: v for n, v in views.items() if n not in self.ema})

    def _finish(self, i: int) -> None:
        lane, shown = self.lanes[i], self.shown[i]
        _point(lane.state.model, {n: v.contiguous().clone() for n, v in self.net.views(i).items()})
        ema = None if self.ema is None else {n: v.clone() for n, v in shown.state_dict().items()}
        seconds = (time.perf_counter() - self.started) / self.seeds
        self.results[lane.state.seed] = lane.finish(self.kind, seconds, self.config.precision, ema)

    def _keep(self, lanes: list[int]) -> None:
        """Go on with these seeds only."""
        self.lanes, self.shown = [self.lanes[i] for i in lanes], [self.shown[i] for i in lanes]
        if not lanes:
            return
        index = torch.tensor(lanes, device=self.problem.device)
        before = {name: len(p) for name, p in self.net.parameters.items()}
        self.net.keep(index, lanes)
        for p in self.trained:
            state = self.optimizer.state.get(p, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim == p.ndim and len(value) == next(iter(before.values())):
                    state[name] = value.index_select(0, index)
        if self.ema is not None:
            self.ema = {name: value.index_select(0, index) for name, value in self.ema.items()}
        self.running, self.losses = self.running[index], self.losses[index]
        self.feed.keep(lanes)
        self._attach()


def _point(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    for name, p in module.named_parameters():
        p.data = tensors[name]
    first = {id(b): name for name, b in reversed(list(module.named_buffers()))}
    owners = dict(module.named_modules())
    for name, b in list(module.named_buffers(remove_duplicate=False)):
        prefix, _, leaf = name.rpartition(".")
        owners[prefix]._buffers[leaf] = tensors[first[id(b)]]


def train_batched(problem: Problem, seeds: Sequence[int], kind: str) -> list[Trained]:
    """Train `seeds` together; `kind` is "stacked" or "vmap"."""
    return Batched(problem, seeds, kind).run()

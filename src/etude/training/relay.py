"""Seeds shared out evenly over worker processes although their number does not divide.

Five runs on two cores, taken whole, need three rounds, and the last leaves a core idle. McNaughton's wrap-around
rule (1959) lays the runs one after another on a line and cuts it into as many equal pieces as there are cores: a run
that is cut begins on one core and ends on another, later, and two and a half rounds are enough. What such a run hands
over is what a checkpoint holds, so its numbers are those of a run that stays.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import nn

from etude.training.run import Problem, State, Trained, train_one
from etude.training.workers import Outcome, WorkerPool


@dataclass(frozen=True)
class Half:
    """A run that was left before its end: its net, what a checkpoint holds, and the seconds so far."""

    module: nn.Module
    saved: dict[str, Any]
    seconds: float = 0.0


def first_shares(runs: int, workers: int) -> dict[int, Fraction]:
    """Which runs are cut, and the share of each that comes first. None where some workers have no run at all."""
    if runs <= workers:
        return {}
    ends = (Fraction(worker * runs, workers) for worker in range(1, workers))
    return {int(end): 1 - end % 1 for end in ends if end.denominator > 1}


def repeatable(problem: Problem) -> bool:
    """Whether the data can be drawn again from the start: no iterator that is used up."""
    return isinstance(problem.data, tuple) or callable(problem.data) or hasattr(problem.data, "draw")


def can_change_process(problem: Problem) -> bool:
    """Whether all that a run needs lies in its net and its checkpoint.

    Callbacks and a step of the caller may keep something elsewhere, and an averaged net has attributes of its own.
    """
    kept = problem.callbacks or problem.step is not None or problem.config.ema_decay is not None
    return repeatable(problem) and not kept


def relayed(pool: WorkerPool, problem: Problem, seeds: tuple[int, ...]) -> Iterator[Outcome]:
    """Outcomes as seeds end: a list of the `Trained` of one seed, or an error; the key is ``(seed,)``."""
    cut = first_shares(len(seeds), pool.num_workers) if can_change_process(problem) else {}
    shares = {seeds[run]: share for run, share in cut.items()}
    for seed in sorted(seeds, key=lambda s: s not in shares):  # what is cut comes first, the rest in order
        pool.submit(_run, problem, seed, shares.get(seed), key=(seed,))
    for outcome in pool.as_completed():
        if isinstance(outcome.value, Half):
            pool.submit(_run, problem, outcome.key[0], outcome.value, key=outcome.key)
        else:
            yield outcome


def _run(problem: Problem, seed: int, part: Fraction | Half | None) -> list[Trained] | Half:
    """A whole run, its first share, or what follows a half."""
    started, before = time.perf_counter(), 0.0
    if isinstance(part, Half):
        module, before = part.module, part.seconds
        problem = replace(problem, build=lambda seed: module, callbacks=(_Resume(part.saved),))
    elif part is not None:
        total, every = problem.lengths(problem.feed(seed))
        problem = replace(problem, callbacks=(_Leave(round(part * total), every),))
    try:
        trained = train_one(problem, seed)
    except _Left as left:
        return replace(left.half, seconds=time.perf_counter() - started)
    trained.seconds += before
    return [trained]


class _Left(Exception):
    """Ends the first part from inside its loop."""

    def __init__(self, half: Half) -> None:
        super().__init__()
        self.half = half


class _Leave:
    """Leaves at the update `step`; where a point of the curve is due there, after it."""

    def __init__(self, step: int, every: int) -> None:
        self.step, self.due = step, step % every == 0

    def on_step(self, state: State) -> None:
        if state.step == self.step < state.total and not self.due:
            self._leave(state)

    def on_eval(self, state: State) -> None:
        if state.step == self.step < state.total and not state.stopped:
            self._leave(state)

    @staticmethod
    def _leave(state: State) -> None:
        assert state.snapshot is not None
        raise _Left(Half(state.model, state.snapshot()))


class _Resume:
    def __init__(self, saved: dict[str, Any]) -> None:
        self.saved = saved

    def on_start(self, state: State) -> None:
        assert state.restore is not None
        state.restore(self.saved)

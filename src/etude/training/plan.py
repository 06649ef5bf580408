"""How seeds are trained: the plans, and the choice between them by measurement."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from etude.data.progress import track
from etude.errors import StudyError
from etude.training.batched import Batched, train_batched
from etude.training.callbacks import Progress
from etude.training.relay import can_change_process, relayed, repeatable
from etude.training.run import Problem, Trained, train_one
from etude.training.tally import tally
from etude.training.workers import Outcome, WorkerDied, cores, in_worker, shared_pool

PLANS = ("auto", "sequential", "processes", "stacked", "vmap", "processes+stacked", "processes+vmap")
UNBATCHED = ("sequential", "processes")
WARM, TIMED = 3, 5  # updates of a timing
TRIAL_SECONDS = 0.15  # a timing that took so long stops early
SHORT_SECONDS = 0.5  # shorter runs are not worth a timing
START_SECONDS = 3.0  # a worker process, until it takes its first call
CLEARLY = 0.9  # another plan than the reference has to take less than this share of its time


class SeedsFailed(StudyError):
    """A worker died. `results` holds the seeds that ended, `errors` the error of each that did not."""

    def __init__(self, results: list[Trained], errors: dict[int, BaseException]) -> None:
        what = "; ".join(f"seed {seed}: {error}" for seed, error in errors.items())
        super().__init__(f"{what} ({len(results)} other seeds ended, see .results)")
        self.results, self.errors = results, errors


def run_plan(problem: Problem, seeds: tuple[int, ...], plan: str) -> list[Trained]:
    """Train `seeds` under a plan, choosing one first if it is "auto"."""
    if plan == "auto":
        plan = choose(problem, seeds)
    tally(plan, len(seeds))
    outer, _, inner = plan.partition("+")
    if outer == "processes":
        return _in_processes(problem, seeds, inner)
    with _progress(problem, seeds) as shown:
        if plan in ("stacked", "vmap"):
            return train_batched(shown, seeds, plan)
        return [train_one(shown, seed) for seed in seeds]


@contextmanager
def _progress(problem: Problem, seeds: tuple[int, ...]) -> Iterator[Problem]:
    """The problem with a bar among its callbacks, where somebody could see it."""
    if in_worker() or not sys.stderr.isatty():
        yield problem
        return
    total, every = problem.lengths(problem.feed(seeds[0])) if repeatable(problem) else (0, 1)
    bar = Progress(math.ceil(total / every) * len(seeds), f"training {len(seeds)} seed{'s' * (len(seeds) > 1)}")
    try:
        yield replace(problem, callbacks=(*problem.callbacks, bar))
    finally:
        bar.close()


# The choice


def choose(problem: Problem, seeds: tuple[int, ...]) -> str:
    """The plan with the shortest expected time, from a few timed updates of copies."""
    if len(seeds) == 1 or not repeatable(problem):
        return "sequential"
    total, _ = problem.lengths(problem.feed(seeds[0]))
    one = seconds_per_update(problem, seeds[0])
    reference = one * len(seeds)
    if reference * total < SHORT_SECONDS:
        return "sequential"
    expected = {"sequential": reference * total}
    workers = min(cores(), len(seeds)) if _processes_possible(problem) else 1
    share = math.ceil(len(seeds) / workers)
    if workers > 1:
        with _one_thread():
            alone = seconds_per_update(problem, seeds[0])
        rounds = len(seeds) / workers if can_change_process(problem) else share
        expected["processes"] = alone * total * rounds
    quickest = min(expected.values()) / total
    for kind in ("stacked", "vmap"):
        seconds = _batched_seconds(problem, seeds, kind, quickest)
        if seconds is None or seconds >= reference:
            continue
        expected[kind] = seconds * total
        if workers > 1 and share > 1:
            with _one_thread():
                seconds = _batched_seconds(problem, seeds[:share], kind, alone * share)
            if seconds is not None:
                expected[f"processes+{kind}"] = seconds * total
    return _quickest(expected, reference * total, workers)


def _quickest(expected: dict[str, float], reference: float, workers: int) -> str:
    """The choice of the least time, where it clearly beats the reference. Processes that still have to start cost."""

    def best(start: float) -> str:
        full = {c: s + start * c.startswith("processes") for c, s in expected.items()}
        least = min(full, key=lambda c: full[c])
        if least not in UNBATCHED:  # a short timing flatters them: big batches come to cost page faults
            rival = min((c for c in full if c in UNBATCHED), key=lambda c: full[c])
            least = least if full[least] < CLEARLY * full[rival] else rival
        return least if full[least] < CLEARLY * reference else "sequential"

    warm, pool = best(0.0), None if workers == 1 else shared_pool()
    if pool is None or pool.warm >= workers:
        return warm
    if warm.startswith("processes") and reference > START_SECONDS:
        pool.start(workers)  # meanwhile, so that the next run of this kind finds them
    return best(START_SECONDS)


def _processes_possible(problem: Problem) -> bool:
    if problem.device.type != "cpu" or in_worker() or cores() < 2 or torch.get_num_threads() < 2:
        return False  # one thread: the caller wants one core to be used
    return all(getattr(c, "portable", False) for c in problem.callbacks)


def _rehearsal(problem: Problem) -> Problem:
    return replace(problem, callbacks=(), val=None, metric=None, alone=False)


def seconds_per_update(problem: Problem, seed: int) -> float:
    """Of one seed by itself, on a copy."""
    problem = _rehearsal(problem)
    model, feed = problem.module(seed), problem.feed(seed)
    updater = problem.updater(model, seed, problem.lengths(feed)[0])

    def update() -> None:
        updater.apply([feed.next() for _ in range(problem.config.accumulate)])

    with updater.noise.on():
        return _time(update, problem)


def _batched_seconds(problem: Problem, seeds: tuple[int, ...], kind: str, limit: float) -> float | None:
    """Of all `seeds` together, or None where that cannot be done; gives up when it is far above `limit`."""
    try:
        batched = Batched(_rehearsal(problem), seeds, kind)
        return _time(batched.update, problem, limit)
    except ValueError:
        return None


def _time(update: Any, problem: Problem, limit: float = math.inf) -> float:
    """Median seconds of an update, after a warm-up."""
    cuda = problem.device.type == "cuda"
    begun, taken = time.perf_counter(), []
    for i in range(WARM + TIMED):
        start = time.perf_counter()
        update()
        if cuda:
            torch.cuda.synchronize(problem.device)
        taken.append(time.perf_counter() - start)
        if taken[-1] > (2 if i else 4) * limit or (i and time.perf_counter() - begun > TRIAL_SECONDS):
            break
    counted = sorted(taken[min(WARM, len(taken) - 1) :])
    return counted[len(counted) // 2]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Worker processes


def _in_processes(problem: Problem, seeds: tuple[int, ...], inner: str) -> list[Trained]:
    if problem.device.type != "cpu":
        raise ValueError(f"worker processes are for the CPU: with device {problem.device} use vmap or sequential")
    if in_worker():  # pools are never nested
        return run_plan(problem, seeds, inner or "sequential")
    strangers = [type(c).__name__ for c in problem.callbacks if not getattr(c, "portable", False)]
    if strangers:
        raise ValueError(
            f"callbacks would act on copies in other processes: {', '.join(strangers)}; use another plan, or set "
            "portable = True on a callback that keeps nothing for the caller"
        )
    pool = shared_pool()
    label = f"processes+{inner}" if inner else "processes"
    size = math.ceil(len(seeds) / min(pool.num_workers, len(seeds)))
    chunks = [seeds[i : i + size] for i in range(0, len(seeds), size)]
    job = replace(problem, alone=False)
    results: dict[int, Trained] = {}
    errors: dict[int, BaseException] = {}

    def together() -> Iterator[Outcome]:
        for chunk in chunks:
            pool.submit(run_plan, job, chunk, inner, key=chunk)
        yield from pool.as_completed()

    outcomes = together() if inner else relayed(pool, job, seeds)
    try:
        for outcome in track(outcomes, f"training {len(seeds)} seeds", len(chunks) if inner else len(seeds)):
            if outcome.error is not None:
                errors |= dict.fromkeys(outcome.key, outcome.error)
            else:
                results |= {trained.seed: trained for trained in outcome.value}
    except BaseException:
        pool.close()  # whatever runs is of no use to anybody
        raise
    for error in errors.values():
        if not isinstance(error, WorkerDied):
            raise error
    done = [replace(results[seed], plan=label) for seed in seeds if seed in results]
    if errors:
        raise SeedsFailed(done, {seed: errors[seed] for seed in seeds if seed in errors})
    if problem.alone and isinstance(problem.build, nn.Module):  # trained in place, as the caller was promised
        problem.build.load_state_dict(done[0].module.state_dict())
        done[0].module = problem.build.eval()
    return done

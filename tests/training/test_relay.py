"""Runs that change the process: the shares, and the same numbers as a run that stays."""

import heapq
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from etude.data import Split, sampled, stream
from etude.training import TrainConfig, Trained, WorkerDied, train
from etude.training import relay as relay_module
from etude.training.relay import Half, first_shares
from etude.training.run import Problem, train_one
from etude.training.workers import cores

X = torch.randn(60, 6, generator=stream(0, "relay"))
DATA = Split(X, (X[:, 0] > 0).long())


class Net(nn.Module):
    """Everything that a run could lose on its way: batch statistics, dropout, a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return self.last(F.dropout(self.norm(self.first(x)).relu(), 0.3, self.training)) / (1 + self.calls / 100)


def build(seed: int) -> nn.Module:
    return Net()


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def draw(generator: torch.Generator, n: int) -> Split:
    x = torch.randn(n, 6, generator=generator)
    return Split(x, (x[:, 1] > 0).long())


def problem(config: TrainConfig, data: Any = DATA, **fields: Any) -> Problem:
    given = Problem(build, data, cross_entropy, config, None, None, DATA, None, (), torch.device("cpu"), False)
    return replace(given, **fields)


def equal(a: Trained, b: Trained) -> None:
    assert (a.seed, a.curve, a.steps, a.stopped, a.diverged) == (b.seed, b.curve, b.steps, b.stopped, b.diverged)
    left, right = a.module.state_dict(), b.module.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left | right)
    assert a.module.calls == b.module.calls


@given(st.integers(1, 40), st.integers(1, 17))
def test_the_shares_fill_all_workers_evenly(runs: int, workers: int) -> None:
    shares = first_shares(runs, workers)
    assert all(0 < share < 1 for share in shares.values())
    assert (not shares) == (runs <= workers or runs % workers == 0)
    if runs <= workers:
        return
    # the pool's order: free workers take first shares, whole runs, then the rest of what was left
    queue = [(run, shares[run], True) for run in shares] + [
        (r, Fraction(1), False) for r in range(runs) if r not in shares
    ]
    free: list[tuple[Fraction, int, int | None]] = [(Fraction(0), w, None) for w in range(workers)]
    heapq.heapify(free)
    end = Fraction(0)
    while free:
        now, worker, left = heapq.heappop(free)
        end = max(end, now)
        if left is not None:
            queue.append((left, 1 - shares[left], False))
        if queue:
            run, length, cut = queue.pop(0)
            heapq.heappush(free, (now + length, worker, run if cut else None))
    assert end < Fraction(runs, workers) + Fraction(1, 2)
    if workers == 2:
        assert end == Fraction(runs, 2)


CONFIGS = {
    "plain": TrainConfig(steps=12, batch_size=16),
    "everything": TrainConfig(steps=12, batch_size=16, accumulate=2, schedule="cosine", warmup_steps=3, clip_norm=0.5,
                              weight_decay=0.1, eval_every=5),
    "a point an update": TrainConfig(steps=7, batch_size=16, eval_every=1),
    "epochs": TrainConfig(epochs=3, batch_size=16),
    "patience": TrainConfig(steps=40, batch_size=16, patience=2, lr=0.3, eval_every=4),
}  # fmt: skip


DATA_KINDS: dict[str, Any] = {
    "split": DATA,
    "sampled": sampled(draw),
    "made": lambda seed: draw(stream(seed, "x"), 50),
}


@pytest.mark.parametrize(
    ("config", "data"), [(c, d) for c in CONFIGS for d in DATA_KINDS if (c, d) != ("epochs", "sampled")]
)
def test_a_run_may_be_left_anywhere(config: str, data: str) -> None:
    given = problem(CONFIGS[config], DATA_KINDS[data])
    whole = train_one(given, 3)
    total, _ = given.lengths(given.feed(3))
    for step in range(total + 1):
        first = relay_module._run(given, 3, Fraction(step, total))
        if isinstance(first, Half):
            assert 0 < step < total
            carried = torch.load(_through_a_file(first), weights_only=False)  # nothing shared with the first part
            (again,) = relay_module._run(given, 3, carried)  # type: ignore[misc]
            assert again.seconds > first.seconds > 0
        else:
            assert step in (0, total) or step >= whole.steps
            (again,) = first
        equal(again, whole)


def _through_a_file(half: Half) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(half, buffer)
    buffer.seek(0)
    return buffer


def test_seeds_that_do_not_divide_by_the_cores() -> None:
    seeds = tuple(range(cores() + 1))
    config = CONFIGS["everything"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    try:
        here = [train_one(problem(config), seed) for seed in seeds]
    finally:
        torch.set_num_threads(threads)
    there = train(build, DATA, loss=cross_entropy, config=config, seeds=seeds, val=DATA, plan="processes")
    assert [t.plan for t in there] == ["processes"] * len(seeds)
    for a, b in zip(there, here, strict=True):
        equal(a, b)


def test_a_worker_that_dies_in_either_part() -> None:
    class Deadly(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and self.calls == self.last_call:
                import os

                os._exit(7)
            return super().forward(x)

    seeds = tuple(range(cores() + 1))
    cut = next(iter(first_shares(len(seeds), cores())))
    for last_call in (1, 18):

        def built(seed: int, last_call: int = last_call) -> nn.Module:
            net = Deadly()
            net.last_call = last_call if seed == cut else -1  # type: ignore[assignment]
            return net

        with pytest.raises(Exception, match=f"seed {cut}: worker .* died") as caught:
            train(built, DATA, loss=cross_entropy, config=TrainConfig(steps=20), seeds=seeds, plan="processes")
        assert isinstance(caught.value.errors[cut], WorkerDied)  # type: ignore[attr-defined]
        assert [t.seed for t in caught.value.results] == [s for s in seeds if s != cut]  # type: ignore[attr-defined]

"""Refusals that name their reason, given modules, workers that die, and the choice of a plan."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import Split, stream
from etude.data.batching import sampled
from etude.layers import mlp
from etude.training import SeedsFailed, TrainConfig, Trained, accuracy, train
from etude.training import plan as plan_module
from etude.training.tally import counted_plans

SEEDS = (0, 3, 7)
TRAIN = Split(torch.randn(200, 12, generator=stream(0, "x")), torch.randint(4, (200,), generator=stream(0, "y")))


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def score(model: nn.Module, split: Any) -> float:
    return accuracy(model(split.x), split.y)


def small(seed: int) -> nn.Module:
    return mlp((12, 16, 4))


def same(a: list[Trained], b: list[Trained]) -> None:
    assert [(t.seed, t.steps, t.stopped) for t in a] == [(t.seed, t.steps, t.stopped) for t in b]
    for left, right in zip(a, b):
        with torch.no_grad():
            torch.testing.assert_close(left.module(TRAIN.x), right.module(TRAIN.x), atol=1e-4, rtol=1e-4)


class Listener:
    def on_step(self, state: Any) -> None:
        return None


class Portable(Listener):
    portable = True


class Chatty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(12, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x[:, None])[0][:, -1]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x + 0.1 * torch.randn_like(x))


class Rebinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return self.linear(x - self.mean)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(12, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) / self.calls


def jitter(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x + torch.randn_like(batch.x)), batch.y)


def reads_weights(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y) + model[0].weight.square().mean()


@pytest.mark.parametrize(
    ("plan", "build", "loss", "reason"),
    [
        ("vmap", lambda seed: Chatty(), cross_entropy, "LSTM 'rnn' cannot run under vmap"),
        ("vmap", lambda seed: mlp((12, 8, 4), dropout=0.1), cross_entropy, "Dropout '2' draws inside forward"),
        ("vmap", lambda seed: Noisy(), cross_entropy, "draws random numbers"),
        ("vmap", lambda seed: Rebinds(), cross_entropy, "new tensor in the place of buffer 'mean'"),
        ("vmap", lambda seed: Counts(), cross_entropy, "keeps count in net.calls"),
        ("vmap", lambda seed: mlp((12, 8 + seed, 4)), cross_entropy, "differ in their parameters"),
        ("stacked", lambda seed: Chatty(), cross_entropy, "no stacked form of Chatty"),
        ("stacked", lambda seed: mlp((12, 8 + seed, 4)), cross_entropy, "Linear differs"),
        ("stacked", small, jitter, "draws random numbers"),
        ("stacked", small, reads_weights, r"the loss reads model\[0\]"),
    ],
)
def test_refusals(plan: str, build: Any, loss: Any, reason: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=reason):
        train(build, TRAIN, loss=loss, config=TrainConfig(steps=3), seeds=SEEDS, plan=plan)
    assert torch.equal(before, torch.get_rng_state())
    got = train(build, TRAIN, loss=loss, config=TrainConfig(steps=3), seeds=SEEDS, plan="processes")
    for a, b in zip(got, train(build, TRAIN, loss=loss, config=TrainConfig(steps=3), seeds=SEEDS, plan="sequential")):
        for x, y in zip(a.module.parameters(), b.module.parameters()):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "different"),
        ({"seeds": (-1,)}, "at least 0"),
        ({"plan": "stack"}, "unknown plan 'stack'"),
        ({"loss": None}, "give a loss"),
        ({"config": TrainConfig()}, "length of the run"),
        ({"config": TrainConfig(steps=3, patience=2)}, "give val"),
        ({"metric": score}, "metric needs validation data"),
        ({"callbacks": [object()]}, "none of on_start"),
        ({"loss": lambda m, b: m(b.x)}, "scalar"),
        ({"data": (TRAIN.x, TRAIN.y[:5])}, "column 'y' has 5 rows, 'x' has 200"),
        ({"data": TRAIN.x}, "cannot train on Tensor"),
        ({"data": 3}, "cannot train on int"),
        ({"data": (TRAIN.x[:0], TRAIN.y[:0])}, "no rows"),
        ({"data": sampled(lambda g, t: TRAIN), "config": TrainConfig(epochs=1)}, "epochs need data with an end"),
        ({"config": TrainConfig(epochs=1, batch_size=500, drop_last=True)}, "no full batch"),
        ({"build": lambda seed: nn.ReLU()}, "no parameter that requires a gradient"),
        ({"build": lambda seed: 4}, "must return a module"),
        ({"plan": "processes", "device": "meta"}, "for the CPU"),
        ({"config": TrainConfig(steps=3, lr={"a": 1.0})}, "mapping"),
    ],
)
def test_bad_input(change: dict[str, Any], reason: str) -> None:
    kwargs: dict[str, Any] = {"build": small, "data": TRAIN, "loss": cross_entropy, "config": TrainConfig(steps=3)}
    with pytest.raises(ValueError, match=reason):
        train(**(kwargs | change))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"steps": 3, "epochs": 1}, "one of steps"),
        ({"steps": 0}, "steps must be positive"),
        ({"steps": 2.5}, "whole number"),
        ({"epochs": math.inf}, "finite"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": math.nan}, "lr"),
        ({"optimizer": "adm"}, "unknown optimizer 'adm'"),
        ({"schedule": "cos"}, "unknown schedule 'cos'"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"ema_decay": 1.0}, "weight of the old value"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"better": "bigger"}, "unknown better"),
    ],
)
def test_bad_settings(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainConfig(**settings)


# A given module, processes, the choice


@pytest.mark.parametrize("plan", ["auto", "processes"])
def test_a_given_module_is_trained_in_place(plan: str) -> None:
    model = mlp((12, 4))
    before = model[0].weight.clone()
    got = train(model, TRAIN, loss=cross_entropy, config=TrainConfig(steps=3), plan=plan)
    assert got[0].module is model
    assert not torch.equal(before, model[0].weight)
    kept = model[0].weight.clone()
    several = train(model, TRAIN, loss=cross_entropy, config=TrainConfig(steps=3), seeds=(0, 1))
    assert torch.equal(kept, model[0].weight)
    assert all(t.module is not model for t in several)


def test_a_dead_worker_is_named_and_the_others_go_on() -> None:
    def build(seed: int) -> nn.Module:
        if seed == 3:
            os._exit(9)
        return small(seed)

    with pytest.raises(SeedsFailed, match=r"seed 3: worker \d+ died \(exit code 9\)") as caught:
        train(build, TRAIN, loss=cross_entropy, config=TrainConfig(steps=3), seeds=SEEDS, plan="processes")
    assert [t.seed for t in caught.value.results] == [0, 7]
    assert set(caught.value.errors) == {3}


def test_an_error_in_a_worker_is_the_callers() -> None:
    def wrong(model: Any, batch: Any) -> Tensor:
        raise KeyError("mislaid")

    with pytest.raises(KeyError, match="mislaid"):
        train(small, TRAIN, loss=wrong, config=TrainConfig(steps=3), seeds=SEEDS, plan="processes")
    train(small, TRAIN, loss=cross_entropy, config=TrainConfig(steps=3), seeds=SEEDS, plan="processes")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The choice with made-up timings: seconds an update."""
    times: dict[str, Any] = {"sequential": 1e-3, "alone": 1e-3, "stacked": None, "vmap": None, "cores": 2}

    def one(problem: Any, seed: int) -> float:
        return times["alone"] if torch.get_num_threads() == 1 and times["cores"] > 1 else times["sequential"]

    monkeypatch.setattr(plan_module, "seconds_per_update", one)
    monkeypatch.setattr(plan_module, "_batched_seconds", lambda p, seeds, kind, limit: times[kind])
    monkeypatch.setattr(plan_module, "cores", lambda: times["cores"])
    times["pool"] = SimpleNamespace(warm=2, start=lambda n: setattr(times["pool"], "warm", n))
    monkeypatch.setattr(plan_module, "shared_pool", lambda: times["pool"])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield times
    torch.set_num_threads(threads)


def chosen(callbacks: tuple[Any, ...] = (), steps: int = 10**5, seeds: int = 4) -> str:
    from etude.training.run import Problem

    problem = Problem(small, TRAIN, cross_entropy, TrainConfig(steps=steps), None, None, None, None, callbacks,
                      torch.device("cpu"), False)  # fmt: skip
    return plan_module.choose(problem, tuple(range(seeds)))


def test_the_quickest_plan_is_taken(clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen() == "processes"
    assert chosen(callbacks=(Listener(),)) == "sequential"
    clock["vmap"] = 2.5e-3
    assert chosen(callbacks=(Listener(),)) == "vmap"
    clock["stacked"] = 1e-3
    assert chosen() == "stacked"
    clock["stacked"] = 1.9e-3
    assert chosen() == "processes", "batched nets are chosen where they are clearly quicker than processes"
    clock["stacked"] = 1e-2
    assert chosen() == "processes"
    monkeypatch.setenv("ETUDE_WORKER", "1")
    assert chosen() == "vmap"
    clock["vmap"] = 3.9e-3
    assert chosen() == "sequential", "a tenth quicker is not clearly quicker"
    assert chosen(steps=5) == "sequential"


def test_an_odd_seed_counts_half_a_round(clock: dict[str, Any]) -> None:
    clock["alone"] = 1.7e-3  # two and a half rounds are 4.25 ms, three would be 5.1
    assert chosen(seeds=5) == "processes"
    assert chosen(seeds=5, callbacks=(Portable(),)) == "sequential", "what a callback keeps would be left behind"
    clock["alone"] = 1.9e-3
    assert chosen(seeds=5) == "sequential"
    torch.set_num_threads(1)  # the caller wants one core
    assert chosen(seeds=5) == "sequential"


def test_workers_start_beside_a_run_that_would_have_gained(clock: dict[str, Any]) -> None:
    clock["pool"].warm = 0
    assert chosen(steps=500) == "sequential", "2 s, less than a start"
    assert clock["pool"].warm == 0
    assert chosen(steps=1000) == "sequential", "4 s, in processes 2 s and a start of 3 s"
    assert clock["pool"].warm == 2
    assert chosen(steps=1000) == "processes"
    clock["pool"].warm = 0
    assert chosen(steps=10**5) == "processes", "long enough to pay for the start"


def test_the_plans_taken_are_counted() -> None:
    config = TrainConfig(steps=2)
    with counted_plans() as outer:
        train(small, TRAIN, loss=cross_entropy, config=config, seeds=(0, 1), plan="stacked")
        with counted_plans() as inner:
            train(small, TRAIN, loss=cross_entropy, config=config)
    train(small, TRAIN, loss=cross_entropy, config=config)
    assert outer == {"stacked": 2}
    assert inner == {"sequential": 1}


def test_seconds_become_steps() -> None:
    config = TrainConfig(seconds=0.2, schedule="cosine")
    got = train(small, TRAIN, loss=cross_entropy, config=config, seeds=(0, 1), plan="sequential")
    assert got[0].steps == got[1].steps > 20
    again = train(
        small, TRAIN, loss=cross_entropy, config=replace(config, seconds=None, steps=got[0].steps), seeds=(0, 1)
    )
    same(got, again)


def test_precision_is_recorded() -> None:
    assert train(small, TRAIN, loss=cross_entropy, config=TrainConfig(steps=2))[0].precision == "fp32"
    got = train(small, TRAIN, loss=cross_entropy, config=TrainConfig(steps=2, precision="auto"))
    assert got[0].precision in ("fp32", "bf16")
    assert next(got[0].module.parameters()).dtype == torch.float32

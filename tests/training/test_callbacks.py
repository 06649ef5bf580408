"""Checkpoints: a run that was killed goes on bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from etude.data import Split, stream
from etude.data.batching import sampled
from etude.layers import mlp
from etude.training import Checkpoint, TrainConfig, Trained, train

DATA = Split(torch.randn(100, 6, generator=stream(0, "x")), torch.arange(100) % 3)
VAL = Split(*(c[:40] if c is not None else None for c in DATA))
CONFIG = TrainConfig(
    steps=40, batch_size=16, schedule="cosine", warmup_steps=5, ema_decay=0.9, clip_norm=1.0, eval_every=6, patience=50,
    optimizer="adamw", weight_decay=0.01, lr=0.01,
)  # fmt: skip


class Killed(BaseException):
    pass


class Killer:
    portable = True

    def __init__(self, step: int, seed: int | None = None) -> None:
        self.step, self.seed = step, seed

    def on_step(self, state: Any) -> None:
        if state.step == self.step and self.seed in (None, state.seed):
            raise Killed


def build(seed: int) -> nn.Module:
    return mlp((6, 8, 3), norm="batch", dropout=0.3)


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x + 0.1 * torch.randn_like(batch.x)), batch.y)


def draw(generator: torch.Generator, step: int) -> Split:
    return Split(torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator))


def fit(callbacks: Any = (), data: Any = DATA, config: TrainConfig = CONFIG, **kwargs: Any) -> list[Trained]:
    return train(build, data, loss=loss, config=config, val=VAL, callbacks=callbacks, **{"plan": "sequential"} | kwargs)


def identical(a: Trained, b: Trained) -> None:
    assert a.curve == b.curve
    assert (a.steps, a.stopped) == (b.steps, b.stopped)
    for (name, x), y in zip(a.module.state_dict().items(), b.module.state_dict().values()):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("kill", [1, 7, 13, 14, 24, 39, 40])
@pytest.mark.parametrize("data", [DATA, sampled(draw)], ids=["rows", "fresh"])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, kill: int, data: Any) -> None:
    wanted = fit(data=data)[0]
    with pytest.raises(Killed):
        fit([Checkpoint(tmp_path, every=7), Killer(kill)], data)
    identical(fit([Checkpoint(tmp_path, every=7)], data)[0], wanted)
    again = fit([Checkpoint(tmp_path, every=7), Killer(1)], data)[0]
    identical(again, wanted)  # a finished run makes no update


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "rmsprop"])
def test_saving_with_the_curve_and_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    momentum = 0.9 if optimizer in ("sgd", "rmsprop") else 0.0
    config = TrainConfig(epochs=4, batch_size=32, optimizer=optimizer, lr=0.05, momentum=momentum, accumulate=2)
    wanted = fit(config=config)[0]
    with pytest.raises(Killed):
        fit([Checkpoint(tmp_path), Killer(5)], config=config)
    identical(fit([Checkpoint(tmp_path)], config=config)[0], wanted)


def test_early_stopping_is_resumed_and_stays_stopped(tmp_path: Path) -> None:
    config = TrainConfig(steps=500, lr=0.1, batch_size=16, patience=2, eval_every=4)
    wanted = fit(config=config)[0]
    assert wanted.stopped == "patience"
    with pytest.raises(Killed):
        fit([Checkpoint(tmp_path, every=3), Killer(wanted.steps - 1)], config=config)
    identical(fit([Checkpoint(tmp_path, every=3)], config=config)[0], wanted)
    identical(fit([Checkpoint(tmp_path, every=3), Killer(wanted.steps + 1)], config=config)[0], wanted)


@pytest.mark.parametrize("every", [5, 10])
@pytest.mark.parametrize("kill", [11, 21, 29])
def test_a_save_that_falls_on_a_point_of_the_curve_keeps_it(tmp_path: Path, kill: int, every: int) -> None:
    config = TrainConfig(steps=60, lr=0.1, batch_size=16, patience=2, eval_every=10)
    with pytest.raises(Killed):
        fit([Checkpoint(tmp_path, every=every), Killer(kill)], config=config)
    identical(fit([Checkpoint(tmp_path, every=every)], config=config)[0], fit(config=config)[0])


def test_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    def config(lr: float, lambdas: bool) -> TrainConfig:
        made = (lambda p: torch.optim.SGD(p, lr=lr)) if lambdas else partial(torch.optim.SGD, lr=lr)
        return TrainConfig(steps=10, batch_size=16, optimizer=made)

    for lambdas in (True, False):
        folder = tmp_path / str(lambdas)
        first = fit([Checkpoint(folder)], config=config(0.1, lambdas))[0]
        identical(fit([Checkpoint(folder), Killer(1)], config=config(0.1, lambdas))[0], first)
        with pytest.raises(ValueError, match="optimizer was"):
            fit([Checkpoint(folder)], config=config(5.0, lambdas))


def test_more_patience_lets_a_stopped_run_go_on(tmp_path: Path) -> None:
    short, long = (TrainConfig(steps=60, lr=0.1, batch_size=16, patience=p, eval_every=4) for p in (2, 100))
    assert fit([Checkpoint(tmp_path)], config=short)[0].stopped == "patience"
    identical(fit([Checkpoint(tmp_path)], config=long)[0], fit(config=long)[0])
    with pytest.raises(ValueError, match="stands at update 60, this run ends at 20"):
        fit([Checkpoint(tmp_path)], config=TrainConfig(**{**vars(long), "steps": 20}))


def test_resuming_leaves_the_callers_random_numbers(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA.x, DATA.y), 20, shuffle=True)
    config = TrainConfig(steps=10, batch_size=20)
    plain = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])
    train(build, loader, loss=plain, config=config, callbacks=[Checkpoint(tmp_path)], plan="sequential")
    before = torch.get_rng_state()
    train(build, loader, loss=plain, config=config, callbacks=[Checkpoint(tmp_path)], plan="sequential")
    assert torch.equal(torch.get_rng_state(), before)
    longer = TrainConfig(steps=20, batch_size=20)  # nobody knows the order in which the first ten batches came
    with pytest.raises(ValueError, match="shuffles without a generator of its own"):
        train(build, loader, loss=plain, config=longer, callbacks=[Checkpoint(tmp_path)], plan="sequential")


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    point = Checkpoint(tmp_path)
    fit([point])
    point.path(0).write_bytes(point.path(0).read_bytes()[:500])
    with pytest.raises(ValueError, match=r"seed-0\.safetensors is no whole checkpoint .* delete it"):
        fit([point])


def test_each_seed_has_its_file_and_processes_resume(tmp_path: Path) -> None:
    wanted = fit(seeds=(0, 1, 2))
    with pytest.raises(Killed):
        fit([Checkpoint(tmp_path, every=5), Killer(20, seed=1)], seeds=(0, 1, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["seed-0.safetensors", "seed-1.safetensors"]
    got = fit([Checkpoint(tmp_path, every=5)], seeds=(0, 1, 2), plan="processes")
    assert [t.steps for t in got] == [40, 40, 40]
    for a, b in zip(got, wanted):
        for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values()):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path) -> None:
    short, long = (TrainConfig(steps=n, batch_size=16, eval_every=5) for n in (15, 30))
    fit([Checkpoint(tmp_path)], config=short)
    got = fit([Checkpoint(tmp_path)], config=long)[0]
    identical(got, fit(config=long)[0])


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    fit([Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"lr was 0\.01 and is 0\.1"):
        fit([Checkpoint(tmp_path)], config=TrainConfig(**{**vars(CONFIG), "lr": 0.1}))
    with pytest.raises(ValueError, match="40 updates, this one has 80"):
        fit([Checkpoint(tmp_path)], config=TrainConfig(**{**vars(CONFIG), "steps": 80}))
    with pytest.raises(ValueError, match="does not fit this net"):
        train(lambda seed: mlp((6, 9, 3)), DATA, loss=loss, config=CONFIG, val=VAL, callbacks=[Checkpoint(tmp_path)])
    for plan in ("stacked", "vmap"):
        with pytest.raises(ValueError, match="one seed at a time"):
            fit([Checkpoint(tmp_path)], seeds=(0, 1), plan=plan)
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoint(tmp_path, every=0)


def test_the_file_is_plain_safetensors_and_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Checkpoint(tmp_path)
    fit([point])
    before = point.path(0).read_bytes()
    with safe_open(point.path(0), framework="pt") as file:
        assert any(name.startswith("run.updater.model.0.weight") for name in file.keys())  # noqa: SIM118
    assert list(tmp_path.iterdir()) == [point.path(0)]
    import etude.training.callbacks as module

    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        fit([point], config=TrainConfig(**{**vars(CONFIG), "schedule": "constant"}), seeds=(1,))
    assert point.path(0).read_bytes() == before
    assert list(tmp_path.iterdir()) == [point.path(0)]

"""Single updates, moving averages, parameter groups."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import Split, stream
from etude.layers import convnet, mlp
from etude.training import EMA, TrainConfig, Updater, parameter_groups
from etude.training.updater import StepUpdater
from etude.trust import CodebookLayer

BATCH = Split(torch.randn(20, 5, generator=stream(0, "x")), torch.arange(20) % 3)


def loss(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def twins(**kwargs: Any) -> tuple[nn.Module, nn.Module]:
    model = mlp((5, 7, 3), **kwargs)
    return model, copy.deepcopy(model)


@pytest.mark.parametrize(
    ("name", "settings", "peer"),
    [
        ("adam", {"betas": (0.8, 0.95), "eps": 1e-6}, lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95), 1e-6)),
        ("adamw", {"weight_decay": 0.1}, lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
        ("sgd", {"momentum": 0.9, "nesterov": True}, lambda p: torch.optim.SGD(p, 0.01, 0.9, nesterov=True)),
        ("rmsprop", {"momentum": 0.5}, lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5)),
        ("adagrad", {}, lambda p: torch.optim.Adagrad(p, 0.01)),
    ],
)
def test_updates_are_torchs(name: str, settings: dict[str, Any], peer: Any) -> None:
    mine, theirs = twins()
    config = TrainConfig(optimizer=name, lr=0.01, decay="all", clip_norm=0.5, **settings)
    updater, optimizer = Updater(mine, loss, config), peer(theirs.parameters())
    for _ in range(6):
        got = updater.update(BATCH)
        optimizer.zero_grad()
        value = loss(theirs, BATCH)
        value.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        assert got["loss"] == pytest.approx(value.item(), abs=1e-6)
    for x, y in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_a_callable_optimizer_is_told_the_rate_that_was_set() -> None:
    own = lambda groups: torch.optim.SGD(groups, lr=0.25)
    rate = lambda **settings: Updater(mlp((5, 3)), loss, TrainConfig(**settings)).optimizer.param_groups[0]["lr"]
    assert rate(optimizer=torch.optim.SGD, lr=0.5) == 0.5  # torch's own default is 0.001
    assert rate(optimizer=own) == 0.25
    assert rate(optimizer=own, lr=0.5) == 0.5
    step = lambda nets, optimizers, batch, generator: None
    assert StepUpdater(mlp((5, 3)), step, TrainConfig(optimizer=own)).optimizers[""].param_groups[0]["lr"] == 0.25
    nets = nn.ModuleDict({"a": mlp((5, 3)), "b": mlp((5, 3))})
    made = StepUpdater(nets, step, TrainConfig(optimizer=own, lr={"a": 1e-3, "b": 0.5})).optimizers
    assert [made[name].param_groups[0]["lr"] for name in "ab"] == [1e-3, 0.5]


def test_an_update_learns_whatever_the_caller_switched_off() -> None:
    one, other = twins()
    wanted = Updater(one, loss, TrainConfig()).update(BATCH)
    updater = Updater(other, loss, TrainConfig())
    with torch.inference_mode():
        assert updater.update(BATCH) == wanted
    for x, y in zip(one.parameters(), other.parameters()):
        assert torch.equal(x, y)


def test_accumulated_batches_make_the_gradient_of_all() -> None:
    one, other = twins()
    config = TrainConfig(optimizer="sgd", lr=0.5)
    halves = [Split(*(c[i : i + 10] if c is not None else None for c in BATCH)) for i in (0, 10)]
    Updater(one, loss, config).update(BATCH)
    Updater(other, loss, config).update(halves)
    for x, y in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(x, y)


def test_terms_are_summed_and_reported() -> None:
    def terms(model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"fit": loss(model, batch), "size": model[0].weight.square().sum()}

    one, other = twins()
    got = Updater(one, terms, TrainConfig()).update(BATCH)
    assert got["loss"] == pytest.approx(got["fit"] + got["size"], rel=1e-6)
    Updater(other, loss, TrainConfig(), penalty=lambda m: m[0].weight.square().sum()).update(BATCH)
    for x, y in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(x, y)


def test_noise_is_the_seeds_own_and_leaves_the_global_generator() -> None:
    one, other = twins(dropout=0.5)
    before = torch.get_rng_state()
    a, b = Updater(one, loss, TrainConfig(), seed=4), Updater(other, loss, TrainConfig(), seed=4)
    first = [a.update(BATCH)["loss"] for _ in range(3)]
    torch.rand(100, generator=stream(0, "elsewhere"))
    assert [b.update(BATCH)["loss"] for _ in range(3)] == first
    assert torch.equal(before, torch.get_rng_state())
    fresh = Updater(copy.deepcopy(one), loss, TrainConfig(), seed=5)
    assert fresh.update(BATCH)["loss"] != Updater(copy.deepcopy(one), loss, TrainConfig(), seed=4).update(BATCH)["loss"]


def test_state_dict_resumes() -> None:
    config = TrainConfig(steps=20, schedule="cosine", ema_decay=0.5, lr=0.1)
    model, twin = twins(dropout=0.5, norm="batch")
    updater = Updater(model, loss, config)
    for _ in range(4):
        updater.update(BATCH)
    saved = copy.deepcopy(updater.state_dict())
    wanted = [updater.update(BATCH)["loss"] for _ in range(4)]
    other = Updater(twin, loss, config)
    other.load_state_dict(saved)
    assert [other.update(BATCH)["loss"] for _ in range(4)] == wanted
    assert other.optimizer.param_groups[0]["lr"] == updater.optimizer.param_groups[0]["lr"]
    assert torch.equal(other.ema.module[0].weight, updater.ema.module[0].weight)  # type: ignore[union-attr]


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    model, twin = twins()
    updater = Updater(model, loss, TrainConfig())
    got = updater.update(BATCH._replace(x=BATCH.x * float("nan")))
    assert got["loss"] != got["loss"]
    assert updater.step == 0
    for x, y in zip(model.parameters(), twin.parameters()):
        assert torch.equal(x, y)


def test_evaluation_between_updates() -> None:
    model = mlp((5, 7, 3), norm="batch")
    updater = Updater(model, loss, TrainConfig(freeze_batchnorm=True))
    model.eval()
    updater.update(BATCH)
    assert model.training
    assert not model[1].training


def test_learning_rates_follow_the_schedule() -> None:
    updater = Updater(mlp((5, 3)), loss, TrainConfig(steps=10, lr=0.5, schedule="linear", warmup_steps=2))
    rates = []
    for _ in range(10):
        updater.update(BATCH)
        rates.append(updater.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.25, 0.5, *(0.5 * (1 - i / 8) for i in range(8))])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Updater(nn.ReLU(), loss, TrainConfig()), "no parameter"),
        (lambda: Updater(mlp((5, 3)), loss, TrainConfig(schedule="cosine")), "needs total_steps"),
        (lambda: Updater(mlp((5, 3)), lambda m, b: m(b.x), TrainConfig()).update(BATCH), "scalar"),
        (lambda: Updater(mlp((5, 3)), lambda m, b: 1.0, TrainConfig()).update(BATCH), "scalar"),
        (
            lambda: TrainConfig(momentum=0.9),
            "momentum would change nothing in optimizer 'adam': momentum goes with rmsprop, sgd",
        ),
        (lambda: TrainConfig(optimizer="adagrad", betas=(0.8, 0.9)), "betas would change nothing"),
        (lambda: TrainConfig(optimizer="sgd", eps=1e-6), "eps would change nothing"),
        (lambda: TrainConfig(optimizer=torch.optim.SGD, momentum=0.9), "momentum would change nothing"),
        (lambda: TrainConfig(optimizer="sgd", nesterov=True), "momentum above 0"),
        (lambda: TrainConfig(optimizer="sgd", momentum=float("nan")), "momentum must be finite"),
        (lambda: TrainConfig(weight_decay=float("nan")), "weight_decay must be finite"),
        (lambda: TrainConfig(betas=(0.9, 1.0)), "betas are two numbers"),
        (lambda: TrainConfig(eps=0.0), "eps must be positive"),
        (lambda: TrainConfig(eval_every=2.5), "eval_every must be a whole number"),
        (lambda: TrainConfig(batch_size=float("inf")), "batch_size must be a whole number"),
        (lambda: TrainConfig(warmup_steps=-1), "warmup_steps must be finite and at least 0"),
    ],
)
def test_bad_input(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


# Moving average


def test_ema_in_closed_form() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.0)
    average = EMA(model, 0.9)
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
    assert float(average.module.weight) == pytest.approx(0.1 * (0.81 * 1 + 0.9 * 2 + 3))
    assert not any(p.requires_grad for p in average.module.parameters())


def test_ema_copies_buffers_whole() -> None:
    model = convnet((1, 4, 4), (2,), 2, norm="batch")
    average = EMA(model, 0.99)
    model(torch.randn(8, 1, 4, 4, generator=stream(0, "images")) + 5)
    average.update(model)
    for x, y in zip(average.module.buffers(), model.buffers()):
        assert torch.equal(x, y)
        assert x is not y
    assert average.module[0].norm.num_batches_tracked == 1


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_ema_decay_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match="weight of the old value"):
        EMA(nn.Linear(1, 1), decay)


# Parameter groups


def test_decay_spares_norms_biases_and_what_is_named() -> None:
    model = nn.ModuleDict({"net": mlp((5, 7, 3), norm="layer"), "codes": nn.Embedding(4, 5)})
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, 0.1, no_decay=["codes.*"])
    decayed = [names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]]
    assert decayed == ["net.0.weight", "net.3.weight"]
    assert sum(len(g["params"]) for g in groups) == len(names)
    everything = parameter_groups(model, 0.1, decay="all")
    assert [len(g["params"]) for g in everything] == [len(names)]
    model["net"][0].weight.requires_grad_(False)
    assert names[id(model["net"][0].weight)] not in [
        names[id(p)] for g in parameter_groups(model, 0.1) for p in g["params"]
    ]
    layer = CodebookLayer(6, num_codes=4)  # codes, and a norm whose scales have two axes
    assert [g["weight_decay"] for g in parameter_groups(layer, 0.1)] == [0.0]
    with pytest.raises(ValueError, match=r"no_decay 'coeds\.\*' matches no parameter"):
        parameter_groups(model, 0.1, no_decay=["coeds.*"])

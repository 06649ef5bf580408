"""All plans of the engine pass one suite: what a seed becomes depends on nothing but the seed."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import Split, fork_global, stream
from etude.data.batching import Batches, sampled
from etude.layers import convnet, mlp
from etude.training import TrainConfig, Trained, accuracy, train
from etude.training import plan as plan_module

SEEDS = (0, 3, 7)
PLANS = ["sequential", "stacked", "vmap", "processes", "processes+stacked"]
BATCHED = ["stacked", "vmap"]
# Adam turns rounding of gradients that should be zero (a bias before a batch norm) into steps: compare outputs
TOLERANCE = 1e-4


def rows(n: int = 200, d: int = 12, classes: int = 4) -> Split:
    with fork_global(stream(1, "rows")):
        centres, y = torch.randn(classes, d), torch.randint(classes, (n,))
        return Split(centres[y] + 0.7 * torch.randn(n, d), y)


TRAIN, VAL = rows(), Split(*(c[:64] if c is not None else None for c in rows(n=264)))


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def score(model: nn.Module, split: Any) -> float:
    return accuracy(model(split.x), split.y)


def small(seed: int) -> nn.Module:
    return mlp((12, 16, 4))


def outputs(results: list[Trained]) -> Tensor:
    with torch.no_grad():
        return torch.stack([t.module(VAL.x.to(next(t.module.parameters()).device)).cpu() for t in results])


def same(a: list[Trained], b: list[Trained], tolerance: float = TOLERANCE) -> None:
    assert [t.seed for t in a] == [t.seed for t in b]
    assert [(t.steps, t.stopped, t.diverged) for t in a] == [(t.steps, t.stopped, t.diverged) for t in b]
    torch.testing.assert_close(outputs(a), outputs(b), atol=tolerance, rtol=tolerance)
    for left, right in zip(a, b):
        assert [p["step"] for p in left.curve] == [p["step"] for p in right.curve]
        for p, q in zip(left.curve, right.curve):
            assert p.keys() == q.keys()
            assert p["loss"] == pytest.approx(q["loss"], rel=1e-3, abs=1e-5)


class Case(NamedTuple):
    build: Any
    config: TrainConfig


CASES = {
    "plain": Case(small, TrainConfig(steps=25, batch_size=32)),
    "adamw_cosine_clip": Case(
        small,
        TrainConfig(epochs=3, optimizer="adamw", weight_decay=0.1, schedule="cosine", warmup_steps=4, clip_norm=0.3),
    ),
    "sgd_step_accumulate": Case(
        small,
        TrainConfig(
            steps=20, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, schedule="step", boundaries=(8, 14),
            accumulate=3, batch_size=16, clip_value=0.05, weight_decay=1e-2, decay="all",
        ),
    ),
    "ema": Case(small, TrainConfig(steps=20, ema_decay=0.8, optimizer="rmsprop")),
    "drop_last": Case(small, TrainConfig(epochs=2.5, batch_size=48, drop_last=True, optimizer="adagrad", lr=0.05)),
    "batch_norm": Case(lambda seed: mlp((12, 16, 4), norm="batch"), TrainConfig(steps=20, optimizer="sgd", lr=0.1)),
    "layer_norm": Case(lambda seed: mlp((12, 16, 4), norm="layer", activation="gelu"), TrainConfig(steps=20)),
    "dropout": Case(lambda seed: mlp((12, 16, 4), dropout=0.4), TrainConfig(steps=20)),
    "linear_probe": Case(lambda seed: nn.Linear(12, 4), TrainConfig(steps=20, optimizer="sgd", lr=0.5)),
    "bf16": Case(small, TrainConfig(steps=6, precision="bf16", optimizer="sgd", lr=0.05)),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> dict[str, list[Trained]]:
    shared: dict[str, Any] = {"loss": cross_entropy, "seeds": SEEDS, "val": VAL, "metric": score}
    return {n: train(c.build, TRAIN, config=c.config, plan="sequential", **shared) for n, c in CASES.items()}


@pytest.mark.parametrize(("name", "plan"), [(n, p) for n in CASES for p in PLANS[1:] if (n, p) != ("dropout", "vmap")])
def test_every_plan_gives_the_same(name: str, plan: str, reference: dict[str, list[Trained]]) -> None:
    case = CASES[name]
    got = train(
        case.build, TRAIN, loss=cross_entropy, config=case.config, seeds=SEEDS, val=VAL, metric=score, plan=plan
    )
    same(reference[name], got, 2e-2 if name == "bf16" else TOLERANCE)
    assert {t.plan for t in got} == {plan}
    for left, right in zip(reference[name], got):
        for (key, a), (other, b) in zip(left.module.named_buffers(), right.module.named_buffers()):
            assert key == other
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_seeds_differ_and_the_curve_falls(reference: dict[str, list[Trained]]) -> None:
    got = reference["plain"]
    assert (outputs(got)[0] - outputs(got)[1]).abs().max() > 0.01
    for trained in got:
        assert trained.curve[-1]["step"] == 25
        assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]
        assert {"step", "loss", "val_loss", "metric"} == set(trained.curve[-1])
        assert not trained.module.training


@pytest.mark.parametrize("plan", PLANS)
def test_a_seed_does_not_depend_on_its_company(plan: str) -> None:
    config = TrainConfig(steps=15)
    alone = train(small, TRAIN, loss=cross_entropy, config=config, seeds=(7,), plan=plan)
    among = train(small, TRAIN, loss=cross_entropy, config=config, seeds=SEEDS, plan=plan)
    same(alone, among[2:])


@pytest.mark.parametrize("plan", PLANS)
def test_the_global_generator_is_left_alone(plan: str) -> None:
    before = torch.get_rng_state()
    train(CASES["dropout"].build if plan != "vmap" else small, TRAIN, loss=cross_entropy,
          config=TrainConfig(steps=3), seeds=SEEDS, plan=plan)  # fmt: skip
    assert torch.equal(before, torch.get_rng_state())


def by_hand(seed: int, steps: int) -> nn.Module:
    """The loop that a user would write, with Etude's streams."""
    with fork_global(stream(seed, "init")):
        model = small(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = stream(seed, "order")
    done = 0
    while True:
        for part in torch.randperm(TRAIN.n, generator=order).split(64):
            if done == steps:
                return model.eval()
            optimizer.zero_grad()
            F.cross_entropy(model(TRAIN.x[part]), TRAIN.y[part]).backward()
            optimizer.step()
            done += 1


def test_the_reference_is_the_hand_written_loop() -> None:
    got = train(small, TRAIN, loss=cross_entropy, config=TrainConfig(steps=11), seeds=(5,))
    torch.testing.assert_close(got[0].module(VAL.x), by_hand(5, 11)(VAL.x), atol=1e-6, rtol=1e-5)


# Stopping


@pytest.mark.parametrize("plan", PLANS)
def test_early_stopping_for_each_seed(plan: str) -> None:
    config = TrainConfig(steps=400, lr=0.05, patience=2, eval_every=5)
    kept = train(small, TRAIN, loss=cross_entropy, config=config, seeds=(0, 1, 2, 3), val=VAL, plan=plan)
    wanted = train(small, TRAIN, loss=cross_entropy, config=config, seeds=(0, 1, 2, 3), val=VAL, plan="sequential")
    same(wanted, kept, 1e-3)
    assert all(t.stopped == "patience" and t.steps < 400 for t in kept)
    assert len({t.steps for t in kept}) > 1, "the seeds should stop at different times"
    for trained in kept:  # the best weights are back
        losses = [p["val_loss"] for p in trained.curve]
        with torch.no_grad():
            assert float(cross_entropy(trained.module, VAL)) == pytest.approx(min(losses), abs=1e-4)
        assert losses.index(min(losses)) == len(losses) - 3


@pytest.mark.parametrize("plan", PLANS)
def test_stop_when(plan: str) -> None:
    config = TrainConfig(steps=300, lr=0.01, eval_every=3, stop_when=lambda state: state.point["loss"] < 0.7)
    got = train(small, TRAIN, loss=cross_entropy, config=config, seeds=SEEDS, plan=plan)
    assert all(t.stopped == "stop_when" and t.curve[-1]["loss"] < 0.7 <= t.curve[-2]["loss"] for t in got)


def explodes(model: Any, batch: Any) -> Tensor:
    """Not finite as soon as the rows of seed 3 hold the poisoned one."""
    return F.cross_entropy(model(batch.x), batch.y)


def poisoned(seed: int) -> Split:
    if seed != 3:
        return TRAIN
    x = TRAIN.x.clone()
    x[17] = float("inf")
    return TRAIN._replace(x=x)


@pytest.mark.parametrize("plan", PLANS)
def test_a_diverged_seed_is_kept_and_spoils_no_other(plan: str) -> None:
    config = TrainConfig(steps=12, batch_size=50, clip_norm=1.0, ema_decay=0.5)
    got = train(small, poisoned, loss=cross_entropy, config=config, seeds=SEEDS, plan=plan)
    assert [t.diverged for t in got] == [False, True, False]
    assert got[1].stopped == "diverged"
    assert got[1].steps < 4
    assert all(torch.isfinite(p).all() for t in got for p in t.module.parameters())
    healthy = train(small, TRAIN, loss=cross_entropy, config=config, seeds=(0, 7), plan="sequential")
    same(healthy, [got[0], got[2]])
    alone = train(small, poisoned, loss=cross_entropy, config=config, seeds=(3,), plan="sequential")
    same(alone, [got[1]])


@pytest.mark.parametrize("plan", PLANS)
def test_weights_that_blow_up_in_the_last_update_are_noticed(plan: str) -> None:
    config = TrainConfig(steps=1, optimizer="sgd", lr=1e38)
    data = TRAIN._replace(x=TRAIN.x * 1e4)
    got = train(small, data, loss=cross_entropy, config=config, seeds=(0, 1), plan=plan)
    assert [t.diverged for t in got] == [True, True]


# Data


@pytest.mark.parametrize("plan", PLANS)
def test_data_of_each_seed(plan: str) -> None:
    def data(seed: int) -> Split:
        return Split(TRAIN.x + seed, TRAIN.y)

    config = TrainConfig(steps=10, batch_size=33)
    same(
        train(small, data, loss=cross_entropy, config=config, seeds=SEEDS, plan="sequential", val=data),
        train(small, data, loss=cross_entropy, config=config, seeds=SEEDS, plan=plan, val=data),
    )


@pytest.mark.parametrize("plan", PLANS)
def test_fresh_data(plan: str) -> None:
    seen: list[int] = []

    def draw(generator: torch.Generator, step: int) -> Split:
        seen.append(step)
        x = torch.randn(16, 12, generator=generator)
        return Split(x, (x[:, 0] > 0).long())

    config = TrainConfig(steps=8)
    got = train(small, sampled(draw), loss=cross_entropy, config=config, seeds=SEEDS, plan=plan)
    if "processes" not in plan:
        assert sorted(seen) == sorted(list(range(8)) * 3)
    same(train(small, sampled(draw), loss=cross_entropy, config=config, seeds=SEEDS, plan="sequential"), got)


@pytest.mark.parametrize("plan", ["sequential", "stacked", "vmap"])
def test_batches_of_the_callers_own(plan: str) -> None:
    got = train(small, lambda seed: Batches(TRAIN, 64, stream(seed, "order")), loss=cross_entropy,
                config=TrainConfig(epochs=2), seeds=SEEDS, plan=plan)  # fmt: skip
    same(train(small, TRAIN, loss=cross_entropy, config=TrainConfig(epochs=2), seeds=SEEDS), got)


def test_pairs_arrays_lists_and_pixels() -> None:
    pixels = (torch.rand(40, 3, 4, 4, generator=stream(0, "pixels")) * 255).to(torch.uint8)
    y = torch.arange(40) % 4

    def build(seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

    config = TrainConfig(steps=6, batch_size=16)
    results = [
        train(build, (pixels, y), loss=cross_entropy, config=config, val=(pixels, y)),
        train(build, (pixels.float() / 255, y), loss=cross_entropy, config=config, val=(pixels.float() / 255, y)),
        train(build, (pixels.float().numpy() / 255, y.numpy()), loss=cross_entropy, config=config, val=(pixels, y)),
        train(build, (pixels, y), loss=cross_entropy, config=config, val=(pixels, y), seeds=(0, 1), plan="stacked"),
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0][0].module[1].weight, other[0].module[1].weight)
    texts = Split([f"{'ab'[i % 2]}" * 3 for i in range(20)], torch.arange(20) % 2)

    def read(model: nn.Module, batch: Split) -> Tensor:
        x = torch.tensor([[float(ord(t[0]) - 97)] for t in batch.x])
        return F.cross_entropy(model(x), batch.y)

    got = train(lambda seed: nn.Linear(1, 2), texts, loss=read, config=TrainConfig(epochs=60, lr=0.1, batch_size=8))
    assert got[0].curve[-1]["loss"] < 0.1


@pytest.mark.parametrize("plan", BATCHED)
def test_images_convolutions_and_other_losses(plan: str) -> None:
    images = Split(torch.rand(60, 1, 8, 8, generator=stream(0, "images")), torch.arange(60) % 3)

    def terms(model: Any, batch: Any) -> dict[str, Tensor]:
        logits = model(batch.x.flatten(1) if plan == "stacked" else batch.x)
        return {"fit": F.cross_entropy(logits, batch.y), "size": 0.01 * logits.square().mean()}

    def build(seed: int) -> nn.Module:
        return mlp((64, 8, 3)) if plan == "stacked" else convnet((1, 8, 8), (4, 8), 3, norm="batch")

    config = TrainConfig(steps=8, batch_size=20, optimizer="sgd", lr=0.1)
    kwargs: dict[str, Any] = {"loss": terms, "config": config, "seeds": SEEDS}
    got, wanted = (train(build, images, plan=p, **kwargs) for p in (plan, "sequential"))
    for a, b in zip(wanted, got):
        for (name, x), y in zip(a.module.state_dict().items(), b.module.state_dict().values()):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-3, msg=name)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(3, 12), nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unflatten(1, (4, 3)))[:, None].chunk(3, -1)
        return self.head(self.norm(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0].mean(1)))


@pytest.mark.parametrize("plan", ["vmap", "processes+vmap"])
@pytest.mark.filterwarnings("error")
def test_attention_under_vmap(plan: str) -> None:
    kwargs: dict[str, Any] = {"loss": cross_entropy, "config": TrainConfig(steps=10), "seeds": SEEDS}
    same(*(train(lambda seed: Attends(), TRAIN, plan=p, **kwargs) for p in ("sequential", plan)))


def test_many_seeds_stacked() -> None:
    """Above a number of seeds the losses are computed by one vmap."""
    config = TrainConfig(steps=5)
    seeds = range(20)
    same(
        *(
            train(small, TRAIN, loss=cross_entropy, config=config, seeds=seeds, plan=p)
            for p in ("sequential", "stacked")
        )
    )


# Penalty, frozen parts, custom steps


def test_penalty() -> None:
    def shrink(model: nn.Module) -> Tensor:
        return 0.5 * sum(p.square().sum() for p in model.parameters())

    kwargs: dict[str, Any] = {"loss": cross_entropy, "config": TrainConfig(steps=15, lr=0.01), "seeds": SEEDS}
    plain = train(small, TRAIN, **kwargs)
    results = {p: train(small, TRAIN, penalty=shrink, plan=p, **kwargs) for p in ("sequential", "vmap", "processes")}
    assert outputs(results["sequential"]).std() < 0.7 * outputs(plain).std()
    same(results["sequential"], results["vmap"])
    same(results["sequential"], results["processes"])
    with pytest.raises(ValueError, match="penalty"):
        train(small, TRAIN, penalty=shrink, plan="stacked", **kwargs)


@pytest.mark.parametrize("plan", PLANS)
def test_freeze_batchnorm(plan: str) -> None:
    config = TrainConfig(steps=6, freeze_batchnorm=True, eval_every=2)
    got = train(lambda seed: mlp((12, 8, 4), norm="batch"), TRAIN, loss=cross_entropy, config=config,
                seeds=SEEDS, val=VAL, plan=plan)  # fmt: skip
    for trained in got:
        assert torch.equal(trained.module[1].running_mean, torch.zeros(8))
        assert trained.module[1].num_batches_tracked == 0
        assert not torch.equal(trained.module[1].weight, torch.ones(8)), "its scale learns"


@pytest.mark.parametrize("plan", ["sequential", "vmap", "processes"])
def test_frozen_parameters_stay(plan: str) -> None:
    def build(seed: int) -> nn.Module:
        model = mlp((12, 8, 4))
        model[0].weight.requires_grad_(False)
        return model

    got = train(build, TRAIN, loss=cross_entropy, config=TrainConfig(steps=5), seeds=SEEDS, plan=plan)
    for trained in got:
        with fork_global(stream(trained.seed, "init")):
            fresh = build(0)
        assert torch.equal(trained.module[0].weight, fresh[0].weight)
        assert not torch.equal(trained.module[2].weight, fresh[2].weight)


def adversaries(seed: int) -> nn.ModuleDict:
    return nn.ModuleDict({"g": nn.Linear(2, 12), "d": nn.Linear(12, 1)})


def duel(nets: Any, optimizers: Any, batch: Any, generator: torch.Generator) -> dict[str, float]:
    noise = torch.randn(len(batch.x), 2, generator=generator)
    fake = nets["g"](noise)
    wrong = F.softplus(-nets["d"](batch.x)).mean() + F.softplus(nets["d"](fake.detach())).mean()
    optimizers["d"].zero_grad()
    wrong.backward()
    optimizers["d"].step()
    fooled = F.softplus(-nets["d"](nets["g"](noise))).mean()
    optimizers["g"].zero_grad()
    fooled.backward()
    optimizers["g"].step()
    return {"d": wrong.detach(), "g": fooled.detach()}


def test_a_step_of_ones_own() -> None:
    config = TrainConfig(steps=10, lr={"g": 1e-2, "d": 1e-3}, schedule="linear", betas=(0.5, 0.9))
    kwargs: dict[str, Any] = {"step": duel, "config": config, "seeds": (1, 2)}
    got = train(adversaries, TRAIN, **kwargs)
    again = train(adversaries, TRAIN, plan="processes", **kwargs)
    for a, b in zip(got, again):
        for x, y in zip(a.module.parameters(), b.module.parameters()):
            torch.testing.assert_close(x, y)
    assert all(math.isfinite(t.curve[-1]["loss"]) for t in got)
    with pytest.raises(ValueError, match="one seed at a time"):
        train(adversaries, TRAIN, plan="vmap", **kwargs)
    with pytest.raises(ValueError, match="no entry for 'd'"):
        train(adversaries, TRAIN, step=duel, config=replace(config, lr={"g": 1e-2}))
    with pytest.raises(ValueError, match="clip inside step"):
        train(adversaries, TRAIN, step=duel, config=replace(config, clip_norm=1.0))


# Callbacks


class Listener:
    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}
        self.norms: dict[int, list[float]] = {}
        self.points: dict[int, list[dict[str, float]]] = {}
        self.ends: list[tuple[int, int]] = []

    def on_step(self, state: Any) -> None:
        assert math.isfinite(state.loss)
        self.steps.setdefault(state.seed, []).append(state.step)
        norm = sum(float(p.detach().square().sum()) for p in state.model.parameters())
        self.norms.setdefault(state.seed, []).append(norm)
        if state.seed == 3 and state.step == 7:
            state.stop()

    def on_eval(self, state: Any) -> None:
        self.points.setdefault(state.seed, []).append(state.point)

    def on_end(self, state: Any) -> None:
        self.ends.append((state.seed, state.step))


@pytest.mark.parametrize("plan", ["sequential", "stacked", "vmap"])
def test_callbacks_see_each_seed(plan: str) -> None:
    heard, wanted = Listener(), Listener()
    config = TrainConfig(steps=10, eval_every=5)
    for listener, p in ((heard, plan), (wanted, "sequential")):
        got = train(small, TRAIN, loss=cross_entropy, config=config, seeds=SEEDS, plan=p, callbacks=[listener])
        assert [(t.steps, t.stopped) for t in got] == [(10, "done"), (7, "callback"), (10, "done")]
        assert got[1].curve[-1]["step"] == 7
    assert heard.steps == {0: list(range(1, 11)), 3: list(range(1, 8)), 7: list(range(1, 11))}
    assert sorted(heard.ends) == [(0, 10), (3, 7), (7, 10)]
    for seed in SEEDS:
        assert heard.norms[seed] == pytest.approx(wanted.norms[seed], rel=1e-5)
        assert [p["step"] for p in heard.points[seed]] == [p["step"] for p in wanted.points[seed]]


def test_callbacks_do_not_go_to_other_processes_unasked() -> None:
    kwargs: dict[str, Any] = {"loss": cross_entropy, "config": TrainConfig(steps=2), "seeds": SEEDS}
    with pytest.raises(ValueError, match=r"Listener.*portable"):
        train(small, TRAIN, callbacks=[Listener()], plan="processes", **kwargs)


def test_auto_runs_and_records(reference: dict[str, list[Trained]]) -> None:
    got = train(small, TRAIN, loss=cross_entropy, config=CASES["plain"].config, seeds=SEEDS, val=VAL, metric=score)
    same(reference["plain"], got)
    assert got[0].plan in plan_module.PLANS[1:]


@pytest.mark.parametrize("plan", PLANS)
def test_training_under_inference_mode_is_training(plan: str, reference: dict[str, list[Trained]]) -> None:
    kwargs: dict[str, Any] = {"loss": cross_entropy, "config": CASES["plain"].config, "seeds": SEEDS, "plan": plan}
    with torch.inference_mode():
        made_inside = Split(TRAIN.x.clone(), TRAIN.y.clone())
        got = train(small, made_inside, val=VAL, metric=score, **kwargs)
        barren = small(0)
    same(reference["plain"], got)
    assert not any(p.is_inference() for t in got for p in t.module.parameters())
    with pytest.raises(ValueError, match=r"made under torch\.inference_mode and cannot learn"):
        train(barren, TRAIN, **kwargs)

"""Schedules in updates; the rules for other batch sizes."""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.training import adapt_regime, make_schedule, scale_lr

LENGTHS = st.integers(2, 10_000)


@given(total=LENGTHS, share=st.floats(0, 0.9), kind=st.sampled_from(["cosine", "linear"]))
def test_falling_schedules(total: int, share: float, kind: str) -> None:
    warmup = int(share * total)
    f = make_schedule(kind, total, warmup_steps=warmup)
    values = [f(t) for t in range(0, total, max(1, total // 50))]
    assert all(0 <= v <= 1 for v in values)
    after = [f(t) for t in range(max(warmup, 1) - 1, total, max(1, total // 50))]
    assert all(a >= b for a, b in pairwise(after))
    if warmup:
        assert f(warmup - 1) == pytest.approx(1.0)
        assert f(0) == pytest.approx(1 / warmup)
    assert f(warmup) == pytest.approx(1.0)
    assert f(total) == pytest.approx(0.0, abs=1e-12)
    assert f(total + 5) == f(total)
    middle = warmup + (total - warmup) / 2
    assert f(middle) == pytest.approx(0.5)  # type: ignore[arg-type]


@given(warmup=st.integers(1, 500))
def test_warmup_is_linear_and_ends_at_one(warmup: int) -> None:
    f = make_schedule("constant", None, warmup_steps=warmup)
    assert [f(t) for t in range(warmup)] == pytest.approx([(t + 1) / warmup for t in range(warmup)])
    assert f(warmup) == f(10 * warmup) == 1.0


@given(starts=st.lists(st.integers(1, 1000), min_size=1, max_size=5, unique=True))
def test_steps_divide_by_ten(starts: list[int]) -> None:
    f = make_schedule("step", 2000, boundaries=starts)
    for t in (0, *starts, *(s - 1 for s in starts), 1999):
        assert f(t) == pytest.approx(10.0 ** -sum(s <= t for s in starts))


def test_steps_by_factor() -> None:
    f = make_schedule("step", 100, boundaries={0: 1.0, 50: 0.3, 20: 2.0})
    assert [f(t) for t in (0, 19, 20, 49, 50, 99)] == [1, 1, 2, 2, 0.3, 0.3]


@pytest.mark.parametrize("kind", ["rsqrt", "noam"])
def test_inverse_square_root(kind: str) -> None:
    f = make_schedule(kind, None, warmup_steps=100)
    model_dim = 512
    noam = [model_dim**-0.5 * min((t + 1) ** -0.5, (t + 1) * 100**-1.5) for t in range(1000)]
    peak = model_dim**-0.5 * 100**-0.5
    assert [f(t) * peak for t in range(1000)] == pytest.approx(noam)
    assert make_schedule(kind, None)(3) == pytest.approx(0.5)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    f = make_schedule("cosine", 40)
    for t in range(41):
        assert f(t) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kind": "exp", "total_steps": 3}, "unknown schedule 'exp'"),
        ({"kind": "cosine", "total_steps": None}, "needs total_steps"),
        ({"kind": "cosine", "total_steps": 10, "warmup_steps": 10}, "must be smaller than the run"),
        ({"kind": "constant", "total_steps": 0}, "at least 1"),
        ({"kind": "constant", "total_steps": 5, "warmup_steps": -1}, "at least 0"),
        ({"kind": "step", "total_steps": 5}, "needs them"),
        ({"kind": "cosine", "total_steps": 5, "boundaries": [2]}, "boundaries go with"),
        ({"kind": "step", "total_steps": 5, "boundaries": [-2]}, "at least 0"),
    ],
)
def test_bad_schedules(arguments: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_schedule(**arguments)


def test_scale_lr() -> None:
    assert scale_lr(0.1, batch=512, base_batch=32, rule="sqrt") == pytest.approx(0.4)
    assert scale_lr(0.1, batch=512, base_batch=32) == pytest.approx(0.4)
    assert scale_lr(0.1, batch=512, base_batch=32, rule="linear") == pytest.approx(1.6)
    assert scale_lr(0.1, batch=512, base_batch=32, rule="none") == 0.1


@given(
    lr=st.floats(1e-6, 10),
    a=st.integers(1, 10**5),
    b=st.integers(1, 10**5),
    rule=st.sampled_from(["sqrt", "linear", "none"]),
)
def test_scaling_forth_and_back(lr: float, a: int, b: int, rule: str) -> None:
    assert scale_lr(scale_lr(lr, a, b, rule), b, a, rule) == pytest.approx(lr)
    assert scale_lr(lr, a, a, rule) == pytest.approx(lr)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_batch": 0},
        {"base_batch": -32},
        {"batch": 0},
        {"batch": math.nan},
        {"batch": math.inf},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"rule": "cube"},
    ],
)
def test_bad_scaling(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "batch" not in next(iter(wrong)) else "batch"):
        scale_lr(**({"lr": 0.1, "batch": 64, "base_batch": 32} | wrong))


def test_adapt_regime() -> None:
    regime = adapt_regime({0: 0.1, 6: 0.01, 9: 0.001}, batch=512, base_batch=32, epochs=12)
    assert regime.ratio == 16
    assert regime.epochs == 192
    assert regime.boundaries == {0: 0.1, 96: 0.01, 144: 0.001}
    boundaries, total = regime.updates(4000)
    assert total == 192 * 8
    assert boundaries == {0: 0.1, 96 * 8: 0.01, 144 * 8: 0.001}
    assert regime.updates(4000, drop_last=True)[1] == 192 * 7
    factors = regime.factors(4000)
    assert factors == pytest.approx({0: 1.0, 768: 0.1, 1152: 0.01})
    f = make_schedule("step", total, boundaries=factors)
    assert 0.1 * f(767) == pytest.approx(0.1)
    assert 0.1 * f(768) == pytest.approx(0.01)


@given(base=st.integers(1, 64), ratio=st.integers(1, 40), n=st.integers(2000, 9000), epochs=st.integers(2, 20))
def test_a_regime_has_the_updates_of_the_small_batch(base: int, ratio: int, n: int, epochs: int) -> None:
    """Never fewer than the small batch made, up to the last batch of an epoch."""
    small = adapt_regime({0: 0.1, epochs // 2: 0.01}, base, base, epochs)
    large = adapt_regime({0: 0.1, epochs // 2: 0.01}, base * ratio, base, epochs)
    assert small.ratio == 1
    assert large.ratio == ratio
    assert large.updates(n)[1] >= small.updates(n)[1]
    assert large.updates(n)[1] <= small.updates(n)[1] + epochs * ratio


def test_a_ratio_that_is_no_whole_number_is_rounded_up() -> None:
    assert adapt_regime({0: 0.1}, batch=100, base_batch=32, epochs=10).epochs == 40
    assert adapt_regime({0: 0.1}, batch=16, base_batch=32, epochs=10).epochs == 10


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"base_batch": 0}, "batch sizes"),
        ({"batch": float("nan")}, "batch sizes"),
        ({"batch": -1}, "batch sizes"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"boundaries": {3: 0.1}}, "epoch 0"),
        ({"boundaries": {0: 0.1, 12: 0.1}}, "0..11"),
        ({"boundaries": {}}, "epoch 0"),
        ({"boundaries": {0: math.nan}}, "learning rates must be finite"),
        ({"boundaries": {0: 0.1, 6: -0.1}}, "learning rates must be finite"),
        ({"boundaries": {0: 0.0}}, "the first above 0"),
    ],
)
def test_bad_regimes(wrong: dict, reason: str) -> None:
    arguments: dict = {"boundaries": {0: 0.1, 6: 0.01}, "batch": 512, "base_batch": 32, "epochs": 12}
    with pytest.raises(ValueError, match=reason):
        adapt_regime(**(arguments | wrong))
    with pytest.raises(ValueError, match="make no batch"):
        adapt_regime(**arguments).updates(100, drop_last=True)


@pytest.mark.parametrize(
    ("kind", "rest"), [("constant", {}), ("cosine", {}), ("linear", {}), ("noam", {}), ("step", {"boundaries": [3, 6]})]
)
def test_schedules_are_pickled(kind, rest) -> None:
    f = make_schedule(kind, 10, warmup_steps=2, **rest)
    assert [pickle.loads(pickle.dumps(f))(t) for t in range(12)] == [f(t) for t in range(12)]

"""Probabilities of actions: the formulas, the inequalities that make the reduction work, limits, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from etude.data import stream
from etude.decision import (
    epsilon_greedy_probabilities,
    fastcb_probabilities,
    squarecb_probabilities,
    thompson_probabilities,
)

UNIT = st.floats(0, 1)
PAIRS = st.integers(1, 6).flatmap(
    lambda k: st.tuples(arrays(np.float64, (k,), elements=UNIT), arrays(np.float64, (k,), elements=UNIT))
)


def test_squarecb_by_hand():
    p = squarecb_probabilities(torch.tensor([0.2, 0.5, 0.2]), 10.0)
    assert p.tolist() == pytest.approx([1 - 1 / 6 - 1 / 3, 1 / 6, 1 / 3])


def test_fastcb_by_hand():
    p = fastcb_probabilities(torch.tensor([0.5, 0.1]), 20.0)
    assert p[0] == pytest.approx(0.1 / (0.2 + 20 * 0.4))
    assert p.sum() == pytest.approx(1)


@given(pair=PAIRS, gamma=st.floats(1e-3, 1e6))
@settings(max_examples=300, deadline=None)
def test_squarecb_inequality(pair, gamma):
    y, true = (torch.from_numpy(a) for a in pair)
    p = squarecb_probabilities(y, gamma)
    k = len(y)
    assert p.sum().item() == pytest.approx(1)
    assert p[y.argmin()].item() >= 1 / k - 1e-12
    assert (p > 0).all()
    regret = (p * (true - true.min())).sum()
    bound = 2 * k / gamma + gamma / 4 * (p * (y - true).square()).sum()
    assert float(regret) <= float(bound) + 1e-9


@given(pair=PAIRS, factor=st.floats(10, 1e5))
@settings(max_examples=300, deadline=None)
def test_fastcb_inequality(pair, factor):
    y, true = (torch.from_numpy(a) for a in pair)
    k = len(y)
    gamma = factor * k
    p = fastcb_probabilities(y, gamma)
    assert p.sum().item() == pytest.approx(1)
    assert (p >= 0).all()
    total = y + true
    triangle = torch.where(total > 0, (y - true).square() / torch.where(total > 0, total, 1.0), 0.0)
    regret = (p * (true - true.min())).sum()
    bound = 5 * k / gamma * (p * true).sum() + 2 * gamma * (p * triangle).sum()
    assert float(regret) <= float(bound) + 1e-9


@pytest.mark.parametrize("rule", [squarecb_probabilities, fastcb_probabilities])
def test_limits_of_gamma(rule):
    y = torch.tensor([0.3, 0.1, 0.8])
    assert rule(y, 1e9).tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    assert rule(y, 1e-9).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_fastcb_stops_exploring_when_the_best_arm_is_free():
    assert fastcb_probabilities(torch.tensor([0.0, 0.3, 0.7]), 30.0).tolist() == [1, 0, 0]
    assert fastcb_probabilities(torch.zeros(4), 40.0).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("rule", [squarecb_probabilities, fastcb_probabilities])
def test_better_arms_are_likelier_and_batches_are_rows(rule):
    y = torch.rand(5, 7, 4, generator=stream(0, "y"))
    p = rule(y, 50.0)
    assert torch.equal(p.argsort(dim=-1, descending=True), y.argsort(dim=-1))
    torch.testing.assert_close(p[2, 3], rule(y[2, 3], 50.0))
    per_row = torch.full((5, 1, 1), 50.0)
    torch.testing.assert_close(rule(y, per_row), p)


@pytest.mark.parametrize("rule", [squarecb_probabilities, fastcb_probabilities])
def test_a_single_arm_is_certain_and_predictions_are_clipped(rule):
    assert rule(torch.tensor([0.7]), 10.0).tolist() == [1]
    torch.testing.assert_close(rule(torch.tensor([-3.0, 2.0]), 20.0), rule(torch.tensor([0.0, 1.0]), 20.0))


def test_a_shift_of_all_predictions_changes_nothing_for_squarecb():
    y = torch.tensor([0.2, 0.4, 0.3])
    torch.testing.assert_close(squarecb_probabilities(y, 30.0), squarecb_probabilities(y + 0.25, 30.0))


def test_epsilon_greedy():
    y = torch.tensor([0.5, 0.2, 0.9, 0.2])
    assert epsilon_greedy_probabilities(y, 0.2).tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])
    assert epsilon_greedy_probabilities(y, 0.0).tolist() == [0, 1, 0, 0]
    assert epsilon_greedy_probabilities(y, 1.0).tolist() == pytest.approx([0.25] * 4)


def test_thompson_of_two_arms_is_in_closed_form():
    mean = torch.tensor([0.3, 0.5], dtype=torch.float64)
    for std in ((0.2, 0.1), (1e-4, 0.3), (3.0, 0.01)):
        s = torch.tensor(std, dtype=torch.float64)
        exact = 0.5 * (1 + math.erf(0.2 / math.sqrt(2 * float(s.square().sum()))))
        assert float(thompson_probabilities(mean, s)[0]) == pytest.approx(exact, abs=1e-3)


def test_thompson_equals_sampling():
    g = stream(0, "ts")
    mean, std = torch.rand(3, 5, generator=g), torch.rand(3, 5, generator=g) * 0.5
    draws = (mean + std * torch.randn(40_000, 3, 5, generator=g)).argmin(-1)
    shares = torch.stack([(draws == a).float().mean(0) for a in range(5)], -1)
    torch.testing.assert_close(thompson_probabilities(mean, std), shares, atol=0.012, rtol=0)


def test_thompson_without_doubt_is_greedy_and_of_equals_uniform():
    assert thompson_probabilities(torch.tensor([0.5, 0.2]), torch.zeros(2)).tolist() == pytest.approx([0, 1])
    assert thompson_probabilities(torch.full((4,), 0.3), torch.ones(4)).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("rule", [squarecb_probabilities, fastcb_probabilities])
def test_bad_input_is_named(rule):
    y = torch.tensor([0.1, 0.2])
    for gamma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="gamma must be positive"):
            rule(y, gamma)
    with pytest.raises(ValueError, match="must be finite"):
        rule(torch.tensor([0.1, float("nan")]), 1.0)
    with pytest.raises(ValueError, match="at least one arm"):
        rule(torch.zeros(3, 0), 1.0)
    with pytest.raises(ValueError, match="epsilon must lie in"):
        epsilon_greedy_probabilities(y, 1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("std", [0.0, 1e-9, 1e-7])
def test_thompson_of_equals_without_doubt_shares_evenly(dtype, std):
    for mean, shares in (([0.2, 0.2], [0.5, 0.5]), ([0.5] * 3, [1 / 3] * 3), ([0.2, 0.9, 0.2], [0.5, 0, 0.5])):
        p = thompson_probabilities(torch.tensor(mean, dtype=dtype), torch.full((len(mean),), std, dtype=dtype))
        assert p.dtype == dtype
        assert p.tolist() == pytest.approx(shares, abs=1e-3)


def test_a_row_without_doubt_leaves_the_others_as_they_are():
    mean, std = torch.rand(3, 4, generator=stream(0, "m")), torch.rand(3, 4, generator=stream(0, "s"))
    doubtless = std.clone()
    doubtless[1] = 0
    p, other = thompson_probabilities(mean, std), thompson_probabilities(mean, doubtless)
    assert torch.equal(p[[0, 2]], other[[0, 2]])
    assert other[1].argmax() == mean[1].argmin()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_thompson_in_half_precision(dtype):
    mean, std = torch.tensor([0.2, 0.3, 0.4], dtype=dtype), torch.tensor([0.1, 0.1, 0.2], dtype=dtype)
    exact = thompson_probabilities(mean.double(), std.double())
    torch.testing.assert_close(thompson_probabilities(mean, std).double(), exact, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="std must be at least 0, got -0.2"):
        thompson_probabilities(mean, -std)


def test_integer_losses_and_negative_doubt():
    assert epsilon_greedy_probabilities(torch.tensor([1, 2, 3]), 0.2).tolist() == pytest.approx(
        [13 / 15, 1 / 15, 1 / 15]
    )
    with pytest.raises(ValueError, match="std must be at least 0, got -0.2"):
        thompson_probabilities(torch.tensor([0.1, 0.2]), torch.tensor([0.1, -0.2]))


@pytest.mark.parametrize("made", [list, tuple, np.array])
def test_losses_may_be_lists_and_arrays(made):
    losses = made([0.3, 0.1, 0.5])
    given = torch.tensor([0.3, 0.1, 0.5], dtype=torch.float64 if made is np.array else None)
    for rule, args in ((squarecb_probabilities, (20.0,)), (fastcb_probabilities, (40.0,)),
                       (epsilon_greedy_probabilities, (0.2,)), (thompson_probabilities, (made([0.1, 0.1, 0.2]),))):  # fmt: skip
        assert torch.allclose(rule(losses, *args), rule(given, *args))

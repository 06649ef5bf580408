"""The worked figure on orthonormal contexts: closed form against determinants, and its growth."""

import math

import numpy as np
import pytest
import torch

from etude.decision import effective_dimension, orthonormal_bounds, orthonormal_dimension
from etude.kernels import deep_kernel, dual_activation


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("ridge", [0.1, 1.0, 5.0])
def test_the_closed_form_is_the_determinant(n, ridge):
    u = 1 - torch.eye(n, dtype=torch.float64)  # 1 - the inner products of orthonormal contexts
    h = deep_kernel(u, dual_activation("relu"), 1).numpy()
    by_hand = np.linalg.slogdet(np.eye(n) + h / ridge)[1] / math.log1p(n / ridge)
    assert orthonormal_dimension(n, ridge=ridge) == pytest.approx(by_hand)
    assert effective_dimension(np.linalg.eigvalsh(h), ridge=ridge) == pytest.approx(by_hand)


def test_low_rank_kernels_have_a_small_dimension():
    few = torch.cat([torch.full((3,), 100.0), torch.zeros(997)])
    assert effective_dimension(few) < 3
    assert orthonormal_dimension(1000) > 100


def test_the_older_bound_is_above_all_rounds_and_the_newer_ones_below():
    for horizon in (100, 10_000, 1_000_000):
        bounds = orthonormal_bounds(horizon, 4)
        assert bounds["confidence"] > bounds["all"] == horizon
        assert bounds["fastcb"] < bounds["squarecb"] < horizon
    grown = orthonormal_bounds(40_000, 4)["confidence"] / orthonormal_bounds(10_000, 4)["confidence"]
    assert 4 < grown < 8  # T^1.5 / log T
    assert orthonormal_bounds(100, 4, 25.0)["fastcb"] == pytest.approx(
        math.sqrt(100 * math.log(100)) + 4 * math.log(100)
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: effective_dimension(torch.ones(3), ridge=0), "ridge must be positive"),
        (lambda: effective_dimension(torch.tensor([])), "at least one number"),
        (lambda: effective_dimension(torch.tensor([-1.0])), "none below 0"),
        (lambda: orthonormal_dimension(0), "n must be at least 1"),
        (lambda: orthonormal_bounds(1, 4), "horizon must be at least 2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

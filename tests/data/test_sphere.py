"""Generators on the sphere: lengths, moments, and that the posterior is the true one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import dirichlet

from etude.data import dirichlet_on_sphere, stream, uniform_on_sphere

PAIR = ([3.0, 1.0, 2.0], [1.0, 2.0, 2.0])


@given(seed=st.integers(0, 2**31 - 1), a=st.floats(0.1, 5), b=st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_rows_have_length_one_in_the_positive_orthant(seed, a, b):
    data = dirichlet_on_sphere(50, ([a, b, 1.0], [1.0, b, a]), 0.4, seed)
    assert (data.x >= 0).all()
    torch.testing.assert_close(data.x.norm(dim=1), torch.ones(50, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(data.posterior.sum(1), torch.ones(50, dtype=torch.float64))
    assert data.y.unique().tolist() in ([0, 1], [0], [1])


def test_posterior_is_prior_times_density():
    data = dirichlet_on_sphere(20, PAIR, 0.3, 5)
    simplex = (data.x / data.x.sum(1, keepdim=True)).numpy()
    joint = np.stack([w * dirichlet(a).pdf(simplex.T) for w, a in zip((0.3, 0.7), PAIR, strict=True)], 1)
    np.testing.assert_allclose(data.posterior.numpy(), joint / joint.sum(1, keepdims=True), rtol=1e-9)


def test_posterior_is_calibrated_and_the_bayes_rule_has_its_error():
    data = dirichlet_on_sphere(40_000, PAIR, 0.4, 0)
    assert float((data.y == 0).double().mean()) == pytest.approx(0.4, abs=0.01)
    sure = data.posterior[:, 0] > 0.8
    assert float((data.y[sure] == 0).double().mean()) == pytest.approx(float(data.posterior[sure, 0].mean()), abs=0.02)
    assert float((data.bayes != data.y).double().mean()) == pytest.approx(data.bayes_error, abs=0.01)


def test_bayes_error_of_a_known_case():
    # Beta(1, 2) against Beta(2, 1), equal priors: error = integral of min(1 - t, t) = 1/4
    assert dirichlet_on_sphere(40_000, ([1.0, 2.0], [2.0, 1.0]), 0.5, 1).bayes_error == pytest.approx(0.25, abs=0.01)


def test_same_seed_same_points_and_parts():
    a, b = dirichlet_on_sphere(30, PAIR, 0.4, 7), dirichlet_on_sphere(30, PAIR, 0.4, 7)
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.take(slice(0, 5)).y, a.y[:5])
    assert a.split().n == a.n == 30
    assert not torch.equal(a.x, dirichlet_on_sphere(30, PAIR, 0.4, 8).x)


def test_more_classes():
    data = dirichlet_on_sphere(500, (*PAIR, [2.0, 2.0, 1.0]), (0.2, 0.3, 0.5), 0)
    assert data.posterior.shape == (500, 3)
    assert float((data.y == 2).double().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((0, PAIR, 0.4), "n must be at least 1, got 0"),
        ((5, ([1.0, 2.0],), 0.4), "two or more vectors"),
        ((5, ([1.0, 2.0], [1.0, 2.0, 3.0]), 0.4), r"one length of at least 2, got \[2, 3\]"),
        ((5, ([1.0, 0.0], [1.0, 2.0]), 0.4), "concentrations must be positive"),
        ((5, PAIR, 1.0), "positive probabilities"),
        ((5, PAIR, (0.5, 0.4)), "sum to 1"),
        ((5, (*PAIR, PAIR[0]), 0.4), "one number is a prior of two classes"),
    ],
)
def test_bad_input_is_named(args, text):
    with pytest.raises(ValueError, match=text):
        dirichlet_on_sphere(*args, 0)


def test_uniform_points():
    x = uniform_on_sphere(4000, 5, generator=stream(0, "x"), dtype=torch.float64)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    torch.testing.assert_close(x.T @ x / 4000, torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=0.02)
    assert uniform_on_sphere(3, 2, 4, generator=stream(0, "x")).shape == (3, 2, 4)
    assert (uniform_on_sphere(50, 3, generator=stream(0, "x"), positive=True) >= 0).all()
    with pytest.raises(ValueError, match="at least 1"):
        uniform_on_sphere(4, 0, generator=stream(0, "x"))

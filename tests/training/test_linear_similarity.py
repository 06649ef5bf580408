"""Canonical correlations and ridge regression between representations: references, invariances, gradients, limits."""

import numpy as np
import pytest
import torch
from scipy.linalg import orth, subspace_angles
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from etude.data.randomness import stream
from etude.training import ridge_similarity, svcca


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"), dtype=torch.float64)


def mixed(n=30, p=6, seed=0):
    """Features of very different sizes, so that truncation drops some."""
    return normal(n, p, seed=seed) * torch.logspace(0, -1.5, p, dtype=torch.float64) + 3


@pytest.mark.parametrize("keep", [0.7, 0.99, 1.0])
def test_svcca_is_the_mean_cosine_of_the_angles_between_main_subspaces(keep):
    def subspace(Z):
        Z = Z.numpy() - Z.numpy().mean(0)
        U, S, _ = np.linalg.svd(Z, full_matrices=False)
        share = np.cumsum(S**2) / np.sum(S**2)
        return U[:, : int(np.argmax(share >= keep - 1e-12)) + 1]

    X, Y = mixed(), torch.cat([mixed()[:, :2], mixed(p=3, seed=1)], 1)
    a, b = subspace(X), subspace(Y)
    expected = np.cos(subspace_angles(a, b)).sum() / min(a.shape[1], b.shape[1])
    assert float(svcca(X, Y, keep=keep)) == pytest.approx(expected)
    assert float(svcca(Y, X, keep=keep)) == pytest.approx(expected)


def test_svcca_knows_what_it_is_blind_to():
    X, Y = mixed(), mixed(seed=1)
    turn = torch.from_numpy(orth(normal(6, 6, seed=2).numpy()))
    assert float(svcca(X @ turn * 1e-20, Y)) == pytest.approx(float(svcca(X, Y)))
    assert float(svcca(X @ normal(6, 6, seed=2), Y, keep=1)) == pytest.approx(float(svcca(X, Y, keep=1)))
    assert float(svcca(X @ normal(6, 6, seed=2), Y)) != pytest.approx(float(svcca(X, Y)), abs=1e-3)
    assert float(svcca(normal(5, 9), normal(5, 9, seed=1), keep=1)) == pytest.approx(1)  # no more rows than directions


@pytest.mark.parametrize("function", [svcca, ridge_similarity])
def test_gradients_are_right_where_singular_values_coincide_and_features_are_dead(function):
    assert torch.autograd.gradcheck(lambda X, Y: function(X, Y), (mixed().requires_grad_(), mixed(seed=1)))
    assert torch.autograd.gradcheck(lambda X, Y: function(X, Y), (mixed(), mixed(seed=1).requires_grad_()))
    X = torch.cat([torch.eye(8, dtype=torch.float64).repeat(2, 1)[:, :3], torch.zeros(16, 4)], 1).requires_grad_()
    function(X, mixed(16)).backward()
    assert bool(X.grad.isfinite().all())
    assert float(X.grad.abs().sum()) > 0


@pytest.mark.parametrize("penalty", [0.01, 2.0])
def test_ridge_similarity_is_that_of_scikit_learn(penalty):
    X, Y = mixed(), normal(30, 4, seed=3)
    alpha = penalty * float((X - X.mean(0)).square().sum(1).mean())
    found = Ridge(alpha=alpha).fit(X, Y).predict(X)
    expected = r2_score(Y, found, multioutput="variance_weighted")
    assert float(ridge_similarity(X, Y, penalty=penalty)) == pytest.approx(expected)
    assert float(ridge_similarity(X * 1e12, Y * 1e-12, penalty=penalty)) == pytest.approx(expected)
    assert float(ridge_similarity(X, X[:, :2], penalty=1e-12)) == pytest.approx(1)
    assert float(ridge_similarity(X, Y, penalty=1e12)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("function", [svcca, ridge_similarity])
def test_constant_sides_and_wrong_rows(function):
    X = mixed()
    assert float(function(torch.full((30, 2), 7.0), X)) == 0
    assert float(function(X, torch.full((30, 2), 7.0))) == 0
    assert 0 < float(function(X.to(torch.bfloat16), X.float())) <= 1
    with pytest.raises(ValueError, match="30 and 29"):
        function(X, X[1:])
    with pytest.raises(ValueError, match="at least 4 rows"):
        function(X[:3], X[:3])


def test_settings_out_of_bounds():
    for keep in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="keep"):
            svcca(mixed(), mixed(), keep=keep)
    for penalty in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="penalty"):
            ridge_similarity(mixed(), mixed(), penalty=penalty)

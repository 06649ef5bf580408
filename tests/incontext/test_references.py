import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from etude.data.randomness import stream
from etude.incontext.references import (
    gradient_descent_weights,
    moments,
    ols_prefix_weights,
    ols_weights,
    online_ridge_weights,
    reference,
    references,
    ridge_weights,
)


def pairs(rows=3, n=9, d=4, seed=0, dtype=torch.float64):
    g = stream(seed, "pairs")
    X = torch.randn(rows, n, d, generator=g, dtype=dtype)
    return X, torch.randn(rows, n, generator=g, dtype=dtype), torch.randn(rows, 5, d, generator=g, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("ols", lambda n: LinearRegression(fit_intercept=False)),
        ("ridge:0.25", lambda n: Ridge(alpha=0.25, fit_intercept=False)),
        ("knn:3", lambda n: KNeighborsRegressor(min(3, n))),
        ("knn:2:distance", lambda n: KNeighborsRegressor(min(2, n), weights="distance")),
    ],
)
def test_every_prefix_equals_a_refit_of_scikit_learn(name, make):
    X, y, Xq = pairs()
    ours, ref = reference(name).prefixes(X, y), reference(name)
    assert (ours[:, 0] == 0).all()
    for b in range(len(X)):
        for n in range(1, X.shape[1]):
            peer = make(n).fit(X[b, :n].numpy(), y[b, :n].numpy())
            assert ours[b, n].item() == pytest.approx(peer.predict(X[b, n : n + 1].numpy())[0], abs=1e-6)
        np.testing.assert_allclose(ref(X, y, Xq)[b], make(9).fit(X[b], y[b]).predict(Xq[b]), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ols", "ridge:0.1", "gd:1:0.01", "gd:4", "sgd", "sgd:0.03", "average", "zero", "knn:2"]
)
def test_prefix_form_equals_the_form_for_one_data_set(name):
    X, y, _ = pairs(n=7)
    ref = reference(name)
    ours = ref.prefixes(X, y)
    for n in range(7):
        torch.testing.assert_close(ours[:, n], ref(X[:, :n], y[:, :n], X[:, n : n + 1])[:, 0], atol=1e-9, rtol=1e-7)
    assert reference("ols").linear and not reference("knn:1").linear


def test_rank_deficient_prefixes_take_the_minimum_norm():
    X, y, _ = pairs(rows=4, n=8, d=3)
    X[1, 1] = 2 * X[1, 0]  # dependent before d pairs
    X[2, :] = X[2, :1]  # rank one for ever
    X[3, :, 2] = 0.0
    w = ols_prefix_weights(X, y)
    for b in range(4):
        for n in range(1, 9):
            expected = np.linalg.pinv(X[b, :n].numpy(), rcond=1e-9) @ y[b, :n].numpy()
            np.testing.assert_allclose(w[b, n], expected, atol=1e-7)
    np.testing.assert_allclose(ols_weights(X[2], y[2]), w[2, 8], atol=1e-9)
    assert (ols_weights(X[:, :0], y[:, :0]) == 0).all()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 12), d=st.integers(1, 6), penalty=st.floats(0.01, 10), seed=st.integers(0, 999))
def test_rank_one_updates_are_ridge(n, d, penalty, seed):
    X, y, _ = pairs(2, n, d, seed)
    online = online_ridge_weights(X, y, penalty)
    torch.testing.assert_close(online[:, -1], ridge_weights(moments(X, y), penalty), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(online, reference(f"ridge:{penalty!r}").prefix_weights(X, y), atol=1e-8, rtol=1e-6)


def test_one_step_is_twice_the_rate_times_the_moment_and_many_steps_are_least_squares():
    X, y, _ = pairs(n=12, d=3)
    torch.testing.assert_close(reference("gd:1:0.02").weights(X, y), 0.04 * (X.mT @ y.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(reference("gd:2000").weights(X, y), ols_weights(X, y), atol=1e-6, rtol=1e-6)
    w = torch.zeros(3, 3, dtype=torch.float64)
    for _ in range(3):
        w = w + 2 * 0.01 * (X.mT @ (y - (X @ w.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(gradient_descent_weights(moments(X, y), 3, 0.01), w)


def test_sgd_takes_one_pair_at_a_time():
    X, y, _ = pairs(rows=1, n=3, d=2)
    w = np.zeros(2)
    for x, target in zip(X[0].numpy(), y[0].numpy(), strict=True):
        w = w - 2 * 0.05 * (w @ x - target) * x
    np.testing.assert_allclose(reference("sgd:0.05").weights(X, y)[0], w)


def test_ridge_at_the_bayes_penalty_beats_every_other_one():
    g = stream(0, "bayes")
    w = torch.randn(4000, 3, 1, generator=g, dtype=torch.float64)
    X = torch.randn(4000, 4, 3, generator=g, dtype=torch.float64)
    y = (X @ w).squeeze(-1) + 0.5 * torch.randn(4000, 4, generator=g, dtype=torch.float64)
    error = {lam: (reference(f"ridge:{lam}").weights(X, y) - w[..., 0]).square().mean() for lam in (0.0625, 0.25, 1.0)}
    assert min(error, key=error.get) == 0.25


def test_exact_neighbour_counts_alone_when_weighted_by_distance():
    X = torch.tensor([[0.0], [1.0], [1.0]])
    y = torch.tensor([5.0, 1.0, 3.0])
    assert reference("knn:3:distance")(X, y, torch.tensor([[1.0]])).item() == 2.0


@pytest.mark.parametrize(
    "name", ["lasso", "ridge", "ridge:x", "ridge:-1", "gd", "gd:0", "gd:1.5", "knn:0", "knn:3:far", "ols:1"]
)
def test_unknown_names_say_what_is_known(name):
    with pytest.raises(ValueError, match=name):
        references([name])


def test_a_string_is_not_a_list_of_names():
    with pytest.raises(ValueError, match="list of names"):
        references("ols")
    assert list(references(["ols", "ridge:0"])) == ["ols", "ridge:0"]


def test_single_precision_is_enough_for_ridge_and_neighbours():
    generator = stream(3, "single")
    x, y = torch.randn(16, 40, 20, generator=generator), torch.randn(16, 40, generator=generator)
    for name in ("ridge:0.25", "ridge:1e-3", "ridge:1e-6"):
        (single,), (double,) = ([references([name])[name].weights(a, b)] for a, b in ((x, y), (x.double(), y.double())))
        torch.testing.assert_close(single, double.float(), rtol=1e-5, atol=1e-6)
        assert references([name])[name].prefixes(x, y).isfinite().all()
    ols = references(["ols"])["ols"].weights(x.double(), y.double())
    torch.testing.assert_close(references(["ridge:1e-20"])["ridge:1e-20"].weights(x.double(), y.double()), ols)
    assert references(["ridge:1e-20"])["ridge:1e-20"].prefixes(x.double(), y.double()).isfinite().all()
    for name in ("knn:3", "knn:3:distance"):
        assert (references([name])[name].prefixes(x, y)[:, 0] == 0).all()


def test_coincident_points_are_neighbours_at_distance_zero():
    generator = stream(4, "coincident")
    x = 10 * torch.randn(2, 40, 20, generator=generator) + 100
    y = torch.randn(2, 40, generator=generator)
    assert torch.equal(references(["knn:5:distance"])["knn:5:distance"](x, y, x), y)


@pytest.mark.parametrize("name", ["gd:inf", "knn:inf", "ridge:inf", "sgd:inf", "gd:1:inf"])
def test_numbers_of_references_are_finite(name):
    with pytest.raises(ValueError, match="finite"):
        references([name])


@pytest.mark.parametrize("name", ["ols", "ridge:0.25", "gd:1", "sgd", "knn:3", "average", "zero"])
def test_pairs_that_do_not_fit_are_refused(name):
    X, y, Xq = pairs()
    ref = reference(name)
    for a, b, text in (
        (X * torch.nan, y, "X holds NaN"),
        (X, y[:, :3], r"y \(\.\.\., n\), got"),
        (X.long(), y, "int64"),
    ):
        for call in (lambda: ref(a, b, Xq), lambda: ref.prefixes(a, b)):  # noqa: B023
            with pytest.raises(ValueError, match=text):
                call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["knn:3", "knn:3:distance"])
def test_neighbours_in_half_precision(dtype, name):
    X, y, Xq = (t.to(dtype) for t in pairs())
    ref = reference(name)
    for half, single in (
        (ref(X, y, Xq), ref(X.float(), y.float(), Xq.float())),
        (ref.prefixes(X, y), ref.prefixes(X.float(), y.float())),
    ):
        assert half.dtype == dtype
        torch.testing.assert_close(half, single.to(dtype))


NAMES = ["ols", "ridge:0.25", "gd:2", "sgd", "knn:3", "average", "zero"]


@pytest.mark.parametrize("name", NAMES)
def test_queries_that_do_not_fit_are_refused(name):
    X, y, *_ = pairs()
    learner = references([name])[name]
    for Xq, text in ((X[..., :2], "Xq must be"), (X.float(), "as X is"), (X.long(), "as X is"), (X / 0, "Xq holds")):
        with pytest.raises(ValueError, match=text):
            learner(X, y, Xq)
    assert torch.allclose(learner(X, y.float(), X), learner(X, y.float().double(), X), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_without_pairs_there_are_no_predictions(name):
    X, y, *_ = pairs()
    assert references([name])[name].prefixes(X[:, :0], y[:, :0]).shape == (3, 0)


def test_gradient_descent_in_half_precision_without_information_stays_at_zero():
    X, y = torch.zeros(2, 3, 4, dtype=torch.float16), torch.ones(2, 3, dtype=torch.float16)
    assert references(["gd:2"])["gd:2"](X, y, X).tolist() == [[0.0] * 3] * 2

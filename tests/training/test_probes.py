import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score

from etude.data.randomness import numpy_stream
from etude.training.linear_solvers import logistic_solutions, ridge_solutions
from etude.training.probes import LinearProbe, probe_layers


def classes(n=120, d=6, k=3, noise=1.0):
    rng = numpy_stream(0, "probe")
    y = np.arange(n) % k
    Z = rng.normal(size=(k, d))[y] + noise * rng.normal(size=(n, d))
    return Z, y


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("C", [0.1, 10.0])
def test_logistic_probe_equals_scikit_learn(k, C):
    Z, y = classes(k=k)
    ours, peer = LinearProbe(C=C).fit(Z, y), LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(Z, y)
    np.testing.assert_allclose(ours.predict_proba(Z), peer.predict_proba(Z), atol=1e-4)
    assert ours.score(Z, y) == peer.score(Z, y) and ours.C_ == C and ours.cv_scores_ is None


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
@pytest.mark.parametrize("C", [1.0, 100.0])
def test_logistic_probe_of_features_of_unlike_scales_is_at_the_minimum(load, C):
    X, y = load(return_X_y=True)
    peer = LogisticRegression(C=C, tol=1e-8, max_iter=1000, solver="newton-cholesky").fit(X, y)
    ours, theirs = (
        C * log_loss(y, p.predict_proba(X), normalize=False) + np.square(p.coef_).sum() / 2
        for p in (LinearProbe(C=C).fit(X, y), peer)
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_one_tiny_feature_that_matters_is_found():
    Z = numpy_stream(5, "scales").normal(size=(600, 20)) * np.logspace(-2, 2, 20)
    y = Z[:, 0] / 0.01 + Z[:, 1] > 0
    assert LinearProbe().fit(Z[:300], y[:300]).score(Z[300:], y[300:]) > 0.9


def test_a_fit_that_does_not_converge_says_so():
    Z, y = (torch.as_tensor(t) for t in classes())
    with pytest.warns(ConvergenceWarning, match="1 of 1 logistic regressions did not converge in 2 steps"):
        logistic_solutions(Z, y, 3, torch.ones(1).double(), torch.ones(1, 120).double(), max_iter=2)


@pytest.mark.parametrize("offset", [1e4, 1e8])
def test_ridge_probe_bears_an_offset(offset):
    Z, _ = classes()
    Y = Z @ numpy_stream(1, "w").normal(size=(6, 2))
    ours, peer = LinearProbe("ridge", C=10.0).fit(Z + offset, Y), Ridge(alpha=0.1).fit(Z, Y)
    np.testing.assert_allclose(ours.coef_, peer.coef_, atol=1e-6)
    assert ours.score(Z + offset, Y) == pytest.approx(peer.score(Z, Y), abs=1e-6)


def test_a_constant_target_is_met_or_not():
    Z, _ = classes()
    probe = LinearProbe("ridge", C=1.0).fit(Z, np.full(120, 0.1))
    assert probe.score(Z, np.full(120, 0.1)) == 1.0 and probe.score(Z, np.full(120, 0.2)) == 0.0


def test_ridge_probe_equals_scikit_learn():
    Z, _ = classes()
    Y = Z @ numpy_stream(1, "w").normal(size=(6, 2)) + 3.0
    ours, peer = LinearProbe("ridge", C=0.5).fit(Z, Y), Ridge(alpha=2.0).fit(Z, Y)
    np.testing.assert_allclose(ours.predict(Z), peer.predict(Z), atol=1e-8)
    assert ours.score(Z, Y) == pytest.approx(peer.score(Z, Y)) and ours.predict(Z).shape == (120, 2)
    one = LinearProbe("ridge", C=0.5).fit(Z, Y[:, 0])
    assert one.predict(Z).shape == (120,)


def test_all_folds_and_strengths_at_once_equal_one_at_a_time():
    Z, _ = classes()
    rng = numpy_stream(2, "w")
    weights = torch.as_tensor(rng.integers(0, 2, size=(3, 120))).double()
    Y = torch.as_tensor(rng.normal(size=(120, 1)))
    W, b = ridge_solutions(torch.as_tensor(Z), Y, torch.tensor([0.1, 5.0], dtype=torch.float64), weights)
    for f in range(3):
        for p, penalty in enumerate((0.1, 5.0)):
            rows = weights[f].bool().numpy()
            peer = Ridge(alpha=penalty).fit(Z[rows], Y[rows].numpy())
            np.testing.assert_allclose(W[f, p].T, np.atleast_2d(peer.coef_), atol=1e-8)
            np.testing.assert_allclose(b[f, p], np.atleast_1d(peer.intercept_), atol=1e-8)


def test_cross_validation_finds_the_strength_that_generalises():
    rng = numpy_stream(3, "wide")
    Z = rng.normal(size=(60, 50))
    y = (Z[:, 0] + 0.3 * rng.normal(size=60) > 0).astype(int)
    probe = LinearProbe(C="cv", seeds=3).fit(Z, y)
    assert (
        probe.cv_scores_.shape == (9,)
        and probe.cv_scores_.max() == probe.cv_scores_[list(10.0 ** np.arange(-4, 5)).index(probe.C_)]
    )
    noise = LinearProbe("ridge", C="cv").fit(Z, rng.normal(size=60))
    assert noise.C_ <= 1e-2  # nothing to be found: the strongest penalties win
    signal = LinearProbe("ridge", C="cv").fit(Z, Z @ rng.normal(size=50) * 10)
    assert signal.C_ > noise.C_


def test_ridge_on_classes_and_labels_of_any_kind():
    Z, y = classes(noise=0.3)
    names = np.array(["a", "b", "c"])[y]
    for kind in ("ridge", "logistic"):
        probe = LinearProbe(kind, C=1.0).fit(Z, names)
        assert probe.score(Z, names[:, None]) == probe.score(Z, names)  # a column is no row to compare each with
        assert probe.score(Z, names) > 0.95 and set(probe.predict(Z)) == {"a", "b", "c"}
    with pytest.raises(AttributeError, match="predict_proba"):
        LinearProbe("ridge", C=1.0).fit(Z, names).predict_proba(Z)
    torch_probe = LinearProbe(C=1.0).fit(torch.as_tensor(Z).float(), torch.as_tensor(y))
    assert torch_probe.score(torch.as_tensor(Z), torch.as_tensor(y)) > 0.95


def test_separable_classes_converge(recwarn):
    Z = np.array([[-1.0], [-0.9], [0.9], [1.0]] * 5)
    probe = LinearProbe(C=1e4).fit(Z, Z[:, 0] > 0)
    assert not recwarn.list
    assert probe.score(Z, Z[:, 0] > 0) == 1.0 and np.isfinite(probe.coef_).all()


def test_layers_with_and_without_the_target():
    rng = numpy_stream(4, "layers")
    y = np.arange(300) % 2
    features = {
        "early": torch.as_tensor(rng.normal(size=(300, 4))),
        "late": torch.as_tensor(np.c_[y + 0.2 * rng.normal(size=300), rng.normal(size=(300, 3))]),
    }
    table = probe_layers(features, y)
    assert table.best()["layer"] == "late" and table["late"]["score"] > 0.9 and table["early"]["score"] < 0.7
    assert table["late"]["selectivity"] > 0.25 and abs(table["early"]["selectivity"]) < 0.25
    assert len(table) == 2 and [row["layer"] for row in table] == ["early", "late"]
    numbers = probe_layers(features, features["late"][:, :2].numpy(), control=False)
    assert numbers.best(by="error")["layer"] == "late" and numbers["late"]["error"] < 1e-3
    assert numbers["early"]["error"] > 0.5 and "control" not in numbers["late"]
    with pytest.raises(KeyError, match="middle"):
        table["middle"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda Z, y: LinearProbe("tree").fit(Z, y), "kind must be"),
        (lambda Z, y: LinearProbe(C="best").fit(Z, y), "C must be"),
        (lambda Z, y: LinearProbe(C=-1.0).fit(Z, y), "positive"),
        (lambda Z, y: LinearProbe(C=np.nan).fit(Z, y), "positive and finite, got nan"),
        (lambda Z, y: LinearProbe(C=np.inf).fit(Z, y), "positive and finite"),
        (lambda Z, y: LinearProbe(folds=2.5).fit(Z, y), "folds must be a whole number, got 2.5"),
        (lambda Z, y: LinearProbe().fit(Z, None), "requires y"),
        (lambda Z, y: LinearProbe().fit(Z, np.zeros(len(Z), int)), "at least two"),
        (lambda Z, y: LinearProbe().fit(Z[:5], y), "5 rows of features and 120 targets"),
        (lambda Z, y: LinearProbe().fit(Z[:, 0], y), "Expected 2D array"),
        (lambda Z, y: LinearProbe().fit(torch.as_tensor(Z[:, 0]), y), r"\(n, d\)"),
        (
            lambda Z, y: LinearProbe().fit(np.where(np.arange(720).reshape(120, 6) == 8, np.nan, Z), y),
            "feature 2 of row 1",
        ),
        (lambda Z, y: LinearProbe("ridge").fit(Z, np.full(120, np.inf)), "target 0 is not finite"),
        (lambda Z, y: LinearProbe(C=1.0).fit(Z, y).predict(Z[:, :3]), "has 3 features, but LinearProbe is expecting 6"),
        (lambda Z, y: LinearProbe(C=1.0).fit(Z, y).score(Z, y[:1]), r"targets \(1,\) do not fit .* \(120,\)"),
        (lambda Z, y: LinearProbe("ridge", C=1.0).fit(Z, Z[:, 0]).relative_error(Z, Z[:, :2]), "give one a row"),
        (lambda Z, y: probe_layers({}, y), "no layers"),
        (lambda Z, y: probe_layers({"a": torch.zeros(3, 2)}, y), "'a' has 3 rows"),
        (lambda Z, y: probe_layers({"a": torch.as_tensor(Z)}, y, test_size=1.0), "test_size"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make(*classes())


def test_estimator_manners():
    probe = clone(LinearProbe("ridge", C=2.0, folds=3))
    assert probe.get_params()["C"] == 2.0
    with pytest.raises(NotFittedError):
        probe.predict([[0.0]])


@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_scikit_learns_checks(kind):
    from sklearn.utils.estimator_checks import check_estimator

    found = check_estimator(LinearProbe(kind), on_fail=None, on_skip=None)
    assert [(c["check_name"], c["exception"]) for c in found if c["status"] not in ("passed", "skipped")] == []


def test_least_squares_has_no_probabilities():
    assert not hasattr(LinearProbe("ridge"), "predict_proba")
    assert LinearProbe().fit([[0.0], [1.0]] * 5, [0, 1] * 5).predict_proba([[0.0]]).shape == (1, 2)


def test_a_logistic_probe_is_a_classifier_for_scikit_learn():
    X, y = load_iris(return_X_y=True)
    assert is_classifier(LinearProbe()) and not is_classifier(LinearProbe("ridge"))
    assert cross_val_score(LinearProbe(C=1.0), X, y, cv=3).min() > 0.9
    assert LinearProbe(C=1.0).fit(X[:100], y[:100]).decision_function(X).shape == (150,)


def test_targets_may_be_in_half_precision():
    Z = torch.as_tensor(classes()[0])
    table = probe_layers({"a": Z}, Z[:, :2].bfloat16())
    assert table["a"]["score"] > 0.99

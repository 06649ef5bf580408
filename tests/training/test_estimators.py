"""scikit-learn's own checks on the shells, their saved form, and what they say of bad input."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from etude.layers import mlp
from etude.training import TorchClassifier, TorchEstimator, TorchRegressor
from etude.training.config import TrainConfig


class SmallClassifier(TorchClassifier):
    def __init__(
        self, *, hidden=(32,), norm=None, max_epochs=30, batch_size=16, lr=1e-2, patience=None, device="cpu",
        random_state=None,
    ):  # fmt: skip
        super().__init__(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, patience=patience, device=device,
            random_state=random_state,
        )  # fmt: skip
        self.hidden, self.norm = hidden, norm

    def _build(self, X, y):
        return nn.Sequential(nn.Flatten(), mlp([X[0].numel(), *self.hidden, len(self.classes_)], norm=self.norm))


class SmallRegressor(TorchRegressor):
    def __init__(self, *, max_epochs=30, batch_size=16, lr=1e-2, patience=None, device="cpu", random_state=None):
        super().__init__(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, patience=patience, device=device,
            random_state=random_state,
        )  # fmt: skip

    def _build(self, X, y):
        return mlp([X.shape[1], 32, max(1, self.y_mean_.size)])


class Holds(SmallClassifier):
    """Takes a module as a parameter, which cannot be stored as a plain value."""

    def __init__(self, *, encoder=None, random_state=None):
        super().__init__(max_epochs=1, random_state=random_state)
        self.encoder = encoder

    def _build(self, X, y):
        return nn.Sequential(self.encoder, nn.Linear(4, len(self.classes_)))


class Reconstructs(TorchEstimator):
    """No target at all."""

    def _build(self, X, y):
        return mlp([X.shape[1], 2, X.shape[1]])

    def _loss(self, module, batch):
        return {"error": (module(batch.x) - batch.x).square().mean()}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X[:600] / 16).astype(np.float32), y[:600]


@pytest.mark.parametrize("patience", [None, 5])
def test_classifier_passes_scikit_learns_checks(patience):
    check_estimator(SmallClassifier(patience=patience, max_epochs=6, batch_size=64, lr=0.1))


def test_regressor_passes_scikit_learns_checks():
    check_estimator(SmallRegressor(max_epochs=6, batch_size=32, lr=0.1))


def test_it_learns_and_the_seed_decides_everything(digits):
    X, y = digits
    a = SmallClassifier(max_epochs=15, random_state=3).fit(X[:400], y[:400])
    assert a.score(X[400:], y[400:]) > 0.8
    before = torch.random.get_rng_state()
    b = SmallClassifier(max_epochs=15, random_state=3).fit(X[:400], y[:400])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(a.predict_proba(X), b.predict_proba(X))
    assert len(a.history_) == 15
    assert a.history_[-1]["loss"] < a.history_[0]["loss"]
    c = SmallClassifier(max_epochs=15, random_state=4).fit(X[:400], y[:400])
    assert not np.array_equal(a.predict_proba(X), c.predict_proba(X))


def test_a_score_hangs_on_no_other_row_even_with_batch_norm(digits):
    X, y = digits
    net = SmallClassifier(max_epochs=2, norm="batch", random_state=0).fit(X, y)
    together = net.predict_proba(X)
    alone = np.concatenate([net.predict_proba(X[i : i + 1]) for i in range(10)])
    assert np.array_equal(together[:10], alone)
    order = np.random.default_rng(0).permutation(len(X))
    assert np.array_equal(net.predict_proba(X[order]), together[order])


def test_patience_keeps_rows_back_and_stops(digits):
    X, y = digits
    net = SmallClassifier(max_epochs=200, patience=3, lr=3e-2, random_state=0).fit(X, y)
    assert len(net.history_) < 200
    assert "val_loss" in net.history_[0]
    best = min(p["val_loss"] for p in net.history_)
    assert net.history_[-4]["val_loss"] == pytest.approx(best)
    with pytest.raises(ValueError, match="n_samples=1: set patience=None"):
        SmallRegressor(patience=2).fit(X[:1], [1.0])


def test_partial_fit_goes_on_and_learns(digits):
    X, y = digits
    net = SmallClassifier(random_state=0).partial_fit(X[:300], y[:300], classes=range(10))
    one = net.score(X[400:], y[400:])
    for _ in range(10):
        net.partial_fit(X[:300], y[:300])
    assert net.score(X[400:], y[400:]) > one
    assert [p["step"] for p in net.history_[:2]] == [19, 38]
    fitted = SmallClassifier(max_epochs=5, random_state=0).fit(X, y)
    before = [p.clone() for p in fitted.module_.parameters()]
    fitted.partial_fit(X, y)
    moved = max((a - b).abs().max().item() for a, b in zip(fitted.module_.parameters(), before))
    assert 0 < moved < 0.5
    with pytest.raises(ValueError, match="label 11 was not among the classes"):
        net.partial_fit(X[:2], [11, 3])


def test_partial_fit_says_what_does_not_go_on(digits):
    X, y = digits
    net = SmallClassifier(random_state=0).partial_fit(X, y, classes=range(10)).partial_fit(X, y, classes=range(10))
    with pytest.raises(ValueError, match=r"classes \[0, 1\] are not those of before"):
        net.partial_fit(X, y, classes=[0, 1])
    before = [p.clone() for p in net.module_.parameters()]
    net.set_params(lr=1e-12).partial_fit(X, y)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.module_.parameters(), before))
    with pytest.raises(ValueError, match="training diverged: lower lr"):
        SmallRegressor(lr=1e30, random_state=0).partial_fit(X, y).partial_fit(X, y)


def test_saved_and_loaded_is_the_same(digits, tmp_path):
    X, y = digits
    names = np.array([f"digit {d}" for d in range(10)])[y]
    net = SmallClassifier(max_epochs=2, hidden=(8, 8), norm="batch", random_state=0).fit(X.reshape(-1, 1, 8, 8), names)
    net.save(tmp_path / "net.safetensors")
    again = SmallClassifier.load(tmp_path / "net.safetensors")
    assert again.hidden == [8, 8]
    assert again.input_shape_ == (1, 8, 8)
    images = X.reshape(-1, 1, 8, 8)
    assert np.array_equal(again.predict_proba(images), net.predict_proba(images))
    assert np.array_equal(again.predict(images), net.predict(images))
    assert again.history_ == net.history_
    assert SmallClassifier.load(tmp_path / "net.safetensors", lr=0.5).lr == 0.5
    regressor = SmallRegressor(max_epochs=2, random_state=0).fit(X, np.stack([y, -y], 1))
    regressor.save(tmp_path / "r.safetensors")
    assert np.array_equal(SmallRegressor.load(tmp_path / "r.safetensors").predict(X), regressor.predict(X))


def test_a_module_given_as_parameter_is_asked_for_again(digits, tmp_path):
    X, y = digits
    net = Holds(encoder=nn.Linear(64, 4), random_state=0).fit(X, y)
    path = tmp_path / "h.safetensors"
    net.save(path)
    with pytest.raises(ValueError, match=r"without the parameters \['encoder'\]"):
        Holds.load(path)
    assert np.array_equal(Holds.load(path, encoder=nn.Linear(64, 4)).predict_proba(X), net.predict_proba(X))
    with pytest.raises(ValueError, match="holds a Holds, not a SmallClassifier"):
        SmallClassifier.load(path)
    with pytest.raises(ValueError, match="no parameter 'width'"):
        Holds.load(path, encoder=nn.Linear(64, 4), width=3)


def test_pickle_and_clone(digits):
    X, y = digits
    net = SmallClassifier(random_state=0).partial_fit(X, y)
    again = pickle.loads(pickle.dumps(net))
    assert np.array_equal(again.predict_proba(X), net.predict_proba(X))
    again.partial_fit(X, y)
    assert not hasattr(clone(net), "module_")


def test_regression_in_its_own_unit(digits):
    X, _ = digits
    y = 5000 + 300 * X[:, 20] - 100 * X[:, 30]
    net = SmallRegressor(random_state=0).fit(X[:400], y[:400])
    assert net.score(X[400:], y[400:]) > 0.95
    assert SmallRegressor(max_epochs=1).fit(X, np.stack([y, y, y], 1)).predict(X).shape == (600, 3)


def test_without_a_target(digits):
    X, _ = digits
    net = Reconstructs(max_epochs=2, device="cpu", random_state=0).fit(X)
    assert net.history_[-1]["loss"] < net.history_[0]["loss"]
    assert net.n_features_in_ == 64
    net.partial_fit(X)


def test_tensors_go_in(digits):
    X, y = digits
    a = SmallClassifier(max_epochs=1, random_state=0).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert np.array_equal(a.predict(torch.from_numpy(X)), a.predict(X))
    half = np.asarray(a.predict(torch.tensor(X, dtype=torch.bfloat16)))  # NumPy has no such numbers
    assert (half == a.predict(X)).mean() > 0.95


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_it_learns_where_gradients_are_switched_off(digits, switched_off):
    X, y = digits
    want = SmallClassifier(max_epochs=1, random_state=0).fit(X, y).partial_fit(X, y)
    with switched_off():
        found = SmallClassifier(max_epochs=1, random_state=0).fit(X, y).partial_fit(X, y)
        assert np.array_equal(found.predict_proba(X), want.predict_proba(X))
        SmallClassifier(random_state=0).partial_fit(X, y)


def test_a_module_in_another_precision_is_trained_in_that_of_the_rows(digits):
    X, y = digits
    net = Holds(encoder=nn.Linear(64, 4).double(), random_state=0).fit(X, y)
    assert {p.dtype for p in net.module_.parameters()} == {torch.float32}


def test_predicting_leaves_the_module_in_its_mode(digits):
    X, y = digits
    net = SmallClassifier(max_epochs=1, random_state=0).fit(X, y)
    assert not net.module_.training
    net.module_.train()
    net.predict(X)
    assert net.module_.training


def test_bad_input_is_named(digits):
    X, y = digits
    net = SmallClassifier(max_epochs=1)
    with pytest.raises(NotFittedError):
        net.predict(X)
    with pytest.raises(NotFittedError):
        net.save("nowhere")
    with pytest.raises(ValueError, match="NaN"):
        net.fit(np.full((4, 3), np.nan), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="one class"):
        net.fit(X, np.zeros(len(X)))
    net.fit(X.reshape(-1, 1, 8, 8), y)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 16\), but SmallClassifier was fitted on rows of shape"):
        net.predict(X.reshape(-1, 1, 4, 16))
    with pytest.raises(ValueError, match="lower lr"):
        SmallRegressor(lr=1e30, max_epochs=5).fit(X, y)


def test_config_of_a_subclass_decides(digits):
    class Short(SmallClassifier):
        def _config(self, n):
            return TrainConfig(steps=3, batch_size=n)

    X, y = digits
    net = Short(random_state=0).fit(X, y)
    assert net.history_[-1]["step"] == 3

"""The classifier as scikit-learn sees it, its explanations, and every pitfall."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from etude.trust import PrototypeClassifier


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted(digits):
    X, y = digits
    return PrototypeClassifier(max_epochs=120, device="cpu").fit(X[:1200], y[:1200])


def test_scikit_learns_checks():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototypes for.*")
        check_estimator(PrototypeClassifier(max_epochs=15, lr=2e-2, batch_size=50, device="cpu"))


def test_it_learns_and_shows_what_it_learned(fitted, digits):
    X, y = digits
    assert fitted.score(X[1200:], y[1200:]) > 0.85
    assert fitted.prototypes_.shape == (15, 16)
    assert fitted.prototype_inputs_.shape == (15, 64)
    assert np.array_equal(fitted.prototype_inputs_, fitted.decode_prototypes())
    assert fitted.prototype_inputs_.min() >= 0
    assert fitted.prototype_inputs_.max() <= 1
    assert fitted.prototype_usage_.sum() == 1200
    assert fitted.prototype_usage_.shape == (15,)
    assert set(fitted.prototype_classes_) <= set(range(10))
    codes = fitted.module_.encode(torch.from_numpy(X[:1200])).numpy()
    nearest = ((codes[:, None] - fitted.prototypes_) ** 2).sum(-1).argmin(0)
    assert np.array_equal(fitted.prototype_cases_, nearest)


def test_the_explanation_is_the_computation(fitted, digits):
    X, _ = digits
    logits = fitted.module_(torch.from_numpy(X[:20])).detach().numpy()
    found = fitted.explain(X[:20])
    assert len(found) == 20
    for row, e in zip(logits, found):
        assert np.abs(e.logits - row).max() < 1e-5
        assert np.abs(e.contribution[1:].sum(0) - row).max() > 1e-3  # one left out is noticed
        assert (np.diff(e.distance) >= 0).all()
        assert np.allclose(e.contribution, e.distance[:, None] * e.weight)
        assert np.array_equal(e.nearest, fitted.prototype_cases_[e.prototype])
        assert sorted(e.prototype) == list(range(15))
    assert np.array_equal(np.argmax([e.logits for e in found], 1), fitted.predict(X[:20]))


def test_a_row_gets_the_same_bits_whichever_rows_stand_beside_it(fitted, digits):
    X, _ = digits
    order = np.random.default_rng(0).permutation(300)
    together = fitted.predict_proba(X[:300])
    assert np.array_equal(fitted.predict_proba(X[order]), together[order])
    assert np.array_equal(np.concatenate([fitted.predict_proba(X[i : i + 1]) for i in range(20)]), together[:20])


def test_transform_returns_the_distances_and_fits_a_pipeline(fitted, digits):
    X, y = digits
    d = fitted.transform(X[:7])
    assert d.shape == (7, 15)
    by_prototype = {p: v for p, v in zip(fitted.explain(X[:1])[0].prototype, fitted.explain(X[:1])[0].distance)}
    assert np.allclose(d[0], [by_prototype[j] for j in range(15)])
    pipe = make_pipeline(PrototypeClassifier(max_epochs=2, device="cpu"), DecisionTreeClassifier(max_depth=3))
    assert pipe.fit(X[:500], y[:500]).predict(X[:3]).shape == (3,)
    assert len(fitted.get_feature_names_out()) == 15
    assert len(copy.deepcopy(fitted).set_params(n_prototypes=3).get_feature_names_out()) == 15, "those of the fit"
    with pytest.raises(NotFittedError):
        PrototypeClassifier().get_feature_names_out()


def test_the_seed_decides_everything_and_fit_starts_anew(digits):
    X, y = digits
    a = PrototypeClassifier(max_epochs=2, random_state=5, device="cpu").fit(X, y)
    first = a.prototypes_.copy()
    assert np.array_equal(a.fit(X, y).prototypes_, first)
    assert not np.array_equal(clone(a).set_params(random_state=6).fit(X, y).prototypes_, first)


def test_images_get_convolutions_and_deformation(digits):
    X, y = digits
    images = np.kron(X[:80].reshape(-1, 1, 8, 8), np.ones((1, 1, 2, 2), np.float32))
    clf = PrototypeClassifier(max_epochs=1, batch_size=40, device="cpu").fit(images, y[:80])
    assert any(isinstance(m, nn.Conv2d) for m in clf.module_.modules())
    assert clf.prototype_inputs_.shape == (15, 1, 16, 16)
    plain = clone(clf).set_params(deform=False).fit(images, y[:80])
    assert clf.history_[-1]["loss"] != plain.history_[-1]["loss"]
    assert np.array_equal(clf.predict_proba(images), clf.predict_proba(images))  # not at use


def test_own_modules_are_copied_and_trained_from_their_weights(digits):
    X, y = digits
    encoder, decoder = nn.Linear(64, 5), nn.Sequential(nn.Linear(5, 64), nn.Sigmoid())
    before = encoder.weight.detach().clone()
    clf = PrototypeClassifier(encoder=encoder, decoder=decoder, max_epochs=1, lr=1e-9, device="cpu").fit(X, y)
    assert torch.equal(encoder.weight, before)
    assert torch.allclose(clf.module_.encoder.weight, before, atol=1e-5)
    assert clf.prototypes_.shape == (15, 5)


def test_saved_and_loaded(fitted, digits, tmp_path):
    X, _ = digits
    fitted.save(tmp_path / "p.safetensors")
    again = PrototypeClassifier.load(tmp_path / "p.safetensors")
    assert np.array_equal(again.predict_proba(X), fitted.predict_proba(X))
    for name in ("prototypes_", "prototype_inputs_", "prototype_cases_", "prototype_usage_", "classes_"):
        assert np.array_equal(getattr(again, name), getattr(fitted, name))
    assert np.array_equal(again.explain(X[:1])[0].contribution, fitted.explain(X[:1])[0].contribution)


def test_an_explanation_does_not_hang_on_the_output_of_transform(digits, fitted):
    X, y = digits
    tables = clone(fitted).set_params(max_epochs=1).set_output(transform="pandas").fit(X[:100], y[:100])
    assert tables.transform(X[:2]).shape == (2, 15)
    assert len(tables.explain(X[:2])) == 2


def test_fewer_prototypes_than_classes_is_a_warning(digits):
    X, y = digits
    with pytest.warns(UserWarning, match="3 prototypes for 10 classes"):
        PrototypeClassifier(3, max_epochs=1, device="cpu").fit(X, y)


def test_inputs_outside_the_unit_interval(digits):
    X, y = digits
    far = X * 300 - 7
    clf = PrototypeClassifier(max_epochs=20, device="cpu").fit(far, y)  # auto: scaled, and the scaler is kept
    assert clf.score(far, y) > 0.8
    assert clf.prototype_inputs_.max() > 100
    with pytest.warns(UserWarning, match=r"inputs lie in \[-7, 293\], which a sigmoid decoder cannot reach"):
        PrototypeClassifier(max_epochs=1, scale=None, device="cpu").fit(far, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inside = PrototypeClassifier(max_epochs=1, scale="minmax", device="cpu").fit(far, y)
        PrototypeClassifier(max_epochs=1, scale=None, device="cpu").fit(X, y)
    scaled = inside.module_.scaled(torch.from_numpy(far))
    assert (scaled.min().item(), scaled.max().item()) == pytest.approx((0, 1), abs=1e-6)


class Squashed(nn.Module):
    """Ends in a sigmoid that is no module, and draws from the global stream."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 64)

    def forward(self, z):
        torch.rand(1)
        return torch.sigmoid(self.linear(z))


class Gated(nn.Module):
    """Its last module is a sigmoid, its output is unbounded."""

    def __init__(self):
        super().__init__()
        self.linear, self.gate = nn.Linear(5, 64), nn.Sigmoid()

    def forward(self, z):
        return self.linear(z) * self.gate(z.sum(1, keepdim=True))


@pytest.mark.parametrize(("decoder", "bounded"), [(Squashed, True), (Gated, False)])
def test_a_decoders_bounds_are_those_of_its_outputs(digits, decoder, bounded):
    far = torch.from_numpy(digits[0] * 300 - 7)
    clf = PrototypeClassifier(encoder=nn.Linear(64, 5), decoder=decoder(), scale=None)
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clf._learn_scale(far)
    assert bool(caught) == bounded
    assert torch.equal(torch.get_rng_state(), state)
    assert clf.decoder.training
    clf.set_params(scale="auto")._learn_scale(far)
    assert (float(clf.low_.min()) < 0) == bounded


def test_a_small_last_batch_is_left_out(digits):
    X, y = digits
    clf = PrototypeClassifier(max_epochs=2, batch_size=250, device="cpu").fit(X[:503], y[:503])
    assert clf.history_[-1]["step"] == 4
    few = PrototypeClassifier(max_epochs=2, batch_size=250, device="cpu").fit(X[:103], y[:103])
    assert few.history_[-1]["step"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_prototypes": 0}, "n_prototypes must be at least 1, got 0"),
        ({"n_prototypes": True}, "n_prototypes must be a whole number, got True"),
        ({"n_prototypes": 2.5}, "n_prototypes must be a whole number, got 2.5"),
        (dict.fromkeys(("lambda_class", "lambda_ae", "lambda_r1", "lambda_r2"), 0), "all four lambdas are 0"),
        ({"encoder": nn.Linear(64, 2)}, "both encoder and decoder"),
        (
            {"encoder": nn.Linear(64, 2), "decoder": nn.Linear(2, 60)},
            r"output has shape \(60,\), but the input has shape \(64,\)",
        ),
        ({"init": "zeros"}, "unknown init 'zeros'"),
        ({"scale": "z"}, "unknown scale 'z'"),
        ({"deform": "often"}, "deform must be"),
        ({"lambda_r1": -1.0}, "lambda_r1 must be a number of at least 0"),
        ({"lambda_ae": float("inf")}, "lambda_ae must be a number of at least 0 and finite"),
        ({"lambda_r2": None}, "lambda_r2 must be a number of at least 0 and finite, got None"),
        ({"deform": None}, "deform must be True, False or 'auto', got None"),
        ({"deform": True}, r"deform=True needs images \(n, C, H, W\), got rows of shape \(64,\)"),
    ],
)
def test_wrong_parameters_are_named_at_the_start_of_fit(digits, options, message):
    X, y = digits
    with pytest.raises(ValueError, match=message):
        PrototypeClassifier(**options, device="cpu").fit(X, y)


def test_bad_data_is_named(digits):
    X, y = digits
    clf = PrototypeClassifier(max_epochs=1, device="cpu")
    with pytest.raises(NotFittedError):
        clf.explain(X)
    with pytest.raises(NotFittedError):
        clf.decode_prototypes()
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="NaN"):
        clf.fit(np.where(X > 0.9, np.nan, X), y)

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from etude.continual.key_value_classifier import KeyValueClassifier

SMALL = {"n_codebooks": 16, "n_pairs": 16, "random_state": 0}


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return make_blobs(300, n_features=6, centers=4, cluster_std=1.5, random_state=seed)


@pytest.mark.filterwarnings("ignore:the keys are placed on this first batch", "ignore:.*keys a codebook were placed")
def test_scikit_learns_checks() -> None:
    check_estimator(KeyValueClassifier(n_codebooks=8, n_pairs=8, init_epochs=3, random_state=0), on_skip=None)


def test_a_stream_of_classes_ends_where_a_shuffled_one_does() -> None:
    X, y = blobs()
    streamed = KeyValueClassifier(**SMALL).fit_keys(X)
    for label in np.unique(y):
        rows = y == label
        for _ in range(5):
            streamed.partial_fit(X[rows], y[rows], classes=range(4))
    joint = KeyValueClassifier(**SMALL, max_epochs=5).fit(X, y)
    assert streamed.score(X, y) > 0.9
    assert abs(streamed.score(X, y) - joint.score(X, y)) < 0.05


def test_classes_declared_later_start_at_zero_and_stand_in_order() -> None:
    X, y = blobs()
    names = np.array(["d", "b", "c", "a"])[y]
    clf = KeyValueClassifier(**SMALL).fit_keys(X)
    old = np.isin(names, ["b", "d"])
    clf.partial_fit(X[old], names[old])
    assert clf.classes_.tolist() == ["b", "d"]
    values = clf.module_.values.detach().clone()
    with pytest.raises(ValueError, match="label 'a' was not among"):
        clf.partial_fit(X, names)
    with pytest.raises(ValueError, match=r"\['d'\] are missing"):
        clf.partial_fit(X[old], names[old], classes=["a", "b"])
    new = names == "a"
    clf.partial_fit(X[new], names[new], classes=["a", "b", "c", "d"])
    assert clf.classes_.tolist() == ["a", "b", "c", "d"] and clf.predict_proba(X).shape == (300, 4)
    untouched = (clf.module_.counts.numpy() > 0) & (values != 0).any(-1).numpy()
    assert untouched.any() and clf.score(X[old | new], names[old | new]) > 0.9


def test_keys_on_other_rows_and_reset() -> None:
    X, y = blobs()
    clf = KeyValueClassifier(**SMALL).fit_keys(X[:100])
    with pytest.raises(NotFittedError):
        clf.predict(X)
    keys = clf.module_.keys.clone()
    clf.partial_fit(X[100:], y[100:], classes=range(4))
    assert np.array_equal(keys, clf.module_.keys) and clf.score(X, y) > 0.8
    clf.fit_keys(X)
    assert not hasattr(clf, "classes_") and not clf.module_.values.any()


def test_missing_keys_are_a_warning() -> None:
    X, y = blobs()
    with pytest.warns(UserWarning, match="first batch alone"):
        KeyValueClassifier(**SMALL).partial_fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KeyValueClassifier(**SMALL).fit_keys(X).partial_fit(X, y)
    with pytest.warns(UserWarning, match="16 keys a codebook were placed on 9"):
        KeyValueClassifier(**SMALL).fit_keys(X[:9])


def test_prediction_changes_nothing_and_does_not_depend_on_the_batch() -> None:
    X, y = blobs()
    clf = KeyValueClassifier(**SMALL).fit(X, y)
    counts = clf.module_.counts.clone()
    whole = clf.predict_proba(X)
    assert np.array_equal(whole[7:8], clf.predict_proba(X[7:8]))
    assert np.array_equal(counts, clf.module_.counts) and np.allclose(whole.sum(1), 1, atol=1e-5)


def test_saved_mid_stream(tmp_path: Path) -> None:
    X, y = blobs()
    clf = KeyValueClassifier(**SMALL).fit_keys(X).partial_fit(X[y < 2], y[y < 2], classes=range(4))
    clf.save(tmp_path / "kv.safetensors")
    loaded = KeyValueClassifier.load(tmp_path / "kv.safetensors")
    assert np.array_equal(clf.predict_proba(X), loaded.predict_proba(X))
    loaded.partial_fit(X[y >= 2], y[y >= 2])
    assert loaded.score(X, y) > 0.9


def test_a_setting_for_the_next_fit_does_not_change_the_present_one() -> None:
    X, y = blobs()
    clf = KeyValueClassifier(**SMALL).fit_keys(X).partial_fit(X, y, classes=range(4))
    other = copy.deepcopy(clf).set_params(n_codebooks=1000)
    assert np.array_equal(clf.partial_fit(X, y).predict_proba(X), other.partial_fit(X, y).predict_proba(X))


def test_labels_are_what_is_learned() -> None:
    X, y = blobs()
    shuffled = np.random.default_rng(0).permutation(y)
    assert KeyValueClassifier(**SMALL).fit(X, y).score(X, y) > 0.9
    assert KeyValueClassifier(**SMALL).fit(X, shuffled).score(X, y) < 0.5


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"max_epochs": 0}, {"batch_size": 0}, {"label_smoothing": -1.0}])
def test_settings_that_make_no_run_are_refused(wrong) -> None:
    rows, labels = blobs()
    with pytest.raises(ValueError, match="must be"):
        KeyValueClassifier(**(SMALL | wrong)).fit(rows, labels)


@pytest.mark.filterwarnings("ignore:the keys are placed on this first batch")
def test_a_refused_batch_leaves_no_trace() -> None:
    X, y = blobs()
    fresh = KeyValueClassifier(**SMALL)
    with pytest.raises(ValueError, match="was not among"):
        fresh.partial_fit(X, y, classes=[0, 1])
    assert not hasattr(fresh, "module_") and not hasattr(fresh, "classes_")
    clf = KeyValueClassifier(**SMALL).fit_keys(X)
    with pytest.raises(ValueError, match="was not among"):
        clf.partial_fit(X, y, classes=[0, 1])
    assert not hasattr(clf, "classes_")
    clf.partial_fit(X, y, classes=range(4))
    before = clf.predict_proba(X)
    for rows, labels in ((X * np.nan, y), (X, y + 9)):
        with pytest.raises(ValueError, match="NaN|was not among"):
            clf.partial_fit(rows, labels, classes=range(9))
    clf.set_params(label_smoothing=2.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        clf.partial_fit(X, y, classes=range(9))
    assert clf.classes_.tolist() == [0, 1, 2, 3] and np.array_equal(clf.predict_proba(X), before)

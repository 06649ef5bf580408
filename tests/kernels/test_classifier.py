"""The classifier: scikit-learn's rules, equality with the classifiers that the theory names, and bad input."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from etude.data import dirichlet_on_sphere
from etude.kernels import DeepKernelClassifier, HermiteActivation, dual_activation, log_limit_ratio, optimal_activation
from etude.kernels.dual import SineDual

PAIR = ([3, 1, 2, 1, 1], [1, 2, 2, 2, 3])  # on the 4-sphere


def _data(n=200, test=300, seed=0):
    drawn = dirichlet_on_sphere(n + test, PAIR, 0.4, seed)
    x, y = drawn.x.numpy(), drawn.y.numpy()
    return x[:n], y[:n], x[n:], y[n:]


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([DeepKernelClassifier(), DeepKernelClassifier("erf", depth=3, ridge=1e-6, lift=True)])
def test_scikit_learns_rules(estimator, check):
    check(estimator)


def test_infinite_depth_is_the_sign_of_the_kernel_vote():
    X, y, Z, _ = _data()
    clf = DeepKernelClassifier("optimal", dim=4).fit(X, y)
    u = torch.from_numpy(1 - np.clip(Z @ X.T, -1, 1 - 1e-15))
    kernel = (log_limit_ratio(u, dual_activation("optimal", 4))[0].exp() * (1 - u)).numpy()
    votes = kernel @ (2.0 * y - 1)
    np.testing.assert_array_equal(clf.predict(Z), (votes > 0).astype(int))
    np.testing.assert_allclose(clf.decision_function(Z), votes / kernel.sum(1), rtol=1e-4, atol=1e-5)


def test_infinite_depth_is_what_a_deep_net_tends_to():
    X, y, Z, _ = _data()
    limit = DeepKernelClassifier(dim=4).fit(X, y).predict(Z)
    deep = DeepKernelClassifier(dim=4, depth=60, kind="nngp").fit(X, y).predict(Z)
    assert (limit == deep).mean() >= 0.999


def test_optimal_activation_agrees_with_the_hilbert_estimate_and_erf_does_not():
    X, y, Z, _ = _data(1000, 500)
    hilbert = KNeighborsClassifier(len(X), weights=lambda r: r**-4.0).fit(X, y).predict(Z)
    assert (DeepKernelClassifier(dim=4).fit(X, y).predict(Z) == hilbert).mean() > 0.98
    assert (DeepKernelClassifier("erf").fit(X, y).predict(Z) == hilbert).mean() < 0.97


def test_no_constant_and_no_slope_is_the_nearest_neighbour():
    X, y, Z, _ = _data()
    clf = DeepKernelClassifier([0.0, 0.0, 1.0]).fit(X, y)
    assert clf.limit_ == "1-nn"
    np.testing.assert_array_equal(clf.predict(Z), KNeighborsClassifier(1).fit(X, y).predict(Z))


def test_relu_at_infinite_depth_is_a_majority_vote_and_says_so():
    X, y, Z, _ = _data()
    with pytest.warns(UserWarning, match=r"majority vote.*centered"):
        clf = DeepKernelClassifier("relu").fit(X, y)
    assert clf.limit_ == "majority"
    assert set(clf.predict(Z)) == {np.bincount(y).argmax()}


def test_a_deep_relu_net_tends_to_that_majority():
    X, y, Z, _ = _data(50, 50)
    y = np.r_[np.zeros(35, int), np.ones(15, int)]
    shallow, deep = (DeepKernelClassifier("relu", depth=n).fit(X, y).predict(Z) for n in (1, 1000))
    assert (deep == 0).mean() > 0.98 > (shallow == 0).mean()


def test_centred_relu_is_no_majority():
    from etude.kernels import activation_report

    X, y, Z, t = _data()
    clf = DeepKernelClassifier(activation_report(nn.ReLU()).centered()).fit(X, y)
    assert clf.limit_ == "singular"
    assert clf.score(Z, t) > 0.7


@pytest.mark.parametrize("depth", [None, 2])
def test_it_interpolates(depth):
    X, y, _, _ = _data(100)
    assert DeepKernelClassifier(depth=depth).fit(X, y).score(X, y) == 1.0


def test_finite_depth_is_kernel_regression():
    X, y, Z, _ = _data(60, 40)
    clf = DeepKernelClassifier("erf", depth=1, kind="nngp", ridge=0.1).fit(X, y)
    dual = dual_activation("erf")
    kernel = dual.value(torch.from_numpy(X @ X.T)) + 0.1 * torch.eye(60, dtype=torch.float64)
    expected = dual.value(torch.from_numpy(Z @ X.T)) @ torch.linalg.solve(kernel, torch.from_numpy(2.0 * y - 1))
    np.testing.assert_allclose(clf.decision_function(Z), expected.numpy(), rtol=1e-8)


def test_more_classes_and_names_of_classes():
    X, y = load_iris(return_X_y=True)
    X, names = StandardScaler().fit_transform(X), np.array(["setosa", "versicolor", "virginica"])[y]
    clf = DeepKernelClassifier(lift=True).fit(X[::2], names[::2])
    assert clf.score(X[1::2], names[1::2]) > 0.88
    scores = clf.decision_function(X[::2])
    assert scores.shape == (75, 3)
    np.testing.assert_allclose(scores.sum(1), 1.0)


def test_dim_auto_ambient_and_given():
    X, y, _, _ = _data()
    assert DeepKernelClassifier(dim="ambient").fit(X, y).dim_ == 4
    assert DeepKernelClassifier(dim=3).fit(X, y).dim_ == 3
    assert DeepKernelClassifier().fit(X, y).dim_ in (1, 2, 4)
    assert DeepKernelClassifier("sine").fit(X, y).dim_ in (2, 4)
    assert DeepKernelClassifier("erf", depth=2).fit(X, y).dim_ == 4


def test_many_rows_are_tuned_on_a_draw_that_holds_every_class_in_turn():
    X, y = np.abs(np.random.default_rng(0).normal(size=(1600, 3))), np.arange(1600) % 2
    clf = DeepKernelClassifier(dim=2).fit(X, y)
    rows, labels = clf.tuning_rows()
    assert len(rows) == 1000
    assert (labels.sum(0) > 450).all()
    assert torch.equal(rows, clf.tuning_rows()[0])


def test_rows_of_any_length_are_normalised():
    X, y, Z, _ = _data()
    clf = DeepKernelClassifier(dim=4)
    expected = clf.fit(X, y).decision_function(Z)
    got = clf.fit(X * np.linspace(0.1, 9, len(X))[:, None], y).decision_function(5 * Z)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lift", [False, True])
@pytest.mark.parametrize("scale", [1e-170, 1e200])
def test_the_scale_of_the_data_means_nothing_however_extreme(scale, lift):
    X, y, Z, _ = _data(60, 20)
    clf = DeepKernelClassifier(dim=4, lift=lift)
    expected = clf.fit(X, y).decision_function(Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = clf.fit(X * scale, y).decision_function(Z * scale)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(monkeypatch):
    X, y, Z, _ = _data()
    clf = DeepKernelClassifier(dim=4).fit(X, y)
    whole = clf.decision_function(Z)
    monkeypatch.setattr("etude.kernels.classifier.CHUNK_PAIRS", 1)
    np.testing.assert_allclose(clf.decision_function(Z), whole, rtol=1e-12)


def test_state_is_read_back(tmp_path):
    X, y, Z, _ = _data(60, 20)
    labels = np.array(["no", "yes"], dtype=object)[y]  # as pandas gives them
    for clf in (DeepKernelClassifier(), DeepKernelClassifier("erf", depth=2, lift=True),
                DeepKernelClassifier(HermiteActivation(optimal_activation(2))), DeepKernelClassifier(torch.erf),
                DeepKernelClassifier(torch.sin, depth=np.int64(2), ridge=np.float32(0.5)),
                DeepKernelClassifier(dim=np.array([2, 4])[1])):  # fmt: skip
        path = tmp_path / "deep.safetensors"
        clf.fit(X, labels).save(path)
        again = DeepKernelClassifier.load(path)
        np.testing.assert_allclose(again.decision_function(Z), clf.decision_function(Z), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(again.predict(Z), clf.predict(Z))


def test_the_columns_of_a_data_frame_are_read_back(tmp_path):
    pd = pytest.importorskip("pandas")
    X, y, _, _ = _data(20, 5)
    frame = pd.DataFrame(X, columns=list("abcde"))
    DeepKernelClassifier().fit(frame, y).save(tmp_path / "deep")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(DeepKernelClassifier.load(tmp_path / "deep").predict(frame)) == 20


def test_saving_refuses_what_it_cannot_write(tmp_path):
    from safetensors.torch import save_file

    X, y, _, _ = _data(20, 5)
    with pytest.raises(ValueError, match="by name"):
        DeepKernelClassifier(SineDual(0.7)).fit(X, y).save(tmp_path / "a")
    with pytest.raises(ValueError, match="cannot be written"):
        DeepKernelClassifier().fit(X, np.array(["2020", "2021"], dtype="datetime64[Y]")[y]).save(tmp_path / "a")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "other"))
    with pytest.raises(ValueError, match="does not hold"):
        DeepKernelClassifier.load(tmp_path / "other")


# bad input and pitfalls


def test_rows_that_are_not_normalised_are_refused_by_number():
    X, y, _, _ = _data(20, 5)
    DeepKernelClassifier(normalize=False).fit(X, y)
    X[7] *= 1 + 1e-5
    with pytest.raises(ValueError, match=r"row 7 has length 1\.00001"):
        DeepKernelClassifier(normalize=False).fit(X, y)


def test_a_zero_row_is_refused_by_number_at_fit_and_at_predict():
    X, y, Z, _ = _data(20, 5)
    broken = X.copy()
    broken[3] = 0
    with pytest.raises(ValueError, match="row 3 is zero"):
        DeepKernelClassifier().fit(broken, y)
    with pytest.raises(ValueError, match="row 0 is zero"):
        DeepKernelClassifier().fit(X, y).predict(np.zeros_like(Z))
    assert DeepKernelClassifier(lift=True).fit(broken, y).score(broken, y) == 1.0


def test_an_empty_row_of_counts_is_taken_with_a_warning():
    X = np.array([[3, 0], [0, 2], [0, 0], [5, 1]])
    with pytest.warns(UserWarning, match="row 2 is zero.*equal counts"):
        DeepKernelClassifier().fit(X, [0, 1, 0, 1])


def test_negative_inner_products_warn_and_lift_mends_it():
    X = np.array([[1.0, 0.0], [-1.0, 0.1], [0.5, 1.0], [-0.3, -1.0]])
    y = [0, 1, 0, 1]
    clf = DeepKernelClassifier(dim=2).fit(X, y)
    with pytest.warns(UserWarning, match=r"inner products are negative.*lift=True") as caught:
        clf.predict(X)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = DeepKernelClassifier(dim=2, lift=True).fit(X, y)
        np.testing.assert_array_equal(clf.predict(X), y)


def test_lift_keeps_the_length_of_a_row():
    X = np.array([[1.0, 1.0], [3.0, 3.0], [1.1, 1.1], [2.9, 2.9]])
    clf = DeepKernelClassifier(dim=2, lift=True).fit(X[:2], [0, 1])
    assert clf.predict(X[2:]).tolist() == [0, 1]


def test_one_class_is_predicted_with_a_warning():
    X, _, Z, _ = _data(10, 5)
    with pytest.warns(UserWarning, match="one class only"):
        clf = DeepKernelClassifier().fit(X, np.full(10, 7))
    assert clf.predict(Z).tolist() == [7] * 5


@pytest.mark.parametrize("where", ["fit", "predict"])
def test_nan_is_refused(where):
    X, y, _, _ = _data(20, 5)
    broken = X.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        (DeepKernelClassifier().fit(broken, y) if where == "fit" else DeepKernelClassifier().fit(X, y).predict(broken))


@pytest.mark.parametrize("depth", [None, 3])
def test_duplicates_with_opposing_labels_are_averaged(depth):
    X, y, _, _ = _data(30, 5)
    X[[1, 2]] = X[0]
    y[:3] = [0, 1, 1]
    scores = DeepKernelClassifier(dim=4, depth=depth).fit(X, y).decision_function(X[:1])
    assert float(scores[0]) == pytest.approx(1 / 3, abs=1e-5)


def test_points_nearer_than_rounding_of_inner_products_are_told_apart():
    a = np.array([1.0, 0.0])
    near, nearer = np.array([1.0, 3e-9]), np.array([1.0, -2e-9])
    assert near @ a == nearer @ a == 1.0
    X = np.stack([near, nearer])
    assert DeepKernelClassifier(dim=2, normalize=False).fit(X, [0, 1]).predict(a[None]).tolist() == [1]


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"dim": 0}, "dim must be at least 1 .*, got 0"),
        ({"dim": "best"}, 'dim must be "auto", "ambient" or a number, got \'best\''),
        ({"dim": None}, "dim must be .*, got None"),
        ({"dim": math.inf}, "finite, got inf"),
        ({"dim": 3000}, "too flat for float64"),
        ({"dim": 3000, "depth": 5}, "too flat for float64"),
        ({"activation": "sine", "dim": 300}, "too flat for float64"),
        ({"activation": "sine", "dim": 1 + 1e-7}, "dim must be at least 1.0000.* for a sine"),
        ({"depth": -1}, "depth must be a whole number of at least 0"),
        ({"depth": 1.5}, "depth must be a whole number"),
        ({"depth": math.inf}, "depth must be a whole number"),
        ({"ridge": -1.0}, "ridge must be a number of at least 0"),
        ({"ridge": math.nan}, "ridge must be a number of at least 0, got nan"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"activation": "linear"}, "give depth=0"),
        ({"depth": 2, "kind": "cntk"}, "kind must be"),
        ({"activation": [0.0, 0.2, 1.0, 1.0], "depth": 3000}, "leaves the range of float64"),
    ],
)
def test_bad_parameters_are_named_at_fit(params, text):
    X, y, _, _ = _data(20, 5)
    with pytest.raises(ValueError, match=text):
        DeepKernelClassifier(**params).fit(X, y)


def test_the_sine_takes_digits_wide_and_narrow():
    rng = np.random.default_rng(0)
    for columns in (5, 33, 66, 130):
        x, y = rng.random((40, columns)), np.arange(40) % 2
        model = DeepKernelClassifier("sine").fit(x, y)
        assert model.score(x, y) == 1.0 and np.isfinite(model.decision_function(rng.random((5, columns)))).all()


def test_a_whole_depth_may_be_a_float():
    X, y, Z, _ = _data(20, 5)
    whole, same = (DeepKernelClassifier("erf", depth=d).fit(X, y).decision_function(Z) for d in (2, 2.0))
    np.testing.assert_array_equal(whole, same)


def test_a_kernel_that_underflows_says_so():
    X, y, Z, _ = _data(20, 5)
    with pytest.warns(UserWarning, match="underflows"):
        DeepKernelClassifier("optimal", dim=8, depth=400, kind="nngp").fit(X, y).predict(Z)


@pytest.mark.parametrize(
    ("activation", "dim"), [("erf", "auto"), ("sine", 4), ("tanh", "auto"), ("optimal", 1), ("optimal", "auto")]
)
def test_an_opposite_point_ends_and_votes_against(activation, dim):
    x = np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    with pytest.warns(UserWarning, match="negative"):
        said = DeepKernelClassifier(activation, dim=dim).fit(x, [0, 1, 1, 0]).predict(x)
    assert said.tolist() == [0, 1, 1, 0]
    if activation == "erf":
        one = np.array([[1.0, 0, 0], [0, 1, 0]])
        with pytest.warns(UserWarning, match="negative"):
            odd = DeepKernelClassifier("erf").fit(one, [0, 1]).decision_function([[-1, 0, 0]])
        assert odd[0] > 0, "an odd kernel votes against the class of the opposite point"


def test_wide_rows_take_a_dim_that_float64_holds():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 1500)), rng.integers(0, 2, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert DeepKernelClassifier().fit(x, y).dim_ <= 512
        with pytest.raises(ValueError, match="too flat for float64: give a smaller dim"):
            DeepKernelClassifier(dim="ambient").fit(x, y)


def test_a_point_orthogonal_to_all_gets_the_shares():
    x, y = np.eye(5)[[0, 0, 1, 1, 2, 2]], [0, 0, 1, 1, 0, 0]
    model = DeepKernelClassifier().fit(x, y)
    np.testing.assert_allclose(model.decision_function(np.eye(5)[3:]), (2 - 4) / 6)


def test_tensors_and_arrays_of_coefficients_are_taken():
    x, y = np.abs(np.random.default_rng(0).normal(size=(20, 4))), np.arange(20) % 2
    plain = DeepKernelClassifier([0.0, 0.5**0.5, 0.5**0.5]).fit(x, y).predict(x)
    other = DeepKernelClassifier(np.array([0.0, 0.5**0.5, 0.5**0.5])).fit(torch.tensor(x), torch.tensor(y))
    np.testing.assert_array_equal(other.predict(torch.tensor(x)), plain)
    half = torch.tensor(x).bfloat16()
    np.testing.assert_array_equal(other.decision_function(half), other.decision_function(half.double()))


@pytest.mark.parametrize(("option", "words"), [({"kind": "foo"}, "'foo'"), ({"depth": 2.5}, "whole number")])
def test_options_that_mean_nothing(option, words):
    with pytest.raises(ValueError, match=words):
        DeepKernelClassifier(**option).fit(np.eye(3), [0, 1, 0])

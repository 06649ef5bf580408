"""Physical local learning: labels in the input, no gradient through boxes, drift, cost, state, bad input."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from etude.data.randomness import stream
from etude.data.vowels import vowels
from etude.training import BlackBox, PhyLL
from etude.training.label_embedding import embed_label, wrong_labels
from etude.training.physical_boxes import PhysicalBox
from etude.training.physical_costs import Costs, backprop_macs


def blobs(n=90, d=8, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, d)).astype("float32") * 0.5
    x[np.arange(n), y] += 3
    return x, y


def optics(m, p, seed=0):
    return PhysicalBox("optics", m, p, generator=stream(seed, "box"))


def test_the_label_is_written_as_the_largest_amplitude():
    x = torch.tensor([[1.0, -5.0, 2.0, 3.0]])
    assert embed_label(x, torch.tensor([1]), 3).tolist() == [[0, 5, 0, 1, -5, 2, 3]]
    assert embed_label(x, torch.tensor([2]), 3, "overwrite").tolist() == [[0, 0, 5, 3]]


def test_wrong_labels_are_wrong_even_and_leave_the_right_ones_alone():
    y = torch.arange(7).repeat(3000)
    kept = y.clone()
    wrong = wrong_labels(y, 7, stream(0, "w"))
    assert torch.equal(y, kept)
    assert not (wrong == y).any()
    table = torch.zeros(7, 7).index_put_((y, wrong), torch.ones(len(y)), accumulate=True)
    off = table[~torch.eye(7, dtype=torch.bool)]
    assert off.min() > 400
    assert off.max() < 600


def test_it_learns_vowels_of_new_speakers_and_shuffled_labels_do_not():
    task = vowels(20, 40, seed=0)
    x, y = task.train.x.numpy(), task.train.y.numpy()
    boxes = [optics(19, 20, 0), optics(20, 20, 1)]
    net = PhyLL(boxes, [20, 20], 7, random_state=0).fit(x, y, epochs=40)
    assert net.score(task.test.x.numpy(), task.test.y.numpy()) > 0.85
    shuffled = PhyLL(boxes, [20, 20], 7, random_state=0).fit(x, np.random.default_rng(0).permutation(y), epochs=40)
    assert shuffled.score(task.test.x.numpy(), task.test.y.numpy()) < 0.4
    assert net.history_[-1]["losses"][0] < net.history_[0]["losses"][0]


def test_layers_learn_by_themselves():
    """The first layer of a deep net equals that of a net that has no other layer."""
    x, y = blobs()
    one = PhyLL([optics(11, 12)], [6], random_state=3)
    two = PhyLL([optics(11, 12), optics(6, 6, 1)], [6, 5], random_state=3)
    one.fit(x, y, epochs=1)
    two.fit(x, y, epochs=1)
    two.weights_[0], two.biases_[0], two.directions_[0] = (
        t[0].clone() for t in (one.weights_, one.biases_, one.directions_)
    )
    for net in (one, two):
        net._generator = stream(9, "again")
        net.partial_fit(x, y, epochs=3)
    assert torch.equal(one.weights_[0], two.weights_[0])


def test_a_device_that_speaks_numpy_and_is_no_module():
    x, y = blobs()
    matrix = np.random.default_rng(0).normal(size=(10, 11))
    net = PhyLL([lambda h: np.abs(h @ matrix.T)], [8], bypass=False, random_state=0).fit(x, y, epochs=60)
    assert net.score(x, y) > 0.9
    assert net.weights_[0].shape == (8, 10)
    assert net.goodness(x[:4]).shape == (4, 3, 1)
    assert np.abs(net.goodness(x)).max() <= 1 + 1e-5
    assert net.representations(x).shape == (90, 8)


def test_both_goodnesses_and_both_labels_learn():
    x, y = blobs(d=9)
    for options in ({"goodness": "cosine-gelu"}, {"label_mode": "overwrite"}):
        net = PhyLL([None], [8], random_state=0, **options)
        assert net.fit(np.c_[np.zeros((90, 3)), x], y, epochs=60).score(np.c_[np.zeros((90, 3)), x], y) > 0.9


def test_string_labels_same_seed_and_clone():
    x, y = blobs()
    names = np.array(["ae", "iy", "uw"])[y]
    net = PhyLL([optics(11, 12)], [8], goodness="cosine-gelu", random_state=1)
    copied = clone(net)
    assert copied.get_params()["goodness"] == "cosine-gelu"
    assert copied.set_params(goodness="cosine-abs", theta=5.0).get_params()["goodness"] == "cosine-abs"
    a, b = clone(net).fit(x, names, epochs=5), clone(net).fit(x, names, epochs=5)
    assert torch.equal(a.weights_[0], b.weights_[0])
    assert set(a.predict(x)) <= {"ae", "iy", "uw"}
    before = torch.get_rng_state()
    clone(net).fit(x, names, epochs=2)
    assert torch.equal(before, torch.get_rng_state())


def test_after_a_drift_it_learns_again():
    x, y = blobs()
    box = optics(11, 16)
    net = PhyLL([box], [8], bypass=False, random_state=0).fit(x, y, epochs=60)
    before = net.score(x, y)
    net.replace_boxes([box.rotated(90)])
    broken = net.score(x, y)
    assert net.partial_fit(x, y, epochs=60).score(x, y) > max(broken, 0.9)
    assert before > 0.9 > broken


def test_costs_are_counted_by_hand():
    x, y = blobs()
    net = PhyLL([optics(11, 5), optics(6, 4, 1)], [6, 7], random_state=0).fit(x, y, epochs=3, inner_steps=4)
    assert net.cost_report()["physical_runs_training"] == 2 * 2 + 3 * 2 * 90 * 2  # two rows to learn the widths
    macs = 3 * 180 * 9 * (6 * (5 + 11) + 7 * (4 + 6))
    assert net.cost_report()["digital_macs_training"] == macs
    net.predict(x[:10])
    assert net.cost_report()["physical_runs_prediction"] == 10 * 3 * 2
    assert net.cost_report()["digital_macs_prediction"] == 30 * (6 * 16 + 7 * 10)
    before = net.cost_report()
    net.representations(x[:10])
    more = {k: v - before[k] for k, v in net.cost_report().items()}
    assert more == {
        "physical_runs_training": 0, "physical_runs_prediction": 10 * 2,
        "digital_macs_training": 0, "digital_macs_prediction": 10 * (6 * 16 + 7 * 10),
    }  # fmt: skip
    assert Costs().report()["physical_runs_training"] == 0
    assert backprop_macs(10, [4, 3, 2]) == 10 * (3 * (12 + 6) - 12)


def test_state_comes_back_with_the_directions(tmp_path):
    x, y = blobs()
    box = optics(11, 12)
    net = PhyLL([box], [8], random_state=0).fit(x, y, epochs=20)
    net.save(tmp_path / "net.safetensors")
    again = PhyLL([box], [8]).load(tmp_path / "net.safetensors")
    assert np.array_equal(again.goodness(x), net.goodness(x))
    assert torch.equal(again.partial_fit(x, y).weights_[0], net.partial_fit(x, y).weights_[0])
    again.directions_[0] = torch.randn(8, generator=stream(5, "other"))
    assert again.score(x, y) < net.score(x, y)
    with pytest.raises(ValueError, match="holds 1 layers, this net has 2"):
        PhyLL([box, box], [8, 8]).load(tmp_path / "net.safetensors")


def test_from_module_trains_its_linear_layers_in_place():
    x, y = blobs()
    box = optics(11, 12)
    module = nn.Sequential(box, nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 8))
    start, frozen = module[1].weight.clone(), box.scatter.clone()
    net = PhyLL.from_module(module, blackbox=["0"], random_state=0)
    net.fit(x, y, epochs=40)
    assert net.score(x, y) > 0.9
    assert not torch.equal(module[1].weight, start)
    assert torch.equal(box.scatter, frozen)
    assert module[3].weight.data_ptr() == net.weights_[1].data_ptr()
    with pytest.raises(ValueError, match="no sub-module '7'"):
        PhyLL.from_module(module, blackbox=["7"])
    with pytest.raises(ValueError, match="neither a black box nor"):
        PhyLL.from_module(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), blackbox=[])
    with pytest.raises(ValueError, match="last module"):
        PhyLL.from_module(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), blackbox=[])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": np.zeros(90)}, "at least 2 classes"),
        ({"boxes": []}, "one box a layer"),
        ({"hidden": [0]}, "must be positive"),
        ({"hidden": [2.5]}, "hidden must be whole numbers"),
        ({"theta": 0}, "must be positive"),
        ({"theta": np.nan}, "must be positive and finite, got nan"),
        ({"hidden": 20}, "sequences of one entry a layer"),
        ({"boxes": abs}, "sequences of one entry a layer"),
        ({"n_classes": 2}, "y has 3 classes"),
        ({"label_mode": "overwrite", "x": np.ones((90, 3))}, "prepend"),
        ({"goodness": "dot"}, "dot"),
        ({"x": np.full((90, 8), np.nan)}, "NaN"),
    ],
)
def test_bad_input(change, words):
    x, y = blobs()
    options = {"boxes": [None], "hidden": [4]} | {k: v for k, v in change.items() if k not in "xy"}
    with pytest.raises(ValueError, match=words):
        PhyLL(**options, random_state=0).fit(change.get("x", x), change.get("y", y), epochs=1)


def test_more_bad_input():
    x, y = blobs()
    net = PhyLL([None], [4], random_state=0).fit(x, y, epochs=1)
    with pytest.raises(ValueError, match=r"class 7 was not there"):
        net.partial_fit(x, np.full(90, 7))
    with pytest.raises(ValueError, match="lr must be positive"):
        net.partial_fit(x, y, lr=0)
    for name in ("epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number, got 1.5"):
            net.partial_fit(x, y, **{name: 1.5})
    with pytest.raises(ValueError, match="as many boxes"):
        net.replace_boxes([])
    with pytest.raises(ValueError, match="features"):
        net.predict(x[:, :3])
    bad = BlackBox(lambda h: h * np.inf, name="cavity")
    with pytest.raises(ValueError, match="cavity"):
        PhyLL([bad], [4]).fit(x, y, epochs=1)


def test_a_class_that_fit_never_saw_is_never_predicted():
    x, y = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3
    for seed in range(3):
        net = PhyLL([None], [20], n_classes=7, random_state=seed).fit(x, y, epochs=1, inner_steps=1)
        assert set(net.predict(x).tolist()) <= {0, 1, 2}


def test_names_that_mean_nothing_targets_that_are_no_classes_and_unfitted_nets(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3
    for option in ({"label_mode": "foo"}, {"scale": "foo"}):
        with pytest.raises(ValueError, match="must be one of .*'foo'"):
            PhyLL([None], [20], **option).fit(x, y, epochs=1)
    with pytest.raises(ValueError, match="continuous"):
        PhyLL([None], [20]).fit(x, x[:, 0], epochs=1)
    with pytest.raises(NotFittedError):
        PhyLL([None], [20]).predict(x)
    PhyLL([None, None], [20, 20]).fit(x, y, epochs=1).save(tmp_path / "net")
    with pytest.raises(ValueError, match=r"layers of \[20, 20\] units, this net has hidden=\[20, 7\]"):
        PhyLL([None, None], [20, 7]).load(tmp_path / "net")


def test_a_module_as_a_box_runs_in_eval_mode():
    box = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    x = torch.randn(8, 4, generator=stream(0, "x"))
    black = BlackBox(box)
    assert torch.equal(black(x), black(x))
    torch.testing.assert_close(black(x)[:3], black(x[:3]))
    assert box.training
    assert int(box[1].num_batches_tracked) == 0


class Short(PhyLL):
    """A `PhyLL` whose default training takes milliseconds."""

    def fit(self, X, y):
        return super().fit(X, y, epochs=4, lr=0.05)

    def partial_fit(self, X, y, classes=None):
        return super().partial_fit(X, y, classes, inner_steps=1)


def test_it_is_a_scikit_learn_estimator():
    check_estimator(Short(), on_skip=None)


def test_goodness_is_a_parameter_and_a_method():
    x, y = blobs()
    net = PhyLL(goodness="cosine-gelu", random_state=0)
    assert clone(net).get_params()["goodness"] == "cosine-gelu"
    assert net.set_params(goodness="cosine-abs").get_params()["goodness"] == "cosine-abs"
    assert net.fit(x, y, epochs=1).goodness(x).shape == (90, 3, 1)


def test_partial_fit_can_begin_with_the_classes_that_will_come():
    x, y = blobs()
    seen = y < 2
    net = PhyLL(hidden=[8], random_state=0).partial_fit(x[seen], y[seen], classes=[2, 0, 1])
    assert net.classes_.tolist() == [0, 1, 2]
    net.partial_fit(x, y, epochs=20)
    assert net.score(x, y) > 0.8
    with pytest.raises(ValueError, match="not those of before"):
        net.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(NotFittedError, match="needs classes="):
        PhyLL().partial_fit(x, y)


def test_equal_first_rows_do_not_make_a_box_look_dead():
    x, y = blobs()
    x[1] = x[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PhyLL([optics(11, 6)], [4], random_state=0).fit(x, y, epochs=1)


@pytest.mark.parametrize(
    ("option", "value"), [("bypass", False), ("goodness", "cosine-gelu"), ("label_mode", "overwrite"), ("n_classes", 4)]
)
def test_a_file_of_other_settings_is_refused(tmp_path, option, value):
    x, y = blobs()
    PhyLL([optics(11, 6)], [4], random_state=0).fit(x, y, epochs=1).save(tmp_path / "net")
    with pytest.raises(ValueError, match=f"was saved with {option}=.*, this net has {option}={value!r}"):
        PhyLL([optics(11, 6)], [4], **{option: value}).load(tmp_path / "net")


def test_a_file_that_does_not_fit_leaves_the_net_as_it_was(tmp_path):
    x, y = blobs()
    PhyLL(hidden=[4], random_state=0).fit(x, np.array(["a", "b", "c"])[y], epochs=1).save(tmp_path / "net")
    net = PhyLL(hidden=[5], random_state=0).fit(x, y, epochs=1)
    before = net.predict(x)
    with pytest.raises(ValueError, match="holds layers of"):
        net.load(tmp_path / "net")
    assert np.array_equal(net.predict(x), before)


def test_a_module_takes_the_weights_of_a_file(tmp_path):
    x, y = blobs()

    def wrapped(inputs):
        module = nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 4))
        return module, PhyLL.from_module(module, blackbox=["1"], random_state=0)

    module, net = wrapped(11)
    net.fit(x, y, epochs=2).save(tmp_path / "net")
    other, again = wrapped(11)
    again.load(tmp_path / "net")
    assert torch.equal(other[0].weight, module[0].weight)
    assert torch.equal(other[2].bias, module[2].bias)
    again.partial_fit(x, y)
    assert torch.equal(other[0].weight, again.weights_[0])
    with pytest.raises(ValueError, match=r"linear layer 0 has weights \(6, 9\), .* holds \(6, 11\)"):
        wrapped(9)[1].load(tmp_path / "net")


def test_a_linear_layer_without_bias_stays_without():
    x, y = blobs()
    module = nn.Sequential(nn.Linear(11, 6, bias=False))
    net = PhyLL.from_module(module, blackbox=[], random_state=0).fit(x, y, epochs=3)
    assert not net.biases_[0].any()
    assert torch.equal(net.weights_[0], module[0].weight)


def test_the_default_dtype_is_not_looked_at():
    x, y = blobs()
    plain = PhyLL([optics(11, 6)], [4], random_state=0).fit(x, y, epochs=2).goodness(x)
    box = optics(11, 6)
    torch.set_default_dtype(torch.float64)
    try:
        again = PhyLL([box], [4], random_state=0).fit(x, y, epochs=2).goodness(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(again, plain)


def test_boxes_that_do_not_fit_the_layers_are_named(tmp_path):
    x, y = blobs()
    net = PhyLL([optics(11, 6), optics(4, 6)], [4, 4], random_state=0).fit(x, y, epochs=1)
    net.save(tmp_path / "net")
    with pytest.raises(ValueError, match="2 layers need as many boxes, got 1"):
        PhyLL([optics(11, 6)], [4, 4]).load(tmp_path / "net")
    with pytest.raises(ValueError, match="box 1 gives 8 outputs, layer 1 was made for 6"):
        net.replace_boxes([optics(11, 6), optics(4, 8)]).predict(x)


def test_data_frames_keep_their_columns_on_disk_and_warn_of_nothing(tmp_path):
    x, y = blobs()
    frame = pd.DataFrame(x, columns=list("abcdefgh"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = PhyLL(hidden=[5], random_state=0).fit(frame, pd.Series(y), epochs=2)
        net.save(tmp_path / "net")
        again = PhyLL(hidden=[5]).load(tmp_path / "net")
        assert np.array_equal(again.predict(frame), net.predict(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        again.predict(frame[frame.columns[::-1]])
    PhyLL(hidden=[5], random_state=0).fit(x, y, epochs=1).save(tmp_path / "plain")
    assert not hasattr(again.load(tmp_path / "plain"), "feature_names_in_")


@pytest.mark.parametrize("made", [torch.Tensor.requires_grad_, torch.Tensor.bfloat16, torch.Tensor.double])
def test_tensors_of_any_kind_are_rows(made):
    x, y = blobs()
    rows, labels = made(torch.from_numpy(x)), torch.from_numpy(y)
    net = PhyLL(hidden=[6], random_state=0).fit(rows, labels, epochs=5).partial_fit(rows, labels)
    assert net.score(rows, y) > 0.8
    assert net.goodness(rows).shape == (90, 3, 1)
    assert net.representations(rows).shape == (90, 6)


def test_what_from_module_cannot_read_is_named():
    with pytest.raises(TypeError, match=r"module must be an nn\.Sequential .*, got Linear"):
        PhyLL.from_module(nn.Linear(4, 3), [])
    with pytest.raises(TypeError, match=r"such as \['1'\], got '1'"):
        PhyLL.from_module(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "1")

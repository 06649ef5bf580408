"""Surgery: what targets mean, all-or-nothing exchange, features of the pass that runs anyway."""

import copy
import pickle

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.layers import Record, TargetError, match, replace


def net() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return nn.Sequential(nn.Linear(3, 4), inner, nn.Linear(4, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_match_by_glob_name_module_and_test():
    model = net()
    assert list(match(model, None, nn.Linear)) == ["0", "1.0", "2"]
    assert list(match(model, "1.*")) == ["1.0", "1.1"]
    assert list(match(model, ["2", "0"])) == ["0", "2"]
    assert match(model, model[1][0]) == {"1.0": model[1][0]}
    assert list(match(model, lambda name, m: isinstance(m, nn.Linear) and m.out_features == 2)) == ["2"]
    assert match(model, "") == {"": model}
    assert "" not in match(model, "*")


@pytest.mark.parametrize(
    ("targets", "kind", "message"),
    [
        ("fc9", nn.Linear, r"no Linear named 'fc9' in Sequential; it has '0', '1.0', '2'"),
        (["0", "9"], nn.Module, r"no Module named '9'"),
        ("1.1", nn.Linear, r"'1.1' is a ReLU"),
        (None, nn.Conv2d, r"has no Conv2d; it is made of Linear, ReLU, Sequential"),
        ([], nn.Linear, "targets is empty"),
        (nn.Linear(1, 1), nn.Linear, "a Linear from elsewhere"),
        ([3], nn.Linear, "a glob or a module, got int"),
        (lambda name, m: False, nn.Linear, "the given test chose no Linear"),
    ],
)
def test_wrong_targets_are_named(targets, kind, message):
    with pytest.raises(TargetError, match=message):
        match(net(), targets, kind)


def test_near_names_are_offered():
    model = nn.ModuleDict({"encoder": nn.Linear(1, 1)})
    with pytest.raises(TargetError, match="did you mean 'encoder'"):
        match(model, "encodr")


def test_tied_modules_stand_once_and_are_exchanged_everywhere():
    model = Tied()
    assert list(match(model, None, nn.Linear)) == ["a"]
    assert list(match(model, "b")) == ["b"]
    report = replace(model, None, lambda m: nn.Linear(3, 3, bias=False), nn.Linear)
    assert report.replaced == ("a",)
    assert model.a is model.b
    assert model.a.bias is None
    assert (report.parameters_before, report.parameters_after) == (12, 9)
    assert set(report.originals) == {"a", "b"}


def test_undo_gives_the_old_function_bit_for_bit():
    model, x = net(), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = model(x)
    report = replace(model, "*", lambda m: nn.Sequential(m, nn.Tanh()), nn.Linear)
    assert report.replaced == ("0", "1.0", "2")
    assert not torch.equal(model(x), before)
    report.undo(model)
    assert torch.equal(model(x), before)
    with pytest.raises(TargetError, match="no place '1.0'"):
        report.undo(nn.Sequential(nn.Linear(3, 4)))


def test_an_exception_leaves_the_model_as_it_was():
    model = net()
    old = list(model.modules())

    def make(m: nn.Linear) -> nn.Module:
        if m.out_features == 2:
            raise RuntimeError("no")
        return nn.Identity()

    with pytest.raises(RuntimeError):
        replace(model, None, make, nn.Linear)
    assert list(model.modules()) == old


def test_new_parts_take_over_the_training_mode_and_kept_parts_keep_theirs():
    model = net().eval()
    model[0].train()
    frozen = model[2]
    replace(model, "2", lambda m: nn.Sequential(m, nn.Dropout()))
    assert not model[2].training
    assert not model[2][1].training
    assert model[2][0] is frozen
    replace(model, "0", lambda m: nn.Dropout())
    assert model[0].training


@pytest.mark.parametrize(
    ("targets", "make", "message"),
    [
        (["1", "1.0"], lambda m: nn.Identity(), "'1' contains '1.0'"),
        ("", lambda m: nn.Identity(), "itself cannot be replaced"),
        ("0", lambda m: m, "nothing was replaced"),
        ("0", lambda m: None, "returned NoneType for '0'"),
        ("7", lambda m: nn.Identity(), "no Module named '7'"),
    ],
)
def test_half_an_operation_is_refused(targets, make, message):
    with pytest.raises(TargetError, match=message):
        replace(net(), targets, make)


def test_record_keeps_the_features_of_the_training_pass_with_their_gradients():
    model, x = net(), torch.randn(5, 3)
    with Record(model, ["0", "1"]) as r:
        out = model(x)
    assert list(r.features) == ["0", "1"]
    assert torch.equal(model[2](r.features["1"]), out)
    (grad,) = torch.autograd.grad(out.sum(), r.features["1"])
    assert torch.allclose(grad, model[2].weight.sum(0).expand(5, -1))
    with Record(model, "0", detach=True) as r:
        model(x)
    assert not r.features["0"].requires_grad


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_made_while_recording_is_not_recorded(duplicate):
    model = net()
    x = torch.randn(5, 3, generator=stream(0, "x"))
    with Record(model, "0") as r:
        model(x)
        kept = r.features["0"]
        other = duplicate(model)
        assert torch.equal(other(x + 1), model(x + 1))
        model(x)
        other(x + 1)
        assert torch.equal(r.features["0"], kept)


def test_hooks_are_gone_after_an_exception():
    model = net()
    with pytest.raises(KeyError), Record(model, "0"):
        raise KeyError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("detach", [False, True])
def test_an_in_place_relu_does_not_touch_the_feature(detach):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = torch.randn(6, 3)
    plain = model[0](x)
    with Record(model, "0", detach=detach) as r:
        out = model(x)
    assert torch.equal(r.features["0"], plain)
    assert (plain < 0).any()
    assert torch.equal(out, model(x))
    if not detach:  # the feature lies on the way to the output
        assert torch.autograd.grad(out.sum(), r.features["0"])[0].abs().sum() > 0


def test_other_in_place_code_is_found_out():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.id = nn.Identity()

        def forward(self, x):
            return self.id(x * 1).add_(1)

    model = Writes()
    with Record(model, "id") as r:
        model(torch.zeros(2))
    with pytest.raises(RuntimeError, match="'id' was changed in place"):
        _ = r.features


def test_a_layer_that_runs_twice_has_both_features_and_a_new_pass_starts_afresh():
    model = Tied()
    with Record(model, "a") as r:
        model(torch.zeros(1, 3))
        model(torch.zeros(2, 3))
        assert list(r) == ["a", "a:1"]
        assert r.features["a:1"].shape == (2, 3)
        r.clear()
        assert r.features == {}
        with pytest.raises(RuntimeError, match="recording already"):
            r.__enter__()


def test_part_of_a_tuple_output():
    model = nn.Sequential(nn.LSTM(3, 4))
    with Record(model, "0") as r:
        model(torch.zeros(2, 1, 3))
    assert r.features["0"].shape == (2, 1, 4)
    with pytest.raises(TargetError, match="part 1 is tuple"), Record(model, "0", item=1):
        model(torch.zeros(2, 1, 3))
    with pytest.raises(TargetError, match="without a part 5"), Record(model, "0", item=5):
        model(torch.zeros(2, 1, 3))


def test_inference_mode_is_recorded():
    model = net()
    with torch.inference_mode(), Record(model, "0") as r:
        model(torch.zeros(2, 3))
    assert r.features["0"].shape == (2, 4)


def test_a_missing_name_is_a_key_error_too_with_its_message_as_it_is():
    with pytest.raises(KeyError, match=r"^no Module named 'encoder'") as caught:
        match(nn.Linear(2, 2), "encoder")
    assert isinstance(caught.value, ValueError)
    assert not str(caught.value).startswith(("'", '"'))

"""The quadratic penalty against its formula, with names that come and go."""

import warnings

import pytest
import torch
from torch import nn

from etude.data import seeded_build, stream
from etude.layers import Anchor
from etude.training import QuadraticPenalty


def _model():
    return seeded_build(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), stream(0, "init")).double()


def _start(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_value_and_gradient_are_the_formulas():
    model = _model()
    start = _start(model)
    importance = {n: torch.full_like(t, 2.0) for n, t in start.items()}
    penalty = QuadraticPenalty(start, importance, weight=0.5)
    with torch.no_grad():
        model[0].weight += 3.0
    value = penalty(model)
    assert value.item() == pytest.approx(0.5 * 2 * 6 * 9)
    value.backward()
    torch.testing.assert_close(model[0].weight.grad, torch.full_like(model[0].weight, 2 * 0.5 * 2 * 3.0))
    assert (model[2].weight.grad == 0).all()


def test_without_importance_it_is_the_squared_distance_of_an_anchor():
    model = _model()
    anchor = Anchor(model)
    penalty = QuadraticPenalty(anchor)
    assert penalty(model).item() == 0
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1
    assert penalty(model).item() == pytest.approx(float(anchor.distance()) ** 2)


def test_the_anchor_is_a_copy():
    model = _model()
    penalty = QuadraticPenalty({n: p for n, p in model.named_parameters()})
    with torch.no_grad():
        model[0].bias += 1.0
    assert penalty(model).item() == pytest.approx(3.0)


def test_new_and_unknown_parameters_are_ignored():
    model = _model()
    start = _start(model)
    start["gone.weight"] = torch.zeros(2)
    del start["2.weight"]
    penalty = QuadraticPenalty(start, {"0.bias": torch.ones(3), "other": torch.ones(1)})
    with torch.no_grad():
        for p in model.parameters():
            p += 1.0
    assert penalty(model).item() == pytest.approx(3.0)


def test_nothing_in_common_gives_zero():
    assert float(QuadraticPenalty({})(_model())) == 0
    assert float(QuadraticPenalty({})(nn.ReLU())) == 0


def test_warns_where_gradient_descent_diverges_and_only_there():
    start = {"w": torch.zeros(2)}
    importance = {"w": torch.tensor([1.0, 10.0])}
    with pytest.warns(UserWarning, match=r"2 \* lr \* weight \* max\(importance\) = 2 >= 2"):
        QuadraticPenalty(start, importance, weight=1.0, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QuadraticPenalty(start, importance, weight=0.99, lr=0.1)
        QuadraticPenalty(start, importance, weight=100.0)


def test_bad_input_is_named():
    start = {"w": torch.zeros(2)}
    with pytest.raises(ValueError, match="weight must be at least 0 and finite, got -1"):
        QuadraticPenalty(start, weight=-1)
    with pytest.raises(ValueError, match="importance of 'w' must be at least 0"):
        QuadraticPenalty(start, {"w": torch.tensor([-1.0, 0.0])})
    with pytest.raises(ValueError, match="importance of 'w' must be at least 0 and finite"):
        QuadraticPenalty(start, {"w": torch.tensor([float("nan"), 0.0])})
    with pytest.raises(ValueError, match=r"importance of 'w' has shape \(3,\), its anchor \(2,\)"):
        QuadraticPenalty(start, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'0.bias' has shape \(3,\), its anchor \(2,\)"):
        QuadraticPenalty({"0.bias": torch.zeros(2)})(_model())

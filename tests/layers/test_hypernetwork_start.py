"""Where generated weights start, and what of it a state holds."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from etude.layers import HyperNetwork, ScalarCondition, TaskCondition, mlp


class Scale(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(values) if len(values) > 1 else torch.tensor(values[0]))
        self.shift = nn.Parameter(torch.zeros(3))
        self.bias_in = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.scale + self.shift + self.bias_in


def start_of(module, leaf, condition):
    target = nn.Sequential(nn.Linear(4, 3), module)
    hyper = HyperNetwork(target, condition, strategy="chunk", num_chunks=3, chunk_dim=2)
    whole = hyper.offset if hyper.theta0 is None else hyper.theta0.detach()
    return whole[hyper.layout.slices()[f"1.{leaf}"]].tolist()


@pytest.mark.parametrize(
    ("module", "leaf", "want"),
    [
        (lambda: nn.LayerNorm(3), "weight", [1.0] * 3),
        (lambda: nn.RMSNorm(3), "weight", [1.0] * 3),
        (lambda: nn.InstanceNorm1d(3, affine=True), "weight", [1.0] * 3),
        (nn.PReLU, "weight", [0.25]),
        (lambda: Scale(2.0, 3.0, 4.0), "scale", [2.0, 3.0, 4.0]),
        (lambda: Scale(2.0), "scale", [2.0]),
        (lambda: Scale(2.0), "shift", [0.0] * 3),
        (lambda: Scale(2.0), "bias_in", [0.0] * 3),
    ],
)
def test_gains_slopes_and_scales_start_as_in_the_target(module, leaf, want):
    assert start_of(module(), leaf, ScalarCondition("lam")) == want
    assert start_of(module(), leaf, TaskCondition(2, 3)) == want


def test_a_trained_layer_norm_starts_at_one():
    norm = nn.LayerNorm(3)
    nn.init.constant_(norm.weight, 5.0)
    assert start_of(norm, "weight", TaskCondition(2, 3)) == [1.0] * 3


def scaled(scale, residual=False):
    target = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), Scale(*scale))
    return HyperNetwork(target, TaskCondition(2, 3), strategy="chunk", num_chunks=3, chunk_dim=2, residual=residual)


def test_a_state_holds_only_the_targets_own_starts():
    hyper, other = scaled((2.0, 3.0, 4.0)), scaled((7.0, 7.0, 7.0))
    state = hyper.state_dict()
    assert "offset" not in state
    assert state["own_offset"].tolist() == [2.0, 3.0, 4.0, 0.0, 0.0, 0.0]
    other.load_state_dict(state)
    assert torch.equal(other.generate_flat(task=1), hyper.generate_flat(task=1))
    assert torch.equal(scaled((1.0, 1.0, 1.0)).offset[: 4 * 3 + 3], torch.zeros(15))
    plain = HyperNetwork(mlp((4, 3)), TaskCondition(2, 3))
    assert not any("offset" in n for n in (*plain.state_dict(), *scaled((2.0, 3.0, 4.0), residual=True).state_dict()))
    with pytest.raises(RuntimeError, match="own_offset"):
        other.load_state_dict({n: v for n, v in state.items() if n != "own_offset"})
    with pytest.raises(RuntimeError, match=r"offset must have shape \(6,\), got \(2,\)"):
        other.load_state_dict({**state, "own_offset": torch.zeros(2)})


@pytest.mark.parametrize("residual", [False, True])
def test_a_state_of_before_with_the_whole_offset_loads(residual):
    hyper, other = scaled((2.0, 3.0, 4.0), residual), scaled((1.0, 1.0, 1.0), residual)
    old = OrderedDict(hyper.state_dict())
    old.pop("own_offset", None)
    whole = torch.zeros(hyper.layout.size)
    if not residual:
        whole[hyper.layout.slices()["1.weight"]] = 1.0  # a scale started at 0 then
    nested, old["offset"] = nn.Sequential(other), whole
    nested.load_state_dict({f"0.{n}": v for n, v in old.items()})
    if residual:
        assert torch.equal(other.generate_flat(task=0), hyper.generate_flat(task=0))
        return
    assert torch.allclose(other.generate_flat(task=0) - whole, hyper.generate_flat(task=0) - hyper.offset, atol=1e-6)
    assert torch.equal(other.offset, whole)
    again = scaled((5.0, 5.0, 5.0))
    again.load_state_dict(other.state_dict())  # and is saved as it is
    assert torch.equal(again.offset, whole)


@pytest.mark.parametrize(
    ("activation", "gain"), [("leaky_relu", 2**0.5), ("gelu", 2**0.5), ("tanh", 5 / 3), ("sigmoid", 1.0)]
)
def test_trunk_and_head_start_with_the_gain_of_the_activation(activation, gain):
    torch.manual_seed(0)
    hyper = HyperNetwork(mlp((196, 32, 10)), ScalarCondition("lam"), activation=activation)
    rows = hyper.generator.head.weight[hyper.layout.slices()["0.weight"]]
    assert rows.std().item() * math.sqrt(len(rows)) == pytest.approx(gain, rel=0.01)
    last = [m.weight for m in hyper.generator.trunk.modules() if isinstance(m, nn.Linear)][-1]
    assert last.std().item() * math.sqrt(len(last)) == pytest.approx(gain, rel=0.05)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
def test_for_relu_and_its_like_the_gain_is_the_root_of_two_to_the_last_digit(activation):
    target = nn.Linear(3, 2, bias=False)
    torch.manual_seed(0)
    hyper = HyperNetwork(target, ScalarCondition("lam"), activation=activation, hidden=(4,))
    torch.manual_seed(0)
    trunk = nn.init.kaiming_normal_(nn.Linear(2, 4).weight, mode="fan_out")
    head = nn.Linear(4, 6, bias=False).weight
    torch.randn(2, 3)  # theta_0
    nn.init.kaiming_normal_(head, mode="fan_out")
    assert torch.equal(hyper.generator.trunk[0][0].weight, trunk)
    assert torch.equal(hyper.generator.head.weight, head.data.normal_(0, math.sqrt(2 / 6)))

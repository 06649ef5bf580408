"""Conditions without bounds, at the edge of their range, and those that are no numbers."""

import math
import warnings

import pytest
import torch
from torch import nn

from etude.hypernetworks import PreferenceCondition
from etude.layers import (
    DataCondition,
    HyperNetwork,
    NoiseCondition,
    ScalarCondition,
    TaskCondition,
    mlp,
)


@pytest.mark.parametrize(
    ("scale", "want"), [("sigmoid", lambda v: 1 / (1 + math.exp(-v))), ("tanh", lambda v: (1 + math.tanh(v)) / 2)]
)
def test_numbers_without_bounds_are_squashed(scale, want):
    condition, values = ScalarCondition(["a", "b"], scale=scale, strict=True), [-50.0, -1.0, 0.0, 0.3, 7.0]
    z = condition(a=torch.tensor(values), b=2.0)
    expected = [[want(v), want(2.0)] for v in values]
    assert torch.allclose(z, torch.tensor(expected))
    hyper = HyperNetwork(mlp((6, 3)), ScalarCondition("a", scale=scale))
    assert hyper.theta0 is not None
    assert not torch.equal(hyper.generate_flat(a=-2.0), hyper.generate_flat(a=2.0))
    with pytest.raises(ValueError, match=f'"{scale}" takes every number: leave out low=0.0 and high=5.0'):
        ScalarCondition("a", 0.0, 5.0, scale)
    with pytest.raises(ValueError, match="infinite"):
        condition(a=math.inf, b=0.0)


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(0.0, math.inf, "linear"), (-math.inf, 0.0, "linear"), (1.0, math.inf, "log")]
)
def test_a_range_without_an_end_names_the_remedy(low, high, scale):
    with pytest.raises(ValueError, match='must be finite.*scale="sigmoid" or "tanh"'):
        ScalarCondition("a", low, high, scale)


def test_names_may_have_ranges_and_scales_of_their_own():
    condition = ScalarCondition(["lam", "lr", "z"], (0, 1e-4, 0), (2, 1, 1), ("linear", "log", "tanh"))
    z = condition(lam=[0.5, 1.0], lr=1e-2, z=0.0)
    assert torch.allclose(z, torch.tensor([[0.25, 0.5, 0.5], [0.5, 0.5, 0.5]]))
    one = ScalarCondition("lr", 1e-4, 1.0, "log")
    assert torch.equal(condition(lam=0.0, lr=0.3, z=0.0)[:, 1], one(lr=0.3)[:, 0])
    with pytest.warns(UserWarning, match=r"condition 'lam' from 3 to 3 leaves the range \[0, 2\]"):
        condition(lam=3.0, lr=0.5, z=9.0)
    with pytest.warns(UserWarning, match="condition 'lr' from 2 to 2"):  # once for each
        condition(lam=3.0, lr=2.0, z=0.0)
    hyper = HyperNetwork(mlp((6, 3)), ScalarCondition(["a", "b"], [0.0, 1.0], [1.0, 9.0]))
    assert hyper(torch.randn(4, 6), a=0.5, b=torch.linspace(1, 9, 4)).shape == (4, 3)
    for wrong in ({"low": (0.0, 0.1, 0.2)}, {"high": [1.0]}, {"scale": ("log", "log", "log")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be one for all, or one for each of a, b"):
            ScalarCondition(["a", "b"], **wrong)
    with pytest.raises(ValueError, match="low must be below high, got 0.5 and 0.1"):
        ScalarCondition(["a", "b"], (0, 0.5), (1, 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_bound_is_inside_in_every_type(dtype):
    condition = ScalarCondition("lam", 0.1, 0.8, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z = condition(lam=torch.tensor([0.1, 0.8], dtype=dtype))
    assert torch.allclose(z[:, 0].double(), torch.tensor([0.0, 1.0]).double(), atol=0.01)
    with pytest.raises(ValueError, match="leaves the range"):
        condition(lam=torch.tensor(0.81, dtype=dtype))


@pytest.mark.parametrize("value", [None, "a", [0.1, None]])
def test_what_is_no_number_is_named(value):
    with pytest.raises(TypeError, match="condition 'lam' must be a number"):
        ScalarCondition("lam")(lam=value)
    with pytest.raises(TypeError, match="condition 'task' must be a number"):
        TaskCondition(2, 3)(task=value)


def test_tasks_are_whole_numbers():
    condition = TaskCondition(3, 2)
    for wrong in (1.0, torch.tensor([0.5]), torch.tensor([True, False, True])):
        with pytest.raises(TypeError, match="task must be a whole number"):
            condition(task=wrong)
    for kind in (torch.uint8, torch.int32):  # uint8 is no mask
        assert torch.equal(condition(task=torch.tensor([0, 1, 1], dtype=kind)), condition(task=[0, 1, 1]))
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    hyper = HyperNetwork(net, TaskCondition(3, 2), buffers="per_condition").eval()
    x = torch.randn(3, 4)
    assert torch.equal(hyper(x, task=torch.tensor([0, 1, 1], dtype=torch.uint8)), hyper(x, task=[0, 1, 1]))
    with pytest.raises(TypeError, match="missing condition 'task'"):
        hyper.forward_flat(x, hyper.generate_flat(task=1)[0])


def test_an_encoder_gives_at_least_one_number():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        DataCondition(nn.Identity(), 0)


@pytest.mark.parametrize("draws", [0, -1])
def test_noise_has_at_least_one_draw(draws):
    with pytest.raises(ValueError, match=f"at least 1 draw, got {draws}"):
        NoiseCondition(3, torch.Generator().manual_seed(0))(noise=draws)


def test_uniform_noise_fills_its_cube():
    condition = NoiseCondition(3, torch.Generator().manual_seed(0), distribution="uniform")
    z = condition(noise=4000)
    assert -1 <= float(z.min()) < -0.99 and 0.99 < float(z.max()) <= 1
    assert torch.allclose(z.mean(0), torch.zeros(3), atol=0.05)
    assert torch.allclose(z.var(0), torch.full((3,), 1 / 3), atol=0.02)
    assert float(condition.probe().abs().max()) <= 1
    with pytest.raises(ValueError, match='"normal" or "uniform", got \'cauchy\''):
        NoiseCondition(3, distribution="cauchy")


def test_preferences_are_even_over_the_simplex():
    p = PreferenceCondition(3).draw(20_000, torch.Generator().manual_seed(0))
    assert torch.allclose(p.sum(1), torch.ones(20_000), atol=1e-6)
    assert torch.allclose(p.mean(0), torch.full((3,), 1 / 3), atol=0.01)
    for level in (0.1, 0.3, 0.6):  # P(p_1 > t) = (1 - t)^2 for three
        assert float((p[:, 0] > level).float().mean()) == pytest.approx((1 - level) ** 2, abs=0.015)


def test_a_hypernetwork_over_preferences_learns_the_whole_front():
    class Point(nn.Module):
        """The target is its own answer: |y - a|^2 and |y - b|^2 are least at p_1 a + p_2 b."""

        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros(1, 2))

        def forward(self, x):
            return x + self.at

    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    condition, draws = PreferenceCondition(2), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    hyper = HyperNetwork(Point(), condition, hidden=(16, 16))
    opt = torch.optim.Adam(hyper.parameters(), 1e-2)
    for _ in range(400):
        p = condition.draw(16, draws)
        y = hyper.forward_each(torch.zeros(1, 2), shared=True, preference=p)[:, 0]
        losses = torch.stack([(y - a).square().sum(1), (y - b).square().sum(1)], 1)
        opt.zero_grad()
        (p * losses).sum(1).mean().backward()
        opt.step()
    for share in (0.1, 0.5, 0.9):
        found = hyper(torch.zeros(1, 2), preference=[share, 1 - share])[0]
        assert torch.allclose(found, share * a + (1 - share) * b, atol=0.1)


@pytest.mark.parametrize(
    ("value", "words"),
    [([0.5, 0.6], "preference 0 must be weights from 0 with sum 1"), ([1.5, -0.5], "sum 1"), ([0.2, 0.3, 0.5], "C, 2"),
     ([float("nan"), 1.0], "sum 1")],
)  # fmt: skip
def test_preferences_that_mean_nothing(value, words):
    with pytest.raises(ValueError, match=words):
        PreferenceCondition(2)(preference=value)
    with pytest.raises(ValueError, match="at least 2"):
        PreferenceCondition(1)

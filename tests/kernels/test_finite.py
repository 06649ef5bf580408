"""Finite nets tend to the kernels of infinite ones, and learn."""

import pytest
import torch
from torch.nn import functional as F

from etude.data import stream
from etude.data.sphere import uniform_on_sphere
from etude.kernels import FiniteNet, HermiteActivation, deep_kernel, dual_activation, empirical_nngp, optimal_activation


def points(n=12, d=5, seed=0):
    return uniform_on_sphere(n, d, generator=stream(seed, "x"), positive=True, dtype=torch.float64)


PHI = {"optimal": HermiteActivation(optimal_activation(4)), "relu": lambda x: F.relu(x) * 2**0.5}


def error(name, depth, width, seeds=6):
    x = points()
    exact = deep_kernel(1 - x @ x.T, dual_activation(name, 4), depth, "nngp")
    drawn = [empirical_nngp(x, PHI[name], depth, width=width, generator=stream(s, "net")) for s in range(seeds)]
    return float((torch.stack(drawn) - exact).square().mean().sqrt())


@pytest.mark.parametrize("name", PHI)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_kernel_of_a_draw_tends_to_the_infinite_one(name, depth):
    wide = error(name, depth, 2048)
    assert wide < (0.5 if name == "optimal" else 0.1)  # the cube's eighth moment is large
    assert wide < 0.5 * error(name, depth, 128)  # a quarter by the square-root law


def test_without_layers_it_is_the_inner_product():
    x = points()
    assert torch.allclose(empirical_nngp(x, PHI["relu"], 0, width=3, generator=stream(0, "n")), x @ x.T)


def test_unit_rows_keep_a_deep_polynomial_net_finite():
    def features(unit_rows):
        return FiniteNet(
            5, 20, 64, activation=PHI["optimal"], unit_rows=unit_rows, generator=stream(0, "net")
        ).features(points().float())  # fmt: skip

    assert torch.allclose(features(True).norm(dim=1), torch.ones(12))
    lengths = features(False).norm(dim=1)
    assert not bool(((lengths > 0.5) & (lengths < 2)).all())


def test_it_has_gradients_and_its_draw_is_the_generators():
    def net():
        return FiniteNet(5, 2, 16, 3, activation=PHI["optimal"], generator=stream(1, "net"))

    made = net()
    assert torch.equal(made.hidden[1], net().hidden[1])
    assert made(points().float()).shape == (12, 3)
    made(points().float()).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in made.parameters())


@pytest.mark.parametrize("sizes", [(0, 1, 4), (3, -1, 4), (3, 1, 0)])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match="must be at least"):
        FiniteNet(*sizes, activation=PHI["relu"], generator=stream(0, "n"))

"""Dual activations: closed forms against the expectation that defines them."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.kernels import (
    HermiteActivation,
    PowerDual,
    SineDual,
    activation_report,
    dual_activation,
    optimal_activation,
)
from etude.kernels.dual import name_of

NAMED = {"erf": torch.erf, "sin": torch.sin, "tanh": torch.tanh, "gelu": nn.functional.gelu, "silu": nn.functional.silu}
DUALS = {
    **{name: dual_activation(name) for name in (*NAMED, "relu", "linear")},
    "optimal": dual_activation("optimal", 4), "sine": dual_activation("sine", 8), "d=1": dual_activation("optimal", 1),
}  # fmt: skip


def _expectation(phi, z):
    """E phi(u) phi(v) / E phi^2 for standard normals of correlation z, by a product rule."""
    x, w = np.polynomial.hermite_e.hermegauss(80)
    w = w / w.sum()
    u, r = torch.from_numpy(x)[:, None], torch.from_numpy(x)[None]
    v = z * u + (1 - z * z) ** 0.5 * r
    weights = torch.from_numpy(np.outer(w, w))
    return float((weights * phi(u) * phi(v)).sum() / (torch.from_numpy(w) * phi(u[:, 0]).square()).sum())


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("z", [-0.8, -0.2, 0.0, 0.3, 0.9])
def test_equals_the_expectation_over_two_correlated_normals(name, z):
    got = float(DUALS[name].value(torch.tensor(z, dtype=torch.float64)))
    assert got == pytest.approx(_expectation(NAMED[name], z), abs=1e-6)


def test_the_rectifiers_kernel_at_known_angles():
    relu = DUALS["relu"]
    z = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(relu.value(z), torch.tensor([0.0, 1 / np.pi, 1.0], dtype=torch.float64))
    torch.testing.assert_close(relu.slope(z), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", DUALS)
def test_value_slope_and_complement_agree(name):
    dual = DUALS[name]
    z = torch.linspace(-0.95, 0.95, 41, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(
        dual.value(z).sum() if name not in ("optimal", "d=1", "linear") else _by_powers(dual, z), z
    )
    torch.testing.assert_close(dual.slope(z.detach()), slope[0], atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(dual.complement(1 - z.detach()), 1 - dual.value(z.detach()), atol=1e-14, rtol=1e-12)
    assert float(dual.value(torch.ones((), dtype=torch.float64))) == pytest.approx(1)


def _by_powers(dual, z):
    return sum(w * z**k for k, w in enumerate(dual.weights)).sum()


@pytest.mark.parametrize("name", DUALS)
@pytest.mark.parametrize("u", [1e-4, 1e-9, 1e-20, 1e-60])
def test_the_complement_keeps_its_digits_next_to_one(name, u):
    dual = DUALS[name]
    expected = dual.slope_at_one * u
    tolerance = 0.1 if u > 1e-8 and name in ("relu", "sine") else 1e-2  # higher terms
    assert float(dual.complement(torch.tensor(u, dtype=torch.float64))) == pytest.approx(expected, rel=tolerance)


def test_classes_and_orders():
    assert {n: d.limit for n, d in DUALS.items() if n in ("relu", "gelu", "erf", "linear")} == {
        "relu": "majority", "gelu": "majority", "erf": "singular", "linear": "linear",
    }  # fmt: skip
    assert DUALS["erf"].order == pytest.approx(0.888, abs=5e-4)
    assert DUALS["optimal"].order == pytest.approx(4)
    assert DUALS["sine"].order == pytest.approx(8)
    assert DUALS["relu"].order is None
    assert PowerDual([0, 0, 1.0]).limit == "1-nn"


@pytest.mark.parametrize("kinked", [nn.Hardtanh(), nn.Softshrink(0.3), nn.ReLU(), nn.LeakyReLU(0.1), torch.tanh])
def test_the_dual_has_the_order_that_the_report_names(kinked):
    activation = activation_report(kinked).centered()
    dual, report = dual_activation(activation), activation_report(activation)
    assert dual.order == pytest.approx(report.alpha, rel=1e-8)
    near = torch.tensor(1e-9, dtype=torch.float64)
    assert float(dual.complement(near)) == pytest.approx(report.B_prime * 1e-9, rel=1e-5)


def test_a_jump_has_no_dual_of_finite_slope_and_says_so():
    with pytest.warns(UserWarning, match="jumps or is too steep"):
        assert dual_activation(torch.sign).slope_at_one < 20


def test_every_way_to_name_an_activation():
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for given in (optimal_activation(4), optimal_activation(4).tolist(), HermiteActivation(optimal_activation(4))):
        torch.testing.assert_close(dual_activation(given).value(z), DUALS["optimal"].value(z))
    for rectifier in (nn.ReLU(), torch.relu, torch.Tensor.relu, nn.functional.relu):
        assert name_of(dual_activation(rectifier)) == "relu", "not a series, which bends differently next to 1"
    torch.testing.assert_close(dual_activation(nn.Tanh()).value(z), DUALS["tanh"].value(z))
    torch.testing.assert_close(dual_activation([0.0, 3.0]).value(z), z)
    assert dual_activation(DUALS["erf"]) is DUALS["erf"]


def test_a_clipped_hermite_activation_is_not_taken_for_its_polynomial():
    clipped = dual_activation(HermiteActivation(optimal_activation(4), clip=1.0))
    assert clipped.slope_at_zero != pytest.approx(DUALS["optimal"].slope_at_zero, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dual_activation("swish"), "unknown activation 'swish': choose one of optimal, sine"),
        (lambda: dual_activation("optimal"), "give dim"),
        (lambda: dual_activation("optimal", 0.5), "dim must be at least 1"),
        (lambda: PowerDual([0.5, 0.4]), "sum to 1"),
        (lambda: PowerDual([1.5, -0.5]), "at least 0"),
        (lambda: SineDual(0.0), "positive"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()

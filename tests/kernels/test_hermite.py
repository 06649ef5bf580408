"""Reports on activations against closed forms; Hermite activations against their polynomials."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.data import stream
from etude.kernels import (
    HermiteActivation,
    activation_report,
    hermite_coefficients,
    hermite_values,
    optimal_activation,
    sine_frequency,
)


def test_relu_in_closed_form():
    report = activation_report(nn.ReLU())
    assert report.class_ == "majority"
    torch.testing.assert_close(report.A, math.sqrt(1 / math.pi), atol=1e-12, rtol=0)
    assert report.A_prime == pytest.approx(math.sqrt(0.5), abs=1e-12)
    assert report.B_prime == pytest.approx(1.0, abs=1e-12)
    assert report.alpha is None
    assert "majority vote" in report.warning


def test_erf_and_sine_in_closed_form():
    erf = activation_report(torch.erf)
    assert erf.class_ == "singular"
    assert erf.alpha == pytest.approx(0.888, abs=5e-4)
    assert erf.A_prime**2 == pytest.approx((2 / 3) / math.asin(2 / 3), rel=1e-10)
    assert erf.B_prime == pytest.approx((2 / 3) / math.sqrt(5 / 9) / math.asin(2 / 3), rel=1e-10)
    sine = activation_report(torch.sin)
    assert sine.alpha == pytest.approx(1.186, abs=5e-4)
    assert sine.A_prime**2 == pytest.approx(1 / math.sinh(1), rel=1e-10)
    assert sine.B_prime == pytest.approx(1 / math.tanh(1), rel=1e-10)
    assert sine.warning is None


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 8, 16, 40])
def test_optimal_activations_have_the_order_of_the_sphere(d):
    coefficients = optimal_activation(d)
    assert float(coefficients.square().sum()) == pytest.approx(1)
    report = activation_report(HermiteActivation(coefficients))
    assert report.class_ == "singular"
    assert report.alpha == pytest.approx(d, rel=1e-8)
    assert report.scale == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("d", [118, 120, 500])
def test_a_flat_optimal_activation_keeps_its_class(d):
    report = activation_report(HermiteActivation(optimal_activation(d)))
    assert report.class_ == "singular"
    assert report.alpha == pytest.approx(d, rel=1e-9)


@pytest.mark.parametrize("degree", [40, 100])
def test_a_high_degree_is_counted_in_full(degree):
    a = torch.zeros(degree + 1, dtype=torch.float64)
    a[1], a[degree] = 1.2, 1.6
    report = activation_report(HermiteActivation(a))
    got = (report.A_prime, report.B_prime, report.scale)
    assert got == pytest.approx((0.6, 0.36 + 0.64 * degree, 2.0), rel=1e-9)
    assert activation_report(HermiteActivation([0.0, 3.0])).class_ == "linear"


def test_optimal_activation_for_four_dimensions_is_the_papers():
    a = optimal_activation(4).tolist()
    assert a == pytest.approx([0, 0.5, math.sqrt(0.5), 0.5])
    assert optimal_activation(1).tolist() == pytest.approx([0, math.sqrt(0.5), 0, 0, 0, 0, 0, math.sqrt(0.5)])


@pytest.mark.parametrize(("d", "squared"), [(2, 2.676), (4, 6.13539), (8, 13.8258)])
def test_sine_family(d, squared):
    a = sine_frequency(d)
    assert a**2 == pytest.approx(squared, rel=2e-4)
    assert activation_report(lambda x: torch.sin(a * x)).alpha == pytest.approx(d, rel=1e-8)


def test_the_four_classes():
    assert activation_report(lambda x: (x**2 - 1) / math.sqrt(2)).class_ == "1-nn"
    assert activation_report(nn.Identity()).class_ == "linear"
    assert activation_report(nn.Tanh()).class_ == "singular"
    assert activation_report(nn.GELU()).class_ == "majority"
    assert activation_report(nn.Sigmoid()).class_ == "majority"


def test_a_jump_has_an_infinite_slope():
    report = activation_report(torch.sign)
    assert math.isinf(report.B_prime)
    assert report.alpha == 0
    assert report.A_prime == pytest.approx(math.sqrt(2 / math.pi), rel=1e-9)


def test_the_order_does_not_depend_on_the_scale():
    assert activation_report(lambda x: -7 * torch.erf(x)).alpha == pytest.approx(activation_report(torch.erf).alpha)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Softplus(), nn.ELU()])
def test_centring_moves_an_activation_into_the_singular_class(activation):
    centred = activation_report(activation).centered()
    report = activation_report(centred)
    assert report.class_ == "singular"
    assert report.A == 0
    assert report.scale == pytest.approx(1, abs=1e-6)
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(centred(x) * centred.scale + centred.shift, activation(x))


def test_numpy_functions_and_modules_with_parameters_are_taken():
    assert activation_report(np.tanh).alpha == pytest.approx(activation_report(torch.tanh).alpha, rel=1e-6)
    prelu = nn.PReLU(init=0.25)
    assert activation_report(prelu).class_ == "majority"
    assert prelu.weight.dtype == torch.float32


@pytest.mark.parametrize("at", [0.3, -1.234567, 2.0])
def test_a_kink_may_lie_anywhere(at):
    """phi = relu(x - t): E phi'^2 = P(g > t), E phi^2 = (1 + t^2) P(g > t) - t density(t)."""
    above = 0.5 * math.erfc(at / math.sqrt(2))
    square = (1 + at**2) * above - at * math.exp(-(at**2) / 2) / math.sqrt(2 * math.pi)
    report = activation_report(lambda x: torch.relu(x - at))
    assert report.B_prime == pytest.approx(above / square, rel=1e-7)
    assert report.scale == pytest.approx(math.sqrt(square), rel=1e-7)


def test_two_kinks_a_jump_and_a_noisy_function():
    shrunk = activation_report(nn.Softshrink(0.3))  # E phi' = P(|g| > 0.3)
    outside = math.erfc(0.3 / math.sqrt(2))
    assert shrunk.A_prime * shrunk.scale == pytest.approx(outside, rel=1e-7)
    assert shrunk.B_prime * shrunk.scale**2 == pytest.approx(outside, rel=1e-7)
    assert activation_report(lambda x: torch.where(x > 0.3, 1.0, -0.6)).B_prime == math.inf
    assert math.isfinite(activation_report(lambda x: x + 1e-9 * torch.sin(1e9 * x)).B_prime)
    again = [activation_report(nn.RReLU()).B_prime for _ in range(2)]
    assert again[0] == again[1], "in eval mode a random slope is its mean"


def test_report_under_the_papers_names():
    table = activation_report(torch.erf).as_dict()
    assert list(table) == ["A", "A'", "B'", "alpha", "class"]
    assert table["class"] == "singular"


def test_hermite_values_are_orthonormal_and_explicit():
    x = torch.linspace(-3, 3, 11, dtype=torch.float64)
    h = hermite_values(x, 7)
    torch.testing.assert_close(h[:, 2], (x**2 - 1) / math.sqrt(2))
    torch.testing.assert_close(h[:, 3], (x**3 - 3 * x) / math.sqrt(6))
    torch.testing.assert_close(h[:, 7], (x**7 - 21 * x**5 + 105 * x**3 - 105 * x) / math.sqrt(5040))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    values = hermite_values(torch.from_numpy(nodes), 12)
    gram = (values * torch.from_numpy(weights / math.sqrt(2 * math.pi))[:, None]).T @ values
    torch.testing.assert_close(gram, torch.eye(13, dtype=torch.float64), atol=1e-9, rtol=0)


@given(coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=9).filter(lambda a: max(map(abs, a)) > 1e-3))
@settings(max_examples=25, deadline=None)
def test_coefficients_come_back(coefficients):
    layer = HermiteActivation(coefficients)
    got = hermite_coefficients(layer, degree=10)
    expected = torch.zeros(11, dtype=torch.float64)
    expected[: len(coefficients)] = torch.tensor(coefficients, dtype=torch.float64)
    torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-8)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)
    values = hermite_values(x, len(coefficients) - 1)
    torch.testing.assert_close(layer(x), values @ torch.tensor(coefficients, dtype=torch.float64))


def test_second_moment_is_the_sum_of_squares():
    g = torch.randn(200_000, generator=stream(0, "g"), dtype=torch.float64)
    assert float(HermiteActivation(optimal_activation(4))(g).square().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_hermite_activation_in_half_precision_rounds_once(dtype):
    x, layer = torch.linspace(-3, 3, 99).to(dtype), HermiteActivation(optimal_activation(1))
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


def test_hermite_activation_is_a_module_with_gradients_and_state():
    layer = HermiteActivation(optimal_activation(d=2), clip=3.0)
    x = torch.tensor([0.5, 10.0], requires_grad=True)
    out = layer(x)
    assert out.dtype == torch.float32
    assert out[1] == layer(torch.tensor(3.0))
    out.sum().backward()
    assert x.grad[1] == 0
    assert "coefficients" in layer.state_dict()
    double = x.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(HermiteActivation(optimal_activation(2)), (double,))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: optimal_activation(0), "dim must be at least 1 .*, got 0"),
        (lambda: optimal_activation(1.5), "dim must be 1 or at least 2"),
        (lambda: optimal_activation(float("nan")), "at least 1"),
        (lambda: optimal_activation(float("inf")), "finite, got inf"),
        (lambda: sine_frequency(1), "orders above 1"),
        (lambda: HermiteActivation([]), "not all 0"),
        (lambda: HermiteActivation([0.0, 0.0]), "not all 0"),
        (lambda: HermiteActivation([1.0, float("inf")]), "finite"),
        (lambda: HermiteActivation([1.0], clip=0), "clip must be positive"),
        (lambda: activation_report(torch.log), "not finite at"),
        (lambda: activation_report(lambda x: x.sum()), "elementwise"),
        (lambda: activation_report(lambda x: x - x.mean()), "depends on those beside it"),
        (lambda: activation_report(nn.Softmax(-1)), "depends on those beside it"),
        (lambda: activation_report(torch.zeros_like), "zero"),
        (lambda: activation_report(torch.ones_like).centered(), "constant"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), torch.relu_, lambda x: x.clamp_(min=0)])
def test_an_activation_may_work_in_place(activation):
    found, plain = activation_report(activation), activation_report(nn.ReLU())
    assert found.as_dict() == plain.as_dict()
    assert torch.equal(hermite_coefficients(activation, 6), hermite_coefficients(nn.ReLU(), 6))


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_an_activation_without_second_moment_is_refused(rate):
    with pytest.raises(ValueError, match="second moment, must exist"):
        activation_report(lambda x: torch.exp(rate * x * x))
    steep = activation_report(lambda x: torch.exp(2 * x))
    assert math.isclose(steep.A, math.exp(2 - 8 / 2), rel_tol=1e-6)

"""Deep kernels against their recursion written out, and the limit kernel against its functional equation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.kernels import (
    LimitKernel,
    PowerDual,
    deep_kernel,
    deep_predictions,
    dual_activation,
    log_limit_ratio,
    solve_kernel,
)

Z = torch.linspace(-0.9, 0.99, 25, dtype=torch.float64)


def _recursion(z, dual, depth, kind):
    sigma, kernel = z, z
    for _ in range(depth):
        slope, sigma = dual.slope(sigma), dual.value(sigma)
        kernel = sigma + kernel * slope
    return kernel if kind == "ntk" else sigma


@pytest.mark.parametrize("activation", ["relu", "erf", "optimal", "gelu"])
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
@pytest.mark.parametrize("depth", [0, 1, 5])
def test_equals_the_recursion(activation, kind, depth):
    dual = dual_activation(activation, 4)
    torch.testing.assert_close(deep_kernel(1 - Z, dual, depth, kind), _recursion(Z, dual, depth, kind))


def test_two_layer_arc_cosine_kernel_by_hand():
    # one hidden layer of rectifiers at a right angle: Sigma_1 = 1/pi, K_1 = Sigma_1 + 0 * 1/2
    got = deep_kernel(torch.ones(1, dtype=torch.float64), dual_activation("relu"), 1, "ntk")
    assert float(got) == pytest.approx(1 / math.pi)


def test_the_diagonal_is_the_geometric_sum():
    dual = dual_activation("optimal", 4)
    b = dual.slope_at_one
    got = deep_kernel(torch.zeros(1, dtype=torch.float64), dual, 6, "ntk")
    assert float(got) == pytest.approx(sum(b**k for k in range(7)), rel=1e-12)


def test_near_duplicates_keep_their_digits_where_inner_products_lose_them():
    dual = dual_activation("optimal", 4)
    u = torch.tensor([1e-18], dtype=torch.float64)
    growth = dual.slope_at_one**20
    layer = deep_kernel(u, dual, 20, "nngp")
    assert 1 - float(layer) == pytest.approx(growth * 1e-18, rel=1e-2)
    assert float(_recursion(1 - u, dual, 20, "nngp")) == 1.0


DUALS = {name: dual_activation(name, 4) for name in ("optimal", "sine", "erf", "sin")}


@pytest.mark.parametrize("name", DUALS)
@given(z=st.floats(1e-6, 1 - 1e-9))
@settings(max_examples=20, deadline=None)
def test_the_limit_solves_its_functional_equation(name, z):
    dual = DUALS[name]
    u = torch.tensor([1 - z], dtype=torch.float64)
    below = 1 - dual.complement(u)
    log_here = log_limit_ratio(u, dual)[0] + torch.log1p(-u)
    log_next = log_limit_ratio(dual.complement(u), dual)[0] + below.log()
    assert float(log_next - log_here) == pytest.approx(math.log(dual.slope_at_zero), abs=1e-8)


@pytest.mark.parametrize("d", [16, 24, 33, 64, 110])
def test_a_steep_dual_loses_no_digits_on_its_way(d):
    """One layer of a fast sine carries u from near 0 to near 1, where z = 1 - u would have none left."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    dual = dual_activation("sine", d)
    a = mpmath.mpf(dual._a)
    u = [1e-6, 1e-3, 0.02, 0.1, 0.45, 0.7]
    want, layer = [], []
    for z in (1 - mpmath.mpf(v) for v in u):
        start, steps = z, 0
        layer.append(float(mpmath.sinh(a * (mpmath.sinh(a * z) / mpmath.sinh(a))) / mpmath.sinh(a)))
        while z > mpmath.mpf(10) ** -30 * a / mpmath.sinh(a):
            z, steps = mpmath.sinh(a * z) / mpmath.sinh(a), steps + 1
        want.append(float(mpmath.log(z / start) - steps * mpmath.log(a / mpmath.sinh(a))))
    given = torch.tensor(u, dtype=torch.float64)
    assert log_limit_ratio(given, dual)[0].numpy() == pytest.approx(want, rel=1e-11, abs=1e-11)
    assert deep_kernel(given, dual, 2, "nngp").numpy() == pytest.approx(layer, rel=1e-9)


@pytest.mark.parametrize(("activation", "d"), [("optimal", 8), ("optimal", 64), ("optimal", 300), ("sine", 100)])
def test_the_table_is_fine_enough_at_every_order(activation, d):
    dual = dual_activation(activation, d)
    u = torch.linspace(0.01, 0.98, 1000, dtype=torch.float64)
    assert float((LimitKernel(dual).log_ratio(u) - log_limit_ratio(u, dual)[0]).abs().max()) < 1e-5


def test_the_limit_is_what_deep_kernels_tend_to():
    dual = dual_activation("optimal", 4)
    u = torch.tensor([0.9, 0.5, 0.1, 1e-3], dtype=torch.float64)
    log_k = log_limit_ratio(u, dual)[0] + torch.log1p(-u)
    deep = deep_kernel(u, dual, 40, "nngp").log() - 40 * math.log(dual.slope_at_zero)
    torch.testing.assert_close(deep, log_k, atol=1e-9, rtol=0)
    # the NTK adds one such kernel a layer, so it grows like the depth times the same limit
    ntk = torch.stack([deep_kernel(u[:2], dual, n, "ntk") * dual.slope_at_zero**-n for n in (39, 40)])
    torch.testing.assert_close((ntk[1] - ntk[0]).log(), log_k[:2], atol=1e-6, rtol=0)


def test_the_limit_is_linear_at_right_angles():
    dual = dual_activation("optimal", 8)
    log_ratio, sign = log_limit_ratio(torch.tensor([1.0, 1 - 1e-9], dtype=torch.float64), dual)
    torch.testing.assert_close(log_ratio, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (sign == 1).all()


def test_negative_inner_products_of_an_odd_activation_mirror_the_positive_ones():
    dual = dual_activation("sin")
    u = torch.tensor([0.7, 0.4, 0.05], dtype=torch.float64)
    plus, minus = log_limit_ratio(u, dual), log_limit_ratio(2 - u, dual)
    torch.testing.assert_close(minus[0], plus[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(minus[1], plus[1])  # K(-z) / (-z) = K(z) / z


@pytest.mark.parametrize("d", [1, 2, 4, 8, 16])
def test_slope_of_the_profile_is_the_order(d):
    r = np.logspace(-4, -2, 50)
    log_k = log_limit_ratio(torch.from_numpy(r**2 / 2), dual_activation("optimal", d))[0].numpy()
    assert -np.polyfit(np.log(r), log_k, 1)[0] == pytest.approx(d, rel=1e-3)


@pytest.mark.parametrize("name", ["optimal", "sine", "erf"])
@pytest.mark.parametrize("d", [2, 8, 24])
def test_the_table_is_exact_to_its_promise(name, d):
    dual = dual_activation(name, d)
    u = torch.logspace(-27, 0, 2000, dtype=torch.float64)
    u = torch.cat([u, 1 - torch.logspace(-9, -0.5, 500, dtype=torch.float64)])
    table = LimitKernel(dual).log_ratio(u.clone())
    torch.testing.assert_close(table, log_limit_ratio(u, dual)[0], atol=2e-5, rtol=0)


def test_weights_are_the_kernel_up_to_a_factor_a_row():
    dual = dual_activation("sin")
    u = torch.tensor([[0.3, 0.9, 1.5, 1.0], [1e-6, 0.2, 0.4, 1.9]], dtype=torch.float64)
    log_k, sign = log_limit_ratio(u, dual)
    kernel = log_k.exp() * sign * (1 - u)
    got = LimitKernel(dual).weights(u)
    torch.testing.assert_close(got / got[:, :1], kernel / kernel[:, :1], atol=1e-9, rtol=1e-5)
    assert got[0, 2] < 0
    assert got[0, 3] == 0


def test_coincident_points_take_everything():
    got = LimitKernel(dual_activation("optimal", 2)).weights(torch.tensor([[0.0, 1e-5, 0.0, 1e-30, 0.5]]).double())
    assert got.tolist() == [[1.0, 0.0, 1.0, 1.0, 0.0]]


def test_huge_orders_do_not_overflow():
    got = LimitKernel(dual_activation("optimal", 400)).weights(torch.tensor([[1e-9, 1e-8, 0.5]]).double())
    assert got.isfinite().all()
    assert got[0].argmax() == 0


def test_solve_equals_numpy_and_averages_duplicates():
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8]], dtype=torch.float64)
    k = x @ x.T + torch.eye(3, dtype=torch.float64)
    y = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    torch.testing.assert_close(solve_kernel(k, y), torch.linalg.solve(k, y))
    ridged = torch.linalg.solve(k + 0.3 * torch.eye(3, dtype=torch.float64), y)
    torch.testing.assert_close(solve_kernel(k, y, 0.3), ridged)
    same = torch.ones(2, 2, dtype=torch.float64)
    targets = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(same @ solve_kernel(same, targets), torch.full((2, 1), 0.5, dtype=torch.float64))


def test_bad_input_is_named():
    erf, u = dual_activation("erf"), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="depth must be at least 0, got -1"):
        deep_kernel(u, erf, -1)
    with pytest.raises(ValueError, match="kind must be"):
        deep_kernel(u, erf, 1, "cntk")
    with pytest.raises(ValueError, match="class is 'majority'"):
        log_limit_ratio(u, dual_activation("relu"))
    with pytest.raises(ValueError, match="class is '1-nn'"):
        LimitKernel(PowerDual([0, 0, 1.0]))
    with pytest.raises(ValueError, match="leaves the range of float64"):
        solve_kernel(torch.full((1, 1), float("inf"), dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))


def test_regression_interpolates_and_forgets_with_depth():
    angle = torch.linspace(0.1, 1.4, 25, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    y = torch.sin(3 * angle)[:, None]
    u = 1 - x @ x.T
    dual = dual_activation("optimal", 1)
    shallow = deep_predictions(u[1::2, ::2], u[::2, ::2], y[::2], dual, 1)
    deep = deep_predictions(u[1::2, ::2], u[::2, ::2], y[::2], dual, 60)
    torch.testing.assert_close(shallow, y[1::2], atol=0.02, rtol=0)
    assert deep.abs().max() < 1e-6
    itself = deep_predictions(u[::2, ::2], u[::2, ::2], y[::2], dual, 3)
    torch.testing.assert_close(itself, y[::2], atol=1e-6, rtol=0)

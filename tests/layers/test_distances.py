"""Distance matrices against float64 by hand, near duplicates, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import stream
from etude.layers import cosine_similarities, squared_distances


def _pair(seed, n=5, m=7, d=3, lead=(), dtype=torch.float64):
    g = stream(seed, "test")
    return (torch.randn(*lead, n, d, generator=g, dtype=dtype), torch.randn(*lead, m, d, generator=g, dtype=dtype))


@given(seed=st.integers(0, 2**31 - 1), exact=st.booleans(), chunk=st.sampled_from([None, 1, 2, 100]))
@settings(max_examples=30, deadline=None)
def test_equals_the_definition(seed, exact, chunk):
    x, y = _pair(seed, lead=(2,))
    expected = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    got = squared_distances(x, y, exact=exact, chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert (got >= 0).all()


def test_exact_keeps_the_digits_of_near_duplicates_and_the_product_does_not():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert squared_distances(x, y, exact=True).item() == pytest.approx(1e-18, rel=1e-12)
    assert squared_distances(x, y).item() == 0.0


def test_equal_rows_are_exactly_zero_and_the_product_never_negative():
    x, _ = _pair(0, n=50, d=40, dtype=torch.float32)
    x = x * 1e3
    assert (squared_distances(x, x, exact=True).diagonal() == 0).all()
    assert (squared_distances(x, x) >= 0).all()


@pytest.mark.parametrize("exact", [False, True])
def test_float32_inputs_give_float32_of_the_right_value(exact):
    x, y = _pair(1, dtype=torch.float32)
    got = squared_distances(x, y, exact=exact)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), torch.cdist(x.double(), y.double()).square(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [False, True])
def test_gradients(exact):
    x, y = _pair(2)
    x.requires_grad_()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: squared_distances(a, b, exact=exact), (x, y))


def test_gradient_of_a_zero_distance_is_zero():
    x = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    squared_distances(x, torch.ones(1, 3, dtype=torch.float64), exact=True).sum().backward()
    assert (x.grad == 0).all()


def test_leading_axes_broadcast_and_empty_sets_stay_empty():
    x, y = _pair(3)
    assert squared_distances(x.expand(4, 5, 3), y, exact=True).shape == (4, 5, 7)
    assert squared_distances(x[:0], y).shape == (0, 7)
    assert squared_distances(x, y[:0], exact=True, chunk=2).shape == (5, 0)


def test_integers_are_taken_as_floats():
    assert squared_distances(torch.tensor([[0, 3]]), torch.tensor([[4, 0]])).tolist() == [[25.0]]


def test_nan_is_not_hidden():
    x = torch.tensor([[float("nan"), 0.0]])
    assert squared_distances(x, torch.zeros(1, 2)).isnan().all()


@pytest.mark.parametrize(
    ("x", "y", "chunk", "text"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), None, "x has 3 columns and y has 4"),
        (torch.zeros(3), torch.zeros(2, 3), None, r"x must have shape \(\.\.\., rows, dim\), got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 0, "chunk must be at least 1, got 0"),
        (torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3), None, "must be real"),
    ],
)
def test_bad_input_is_named(x, y, chunk, text):
    with pytest.raises(ValueError, match=text):
        squared_distances(x, y, chunk=chunk)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_small_differences_of_large_rows(dtype):
    x, y = torch.tensor([[300.0, 300], [100, 1]], dtype=dtype), torch.tensor([[300.0, 300], [100, 2]], dtype=dtype)
    found = squared_distances(x, y)
    assert found.dtype == dtype
    assert found.diagonal().tolist() == [0.0, 1.0]


def test_cosine_equals_torch_and_is_scale_free():
    x, y = _pair(4, lead=(2,))
    expected = torch.nn.functional.cosine_similarity(x.unsqueeze(-2), y.unsqueeze(-3), dim=-1)
    torch.testing.assert_close(cosine_similarities(x, y), expected)
    torch.testing.assert_close(cosine_similarities(x * 1e-200, y * 1e200), expected)


def test_cosine_of_a_zero_vector_is_zero_with_a_finite_gradient():
    x = torch.zeros(1, 3, requires_grad=True)
    out = cosine_similarities(x, torch.ones(2, 3))
    assert (out == 0).all()
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_cosine_never_leaves_the_interval_and_has_the_right_gradient():
    x, _ = _pair(5, n=60, d=30, dtype=torch.float32)
    assert cosine_similarities(x, x).abs().max() <= 1
    a, b = _pair(6)
    assert torch.autograd.gradcheck(cosine_similarities, (a.requires_grad_(), b.requires_grad_()))


def test_cosine_refuses_other_widths():
    with pytest.raises(ValueError, match="x has 3 columns and y has 2"):
        cosine_similarities(torch.zeros(1, 3), torch.zeros(1, 2))

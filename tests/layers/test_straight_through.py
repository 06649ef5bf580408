"""Straight-through rounding: exact forward values, exactly the surrogate's gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.randomness import stream
from etude.layers import binarize, gumbel_softmax, round_ste, straight_through


def test_forward_is_exact_where_adding_the_difference_would_round():
    value = torch.tensor([0.1, 1.0, -3e-8])
    surrogate = torch.tensor([12345.678, 1e30, -7.7])
    out = straight_through(value, surrogate)
    assert torch.equal(out, value)
    assert not torch.equal(surrogate + (value - surrogate), value)


def test_gradient_goes_to_the_surrogate_only():
    value = torch.randn(5, generator=stream(0, "v"), requires_grad=True)
    surrogate = torch.randn(5, generator=stream(0, "s"), requires_grad=True)
    weight = torch.arange(5.0)
    (straight_through(value, surrogate) * weight).sum().backward()
    assert value.grad is None
    assert torch.equal(surrogate.grad, weight)


def test_works_under_vmap_grad_and_jvp():
    x = torch.randn(3, 4, generator=stream(1, "x"), dtype=torch.float64)
    grads = torch.func.vmap(torch.func.grad(lambda r: (binarize(r) * torch.arange(4.0)).sum()))(x)
    h = x.sigmoid()
    torch.testing.assert_close(grads, (h * (1 - h) * torch.arange(4.0)), check_dtype=False)
    _, tangent = torch.func.jvp(binarize, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, h * (1 - h))


def test_second_derivative_is_the_sigmoids():
    x = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(binarize(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    h = x.detach().sigmoid()
    torch.testing.assert_close(second, h * (1 - h) * (1 - 2 * h))


@pytest.mark.parametrize(
    ("value", "surrogate", "message"),
    [
        (torch.zeros(2), torch.zeros(3), r"\(2,\).*\(3,\)"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), "float32.*float64"),
    ],
)
def test_mismatch_is_named(value, surrogate, message):
    with pytest.raises(ValueError, match=message):
        straight_through(value, surrogate)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8))
def test_binarize_is_logit_above_zero(values):
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    bits = binarize(x)
    assert bits.tolist() == [float(v > 0) for v in values]
    bits.sum().backward()
    h = x.detach().sigmoid()
    torch.testing.assert_close(x.grad, h * (1 - h))


def test_a_zero_logit_gives_the_bit_zero():
    assert binarize(torch.tensor([0.0, -0.0])).tolist() == [0.0, 0.0]


def test_round_ste_forward_and_gradient():
    x = torch.tensor([-1.6, -0.5, 0.5, 1.5, 2.4, 3.0, 9.0], requires_grad=True)
    out = round_ste(x, 0, 3)
    assert out.tolist() == [0, 0, 0, 2, 2, 3, 3]
    out.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0]
    y = torch.tensor([-7.4, 7.6], requires_grad=True)
    round_ste(y).sum().backward()
    assert y.grad.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"low=2.*high=1"):
        round_ste(x, 2, 1)


def test_gumbel_softmax_draws_from_the_softmax():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    hard = gumbel_softmax(logits, 0.7, stream(0, "g"), hard=True)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.sum(-1), torch.ones(20_000))
    torch.testing.assert_close(hard.mean(0), torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)


def test_gumbel_softmax_depends_on_its_generator_alone():
    logits = torch.zeros(4, 3)
    state = torch.random.get_rng_state()
    first = gumbel_softmax(logits, 1.0, stream(3, "g"))
    assert torch.equal(first, gumbel_softmax(logits, 1.0, stream(3, "g")))
    assert not torch.equal(first, gumbel_softmax(logits, 1.0, stream(4, "g")))
    assert torch.equal(state, torch.random.get_rng_state())


def test_gumbel_softmax_gradient_matches_finite_differences():
    logits = torch.randn(3, 4, generator=stream(5, "l"), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gumbel_softmax(x, 0.5, stream(6, "g")), (logits,))
    soft = gumbel_softmax(logits, 0.5, stream(6, "g"))
    hard = gumbel_softmax(logits, 0.5, stream(6, "g"), hard=True)
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    weight = torch.arange(4.0, dtype=torch.float64)
    (from_soft,) = torch.autograd.grad((soft * weight).sum(), logits)
    (from_hard,) = torch.autograd.grad((hard * weight).sum(), logits)
    assert torch.equal(from_soft, from_hard)


def test_gumbel_softmax_limits():
    logits = torch.tensor([[0.0, float("-inf"), 1.0]])
    draw = gumbel_softmax(logits, 0.3, stream(0, "g"))
    assert draw[0, 1] == 0
    assert not draw.isnan().any()
    flat = gumbel_softmax(torch.zeros(1, 3), 1e4, stream(0, "g"))
    torch.testing.assert_close(flat, torch.full((1, 3), 1 / 3), atol=1e-2, rtol=0)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            gumbel_softmax(logits, bad, stream(0, "g"))

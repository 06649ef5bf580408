import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude import incontext
from etude.layers import FastLinear
from etude.layers.fast_weights import Fast, compact

B, IN, OUT = 3, 5, 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(bound=None):
    torch.manual_seed(0)
    return FastLinear(nn.Linear(IN, OUT), bound).double()


def test_no_fast_weight_is_the_slow_layer():
    fast, x = layer(), draw(B, IN)
    assert torch.equal(fast(x), fast.linear(x))
    assert torch.equal(fast(x, fast.start(B)), fast.linear(x))


@given(st.integers(1, 14), st.integers(0, 50))
def test_steps_equal_a_dense_weight_a_row(steps, seed):
    net, fast = layer(), None
    dense = torch.zeros(B, OUT, IN, dtype=torch.float64)
    for s in range(steps):
        x, delta = draw(B, IN, seed=seed + s), draw(B, OUT, seed=seed - s - 1)
        rate = draw(B, seed=s).abs()
        fast = net.update(fast, delta, x, rate)
        dense = dense - rate[:, None, None] * delta[:, :, None] * x[:, None, :]
    z = draw(B, IN, seed=99)
    want = net.linear(z) + torch.einsum("boi,bi->bo", dense, z)
    assert torch.allclose(net(z, fast), want, atol=1e-9)
    assert torch.allclose(fast.dense(), dense, atol=1e-9)
    assert torch.allclose(fast.norm(), dense.flatten(1).norm(dim=1), atol=1e-6)
    assert fast.inputs.shape[1] <= 2 * IN + 1  # a long life takes no more memory
    several = draw(B, 6, IN, seed=7)
    assert torch.allclose(net(several, fast)[:, 2], net(several[:, 2], fast), atol=1e-9)


def test_compacting_changes_nothing():
    net, fast = layer(), None
    for s in range(4):
        fast = net.update(fast, draw(B, OUT, seed=s), draw(B, IN, seed=s + 9), 0.5)
    assert torch.allclose(compact(fast).dense(), fast.dense(), atol=1e-12)


def test_a_step_lowers_a_linear_loss_by_its_own_gradient():
    """With delta the true gradient at the output, the step is one of gradient descent on that row's weight."""
    net, x, y = layer(), draw(B, IN), draw(B, OUT, seed=1)
    before = net(x)
    fast = net.update(None, before - y, x, 0.01)
    gain = (before - y).square().sum(1) - (net(x, fast) - y).square().sum(1)
    assert bool((gain > 0).all())
    exact = 1 - (1 - 0.01 * x.square().sum(1)) ** 2
    assert torch.allclose(gain / (before - y).square().sum(1), exact, atol=1e-10)


def test_rows_of_rate_zero_stay():
    net, x = layer(), draw(B, IN)
    fast = net.update(None, draw(B, OUT), x, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(net(x, fast)[[0, 2]], net.linear(x)[[0, 2]])
    assert not torch.allclose(net(x, fast)[1], net.linear(x)[1])


def test_the_bound_holds_for_every_row_and_keeps_the_direction():
    net, free = layer(0.5), layer()
    fast = other = None
    for s in range(3):
        delta, x = draw(B, OUT, seed=s) * torch.tensor([[0.001], [1.0], [50.0]]), draw(B, IN, seed=s + 5)
        fast, other = net.update(fast, delta, x, 1.0), free.update(other, delta, x, 1.0)
        assert bool((fast.norm() <= 0.5 + 1e-9).all())
    assert torch.allclose(fast.dense()[0], other.dense()[0], atol=1e-12)  # within the bound: untouched
    one = net.update(None, draw(B, OUT) * 100, draw(B, IN), 1.0).dense()
    raw = free.update(None, draw(B, OUT) * 100, draw(B, IN), 1.0).dense()
    assert torch.allclose(
        one / one.flatten(1).norm(dim=1)[:, None, None], raw / raw.flatten(1).norm(dim=1)[:, None, None]
    )


def test_gradients_go_through_the_updates():
    net = layer(2.0)

    def run(delta, x, rate):
        fast = net.update(None, delta, x, rate)
        fast = net.update(fast, net(x, fast), x + 1, rate)
        return net(x, fast)

    inputs = [t.requires_grad_(True) for t in (draw(B, OUT), draw(B, IN), draw(B, 1).abs())]
    assert torch.autograd.gradcheck(run, inputs)
    cut = net.update(None, *inputs[:2], 0.5).detach()
    assert not cut.deltas.requires_grad


def test_bad_input():
    with pytest.raises(ValueError, match=r"nn.Linear"):
        FastLinear(nn.ReLU())
    for bound in (0.0, -1.0):
        with pytest.raises(ValueError, match="positive"):
            layer(bound)
    net = layer()
    for delta, x in ((draw(B, IN), draw(B, IN)), (draw(B, OUT), draw(B, OUT)), (draw(2, OUT), draw(B, IN))):
        with pytest.raises(ValueError, match="delta"):
            net.update(None, delta, x, 1.0)
    fast = net.update(None, draw(B, OUT), draw(B, IN), 1.0)
    with pytest.raises(ValueError, match="rows"):
        net(draw(B + 1, IN), fast)


def test_no_rows_and_many_small_steps_keep_within_the_bound():
    assert layer(1.0).update(None, draw(0, OUT), draw(0, IN), 0.1).inputs.shape == (0, 1, IN)
    net = FastLinear(nn.Linear(IN, OUT, dtype=torch.bfloat16), 1.0)
    delta, x, fast = torch.ones(1, OUT).bfloat16(), torch.ones(1, IN).bfloat16(), None
    for _ in range(2 * IN):  # each too small to move a sum in bfloat16
        fast = net.update(fast, delta, x, 2e-3)
    assert float(fast.bound[0]) == pytest.approx(min(1.0, 2 * IN * 2e-3 * (IN * OUT) ** 0.5), rel=0.01)
    assert float(fast.norm()[0]) <= 1.01


def test_no_fast_step_has_norm_zero_and_small_norms_are_true():
    zeros = Fast(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(2))
    assert zeros.norm().tolist() == [0.0, 0.0]
    small = Fast(torch.full((1, 1, 1), 2e-8).double(), torch.ones(1, 1, 1).double(), torch.ones(1))
    assert float(small.norm()) == pytest.approx(2e-8)


def test_what_overflows_has_no_norm_of_zero():
    broken = Fast(draw(1, 2, IN).float() * 1e20, draw(1, 2, OUT).float() * 1e20, torch.zeros(1))
    assert broken.norm().isnan().all()


def test_the_room_of_the_fast_slow_memory_shows_it():
    assert incontext.FastLinear is FastLinear

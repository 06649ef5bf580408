"""The local loss: closed form against automatic differentiation, bounds, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.training.local_goodness import contrastive_loss, cosine_goodness, detected, local_gradient


@pytest.mark.parametrize("kind", ["cosine-abs", "cosine-gelu"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), theta=st.floats(0.1, 10))
def test_closed_form_equals_autograd(kind, seed, theta):
    g = torch.Generator().manual_seed(seed)
    f = torch.randn(8, 5, dtype=torch.float64, generator=g)
    w = torch.randn(4, 5, dtype=torch.float64, generator=g, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, generator=g, requires_grad=True)
    r = 3 * torch.randn(4, dtype=torch.float64, generator=g)
    goodness = cosine_goodness(f @ w.T + b, r, kind)
    loss = contrastive_loss(goodness[:4], goodness[4:], theta)
    loss.backward()
    found = local_gradient(f, w.detach(), b.detach(), r, theta, kind)
    assert found.loss == pytest.approx(loss.item())
    assert torch.allclose(found.weight, w.grad, atol=1e-10)
    assert torch.allclose(found.bias, b.grad, atol=1e-10)


def test_goodness_is_a_cosine():
    r = torch.tensor([3.0, 4.0])
    assert cosine_goodness(torch.tensor([[-3.0, 4.0], [4.0, -3.0], [0.0, 0.0]]), r).tolist() == pytest.approx(
        [1, 0.96, 0]
    )
    h = torch.randn(5, 2)
    assert torch.allclose(cosine_goodness(h, r), cosine_goodness(7 * h, 0.1 * r), atol=1e-6)


def test_loss_of_no_difference_is_ln_2():
    same = torch.rand(6)
    assert contrastive_loss(same, same).item() == pytest.approx(math.log(2))
    assert contrastive_loss(same + 1, same) < contrastive_loss(same, same) < contrastive_loss(same, same + 1)


def test_unknown_goodness():
    with pytest.raises(ValueError, match="cosine-relu"):
        detected(torch.ones(2), "cosine-relu")

"""Pointer attention against its formula, its gradient, its masks."""

import pytest
import torch

from etude.data.randomness import stream
from etude.layers import PointerAttention, additive_logits
from etude.layers import pointer_attention as module


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=stream(seed, str(shape)), dtype=dtype)


def test_equals_the_formula():
    head = PointerAttention(query_dim=5, key_dim=7, hidden_dim=6)
    query, memory = draw(2, 3, 5), draw(2, 4, 7)
    w1, w2 = head.key_proj.weight, head.query_proj.weight
    for b in range(2):
        for i in range(3):
            for j in range(4):
                want = head.v @ torch.tanh(w1 @ memory[b, j] + w2 @ query[b, i])
                assert float(head(query, memory)[b, i, j]) == pytest.approx(float(want), abs=1e-5)


def test_gradient():
    args = [draw(2, 3, 4, dtype=torch.float64), draw(2, 5, 4, dtype=torch.float64), draw(4, dtype=torch.float64)]
    assert torch.autograd.gradcheck(additive_logits, [a.requires_grad_(True) for a in args])


def test_large_scores_saturate_and_stay_finite():
    query, keys, v = torch.full((1, 1, 1), 500.0), torch.tensor([[[0.0], [-500.0], [300.0], [-2000.0]]]), torch.ones(1)
    query.requires_grad_(True)
    logits = additive_logits(query, keys, v)
    assert logits[0, 0].tolist() == pytest.approx([1.0, 0.0, 1.0, -1.0])
    (grad,) = torch.autograd.grad(logits.sum(), query)
    assert bool(torch.isfinite(grad).all())


def test_chunks_change_nothing(monkeypatch):
    query, keys, v = draw(2, 7, 4), draw(2, 5, 4), draw(4)
    whole = additive_logits(query, keys, v)
    monkeypatch.setattr(module, "CHUNK", 2 * 5 * 4 * 2)
    assert torch.allclose(additive_logits(query, keys, v), whole)


def test_keys_are_projected_once():
    head = PointerAttention(4, 4)
    query, memory = draw(2, 6, 4), draw(2, 5, 4)
    keys = head.keys(memory)
    steps = torch.cat([head.score(query[:, i : i + 1], keys) for i in range(6)], dim=1)
    assert torch.allclose(steps, head(query, memory), atol=1e-6)


def test_mask_leaves_the_rest_as_it_was():
    head = PointerAttention(4, 4)
    query, memory = draw(2, 3, 4), draw(2, 5, 4)
    mask = torch.tensor([[True, True, False, False, True], [True] * 5])
    logits, full = head(query, memory, mask), head(query, memory)
    assert bool(torch.isneginf(logits[0][:, ~mask[0]]).all())
    assert torch.equal(logits[0][:, mask[0]], full[0][:, mask[0]]) and torch.equal(logits[1], full[1])
    assert torch.equal(head(query, memory, mask[:, None].expand(2, 3, 5)), logits)
    memory[0, 2] = 1e6  # what is masked must not matter
    assert torch.allclose(head(query, memory, mask).softmax(-1), logits.softmax(-1))


def test_bf16_keeps_float32_scores():
    head = PointerAttention(4, 4)
    query, memory = draw(1, 2, 4), draw(1, 3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(query, memory)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, head(query, memory), atol=0.05)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (torch.zeros(2, 5, dtype=torch.bool), "allows nothing"),
        (torch.ones(2, 4, dtype=torch.bool), "shape"),
        (torch.ones(2, 5), "bool"),
    ],
)
def test_bad_masks(mask, match):
    with pytest.raises(ValueError, match=match):
        PointerAttention(4, 4)(draw(2, 3, 4), draw(2, 5, 4), mask)


def test_bad_shapes():
    with pytest.raises(ValueError, match="hidden_dim"):
        PointerAttention(4, 4, 0)
    with pytest.raises(ValueError, match="batch size"):
        PointerAttention(4, 4)(draw(2, 3, 4), draw(3, 5, 4))
    for query, memory in ((draw(2, 3, 5), draw(2, 5, 4)), (draw(2, 3, 4), draw(2, 5, 3))):
        with pytest.raises(ValueError, match=r"query \(batch, q, 4\) and memory \(batch, n, 4\)"):
            PointerAttention(4, 4)(query, memory)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_of_any_size(scale, dtype):
    g = torch.Generator().manual_seed(0)
    q, k = (scale * torch.randn(2, n, 6, generator=g, dtype=dtype) for n in (3, 5))
    v = torch.randn(6, generator=g, dtype=dtype)
    truth = torch.tanh(q[:, :, None] + k[:, None]) @ v
    torch.testing.assert_close(additive_logits(q, k, v), truth, rtol=1e-5, atol=1e-5)
    far = additive_logits(torch.full((1, 1, 2), 60.0), torch.full((1, 1, 2), -50.0), torch.ones(2))
    assert float(far) == pytest.approx(2.0)


def test_second_derivatives():
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*s, generator=g, dtype=torch.float64).requires_grad_() for s in ((1, 2, 3), (1, 2, 3), (3,))]
    assert torch.autograd.gradgradcheck(additive_logits, inputs)
    hessian = torch.autograd.functional.hessian(lambda q: additive_logits(q, inputs[1], inputs[2]).sum(), inputs[0])
    plain = torch.autograd.functional.hessian(
        lambda q: (torch.tanh(q[:, :, None] + inputs[1][:, None]) @ inputs[2]).sum(), inputs[0]
    )
    torch.testing.assert_close(hessian, plain)


def test_torch_func_gives_the_same_values_and_gradients():
    g = torch.Generator().manual_seed(0)
    query, keys, v = (torch.randn(*shape, generator=g) for shape in ((4, 3, 5), (4, 6, 5), (5,)))

    def loss(q, k, w):
        return additive_logits(q[None], k[None], w).logsumexp(-1).sum()

    rows = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (0, 0, None))(query, keys, v)
    for i in range(4):
        inputs = [t.clone().requires_grad_() for t in (query[i], keys[i], v)]
        alone = torch.autograd.grad(loss(*inputs), inputs)
        for a, b in zip(rows, alone, strict=True):
            torch.testing.assert_close(a[i], b)

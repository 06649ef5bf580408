import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.layers import ContentMemory


def filled(b=3, slots=5, width=4, seed=0):
    return torch.randn(b, slots, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reading_equals_a_loop_over_slots():
    memory, M = ContentMemory(5, 4, temperature=0.3), filled()
    q = torch.randn(3, 4, dtype=torch.float64)
    value, weights = memory.read(q, M)
    for b in range(3):
        cos = torch.stack([torch.dot(q[b], s) / (q[b].norm() * s.norm()) for s in M[b]])
        a = (cos / 0.3).softmax(0)
        assert torch.allclose(weights[b], a, atol=1e-10)
        assert torch.allclose(value[b], sum(w * s for w, s in zip(a, M[b], strict=True)), atol=1e-10)


def test_a_cold_reader_finds_the_slot_it_asks_for():
    memory, M = ContentMemory(5, 4, temperature=1e-3), filled()
    assert torch.allclose(memory.read(3.0 * M[:, 2], M).value, M[:, 2], atol=1e-6)
    assert torch.allclose(memory.read(torch.zeros(3, 4, dtype=torch.float64), M).value, M.mean(1), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-3])
def test_short_queries_are_no_nan_in_half_precision(dtype, scale):
    memory, M = ContentMemory(5, 4), filled().to(dtype)
    q = (scale * M[:, 2]).to(dtype)
    weights = memory.read(q, M).weights
    want = memory.read(q.double(), M.double()).weights
    assert weights.dtype == dtype and torch.allclose(weights.double(), want, atol=0.05)


def test_writing_equals_the_formula_slot_by_slot():
    memory, M = ContentMemory(5, 4), filled()
    w, v, g = filled(3, 5, 1)[..., 0].softmax(-1), filled(3, 1, 4, 1)[:, 0], torch.rand(3, 1, dtype=torch.float64)
    got = memory.write(M, w, v, g)
    for b in range(3):
        for j in range(5):
            share = w[b, j] * g[b, 0]
            assert torch.allclose(got[b, j], M[b, j] * (1 - share) + share * v[b], atol=1e-12)


def test_gate_zero_keeps_and_a_full_write_replaces():
    memory, M = ContentMemory(5, 4), filled()
    one = torch.eye(5, dtype=torch.float64)[[1, 0, 4]]
    v = filled(3, 1, 4, 2)[:, 0]
    assert torch.equal(memory.write(M, one, v, torch.zeros(3, 1, dtype=torch.float64)), M)
    full = memory.write(M, one, v, torch.ones(3, 1, dtype=torch.float64))
    assert torch.allclose(full[0, 1], v[0]) and torch.equal(full[0, 0], M[0, 0])


@given(st.integers(0, 100))
def test_lru_fills_every_slot_before_it_comes_back(seed):
    memory = ContentMemory(6, 3, "lru")
    usage, read = torch.zeros(2, 6), torch.zeros(2, 6)
    hit = []
    for _ in range(12):
        w = memory.where(read, usage)
        hit.append(w.argmax(-1))
        usage = memory.used(usage, read, w)
    order = torch.stack(hit, 1)
    assert torch.equal(order[:, :6].sort(1).values, torch.arange(6).expand(2, 6))
    assert torch.equal(order[:, 6:], order[:, :6])


def test_mixing_between_read_and_least_used():
    memory, content = ContentMemory(3, 2, "lru"), ContentMemory(3, 2)
    read, usage = torch.tensor([[0.2, 0.5, 0.3]]), torch.tensor([[1.0, 2.0, 0.5]])
    assert torch.allclose(memory.where(read, usage, torch.tensor([[0.25]])), torch.tensor([[0.05, 0.125, 0.825]]))
    assert torch.equal(content.where(read, usage), read)


def test_gradients_reach_start_query_and_gate():
    memory = ContentMemory(4, 3).double()
    q, g = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.rand(2, 1, dtype=torch.float64)

    def run(q, g, v):
        M = memory.start(2)
        M = memory.write(M, memory.read(q, M).weights, v, g)
        return memory.read(q, M).value

    v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (q, g.requires_grad_(True), v))
    run(q, g, v).sum().backward()
    assert float(memory.initial.grad.abs().sum()) > 0


def test_a_zero_query_or_slot_gives_no_gradient_by_similarity():
    memory, M = ContentMemory(4, 3), torch.randn(2, 4, 3)
    M[0, 1] = 0
    q = torch.randn(2, 3)
    q[1] = 0
    M, q = M.requires_grad_(True), q.requires_grad_(True)
    read = memory.read(q, M)
    assert torch.allclose(read.weights[1], torch.full((4,), 0.25))
    read.value.square().sum().backward()
    assert float(q.grad[1].abs().max()) == 0 and float(q.grad[0].abs().max()) > 0
    assert float(M.grad.abs().max()) < 1e3


def test_bad_input():
    for wrong in ({"slots": 0}, {"width": 0}, {"write": "random"}, {"temperature": 0.0}, {"usage_decay": 1.5}):
        with pytest.raises(ValueError):
            ContentMemory(**({"slots": 2, "width": 2} | wrong))
    with pytest.raises(ValueError, match="fit"):
        ContentMemory(5, 4).read(torch.zeros(3, 3), torch.zeros(3, 5, 4))

"""The fused softmax over counts: values and gradients against the plain formula; its sampled estimate."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from etude.data.randomness import numpy_stream, stream
from etude.text.count_loss import CountRows, Counts, count_cross_entropy, sampled_cross_entropy


def problem(n=6, v=11, b=4, dtype=torch.float64):
    g = stream(0, "problem")
    dense = torch.randint(0, 4, (n, v), generator=g).to(dtype)
    rows, columns = dense.nonzero(as_tuple=True)
    counts = Counts(rows, columns, dense[rows, columns])
    hidden, weight = (torch.randn(s, b, generator=g, dtype=dtype).requires_grad_() for s in (n, v))
    return dense, counts, hidden, weight, torch.randn(v, generator=g, dtype=dtype).requires_grad_()


def test_value_and_gradients_equal_the_dense_formula():
    dense, counts, *parameters = problem()
    hidden, weight, bias = parameters
    loss = count_cross_entropy(hidden, weight, bias, counts)
    plain = -(dense * (hidden @ weight.T + bias).log_softmax(1)).sum()
    torch.testing.assert_close(loss, plain)
    for a, b in zip(torch.autograd.grad(3 * loss, parameters), torch.autograd.grad(3 * plain, parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    _, counts, *parameters = problem()
    assert torch.autograd.gradcheck(lambda h, w, b: count_cross_entropy(h, w, b, counts), parameters)


def test_a_row_without_words_costs_nothing():
    _, counts, hidden, weight, bias = problem()
    keep = counts.rows != 2
    counts = Counts(*(part[keep] for part in counts))
    (gradient,) = torch.autograd.grad(count_cross_entropy(hidden, weight, bias, counts), hidden)
    assert gradient[2].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_large_logits_do_not_overflow():
    counts = Counts(torch.tensor([0]), torch.tensor([1]), torch.tensor([2.0]))
    hidden, weight = torch.full((1, 1), 1e4), torch.tensor([[1.0], [1.0]])
    assert float(count_cross_entropy(hidden, weight, torch.zeros(2), counts)) == pytest.approx(2 * np.log(2), rel=1e-3)


def test_bfloat16_products_stay_near():
    _, counts, hidden, weight, bias = problem(dtype=torch.float32)
    exact = count_cross_entropy(hidden, weight, bias, counts)
    near = count_cross_entropy(hidden, weight, bias, counts, torch.bfloat16)
    torch.testing.assert_close(near, exact, rtol=0.02, atol=0)
    assert near != exact
    (gradient,) = torch.autograd.grad(near, hidden)
    assert gradient.dtype == torch.float32


def test_count_rows_take_any_batch():
    matrix = csr_matrix(numpy_stream(0, "m").integers(0, 3, (20, 7)).astype(np.float32))
    matrix.eliminate_zeros()
    documents = torch.tensor([5, 0, 19, 5])
    counts = CountRows(matrix).take(documents)
    dense = torch.zeros(4, 7).index_put_((counts.rows, counts.columns), counts.values)
    np.testing.assert_array_equal(dense.numpy(), matrix.toarray()[documents.numpy()])


def test_sampled_loss_estimates_the_exact_one():
    _, counts, hidden, weight, bias = problem(v=30)
    hidden, weight, bias = hidden.detach(), weight.detach(), bias.detach()
    exact = float(count_cross_entropy(hidden, weight, bias, counts))
    noise = torch.rand(30, generator=stream(1, "noise"), dtype=torch.float64) + 0.2
    noise /= noise.sum()

    def estimate(k, correction):
        generator = stream(2, "draws")
        drawn = [torch.multinomial(noise, k, replacement=True, generator=generator) for _ in range(40)]
        losses = [sampled_cross_entropy(hidden, weight, bias, counts, d, correction) for d in drawn]
        return float(torch.stack(losses).mean())

    assert estimate(2000, (2000 * noise).log()) == pytest.approx(exact, rel=0.01)
    assert estimate(2000, torch.zeros(30, dtype=torch.float64)) > 1.5 * exact


def test_sampled_loss_with_all_other_words_is_exact():
    counts = Counts(torch.tensor([0]), torch.tensor([2]), torch.tensor([1.0], dtype=torch.float64))
    _, _, hidden, weight, bias = problem(n=1, v=5)
    others = torch.tensor([0, 1, 2, 3, 4])  # its own draw is left out
    once = torch.zeros(5, dtype=torch.float64)  # each word expected once
    torch.testing.assert_close(
        sampled_cross_entropy(hidden, weight, bias, counts, others, once),
        count_cross_entropy(hidden, weight, bias, counts),
    )

"""The softmax over a vocabulary against word counts, exact and sampled, with hand-written gradients.

A document's n words need only one row of the softmax: its negative log-likelihood is
``-sum_w n_w log softmax(U h + c)_w``. The gradient with respect to the logits is ``N softmax - n`` (N = total count),
dense minus a few entries, so no dense count matrix and no second (n, V) buffer is ever made.
"""

import time
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "auto"]


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What `count_cross_entropy` takes: None for full precision; "auto" takes the quicker one, as measured once."""
    if precision == "auto":
        return torch.bfloat16 if _bfloat16_is_quicker(device.type) else None
    return torch.bfloat16 if precision == "bf16" else None


@lru_cache
def _bfloat16_is_quicker(kind: str) -> bool:
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(128, 128, device=kind, dtype=dtype), torch.ones(128, 4096, device=kind, dtype=dtype)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            (a @ b).sum().item()  # .item() waits for a GPU
            times.append(time.perf_counter() - start)
        seconds.append(sorted(times)[2])
    return seconds[1] < 0.8 * seconds[0]


class Counts(NamedTuple):
    """Sparse counts of a batch of n documents, sorted by row; every (row, column) stands once."""

    rows: Tensor  # (nnz,) 0..n-1
    columns: Tensor  # (nnz,) 0..V-1
    values: Tensor  # (nnz,) counts or weights


class CountRows:
    """A sparse count matrix on a device, from which any batch of rows is taken without a loop."""

    def __init__(self, matrix: Any, device: torch.device | str = "cpu") -> None:
        """`matrix`: scipy CSR, shape (D, V), without duplicate entries."""
        self.bounds = torch.from_numpy(matrix.indptr.astype("int64")).to(device)
        self.columns = torch.from_numpy(matrix.indices.astype("int64")).to(device)
        self.values = torch.from_numpy(matrix.data.astype("float32")).to(device)
        self.shape = matrix.shape

    def take(self, documents: Tensor) -> Counts:
        """The counts of some documents, (n,) int64."""
        start = self.bounds[documents]
        length = self.bounds[documents + 1] - start
        rows = torch.repeat_interleave(length)
        shift = start - (length.cumsum(0) - length)
        place = torch.arange(len(rows), device=rows.device) + shift[rows]
        return Counts(rows, self.columns[place], self.values[place])


class _CountCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, counts: Counts, product_dtype: torch.dtype | None
    ) -> Tensor:
        rows, columns, values = counts
        if product_dtype is None:
            logits = torch.addmm(bias, hidden, weight.T)
        else:
            hidden, weight = hidden.to(product_dtype), weight.to(product_dtype)
            logits = (hidden @ weight.T).to(bias.dtype).add_(bias)
        picked = logits[rows, columns]
        largest = logits.amax(dim=1)
        total = torch.zeros_like(largest).index_add_(0, rows, values)
        powers = logits.sub_(largest[:, None]).exp_()
        sums = powers.sum(dim=1)
        loss = torch.dot(total, largest + sums.log()) - torch.dot(values, picked)
        gradient = powers.mul_((total / sums)[:, None])
        gradient[rows, columns] -= values
        ctx.save_for_backward(gradient, hidden, weight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        gradient, hidden, weight = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        lower = gradient.to(hidden.dtype)
        return (
            (lower @ weight).to(scale.dtype).mul_(scale) if wants_hidden else None,
            (lower.T @ hidden).to(scale.dtype).mul_(scale) if wants_weight else None,
            gradient.sum(dim=0).mul_(scale) if wants_bias else None,
            None,
            None,
        )


def count_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    counts: Counts,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Negative log-likelihood of word counts under ``softmax(hidden @ weight.T + bias)``, summed over the batch.

    Parameters
    ----------
    hidden
        (n, B), one row a document.
    weight, bias
        (V, B) and (V,).
    counts
        The words of the n documents; values are counts or weights of at least 0.
    product_dtype
        Precision of the three matrix products (bfloat16 holds bits exactly and is several times faster where the
        processor has it); sums and the softmax keep the precision of `bias`.

    Returns
    -------
    A scalar: the sum over all counted words. First derivatives only.
    """
    return _CountCrossEntropy.apply(hidden, weight, bias, counts, product_dtype)  # type: ignore[no-any-return, no-untyped-call]


def sampled_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, counts: Counts, negatives: Tensor, log_expected: Tensor
) -> Tensor:
    """`count_cross_entropy` with a softmax over the word itself and k sampled words, shared by the batch.

    The sampled words stand for all others: a sample counts 1 / (how often its word is expected among the samples),
    so that the loss tends to the exact one as k grows. A sample that is the word itself is left out of its own sum.

    Parameters
    ----------
    weight, bias
        (V', B) and (V',): the rows that the batch needs, `counts.columns` and `negatives` index them.
    negatives
        (k,) rows of `weight`.
    log_expected
        (V',): log of the expected number of times a word is among the k samples.

    Source: Bengio & Senécal 2008, importance sampling of the normaliser; Jean et al. 2015 (arXiv 1412.2007).
    """
    rows, columns, values = counts
    positive = (hidden[rows] * weight[columns]).sum(dim=1) + bias[columns]
    negative = torch.addmm((bias - log_expected)[negatives], hidden, weight[negatives].T)[rows]
    negative = negative.masked_fill(negatives == columns[:, None], -float("inf"))
    normalizer = torch.logaddexp(negative.logsumexp(dim=1), positive)
    return torch.dot(values, normalizer - positive)

"""Transformers with weights set by hand: gradient descent in the forward pass, and products from GELUs.

Sources: Akyurek et al. 2022, arXiv 2211.15661, theorem 1; the one-layer-one-step form without softmax, von Oswald
et al. 2022, arXiv 2212.07677.
Differs from the paper: attention without softmax makes the step exact, where the paper's construction carries out
the arithmetic with GELU and layer norm and is exact in the limit only.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.incontext.references import Reference, check_pairs


class LinearAttention(nn.Module):
    """Attention without softmax: ``z_q + (sum_i (K z_i . Q z_q) V z_i) O'`` over the context tokens i.

    All matrices are given; nothing is trained. Context and query tokens are updated at once.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        super().__init__()
        for name, matrix in (("query", query), ("key", key), ("value", value), ("output", output)):
            self.register_buffer(name, matrix)

    def forward(self, z: Tensor, n_context: int) -> Tensor:
        """z (..., T, D), the first `n_context` tokens are attended to."""
        query, key, value, output = (m.to(z.dtype) for m in (self.query, self.key, self.value, self.output))
        context = z[..., :n_context, :]
        scores = (z @ query.mT) @ (context @ key.mT).mT
        return z + scores @ (context @ value.mT) @ output.mT


class GradientDescentTransformer(nn.Module):
    """One layer a step of full-batch gradient descent on the sum of squares, exactly.

    A token is (x, r) with r the residual ``y - w.x``; at the start w = 0 and r = y. A layer replaces the residual
    of every token by ``r_q - 2 lr sum_i (x_i . x_q) r_i``, which is what the step ``w <- w + 2 lr X'(y - X w)`` does
    to it. A query's r starts at 0, so its prediction is -r.

    Parameters
    ----------
    dim
        Features of x.
    steps
        Layers; 0 predicts 0.
    lr
        Rate: the step is ``2 lr X'(y - X w)``.

    Examples
    --------
    >>> gd = GradientDescentTransformer(dim=1, steps=1, lr=0.5)
    >>> gd(torch.tensor([[2.0]]), torch.tensor([3.0]), torch.tensor([[1.0], [2.0]]))
    tensor([ 6., 12.])
    """

    def __init__(self, dim: int, steps: int, lr: float) -> None:
        super().__init__()
        if dim < 1 or dim != int(dim):
            raise ValueError(f"dim must be a whole number of at least 1, got {dim}")
        if steps < 0 or steps != int(steps):
            raise ValueError(f"steps must be a whole number of at least 0, got {steps}")
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr must be positive and finite, got {lr}")
        self.dim, self.steps, self.lr = dim, steps, lr
        reads_x = torch.eye(dim, dim + 1, dtype=torch.float64)
        reads_r = torch.zeros(1, dim + 1, dtype=torch.float64)
        reads_r[0, dim] = 1.0
        self.layers = nn.ModuleList(
            LinearAttention(reads_x, reads_x, reads_r, -2.0 * lr * reads_r.T) for _ in range(steps)
        )

    def forward(self, X: Tensor, y: Tensor, Xq: Tensor) -> Tensor:
        """X (..., n, d), y (..., n), Xq (..., m, d) -> predictions (..., m).

        Computed in the type of the inputs, which must be floating point and finite.
        """
        fits = Xq.ndim == X.ndim >= 2 and Xq.shape[:-2] == X.shape[:-2] and y.shape == X.shape[:-1]
        if not fits or X.shape[-1] != self.dim or Xq.shape[-1] != self.dim:
            raise ValueError(
                f"expected X (..., n, {self.dim}), y (..., n), Xq (..., m, {self.dim}); got {tuple(X.shape)}, "
                f"{tuple(y.shape)}, {tuple(Xq.shape)}"
            )
        check_pairs(X, y)
        n = X.shape[-2]
        context = torch.cat([X, y.unsqueeze(-1)], -1)
        queries = torch.cat([Xq, torch.zeros_like(Xq[..., :1])], -1)
        z = torch.cat([context, queries], -2)
        for layer in self.layers:
            z = layer(z, n)
        return -z[..., n:, -1]


def construction_error(X: Tensor, y: Tensor, steps: Iterable[int], *, lr: float = 0.01, missing: int = 0) -> float:
    """Largest difference between the transformer's predictions at X and those of gradient descent in float64.

    Parameters
    ----------
    X, y
        (B, n, d) and (B, n), in the type that the transformer computes in.
    steps
        Numbers of steps, each tried.
    missing
        Layers left out: with 1 the transformer is one step short.
    """
    worst = 0.0
    for k in steps:
        exact = Reference(f"gd:{k}", "gd", k, lr)(X.double(), y.double(), X.double())
        found = GradientDescentTransformer(X.shape[-1], k - missing, lr)(X, y, X)
        worst = max(worst, float((found - exact).abs().max()))
    return worst


def gelu_multiply(a: Tensor, b: Tensor, *, shrink: float = 1.0) -> Tensor:
    """A product out of three GELUs: ``sqrt(pi/2) (gelu(a + b) - gelu(a) - gelu(b)) = a b + fourth-order terms``.

    Parameters
    ----------
    shrink
        Multiplies a and b before, and the product by 1 / shrink^2 after: the error falls with shrink^2, until
        rounding takes over.
    """
    if not shrink > 0:
        raise ValueError(f"shrink must be positive, got {shrink}")
    a, b = shrink * a, shrink * b
    return math.sqrt(math.pi / 2) * (F.gelu(a + b) - F.gelu(a) - F.gelu(b)) / shrink**2

"""The mean of the chosen codes, with the gradients that quantisers teach their codes by.

What reaches the input z and the codes E when y is emitted and dL/dy comes back; k codes a vector, T vectors, c the
weight of the commitment:

============== ======================= ============================== ==============================
backward       input                   each chosen code               loss
============== ======================= ============================== ==============================
straight       dL/dy                   nothing                        code term + c * commitment
base           dL/dy                   dL/dy / k                      code term
aeloss         dL/dy                   dL/dy / k + 2 (y - z) / (k T)  value of the code term only
vqvae          dL/dy + 2c (z - y) / T  2 (y - z) / (k T)              value of the code term only
fullaeloss     dL/dy + 2c (z - y) / T  dL/dy / k + 2 (y - z) / (k T)  value of the code term only
============== ======================= ============================== ==============================

The code term is the sum over groups of the mean over vectors of |y - z|^2 with z held fixed; the commitment is the
same with y held fixed. The last three carry these gradients inside the backward pass, so their loss has none. Where
no gradient teaches the codes, the first two leave c * commitment.

Sources: van den Oord et al. 2017, arXiv 1711.00937, eq. 3 ("straight"); Tamkin et al. 2023, arXiv 2310.17230, and
its official code (the others; "aeloss" is its default).
"""

from typing import Any

import torch
from torch import Tensor

from etude.layers.code_search import take_codes

BACKWARD = ("straight", "base", "aeloss", "vqvae", "fullaeloss")


class _Emit(torch.autograd.Function):
    """Mean of the chosen codes with a surrogate gradient; the forward value is exactly that mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, indices: Tensor, mode: str, commitment: float) -> Tensor:
        y = take_codes(codes, indices).mean(-2).to(x.dtype)
        ctx.save_for_backward(x, y, indices)
        ctx.mode, ctx.commitment, ctx.codes = mode, commitment, (codes.shape, codes.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, y, indices = ctx.saved_tensors
        (grad,) = grads
        mode, (shape, dtype) = ctx.mode, ctx.codes
        groups, k = indices.shape[-2:]
        tokens = max(1, indices.numel() // (groups * k))
        off = (2 / tokens) * (y - x)
        grad_codes = None
        if ctx.needs_input_grad[1] and mode != "straight":
            per_code = {"base": grad, "vqvae": off}.get(mode, grad + off) / k
            flat = (indices + torch.arange(groups, device=x.device)[:, None] * shape[1]).flatten()
            spread = per_code.unsqueeze(-2).expand(*indices.shape, shape[2]).reshape(-1, shape[2]).to(dtype)
            total = torch.zeros(shape[0] * shape[1], shape[2], dtype=dtype, device=x.device)
            grad_codes = total.index_add_(0, flat, spread).view(shape)
        grad_x = grad - ctx.commitment * off if mode in ("vqvae", "fullaeloss") else grad
        return grad_x, grad_codes, None, None, None


def emit_codes(x: Tensor, codes: Tensor, indices: Tensor, backward: str, commitment: float = 0.25) -> Tensor:
    """(..., G, d): exactly the mean of the codes (G, J, d) at `indices` (..., G, k); gradients as `backward` says."""
    if backward not in BACKWARD:
        raise ValueError(f"unknown backward {backward!r}: choose one of {', '.join(BACKWARD)}")
    return _Emit.apply(x, codes, indices, backward, commitment)  # type: ignore[no-any-return]


def quantization_loss(
    x: Tensor, codes: Tensor, indices: Tensor, y: Tensor, backward: str, commitment: float = 0.25
) -> Tensor:
    """The loss of the table, a scalar; `y` is what `emit_codes` returned for the rest."""
    if backward in ("aeloss", "vqvae", "fullaeloss"):
        return _gap(y.detach(), x.detach())
    if not codes.requires_grad:
        return commitment * _gap(x, y.detach())
    loss = _gap(take_codes(codes, indices).mean(-2), x.detach())
    return loss + commitment * _gap(x, y.detach()) if backward == "straight" else loss


def _gap(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of (..., G, d): mean over the leading axes (0 where there is no vector), sum over groups."""
    rows = (a - b).square().sum(-1).reshape(-1, a.shape[-2])
    return rows.mean(0).sum() if len(rows) else rows.sum()

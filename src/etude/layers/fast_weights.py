"""A linear layer with a slow weight and, for every row of a batch, a fast weight that changes while it runs.

The fast weight is a sum of outer products and is kept as the list of their factors: with

    theta_f <- theta_f - rate * delta x^T      it is      theta_f z = sum_s d_s (x_s . z),  d_s = -rate_s delta_s

so no (B, out, in) tensor exists. Everything is differentiable through the updates. Source: Schmidhuber 1992 (fast
weight programmers); Ba et al. 2016, arXiv 1610.06258 (the sum read as attention over stored inputs).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Fast(NamedTuple):
    """Fast weights of B rows: theta_f = sum_s deltas_s inputs_s^T."""

    inputs: Tensor
    """(B, s, in)"""
    deltas: Tensor
    """(B, s, out)"""
    bound: Tensor
    """(B,) upper bounds of the norms, ``sum_s |d_s| |x_s|``: cheap to keep, so that norms are rarely needed. Float32
    where the weights are of half precision, as a sum of many small steps."""

    def dense(self) -> Tensor:
        """(B, out, in), for looking at."""
        return self.deltas.transpose(1, 2) @ self.inputs

    def norm(self) -> Tensor:
        """(B,) Frobenius norms, from s x s products; NaN where they overflow."""
        inputs, deltas = self.inputs.to(self.bound.dtype), self.deltas.to(self.bound.dtype)
        with torch.autocast(inputs.device.type, enabled=False):  # half precision would lose the difference of terms
            gram = (inputs @ inputs.transpose(1, 2)) * (deltas @ deltas.transpose(1, 2))
        squared = gram.sum((1, 2))
        some = ~(squared <= 0)  # rounding may bring a zero below 0; NaN must stay one
        return torch.where(some, torch.where(some, squared, 1.0).sqrt(), 0.0)

    def detach(self) -> "Fast":
        """Cut from its history."""
        return Fast(self.inputs.detach(), self.deltas.detach(), self.bound)


class FastLinear(nn.Module):
    """``y = linear(x) + theta_f x`` with fast weights that the caller carries.

    Parameters
    ----------
    linear
        The slow layer; used as it is.
    max_fast_norm
        Bound of every row's Frobenius norm: a row beyond it is scaled back. None: no bound.

    Raises
    ------
    ValueError
        If `linear` is no `nn.Linear` or the bound is not positive.
    """

    def __init__(self, linear: nn.Linear, max_fast_norm: float | None = None) -> None:
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"need an nn.Linear, got {type(linear).__name__}")
        if max_fast_norm is not None and not max_fast_norm > 0:
            raise ValueError(f"max_fast_norm must be positive, got {max_fast_norm}")
        self.linear, self.max_fast_norm = linear, max_fast_norm

    def start(self, batch_size: int) -> Fast:
        """Fast weights of zero."""
        w = self.linear.weight
        empty = w.new_zeros(batch_size, 0)
        bound = empty.sum(1, dtype=torch.promote_types(w.dtype, torch.float32))
        return Fast(empty[..., None].expand(-1, -1, w.shape[1]), empty[..., None].expand(-1, -1, w.shape[0]), bound)

    def forward(self, x: Tensor, fast: Fast | None = None) -> Tensor:
        """(B, in) or (B, n, in) -> (B, out) or (B, n, out); without `fast` the slow layer."""
        y = self.linear(x)
        if fast is None or fast.inputs.shape[1] == 0:
            return y
        if x.shape[0] != fast.inputs.shape[0]:
            raise ValueError(f"{x.shape[0]} rows do not fit the fast weights of {fast.inputs.shape[0]}")
        if x.ndim == 3:
            return torch.baddbmm(y, x @ fast.inputs.transpose(1, 2), fast.deltas)
        match = torch.bmm(fast.inputs, x[..., None])  # (B, s, 1)
        return torch.baddbmm(y[:, None], match.transpose(1, 2), fast.deltas)[:, 0]

    def update(self, fast: Fast | None, delta: Tensor, x: Tensor, rate: Tensor | float) -> Fast:
        """One step ``theta_f <- theta_f - rate * delta x^T`` for each row.

        Parameters
        ----------
        fast
            None: zero.
        delta, x
            (B, out), the gradient at the layer's output, and (B, in), its input.
        rate
            A number, (B,) or (B, 1); rate 0 leaves a row as it is.

        Raises
        ------
        ValueError
            For shapes that do not fit.
        """
        out, width = self.linear.weight.shape
        if x.ndim != 2 or x.shape[1] != width or delta.shape != (x.shape[0], out):
            raise ValueError(f"need delta (B, {out}) and x (B, {width}), got {tuple(delta.shape)}, {tuple(x.shape)}")
        fast = self.start(x.shape[0]) if fast is None else fast
        if isinstance(rate, Tensor) and rate.ndim == 1:
            rate = rate[:, None]
        step = delta * -rate
        made = Fast(torch.cat([fast.inputs, x[:, None]], 1), torch.cat([fast.deltas, step[:, None]], 1), fast.bound)
        if made.inputs.shape[1] > 2 * width:  # a long life: as many terms as inputs say the same
            made = compact(made)
        return made if self.max_fast_norm is None else self._bounded(made, step, x, self.max_fast_norm)

    @staticmethod
    def _bounded(made: Fast, step: Tensor, x: Tensor, most: float) -> Fast:
        with torch.no_grad():
            d, i = step.to(made.bound.dtype), x.to(made.bound.dtype)
            bound = torch.linalg.vector_norm(d, dim=-1).mul_(torch.linalg.vector_norm(i, dim=-1)).add_(made.bound)
            if not len(bound) or float(bound.max()) <= most:
                return made._replace(bound=bound)
        norm = made.norm()
        share = (most / norm).clamp_max(1.0)
        return Fast(
            made.inputs, made.deltas * share.to(made.deltas.dtype)[:, None, None], norm.detach().clamp_max(most)
        )


def compact(fast: Fast) -> Fast:
    """The same fast weights with one term an input: exact, so that memory does not grow with time."""
    width = fast.inputs.shape[2]
    unit = torch.eye(width, dtype=fast.inputs.dtype, device=fast.inputs.device)
    return Fast(unit.expand(len(fast.inputs), -1, -1), fast.inputs.transpose(1, 2) @ fast.deltas, fast.bound)

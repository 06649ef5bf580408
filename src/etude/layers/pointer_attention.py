"""Pointer attention: additive scores over a memory, used as the output distribution itself.

Source: Vinyals, Fortunato & Jaitly 2015, arXiv 1506.03134, section 2.3 (additive scores: Bahdanau et al. 2014).
Names: `query` is the paper's d_i, `memory` its e_j, the logits its u^i_j = v^T tanh(W1 e_j + W2 d_i).

How it is computed: tanh(q + k) = 1 - 2 s with s = 1 / (1 + exp(2 q) exp(2 k)), so the exponentials are taken once a
query and once an item instead of one tanh a pair, and the derivative 4 s (1 - s) needs s alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

CHUNK = 2**28
"""Most elements of the (batch, queries, items, hidden) tanh that are held at once."""


LIMIT = 40.0
"""With a projection beyond this size exp would leave float32, and tanh is taken of every pair instead."""


class _AdditiveScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        a, b = ((2 * p.clamp(-LIMIT, LIMIT)).exp() for p in (query, keys))
        s = (a.unsqueeze(2) * b.unsqueeze(1)).add_(1).reciprocal_()
        ctx.save_for_backward(query, keys, v)
        ctx.s = s  # of the pass itself, never handed out
        return v.sum() - 2 * (s @ v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, keys, v = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative was asked for
            t = torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1))
            inner = grad.unsqueeze(-1) * (1 - t * t) * v
            return inner.sum(2), inner.sum(1), (grad.unsqueeze(-1) * t).sum((0, 1, 2))
        s = ctx.s
        dv = grad.sum() - 2 * (grad.reshape(-1) @ s.reshape(-1, s.shape[-1]))
        inner = torch.addcmul(s, s, s, value=-1).mul_(grad.unsqueeze(-1))
        return inner.sum(2) * (4 * v), inner.sum(1) * (4 * v), dv


def _pair_by_pair(query: Tensor, keys: Tensor, v: Tensor) -> bool:
    """Whether tanh is taken of every pair: beyond the limit, and inside `torch.func`, which takes its own gradients."""
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (query, keys, v)):
        return True
    return any(p.numel() > 0 and bool(p.detach().abs().max() > LIMIT) for p in (query, keys))


def _scores_of_pairs(query: Tensor, keys: Tensor, v: Tensor) -> Tensor:
    return torch.tanh(query.unsqueeze(2) + keys.unsqueeze(1)) @ v


def additive_logits(query: Tensor, keys: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scores ``v . tanh(keys + query)`` of every query against every key.

    Parameters
    ----------
    query
        Projected queries W2 d, shape (batch, q, hidden).
    keys
        Projected memory W1 e, shape (batch, n, hidden).
    v
        Shape (hidden,).
    mask
        Bool, shape (batch, n) or (batch, q, n), True = may be pointed at.

    Returns
    -------
    Tensor
        Logits of shape (batch, q, n), -inf where the mask is False.

    Raises
    ------
    ValueError
        If the mask has another shape or allows nothing in a row.
    """
    (batch, q, hidden), n = query.shape, keys.shape[1]
    step = max(1, CHUNK // max(1, batch * n * hidden))
    if query.dtype in (torch.bfloat16, torch.float16):  # under autocast the exponentials stay exact
        query, keys, v = query.float(), keys.float(), v.float()
    with torch.autocast(query.device.type, enabled=False):
        scores = _scores_of_pairs if _pair_by_pair(query, keys, v) else _AdditiveScores.apply
        logits = [scores(part, keys, v) for part in query.split(step, dim=1)]
    out = logits[0] if len(logits) == 1 else torch.cat(logits, dim=1)
    if mask is None:
        return out
    if mask.dtype != torch.bool or tuple(mask.shape) not in ((batch, n), (batch, q, n)):
        raise ValueError(
            f"mask must be bool (True = may be used) of shape ({batch}, {n}) or ({batch}, {q}, {n}), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    if not bool(mask.any(-1).all()):
        row = int((~mask.any(-1)).nonzero()[0, 0])
        raise ValueError(f"the mask of row {row} allows nothing to point at; every row needs one True")
    return out.masked_fill(~(mask if mask.dim() == 3 else mask.unsqueeze(1)), -torch.inf)


class PointerAttention(nn.Module):
    """Scores over memory items, as a head for any encoder and decoder; see `additive_logits`.

    Parameters
    ----------
    query_dim, key_dim
        Width of the queries and of the memory.
    hidden_dim
        Width of the tanh layer; None: `key_dim`.

    Raises
    ------
    ValueError
        If a width is below 1; in use, if a mask allows nothing in a row.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden_dim = key_dim if hidden_dim is None else hidden_dim
        for name, value in (("query_dim", query_dim), ("key_dim", key_dim), ("hidden_dim", hidden_dim)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.key_proj = nn.Linear(key_dim, hidden_dim, bias=False)
        self.query_proj = nn.Linear(query_dim, hidden_dim, bias=False)
        self.v = nn.Parameter(torch.empty(hidden_dim).uniform_(-(hidden_dim**-0.5), hidden_dim**-0.5))

    def keys(self, memory: Tensor) -> Tensor:
        """W1 e for a memory (batch, n, key_dim): compute it once, then call `score` at every step."""
        return self.key_proj(memory)

    def score(self, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (batch, q, n) for queries (batch, q, query_dim) against projected keys."""
        return additive_logits(self.query_proj(query), keys, self.v, mask)

    def forward(self, query: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        """Logits (batch, q, n) of pointing from each query (batch, q, query_dim) at each item (batch, n, key_dim).

        `memory_mask` is bool, (batch, n) or (batch, q, n), True = may be used; False gives -inf. Logits of half
        precision inputs are float32, as the exponentials need it.
        """
        dims = self.query_proj.in_features, self.key_proj.in_features
        fits = query.dim() == memory.dim() == 3 and query.shape[0] == memory.shape[0]
        if not fits or (query.shape[2], memory.shape[2]) != dims:
            raise ValueError(
                f"need query (batch, q, {dims[0]}) and memory (batch, n, {dims[1]}) of one batch size, "
                f"got {tuple(query.shape)} and {tuple(memory.shape)}"
            )
        return self.score(query, self.keys(memory), memory_mask)

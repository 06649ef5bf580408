"""Scaled dot-product attention, its masks, and the multi-head module over it.

Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2; grouped keys: Ainslie et al. 2023, arXiv 2305.13245.
Masks follow torch's `scaled_dot_product_attention`: True = may be used, for padding too. A query that may use
nothing gets zeros.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.cache import LayerCache
from etude.layers.positions import AlibiPositions, RotaryPositions

MaskKind = Literal["causal", "prefix", "window", "global_local", "context_query", "padding"]


class Attended(NamedTuple):
    """What `MultiHeadAttention` returns."""

    y: Tensor
    """(B, T, hidden_dim)"""
    weights: Tensor | None = None
    """(B, H, T, S), only where asked for."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | Literal["causal"] | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q k' / sqrt(head_dim) + bias) v`` over the allowed keys.

    Parameters
    ----------
    q
        (B, H, T, head_dim).
    k, v
        (B, Hkv, S, head_dim) with H a multiple of Hkv: each key head serves H / Hkv query heads.
    mask
        Boolean, broadcastable to (B, H, T, S), True = may be used. "causal": the T queries are the last of the
        S positions and see themselves and what stands before. None: everything.
    bias
        Added to the scores, broadcastable to (B, H, T, S).

    Returns
    -------
    Tensor
        (B, H, T, head_dim); exactly zero for a query whose mask row has no True.
    """
    k, v = _repeat_heads(q, k, v)
    T, S = q.shape[-2], k.shape[-2]
    if isinstance(mask, str):
        _check_mask_name(mask)
        if bias is None and T == S:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        mask = None if T == 1 else make_mask("causal", T, S, device=q.device)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    mask = _check_mask(mask)
    dead = ~mask.any(-1, keepdim=True)
    allowed = mask | dead  # a row of -inf would send NaN through the backward pass
    scores = allowed if bias is None else bias.masked_fill(~allowed, -math.inf)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores, dropout_p=dropout)
    return y.masked_fill(dead, 0.0)


def attention_weights(
    q: Tensor, k: Tensor, *, mask: Tensor | Literal["causal"] | None = None, bias: Tensor | None = None
) -> Tensor:
    """The weights (B, H, T, S) that `attention` gives to the values; rows sum to 1, or to 0 if nothing is allowed."""
    k, _ = _repeat_heads(q, k, k)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    if isinstance(mask, str):
        _check_mask_name(mask)
        mask = make_mask("causal", q.shape[-2], k.shape[-2], device=q.device)
    if mask is None:
        return scores.softmax(-1)
    mask = _check_mask(mask)
    dead = ~mask.any(-1, keepdim=True)
    return scores.masked_fill(~(mask | dead), -math.inf).softmax(-1).masked_fill(dead, 0.0)


def make_mask(
    kind: MaskKind,
    T: int,
    S: int | None = None,
    *,
    window: int | None = None,
    lengths: Tensor | None = None,
    n_context: int | None = None,
    causal: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Boolean mask for the last `T` of `S` positions, True = may be used.

    Parameters
    ----------
    kind
        - "causal": itself and everything before.
        - "prefix": the first `n_context` positions see each other, the rest is causal.
        - "window": itself and the `window` - 1 positions before (`causal=False`: on both sides).
        - "global_local": the first `n_context` positions are seen by all and see all (before them, when
          `causal`), the others have a window.
        - "context_query": every position sees the first `n_context` and nothing else (prior-fitted networks).
        - "padding": everything up to each row's length.
    lengths
        (B,) numbers of real positions; may be given with every kind.

    Returns
    -------
    Tensor
        (T, S); with `lengths` (B, 1, T, S).
    """
    S = T if S is None else S
    if T < 0 or S < T:
        raise ValueError(f"T queries are the last of S positions, so 0 <= T <= S; got T={T}, S={S}")
    if lengths is not None:
        device = lengths.device
    t = torch.arange(S - T, S, device=device).unsqueeze(1)
    s = torch.arange(S, device=device).unsqueeze(0)
    if kind in ("window", "global_local") and (window is None or window < 1):
        raise ValueError(f"mask {kind!r} needs window of at least 1, got {window}")
    if kind in ("prefix", "global_local", "context_query") and (n_context is None or n_context < 0):
        raise ValueError(f"mask {kind!r} needs n_context of at least 0, got {n_context}")
    if kind == "padding" and lengths is None:
        raise ValueError("mask 'padding' needs lengths")
    context = n_context if n_context is not None else 0
    if kind == "causal":
        mask = s <= t
    elif kind == "prefix":
        mask = (s <= t) | ((s < context) & (t < context))
    elif kind in ("window", "global_local"):
        reach = window if window is not None else 1
        mask = (t - s < reach) & (s - t < reach)
        if kind == "global_local":
            mask = mask | (s < context) | (t < context)
        if causal:
            mask = mask & (s <= t)
    elif kind == "context_query":
        mask = (s < context).expand(T, S)
    elif kind == "padding":
        mask = torch.ones(T, S, dtype=torch.bool, device=device)
    else:
        known = "causal prefix window global_local context_query padding"
        raise ValueError(f"unknown mask {kind!r}; known: {known}")
    if lengths is None:
        return mask
    return mask & (s < lengths[:, None, None]).unsqueeze(1)


class MultiHeadAttention(nn.Module):
    """Self- or cross-attention with grouped keys, positions, a cache, head masks and an equality bias.

    Parameters
    ----------
    hidden_dim, num_heads
        `hidden_dim` must be a multiple of `num_heads`.
    num_kv_heads
        Key and value heads; 1 is multi-query attention. None: `num_heads`.
    position
        None, "rope", "alibi", or a `RotaryPositions` / `AlibiPositions` of your own.
    equality_bias
        Add one trained scalar a head to the scores of pairs that `same` marks in `forward`.
    context_dim
        Features of the tokens attended to; None: `hidden_dim`.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        position: str | nn.Module | None = None,
        equality_bias: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(hidden_dim, num_heads, num_kv_heads, rotary=position == "rope")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must lie in [0, 1], got {dropout}")
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim, self.dropout = hidden_dim // num_heads, dropout
        self.q_proj = nn.Linear(hidden_dim, hidden_dim, bias=bias)
        self.kv_proj = nn.Linear(context_dim or hidden_dim, 2 * num_kv_heads * self.head_dim, bias=bias)
        self.merged = nn.Identity()  # the heads' outputs side by side: a place for hooks
        self.out_proj = nn.Linear(hidden_dim, hidden_dim, bias=bias)
        self.position = _position(position, self.head_dim, num_heads)
        self.equality = nn.Parameter(torch.zeros(num_heads)) if equality_bias else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | Literal["causal"] | None = None,
        cache: LayerCache | None = None,
        head_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        same: Tensor | None = None,
        need_weights: bool = False,
    ) -> Attended:
        """Attend from `x` (B, T, hidden_dim) to itself, or to `context` (B, S, context_dim).

        Parameters
        ----------
        mask
            As in `attention`; a 3-dimensional one (B, T, S) serves all heads.
        cache
            Keys and values of earlier calls; those of this call are added. With `context` they are
            computed in the first call only.
        head_mask
            (H,) or (B, H), multiplies each head's output.
        positions
            (T,) or (B, T), for rotary positions; None: counted on from the cache.
        same
            (B, T, S) or (T, S), True where the equality bias applies.
        """
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.num_heads, self.head_dim).transpose(1, 2)
        offset = cache.length if cache is not None and context is None else 0
        if context is not None and cache is not None and cache.length:
            k, v = cache.view()
        else:
            source = x if context is None else context
            kv = self.kv_proj(source).view(B, source.shape[1], 2 * self.num_kv_heads, self.head_dim)
            k, v = kv.transpose(1, 2).chunk(2, dim=1)
            if context is None and isinstance(self.position, RotaryPositions):
                q, k = self.position(q, k, positions, offset)
            if cache is not None:
                k, v = cache.append(k, v)
        S = k.shape[-2]
        bias = self.position(T, S).to(q.dtype) if isinstance(self.position, AlibiPositions) else None
        if self.equality is not None:
            if same is None:
                raise ValueError("this attention has an equality bias: forward needs same=, (B, T, S) or (T, S)")
            same = same if same.ndim == 2 else same.unsqueeze(1)
            equal = self.equality[:, None, None] * same.to(q.dtype)
            bias = equal if bias is None else bias + equal
        if isinstance(mask, Tensor) and mask.ndim == 3:
            mask = mask.unsqueeze(1)
        y = attention(q, k, v, mask=mask, bias=bias, dropout=self.dropout if self.training else 0.0)
        if head_mask is not None:
            if head_mask.shape[-1:] != (self.num_heads,):
                raise ValueError(f"head_mask needs one number a head ({self.num_heads}), got {tuple(head_mask.shape)}")
            y = y * head_mask.to(y.dtype).reshape(-1, self.num_heads, 1, 1)
        y = self.out_proj(self.merged(y.transpose(1, 2).flatten(2)))
        return Attended(y, attention_weights(q, k, mask=mask, bias=bias) if need_weights else None)


def check_heads(hidden_dim: int, num_heads: int, num_kv_heads: int, *, rotary: bool = False) -> None:
    """Raise ValueError unless the sizes of heads fit together."""
    if hidden_dim < 1 or num_heads < 1 or num_kv_heads < 1:
        raise ValueError(
            f"hidden_dim, num_heads and num_kv_heads must be positive, got {hidden_dim}, {num_heads}, {num_kv_heads}"
        )
    if hidden_dim % num_heads:
        raise ValueError(f"hidden_dim={hidden_dim} is not a multiple of num_heads={num_heads}")
    if num_heads % num_kv_heads:
        raise ValueError(f"num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}")
    if rotary and (hidden_dim // num_heads) % 2:
        raise ValueError(
            f"rotary positions need an even head size, got hidden_dim / num_heads = {hidden_dim // num_heads}"
        )


def _repeat_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if heads == kv_heads:
        return k, v
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key heads")
    return k.repeat_interleave(heads // kv_heads, -3), v.repeat_interleave(heads // kv_heads, -3)


def _check_mask_name(mask: str) -> None:
    if mask != "causal":
        raise ValueError(f"mask must be a Boolean tensor, 'causal' or None, got {mask!r}")


def _check_mask(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be Boolean with True = may be used, got {mask.dtype}: give floats as bias=")
    return torch.atleast_2d(mask)


def _position(position: str | nn.Module | None, head_dim: int, num_heads: int) -> nn.Module | None:
    if position is None or isinstance(position, (RotaryPositions, AlibiPositions)):
        return position
    if position == "rope":
        return RotaryPositions(head_dim)
    if position == "alibi":
        return AlibiPositions(num_heads)
    raise ValueError(f"position must be None, 'rope', 'alibi' or a module of etude.layers.positions, got {position!r}")

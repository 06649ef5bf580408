"""The one transformer block: normalisation, mixer, feed-forward net, and how the three are put together.

Sources: layer norm, Ba et al. 2016; RMS norm, Zhang & Sennrich 2019; gated nets, Shazeer 2020, arXiv 2002.05202;
pre-norm, Xiong et al. 2020; DeepNorm, Wang et al. 2022, arXiv 2203.00555, with its decoder-only constants
``alpha = (2N)^(1/4)``, ``beta = (8N)^(-1/4)``; shared layers and factorised embedding, Lan et al. 2019 (ALBERT).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.attention import MultiHeadAttention, check_heads, make_mask
from etude.layers.cache import KVCache, LayerCache
from etude.layers.positions import AlibiPositions, RotaryPositions

Norm = Literal["layer", "rms"]
Placement = Literal["pre", "post", "deepnorm", "parallel"]
Position = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
FFN = Literal["relu", "gelu", "gelu_tanh", "silu", "reglu", "geglu", "swiglu"]
Init = Literal["gpt2", "torch"]

_GATED: dict[str, Callable[[Tensor], Tensor]] = {"reglu": F.relu, "geglu": F.gelu, "swiglu": F.silu}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Every choice of a transformer stack.

    Parameters
    ----------
    num_kv_heads
        Key and value heads: 1 is multi-query, `num_heads` (None) full attention.
    ffn_dim
        Inner features of the feed-forward net; None: 4 `hidden_dim`, two thirds of that for a gated one, so
        that the numbers of parameters agree.
    placement
        "pre" ``x + f(norm(x))``, "post" ``norm(x + f(x))``, "deepnorm" ``norm(a x + f(x))``, "parallel" (both
        parts read the same ``norm(x)``).
    position
        "rope" and "alibi" act inside the attention, "learned" and "sinusoidal" are added to the input.
    position_scale
        Rotary positions are multiplied by it (trained length / new length).
    mixer
        "attention", or ``make(config, layer) -> module`` whose result maps (B, T, hidden_dim) to the same.
    window
        Attend to the last `window` positions only. None: all.
    share_layers
        One layer's weights for all of the stack.
    embedding_dim
        Width of the token embedding where it differs from `hidden_dim` (it is then projected).
    cross_attention
        Every block also attends to a `context`.
    init
        "gpt2": normal(0, 0.02), output layers smaller by sqrt(2 num_layers), biases 0. "torch": uniform
        within 1 / sqrt(fan_in), biases too.
    """

    num_layers: int
    hidden_dim: int
    num_heads: int = 4
    num_kv_heads: int | None = None
    ffn_dim: int | None = None
    ffn: FFN = "gelu"
    norm: Norm = "layer"
    norm_eps: float = 1e-5
    placement: Placement = "pre"
    position: Position = "learned"
    rope_base: float = 10000.0
    position_scale: float = 1.0
    mixer: Literal["attention"] | Callable[..., nn.Module] = "attention"
    causal: bool = True
    window: int | None = None
    share_layers: bool = False
    embedding_dim: int | None = None
    max_length: int = 512
    dropout: float = 0.0
    bias: bool = True
    attention_bias: bool | None = None
    cross_attention: bool = False
    init: Init = "gpt2"

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        for name, kind in (
            ("ffn", FFN), ("norm", Norm), ("placement", Placement), ("position", Position), ("init", Init),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if self.mixer == "attention":
            kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
            check_heads(self.hidden_dim, self.num_heads, kv_heads, rotary=self.position == "rope")
        elif not callable(self.mixer):
            raise ValueError(f"mixer must be 'attention' or make(config, layer) -> module, got {self.mixer!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        for name in ("max_length", "hidden_dim", "window", "ffn_dim", "embedding_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def inner_dim(self) -> int:
        """Inner features of the feed-forward net."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        return round(8 * self.hidden_dim / 3) if self.ffn in _GATED else 4 * self.hidden_dim


def make_norm(kind: Norm, dim: int, eps: float = 1e-5) -> nn.Module:
    """``nn.LayerNorm`` or ``nn.RMSNorm`` over the last axis."""
    return nn.LayerNorm(dim, eps=eps) if kind == "layer" else nn.RMSNorm(dim, eps=eps)


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` for the gated kinds. (..., D) -> (..., D)."""

    def __init__(self, hidden_dim: int, inner_dim: int, kind: FFN = "gelu", *, bias: bool = True) -> None:
        super().__init__()
        self.kind = kind
        self.gate = nn.Linear(hidden_dim, inner_dim, bias=bias) if kind in _GATED else None
        self.up = nn.Linear(hidden_dim, inner_dim, bias=bias)
        self.down = nn.Linear(inner_dim, hidden_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(_GATED[self.kind](self.gate(x)) * self.up(x))
        return self.down(_PLAIN[self.kind](self.up(x)))


class Block(nn.Module):
    """Mixer and feed-forward net with their norms and residual paths; optionally cross-attention between them."""

    def __init__(self, config: TransformerConfig, layer: int = 0, *, position: nn.Module | None = None) -> None:
        super().__init__()
        c = config
        self.placement = c.placement
        self.alpha = (2 * c.num_layers) ** 0.25 if c.placement == "deepnorm" else 1.0

        def attend(where: nn.Module | None) -> MultiHeadAttention:
            return MultiHeadAttention(
                c.hidden_dim, c.num_heads, num_kv_heads=c.num_kv_heads, position=where,
                bias=c.bias if c.attention_bias is None else c.attention_bias, dropout=c.dropout,
            )  # fmt: skip

        self.mixer = attend(position) if isinstance(c.mixer, str) else c.mixer(c, layer)
        self.mixer_norm = make_norm(c.norm, c.hidden_dim, c.norm_eps)
        self.cross = attend(None) if c.cross_attention else None
        self.cross_norm = make_norm(c.norm, c.hidden_dim, c.norm_eps) if c.cross_attention else None
        self.ffn = FeedForward(c.hidden_dim, c.inner_dim, c.ffn, bias=c.bias)
        self.ffn_norm = None if c.placement == "parallel" else make_norm(c.norm, c.hidden_dim, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Any = None,
        cache: LayerCache | None = None,
        *,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D); `mask`, `cache`, `positions`, `head_mask` as in `MultiHeadAttention`."""

        def mix(h: Tensor) -> Tensor:
            if isinstance(self.mixer, MultiHeadAttention):
                return self.mixer(h, mask=mask, cache=cache, head_mask=head_mask, positions=positions).y
            out = self.mixer(h)
            return out[0] if isinstance(out, tuple) else out

        if self.placement == "parallel":
            h = self.mixer_norm(x)
            return x + self.dropout(mix(h)) + self.dropout(self.ffn(h))
        x = self._residual(x, mix, self.mixer_norm)
        if self.cross is not None:
            if context is None:
                raise ValueError("this block has cross-attention: forward needs context=, (B, S, hidden_dim)")
            cross = self.cross
            x = self._residual(x, lambda h: cross(h, context, context_mask).y, self.cross_norm)
        return self._residual(x, self.ffn, self.ffn_norm)

    def _residual(self, x: Tensor, part: Callable[[Tensor], Tensor], norm: nn.Module | None) -> Tensor:
        assert norm is not None
        if self.placement == "pre":
            return x + self.dropout(part(norm(x)))
        return norm(self.alpha * x + self.dropout(part(x)))


class TransformerStack(nn.Module):
    """`num_layers` blocks, and the last norm that a pre-norm stack needs. (B, T, D) -> (B, T, D).

    Tokens and added positions ("learned", "sinusoidal") are the business of the model around it.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.position: nn.Module | None = None  # one table for all layers
        if c.position == "rope":
            self.position = RotaryPositions(
                c.hidden_dim // c.num_heads, max_length=c.max_length, base=c.rope_base, scale=c.position_scale
            )
        elif c.position == "alibi":
            self.position = AlibiPositions(c.num_heads)
        distinct = 1 if c.share_layers else c.num_layers
        self.blocks = nn.ModuleList(Block(c, i, position=self.position) for i in range(distinct))
        ends_normed = c.placement in ("post", "deepnorm")
        self.norm = nn.Identity() if ends_normed else make_norm(c.norm, c.hidden_dim, c.norm_eps)
        initialize(self, c)

    def layers(self) -> list[Block]:
        """The blocks in the order in which they are applied, a shared one as often as it is used."""
        return [self.blocks[i % len(self.blocks)] for i in range(self.config.num_layers)]  # type: ignore[misc]

    def new_cache(self) -> KVCache:
        """An empty cache for this stack."""
        if self.config.mixer != "attention":
            raise ValueError("a cache is for attention; this stack has a mixer of its own")
        return KVCache(self.config.num_layers)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        padding: Tensor | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """Apply all layers.

        Parameters
        ----------
        mask
            The whole attention mask, (T, S), (B, T, S) or (B, H, T, S), True = may be used. None: causal or
            full as configured, within the window.
        cache
            From `new_cache`; S counts its tokens too.
        padding
            (B, S), True = real token; narrows either mask.
        positions
            (T,) or (B, T) for rotary positions; None: counted on from the cache.
        context, context_mask
            (B, S', D) and a mask broadcastable to (B, H, T, S'), for cross-attention.
        head_mask
            (num_layers, H), multiplies every head's output.
        """
        allowed = self._mask(x, mask, cache, padding)
        for i, block in enumerate(self.layers()):
            x = block(
                x, allowed, None if cache is None else cache[i], positions=positions, context=context,
                context_mask=context_mask, head_mask=None if head_mask is None else head_mask[i],
            )  # fmt: skip
        return self.norm(x)

    def _mask(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, padding: Tensor | None) -> Any:
        c = self.config
        T = x.shape[1]
        S = T + (0 if cache is None else cache.length)
        if mask is None:
            if c.window is not None:
                mask = make_mask("window", T, S, window=c.window, causal=c.causal, device=x.device)
            elif c.causal:
                if padding is None:
                    return "causal"
                mask = make_mask("causal", T, S, device=x.device)
        if padding is None:
            return mask
        if padding.shape[-1] != S:
            raise ValueError(f"padding must have {S} columns (cached and new tokens), got {tuple(padding.shape)}")
        real = padding[:, None, None, :]
        if mask is None:
            return real
        return (mask.unsqueeze(1) if mask.ndim == 3 else mask) & real


def initialize(module: nn.Module, config: TransformerConfig) -> None:
    """Set the weights of `module` as `config.init` and `config.placement` say."""
    layers = 2 * config.num_layers
    beta = (8 * config.num_layers) ** -0.25
    for name, part in module.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(part, nn.Linear) and config.init == "gpt2":
            shrink = math.sqrt(layers) if last in ("out_proj", "down") else 1.0
            nn.init.normal_(part.weight, std=0.02 / shrink)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if config.placement == "deepnorm" and isinstance(part, nn.Linear):
            if last in ("out_proj", "up", "down", "gate"):
                part.weight.data.mul_(beta)
            elif last == "kv_proj":
                part.weight.data[part.out_features // 2 :].mul_(beta)  # the values' half

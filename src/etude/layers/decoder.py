"""A language model that reads from left to right: embedding, transformer stack, head.

Source: Radford et al. 2019 (GPT-2) and Touvron et al. 2023 (LLaMA) are two settings of `DecoderConfig`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import as_generator
from etude.layers.attention import make_mask
from etude.layers.blocks import TransformerConfig, TransformerStack, initialize
from etude.layers.cache import KVCache
from etude.layers.decoding import Allowed, decode
from etude.layers.modes import evaluating
from etude.layers.positions import LearnedPositions, SinusoidalPositions


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(TransformerConfig):
    """A `TransformerConfig` with a vocabulary.

    Parameters
    ----------
    prefix
        The first tokens may see each other in both directions: `forward` takes ``prefix_lengths=``.
    tie
        The head uses the embedding's weights.
    """

    vocab_size: int
    prefix: bool = False
    tie: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {self.vocab_size}")
        if not self.causal:
            raise ValueError("a decoder is causal; use prefix=True for tokens that see each other")
        if self.prefix and self.window is not None:
            raise ValueError("prefix=True and window= do not go together")


class DecoderLM(nn.Module):
    """Causal (or prefix) language model: ids (B, T) -> logits (B, T, vocab_size).

    Examples
    --------
    >>> config = DecoderConfig(num_layers=2, hidden_dim=32, num_heads=4, vocab_size=100, position="rope")
    >>> DecoderLM(config)(torch.zeros(1, 7, dtype=torch.long)).shape
    torch.Size([1, 7, 100])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        width = c.embedding_dim or c.hidden_dim
        self.embed = nn.Embedding(c.vocab_size, width)
        factorised = c.embedding_dim is not None and c.embedding_dim != c.hidden_dim
        self.widen = nn.Linear(width, c.hidden_dim, bias=False) if factorised else None
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        if c.position == "learned":
            self.positions = LearnedPositions(c.max_length, c.hidden_dim)
        elif c.position == "sinusoidal":
            self.positions = SinusoidalPositions(c.max_length, c.hidden_dim)
        self.dropout = nn.Dropout(c.dropout)
        self.stack = TransformerStack(c)
        self.narrow = nn.Linear(c.hidden_dim, width, bias=False) if factorised else None
        self.head = nn.Linear(width, c.vocab_size, bias=False)
        for part in (self.embed, self.widen, self.positions, self.narrow, self.head):
            if part is not None:
                initialize(part, c)
        if c.tie:
            self.head.weight = self.embed.weight
        self._ids_checked = False

    @classmethod
    def from_hf(cls, model: Any) -> "DecoderLM":
        """The same function as a `transformers` causal LM of the LLaMA, Mistral, Qwen2 or GPT-2 kind.

        The weights are copied; logits agree to rounding. A kind that cannot be carried over is a ValueError.
        """
        from etude.layers.decoder_hf import decoder_from_hf

        return decoder_from_hf(model, cls)

    def new_cache(self) -> KVCache:
        """An empty cache for `forward`."""
        return self.stack.new_cache()

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        prefix_lengths: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        Parameters
        ----------
        ids
            (B, T).
        mask
            (B, T), True = real token: padding may stand on either side, positions count real tokens. With a
            cache it covers the new tokens, or (B, S) all of them.
        cache
            From `new_cache`: `ids` are the tokens that follow what it holds.
        prefix_lengths
            (B,) tokens of each row that see each other (config ``prefix=True``).
        head_mask
            (num_layers, H).
        """
        return self.logits(self.hidden(ids, mask, cache, prefix_lengths=prefix_lengths, head_mask=head_mask))

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        *,
        prefix_lengths: Tensor | None = None,
        head_mask: Tensor | None = None,
    ) -> Tensor:
        """The last hidden states (B, T, hidden_dim), before the head; arguments as in `forward`."""
        if ids.ndim != 2:
            raise ValueError(f"ids must be (B, T), got shape {tuple(ids.shape)}")
        past = 0 if cache is None else cache.length
        T = ids.shape[1]
        x = self._embed(ids)
        padding = self._padding(ids, mask, cache, past)
        positions = None
        if padding is not None:
            positions = (padding.cumsum(-1) - 1).clamp_min(0)[:, past:]
        if self.positions is not None:
            where = torch.arange(past, past + T, device=ids.device) if positions is None else positions
            x = x + self.positions(where, past + T)
        x = self.dropout(x)
        attend = None
        if self.config.prefix and prefix_lengths is not None:
            if cache is not None and past:
                raise ValueError("prefix_lengths belong to the first call, which fills the cache with the prefix")
            s = torch.arange(T, device=ids.device)
            inside = s < prefix_lengths[:, None]
            attend = (inside[:, :, None] & inside[:, None, :]) | make_mask("causal", T, device=ids.device)
        elif prefix_lengths is not None:
            raise ValueError("prefix_lengths needs a model built with prefix=True")
        return self.stack(x, attend, cache, padding=padding, positions=positions, head_mask=head_mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head on hidden states (..., hidden_dim) -> (..., vocab_size)."""
        return self.head(hidden if self.narrow is None else self.narrow(hidden))

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        num_samples: int | None = None,
        beam_size: int = 1,
        end_id: int | None = None,
        allowed: Allowed | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Go on from `ids`, in eval mode and with a cache.

        Parameters
        ----------
        ids, mask
            (B, T) and (B, T), True = real token; prompts of different lengths are padded on the left.
        temperature, top_k, top_p, num_samples, generator
            Any of them asks for sampling; else the most likely token is taken, or the best of `beam_size` beams.
            Without a generator a fresh, unpredictable one is made.
        allowed
            See `etude.layers.decode`.

        Returns
        -------
        Tensor
            (B, T + m), or (B, num_samples, T + m), m <= max_new_tokens; -1 behind the end.
        """
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError("the last token of every prompt must be real: pad on the left")
        shaped = temperature != 1.0 or not (top_k is top_p is num_samples is generator is None)
        with evaluating(self):
            cache = self.new_cache()
            if ids.shape[1] > 1:
                self.hidden(ids[:, :-1], None if mask is None else mask[:, :-1], cache)

            def step(last: Tensor, state: KVCache) -> tuple[Tensor, KVCache]:
                return self(last.unsqueeze(1), cache=state)[:, -1], state

            found = decode(
                step, (ids[:, -1], cache), max_steps=max_new_tokens, method="sample" if shaped else "greedy",
                beam_size=beam_size, num_samples=num_samples or 1, temperature=temperature, top_k=top_k, top_p=top_p,
                end_id=end_id, allowed=allowed, generator=as_generator(generator) if shaped else None,
            )  # fmt: skip
        keep = found.sequences.shape[1] if num_samples is not None else 1
        whole = torch.cat([ids.unsqueeze(1).expand(-1, keep, -1), found.sequences[:, :keep]], -1)
        return whole if num_samples is not None else whole.squeeze(1)

    def _embed(self, ids: Tensor) -> Tensor:
        if ids.is_cuda and not (self.training and self._ids_checked) and not torch.compiler.is_compiling():
            self._check_ids(ids)
            self._ids_checked = True
        try:
            x = self.embed(ids)
        except IndexError:
            self._check_ids(ids)
            raise
        return x if self.widen is None else self.widen(x)

    def _check_ids(self, ids: Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(
                f"ids run from {low} to {high}, but the vocabulary has {self.config.vocab_size} entries (0 to "
                f"{self.config.vocab_size - 1})"
            )

    def _padding(self, ids: Tensor, mask: Tensor | None, cache: KVCache | None, past: int) -> Tensor | None:
        """(B, S) of real tokens, or None if all are; kept in the cache for the next call."""
        B, T = ids.shape
        kept = None if cache is None else cache.mask
        if mask is not None:
            mask = mask.bool()
            if mask.shape not in ((B, T), (B, past + T)):
                raise ValueError(f"mask must be {(B, T)} or {(B, past + T)}, got {tuple(mask.shape)}")
        if mask is None and kept is None:
            return None
        if mask is None or mask.shape[1] == T:
            before = ids.new_ones((B, past), dtype=torch.bool) if kept is None else kept
            now = ids.new_ones((B, T), dtype=torch.bool) if mask is None else mask
            mask = torch.cat([before, now], dim=1)
        if cache is not None:
            cache.mask = mask
        return mask

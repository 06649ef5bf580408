"""Encoder-decoders that write symbols, or positions, of a fixed vocabulary.

Source: Sutskever, Vinyals & Le 2014 (no attention, reversed source); Vinyals et al. 2015, arXiv 1506.03134, section 2.2
(attention over the inputs).
"""

from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.pointer_attention import PointerAttention
from etude.layers.seq2seq import EncoderDecoder, Init, Memory


def make_attention(hidden_size: int, init: Init) -> PointerAttention:
    """Pointer attention over LSTM states. "scaled" makes both projections 8 times and v twice torch's size: LSTM states
    are small, and while tanh is almost linear the score is a sum of a query's and an item's part, which no query can
    tell apart; training then starts with a long plateau."""
    attention = PointerAttention(hidden_size, hidden_size)
    for name, p in attention.named_parameters():
        if init == "uniform":
            nn.init.uniform_(p, -0.08, 0.08)
        elif init == "scaled":
            with torch.no_grad():
                p.mul_(2.0 if name == "v" else 8.0)
    return attention


class RecurrentSeq2Seq(EncoderDecoder):
    """Encoder-decoder with a softmax of fixed size, with or without attention over the inputs.

    Parameters
    ----------
    input_size, hidden_size
        Width of the inputs (of the embeddings, with `symbols`) and of both LSTMs.
    max_length
        Outputs are input positions 0..max_length - 1; the chosen input is fed back, as in a pointer network.
    symbols
        Inputs and outputs are symbols 0..symbols - 1, embedded; x is then (batch, n) integers. Exactly one of
        `max_length` and `symbols` is given.
    attention
        Score the inputs as a pointer network does, but blend them: the output layer sees [d_i, sum_j a_ij e_j].
    reverse_source
        The encoder reads each row backwards (Sutskever et al. 2014); outputs and feedback stay as they are.

    Raises
    ------
    ValueError
        When neither or both are given; in use, for more inputs than `max_length`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, max_length: int | None = None, symbols: int | None = None,
        attention: bool = False, reverse_source: bool = False, num_layers: int = 1, init: Init = "scaled",
    ) -> None:  # fmt: skip
        if (max_length is None) == (symbols is None):
            raise ValueError(f"give one of max_length and symbols, got {max_length} and {symbols}")
        super().__init__(input_size, hidden_size, num_layers=num_layers, init=init)
        size = max_length if max_length is not None else symbols
        assert size is not None
        if size < 1:
            raise ValueError(f"max_length and symbols must be at least 1, got {size}")
        self.size, self.feeds_back_inputs, self.reverse_source = size, symbols is None, reverse_source
        self.embed = None if symbols is None else nn.Embedding(symbols, input_size)
        self.attention = make_attention(hidden_size, init) if attention else None
        self.head = nn.Linear(hidden_size * (2 if attention else 1), size + 1)

    def _slots(self, n: int) -> int:
        return self.size + 1

    def _check_input(self, x: Tensor) -> None:
        if self.embed is None:
            super()._check_input(x)
            if x.shape[1] > self.size:
                raise ValueError(f"{x.shape[1]} inputs, but the output layer has {self.size} positions")
        elif x.dim() != 2 or x.is_floating_point() or x.shape[1] < 1:
            raise ValueError(f"x must be symbols (batch, n >= 1), got {x.dtype} {tuple(x.shape)}")
        elif x.numel() and (int(x.min()) < 0 or int(x.max()) >= self.size):
            raise ValueError(f"symbols must lie in 0..{self.size - 1}, got {int(x.min())}..{int(x.max())}")

    def _embed(self, x: Tensor) -> Tensor:
        return x if self.embed is None else self.embed(x)

    def _feedback(self, memory: Memory, index: Tensor) -> Tensor:
        return super()._feedback(memory, index) if self.embed is None else self.embed(index.clamp_min(0))

    def _prepare(self, memory: Memory) -> Any:
        return None if self.attention is None else self.attention.keys(memory.encoded)

    def _score(self, query: Tensor, memory: Memory, prepared: Any, mask: Tensor | None) -> Tensor:
        if self.attention is not None:
            n = memory.encoded.shape[1]
            real = None if memory.sizes is None else torch.arange(n, device=query.device) < memory.sizes[:, None]
            weights = self.attention.score(query, prepared, real).softmax(-1)
            blend = weights.to(memory.encoded.dtype) @ memory.encoded  # scores are float32 in half precision
            query = torch.cat([query, blend], dim=-1)
        logits = self.head(query)
        if mask is None:
            return logits
        return logits.masked_fill(~(mask if mask.dim() == 3 else mask.unsqueeze(1)), -torch.inf)

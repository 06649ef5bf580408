"""Pointer networks: a sequence-to-sequence model whose output vocabulary is its input.

Source: Vinyals, Fortunato & Jaitly 2015, arXiv 1506.03134, section 2.3:
u^i_j = v^T tanh(W1 e_j + W2 d_i), p(C_i | C_1..C_{i-1}, X) = softmax_j(u^i), next decoder input x[C_i].
Differs from the paper: slot 0 of the memory is a learned vector, and pointing at it ends the sequence (the paper only
says that special tokens begin and end it); initial weights are larger unless ``init="uniform"``, which ends the long
plateau that training otherwise starts with.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.seq2seq import EncoderDecoder, Init, Memory
from etude.layers.seq2seq_fixed import make_attention


class PointerNetwork(EncoderDecoder):
    """Map a sequence of vectors to a sequence of positions in it.

    Parameters
    ----------
    input_size
        Width of an input vector.
    hidden_size
        Width of the LSTMs and of the attention.
    num_layers
        LSTM layers in encoder and decoder.
    init
        "scaled": orthogonal recurrent blocks, input weights and attention large enough that scores depend on query
        and item together from the first step (see `make_attention`); "orthogonal": recurrent blocks only; "uniform":
        everything within 0.08 (the paper's); None: torch's.

    Examples
    --------
    >>> net = PointerNetwork(input_size=2, hidden_size=16)
    >>> x, target = torch.rand(3, 5, 2), torch.tensor([[0, 3, 2], [1, 4, -1], [2, 0, 1]])
    >>> net(x, target).logits.shape
    torch.Size([3, 3, 6])
    >>> net.generate(x, beam_size=2, mask="permutation").sequences.shape
    torch.Size([3, 5])
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1,
        init: Init = "scaled",
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, num_layers=num_layers, init=init)
        self.attention = make_attention(hidden_size, init)
        self.end = nn.Parameter(torch.empty(hidden_size).uniform_(-0.1, 0.1))
        if init == "uniform":
            nn.init.uniform_(self.end, -0.08, 0.08)
            nn.init.uniform_(self.start, -0.08, 0.08)

    def _prepare(self, memory: Memory) -> Tensor:
        end = self.end.expand(memory.encoded.shape[0], 1, -1)
        return self.attention.keys(torch.cat([end, memory.encoded], dim=1))

    def _score(self, query: Tensor, memory: Memory, prepared: Any, mask: Tensor | None) -> Tensor:
        return self.attention.score(query, prepared, mask)

"""A recurrent language model over any recurrent module."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.cross_entropy import masked_cross_entropy
from etude.layers.decoding import Decoded, decode
from etude.layers.modes import evaluating
from etude.layers.recurrent import run_rnn, swap_rows
from etude.layers.recurrent_cells import check_batch_first, output_width


class LMOutput(NamedTuple):
    """Loss is None for a single symbol (nothing to predict)."""

    loss: Tensor | None
    """Mean negative log-probability of the next symbol, nats; padding left out."""
    logits: Tensor
    """(batch, time, vocabulary)."""
    state: Any
    hidden: Tensor
    """(batch, time, hidden)."""


class RecurrentLM(nn.Module):
    """Embedding, recurrent net, linear head: ids (batch, time) -> next-symbol logits.

    Parameters
    ----------
    rnn
        A causal recurrent module of `make_rnn` or `torch.nn`, batch first, `input_size` = `embedding_dim`.
    embedding_dim
        None: the rnn's `input_size`.
    tie
        The head uses the embedding's weights (needs hidden width = `embedding_dim`).
    dropout
        On the embeddings and before the head; never on the recurrent path.

    Raises
    ------
    ValueError
        For a bidirectional rnn, one that is not batch first, widths that do not fit, or ids outside the vocabulary.
    """

    def __init__(
        self, rnn: nn.Module, vocab_size: int, embedding_dim: int | None = None, *, tie: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        embedding_dim = int(rnn.input_size) if embedding_dim is None else embedding_dim  # type: ignore[arg-type]
        if getattr(rnn, "bidirectional", False):
            raise ValueError("a language model must not see the future: the rnn is bidirectional")
        check_batch_first(rnn)
        if embedding_dim != rnn.input_size:
            raise ValueError(f"embedding_dim {embedding_dim} differs from the rnn's input_size {rnn.input_size}")
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        width = output_width(rnn)
        if tie and width != embedding_dim:
            raise ValueError(f"tied weights need equal widths, got hidden {width} and embedding {embedding_dim}")
        self.rnn, self.vocab_size = rnn, vocab_size
        self.embed = nn.Embedding(vocab_size, embedding_dim)
        self.head = nn.Linear(width, vocab_size)
        if tie:
            self.head.weight = self.embed.weight
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor, state: Any = None, lengths: Tensor | None = None) -> LMOutput:
        """Logits of the symbol after each step, and the mean loss of symbols 2..time (up to `lengths`)."""
        hidden, state = self.run(ids, state, lengths)
        logits = self.head(self.dropout(hidden))
        loss = None
        if ids.shape[1] > 1:
            target = ids[:, 1:]
            if lengths is not None:
                steps = torch.arange(1, ids.shape[1], device=ids.device)
                target = target.masked_fill(steps >= torch.as_tensor(lengths, device=ids.device)[:, None], -100)
            loss = masked_cross_entropy(logits[:, :-1], target)
        return LMOutput(loss, logits, state, hidden)

    def run(self, ids: Tensor, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Hidden states (batch, time, hidden) and the state after the last step."""
        if ids.dim() != 2 or ids.is_floating_point():
            raise ValueError(f"ids must be integers of shape (batch, time), got {ids.dtype} {tuple(ids.shape)}")
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            raise ValueError(f"ids must lie in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")
        x = self.dropout(self.embed(ids))
        return self.rnn(x, state) if lengths is None else run_rnn(self.rnn, x, state, lengths)

    def window_loss(self, y: Tensor, steps: slice, ids: Tensor) -> Tensor:
        """Loss of the hidden states y of some steps, each against the symbol after it (see `tbptt`)."""
        target = ids[:, steps.start + 1 : steps.stop + 1]
        logits = self.head(self.dropout(y[:, : target.shape[1]]))
        return masked_cross_entropy(logits, target)  # 0 for the last symbol alone: nothing to predict

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        *,
        max_steps: int,
        method: Literal["greedy", "beam", "sample"] = "greedy",
        beam_size: int = 1,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        end_id: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Decoded:
        """Go on after a prompt (batch, time >= 1), read once for all beams or samples, in eval mode; see `decode`."""
        if prompt.dim() != 2 or prompt.shape[1] < 1:
            raise ValueError(f"a prompt needs shape (batch, time) with at least one symbol, got {tuple(prompt.shape)}")

        def step(last: Tensor, state: Any) -> tuple[Tensor, Any]:
            hidden, state = self.run(last[:, None], None if state is None else swap_rows(state))
            return self.head(self.dropout(hidden))[:, 0], swap_rows(state)

        with evaluating(self):
            state = self.run(prompt[:, :-1])[1] if prompt.shape[1] > 1 else None
            return decode(
                step, (prompt[:, -1], None if state is None else swap_rows(state)), max_steps=max_steps, method=method,
                beam_size=beam_size, num_samples=num_samples, temperature=temperature, top_k=top_k, top_p=top_p,
                end_id=end_id, generator=generator,
            )  # fmt: skip

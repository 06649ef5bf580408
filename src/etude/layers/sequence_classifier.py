"""A recurrent net that reads a row of symbols and names its class at the last step."""

import torch
from torch import Tensor, nn

from etude.layers.recurrent_cells import check_batch_first, check_lengths, output_width


class SequenceClassifier(nn.Module):
    """Embedding, recurrent net, linear head on the output at each row's last true step.

    Parameters
    ----------
    rnn
        Batch first, one direction; returns its outputs (batch, time, width), alone or first of a tuple.
    width
        Width of these outputs; None: what the rnn's own sizes say.
    pad_read
        Read the output after the padding instead, as some published code does.

    Raises
    ------
    ValueError
        For a bidirectional rnn, whose last step has not read the row, or one that is not batch first; in use, for a
        length outside of 1..time.
    """

    def __init__(
        self, rnn: nn.Module, vocab_size: int, num_classes: int, width: int | None = None, *, pad_read: bool = False
    ) -> None:
        super().__init__()
        if getattr(rnn, "bidirectional", False):
            raise ValueError("the last step of a bidirectional net has read one symbol backwards: use one direction")
        check_batch_first(rnn)
        self.embed = nn.Embedding(vocab_size, int(rnn.input_size))  # type: ignore[arg-type]
        self.rnn, self.pad_read = rnn, pad_read
        self.head = nn.Linear(output_width(rnn) if width is None else width, num_classes)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, num_classes) of ids (batch, time); `lengths` (batch,), None: all steps are true."""
        y = self.rnn(self.embed(ids))
        y = y[0] if isinstance(y, tuple) else y
        if lengths is None or self.pad_read:
            return self.head(y[:, -1])
        last = check_lengths(lengths, ids).to(y.device) - 1
        return self.head(y[torch.arange(len(y), device=y.device), last])

"""A recurrent net (or a time window) with a linear readout at every step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.cross_entropy import masked_cross_entropy
from etude.layers.recurrent import make_rnn, run_rnn
from etude.layers.recurrent_cells import JordanRNN, check_batch_first, output_width
from etude.layers.recurrent_truncation import tbptt
from etude.layers.time_window import TimeWindow


class SequenceReadout(nn.Module):
    """Label every step: symbols (batch, time) or numbers (batch, time, d) -> (batch, time, num_outputs).

    Symbols are fed one-hot. A Jordan net is its own readout when its softmax output is as wide as the labels: what
    it feeds back is then the very output that is trained.

    Parameters
    ----------
    rnn
        Batch first, called as ``rnn(x, state, lengths) -> y, state``; its `input_size` is `num_inputs`.
    num_inputs
        Number of symbols, or width of the numbers.
    num_outputs
        Number of labels; 1 for a regression.

    Raises
    ------
    ValueError
        If the rnn is not batch first, or its input size differs from `num_inputs`.
    """

    def __init__(self, rnn: nn.Module, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        check_batch_first(rnn)
        if rnn.input_size != num_inputs:
            raise ValueError(f"the rnn takes inputs of width {rnn.input_size}, not {num_inputs}")
        self.rnn, self.num_inputs, self.num_outputs = rnn, num_inputs, num_outputs
        own = isinstance(rnn, JordanRNN) and rnn.output_activation == "softmax" and rnn.output_size == num_outputs
        one_way = not getattr(rnn, "bidirectional", False)
        self.head = None if own and one_way else nn.Linear(output_width(rnn), num_outputs)

    def encode(self, x: Tensor) -> Tensor:
        """Symbols one-hot, numbers as they are."""
        if x.is_floating_point():
            return x
        return F.one_hot(x, self.num_inputs).to(next(self.parameters()).dtype)

    def read(self, y: Tensor) -> Tensor:
        """Logits of the recurrent net's outputs."""
        return y.clamp_min(1e-30).log() if self.head is None else self.head(y)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (batch, time, num_outputs)."""
        inputs = self.encode(x)
        y, _ = self.rnn(inputs) if lengths is None else run_rnn(self.rnn, inputs, None, lengths)
        return self.read(y)

    def loss(self, x: Tensor, target: Tensor, *, truncate: int | None = None) -> Tensor:
        """Mean loss of the steps that have a target.

        Parameters
        ----------
        target
            (batch, time): labels with -100 where none is asked for (cross-entropy), or numbers with NaN (squares).
        truncate
            Reach of the gradient in steps (`tbptt` with k1 = k2 = truncate); None: the whole sequence.

        Raises
        ------
        ValueError
            For `truncate` with a net of two directions, or with a time window, which has no state to carry on.
        """
        if truncate is None:
            return _loss(self.forward(x), target)
        if isinstance(self.rnn, TimeWindow):  # each piece would begin without the inputs before it
            raise ValueError(
                f"truncate={truncate}: a time window carries no state from piece to piece, and its gradient never "
                f"reaches further than its {self.rnn.window} inputs; leave truncate out"
            )
        counted = (~target.isnan() if target.is_floating_point() else target != -100).sum(0)

        def window(y: Tensor, steps: slice) -> Tensor:
            return _loss(self.read(y), target[:, steps]) * counted[steps].sum() / counted.sum().clamp(min=1)

        parts = tbptt(self.rnn, self.encode(x), truncate, truncate, loss_fn=window)
        return torch.stack([part.loss for part in parts]).sum()


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    if not target.is_floating_point():
        return masked_cross_entropy(logits, target)
    asked = ~target.isnan()
    gap = torch.where(asked, logits[..., 0] - torch.where(asked, target, 0.0), 0.0)
    return gap.square().sum() / asked.sum().clamp(min=1)


def matched_hidden(num_inputs: int, num_outputs: int, hidden_size: int) -> int:
    """Hidden size of a one-directional LSTM with readout that has no more parameters than a bidirectional one.

    `hidden_size` is that of each direction of the bidirectional net; the match is the largest that fits.
    """

    def size(h: int, directions: int) -> int:
        return directions * (4 * h * (h + num_inputs + 2) + h * num_outputs) + num_outputs

    h = hidden_size
    while size(h + 1, 1) <= size(hidden_size, 2):
        h += 1
    return h


READOUTS = ("elman", "relu", "jordan", "lstm97", "lstm", "gru", "memory", "unidirectional", "bidirectional", "window")


def make_readout(
    name: str, num_inputs: int, num_outputs: int, hidden_size: int, *, window: int = 10
) -> SequenceReadout:
    """A net that labels every step, by the name of what it remembers with.

    Parameters
    ----------
    name
        A cell of `make_rnn`; "relu" (Elman net with relu, recurrent weights started at the identity: Le et al. 2015);
        "jordan" feeds its own label distribution back; "bidirectional" (two LSTMs); "unidirectional" (one LSTM with
        as many parameters as those two); "window" (no state: a feed-forward net over the last `window` inputs).

    Raises
    ------
    ValueError
        For an unknown name.
    """
    rnn: nn.Module
    if name == "window":
        rnn = TimeWindow(num_inputs, hidden_size, window)
    elif name == "relu":
        rnn = make_rnn("elman", num_inputs, hidden_size, activation="relu", init="identity")
    elif name == "jordan":
        rnn = make_rnn("jordan", num_inputs, hidden_size, output_size=num_outputs, output_activation="softmax")
    elif name == "bidirectional":
        rnn = make_rnn("lstm", num_inputs, hidden_size, bidirectional=True)
    elif name == "unidirectional":
        rnn = make_rnn("lstm", num_inputs, matched_hidden(num_inputs, num_outputs, hidden_size))
    elif name in READOUTS:
        rnn = make_rnn(name, num_inputs, hidden_size)
    else:
        raise ValueError(f"name must be one of {', '.join(READOUTS)}, got {name!r}")
    return SequenceReadout(rnn, num_inputs, num_outputs)

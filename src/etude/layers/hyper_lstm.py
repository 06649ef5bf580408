"""An LSTM whose weights another, smaller LSTM rescales at every step: the dynamic target of the survey's criterion 4.

Source: Ha, Dai & Le 2017, arXiv 1609.09106, section 3.2 (dynamic hypernetworks), equations 8 to 13.
"""

import torch
from torch import Tensor, nn

from etude.layers.recurrent_cells import Parts, ScannedRNN, Weights


class HyperLSTM(ScannedRNN):
    """Gates i, f, g, o of the main cell: ``d_x(z_x) * (W x) + d_h(z_h) * (U h) + d_b(z_b) + b``.

    A hyper-LSTM of `hyper_size` units reads [h_{t-1}, x_t]; its state gives z_x, z_h, z_b (`embed_size` numbers for
    each gate), and d_x, d_h, d_b are linear in those. All scales start at 1 and d_b at 0, so that a fresh HyperLSTM
    equals `torch.nn.LSTM` with its weights. The paper starts the scales at 0.1, in front of a layer norm that removes
    the size; there is no layer norm here.

    ``y (batch, time, hidden), (h, c, hyper h, hyper c)`` of x (batch, time, input), as in `ScannedRNN`.

    Raises
    ------
    ValueError
        For a size below 1.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, hyper_size: int = 16, embed_size: int = 4, num_layers: int = 1,
        bidirectional: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        if min(input_size, hidden_size, hyper_size, embed_size) < 1:
            raise ValueError(f"sizes must be at least 1, got {(input_size, hidden_size, hyper_size, embed_size)}")
        self.hyper_size, self.embed_size = hyper_size, embed_size
        super().__init__(
            input_size, hidden_size, hidden_size, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout
        )
        for name, p in self.named_parameters():
            with torch.no_grad():
                if name.startswith("bias_z"):
                    p.fill_(1.0)
                if name.startswith("weight_z"):
                    p.zero_()
                if name.startswith("weight_d"):
                    p.fill_(1 / embed_size)

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        both = 4 * (self.hidden_size + self.hyper_size)  # the main gates, then the hyper gates
        return {
            "weight_ih": (both, width), "weight_hh": (both, self.hidden_size), "bias_ih": (both,), "bias_hh": (both,),
            "weight_nn": (4 * self.hyper_size, self.hyper_size), "weight_z": (12 * self.embed_size, self.hyper_size),
            "bias_z": (8 * self.embed_size,), "weight_d": (3, 4, self.hidden_size, self.embed_size),
        }  # fmt: skip

    @property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.hidden_size,), (self.hidden_size,), (self.hyper_size,), (self.hyper_size,))

    def _weights(self, suffix: str) -> Weights:
        """The main gates' bias stands apart: it is added after the scales."""
        w, main = super()._weights(suffix), 4 * self.hidden_size
        bias = w["bias_ih"] + w["bias_hh"]
        rest = torch.cat([torch.zeros_like(bias[:main]), bias[main:]])
        shift = torch.cat([w["bias_z"], w["bias_z"].new_zeros(4 * self.embed_size)])  # z_b has no bias
        return w | {"bias": bias[:main], "bias_ih": rest, "bias_hh": torch.zeros_like(rest), "bias_z": shift}

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        h, c, hyper_h, hyper_c = state
        main = 4 * self.hidden_size
        recurrent = h @ w["weight_hh"]
        hyper_h, hyper_c = _lstm(u[:, main:] + recurrent[:, main:] + hyper_h @ w["weight_nn"].t(), hyper_c)
        z = torch.addmm(w["bias_z"], hyper_h, w["weight_z"].t()).view(-1, 3, 4, self.embed_size)
        scale_x, scale_h, shift = torch.einsum("bkge,kghe->kbgh", z, w["weight_d"]).flatten(2)
        h, c = _lstm(scale_x * u[:, :main] + scale_h * recurrent[:, :main] + shift + w["bias"], c)
        return h, c, hyper_h, hyper_c


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM step from pre-activations (batch, 4 n) in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def as_hyper_lstm(lstm: nn.LSTM, *, hyper_size: int = 16, embed_size: int = 4) -> HyperLSTM:
    """A HyperLSTM that computes what a trained one-directional `lstm` computes, free to rescale its weights.

    It is in the mode of `lstm`, training or evaluation.

    Raises
    ------
    ValueError
        For a bidirectional LSTM, one without biases, with projections, or that reads time first.
    """
    if lstm.bidirectional or not lstm.bias or lstm.proj_size:
        raise ValueError("takes an LSTM in one direction, with biases and without projection")
    if not lstm.batch_first:  # the same numbers read as other axes would give other numbers without a word
        raise ValueError(
            "this LSTM reads (time, batch, input), a HyperLSTM (batch, time, input): set lstm.batch_first = True and "
            "give batches first"
        )
    made = HyperLSTM(
        lstm.input_size, lstm.hidden_size, hyper_size=hyper_size, embed_size=embed_size, num_layers=lstm.num_layers,
        dropout=lstm.dropout,
    )  # fmt: skip
    with torch.no_grad():
        for name, p in lstm.named_parameters():
            getattr(made, name)[: len(p)] = p
    like = lstm.get_parameter("weight_ih_l0")
    return made.to(like).train(lstm.training)

"""Recurrent nets under one call: `make_rnn(cell, input_size, hidden_size)`.

Every module returns what `torch.nn.LSTM` returns, ``rnn(x, state, lengths) -> y, state``, batch first. The standard
cells are `torch.nn` modules (cuDNN and oneDNN kernels stay in use); the historical ones are scanned in Python with
the input half of all steps computed in one matmul (`etude.layers.recurrent_cells`).

Source: Lipton, Berkowitz & Elkan 2015, arXiv 1506.00019, sections 3 and 4.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from etude.data.randomness import seeded_build
from etude.layers.recurrent_cells import (
    JordanRNN,
    LinearRNN,
    OuterProductLSTM,
    PeepholeLSTM,
    check_lengths,
)
from etude.layers.recurrent_memory import MemoryLSTM

CELLS = ("elman", "jordan", "lstm97", "lstm", "gru", "outer_product", "memory")
State = Tensor | tuple[Tensor, Tensor] | None
Lengths = Tensor | Sequence[int] | None


class _WithLengths:
    """Adds `lengths` to a batch-first torch.nn recurrent module: padding touches neither state nor output."""

    def forward(self, x, state=None, lengths: Lengths = None):  # type: ignore[no-untyped-def]
        """``y (batch, time, directions * hidden), state``; `lengths` (batch,) in any order, None: all steps."""
        if lengths is None:
            return super().forward(x, state)  # type: ignore[misc]
        return _packed(super().forward, self, x, state, lengths)  # type: ignore[misc]


def _packed(forward: Callable[..., Any], rnn: Any, x: Tensor, state: Any, lengths: Any) -> tuple[Tensor, Any]:
    size = check_lengths(lengths, x)
    if bool((size == x.shape[1]).all()):
        return forward(x, state)
    if state is not None:  # packing would take some of the rows of a larger state
        check_state(rnn, state, x)
    packed = pack_padded_sequence(x, size.cpu(), batch_first=True, enforce_sorted=False)
    y, state = forward(packed, state)
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], state


def run_rnn(rnn: nn.Module, x: Tensor, state: Any, lengths: Lengths) -> tuple[Tensor, Any]:
    """``rnn(x, state, lengths)``, also of a plain `torch.nn` module (batch first), which takes no lengths itself."""
    if isinstance(rnn, nn.RNNBase) and not isinstance(rnn, _WithLengths):
        return _packed(rnn, rnn, x, state, lengths)
    return rnn(x, state, lengths)


def check_state(rnn: Any, state: Any, x: Tensor) -> None:
    """RuntimeError, worded as torch's, unless every part of the state is (layers * directions, batch, width)."""
    parts = state if isinstance(state, tuple) else (state,)
    layers = rnn.num_layers * (2 if rnn.bidirectional else 1)
    for i, part in enumerate(parts):
        width = rnn.proj_size or rnn.hidden_size if i == 0 else rnn.hidden_size
        if tuple(part.shape) != (layers, x.shape[0], width):
            raise RuntimeError(f"Expected hidden[{i}] size {(layers, x.shape[0], width)}, got {list(part.shape)}")


class ElmanRNN(_WithLengths, nn.RNN):
    """`torch.nn.RNN` (h_t = act(W x_t + U h_{t-1} + b), act tanh or relu) that takes `lengths`."""


class LSTM(_WithLengths, nn.LSTM):
    """`torch.nn.LSTM` that takes `lengths`."""


class GRU(_WithLengths, nn.GRU):
    """`torch.nn.GRU` that takes `lengths`."""


def make_rnn(
    cell: str,
    input_size: int,
    hidden_size: int,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    forget_gate: bool = True,
    peephole: bool = False,
    init: Literal["orthogonal", "identity", "uniform"] | float | None = None,
    activation: Literal["tanh", "relu", "linear"] = "tanh",
    output_size: int | None = None,
    output_activation: Literal["softmax", "sigmoid", "tanh", "identity"] = "tanh",
    num_heads: int = 1,
    slots: int = 16,
    dropout: float = 0.0,
    causal: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A recurrent module, batch first: ``rnn(x (B, T, d), state=None, lengths=None) -> y (B, T, D * h), state``.

    Parameters
    ----------
    cell
        "elman" (hidden state fed back), "jordan" (output fed back), "lstm97" (no forget gate), "lstm", "gru",
        "outer_product" (LSTM with a matrix memory per head), "memory" (LSTM that reads and writes slots of
        an outer memory; its outputs, with what was read, are twice as wide).
    bidirectional
        A second net reads the sequence backwards (Schuster & Paliwal 1997); both outputs are concatenated.
    forget_gate, peephole
        LSTM only. Without a forget gate the cell can only add ("lstm97"); with peepholes the gates see the cell.
    init
        None: torch's own. "orthogonal", "identity": of each recurrent block (biases 0). "uniform": all weights
        within 0.08, as in early sequence-to-sequence work. A number: recurrent blocks scaled to that spectral radius.
        LSTM forget biases sum to 1 in every case (torch has two bias vectors).
    activation
        Elman and Jordan only; "linear" is for the study of gradients.
    output_size, output_activation
        Jordan only: y_t = output_activation(W_o h_t + b), returned and fed back; None: `hidden_size`.
    num_heads
        Outer-product only: `hidden_size` is split into this many square memories.
    slots
        Memory only: number of slots.
    dropout
        Between layers only, never on the recurrent path (Zaremba et al. 2014).
    causal
        True: the module must not look ahead, so `bidirectional` is refused.
    generator
        Source of the initial weights; None: torch's global generator, like any `torch.nn` constructor.

    Returns
    -------
    nn.Module
        A `torch.nn.RNN`, `LSTM` or `GRU` where one exists for the options.

    Raises
    ------
    ValueError
        For an unknown cell, options that the cell has not, or `bidirectional` with `causal`.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if causal and bidirectional:
        raise ValueError("a bidirectional net needs the whole sequence: it cannot be causal, so drop one of the two")
    if (peephole or not forget_gate) and cell not in ("lstm", "lstm97"):
        raise ValueError(f"forget_gate and peephole are options of the LSTM, not of {cell!r}")
    if activation != "tanh" and cell not in ("elman", "jordan"):
        raise ValueError(f"activation is an option of elman and jordan, not of {cell!r}")
    if activation not in ("tanh", "relu", "linear"):
        raise ValueError(f"activation must be tanh, relu or linear, got {activation!r}")
    if cell != "jordan" and (output_size is not None or output_activation != "tanh"):
        raise ValueError(f"output_size and output_activation are options of jordan, not of {cell!r}")
    if cell != "outer_product" and num_heads != 1:
        raise ValueError(f"num_heads is an option of outer_product, not of {cell!r}")
    if cell != "memory" and slots != 16:
        raise ValueError(f"slots is an option of memory, not of {cell!r}")

    def build() -> nn.Module:
        common: dict[str, Any] = dict(num_layers=num_layers, bidirectional=bidirectional, dropout=dropout)
        if cell == "gru":
            return GRU(input_size, hidden_size, batch_first=True, **common)
        if cell == "lstm" and forget_gate and not peephole:
            return LSTM(input_size, hidden_size, batch_first=True, **common)
        if cell in ("lstm", "lstm97"):
            gate = forget_gate and cell == "lstm"
            return PeepholeLSTM(input_size, hidden_size, forget_gate=gate, peephole=peephole, **common)
        if cell == "outer_product":
            return OuterProductLSTM(input_size, hidden_size, num_heads=num_heads, **common)
        if cell == "memory":
            return MemoryLSTM(input_size, hidden_size, slots=slots, **common)
        if cell == "jordan":
            return JordanRNN(
                input_size, hidden_size, output_size=output_size, activation=activation,
                output_activation=output_activation, **common,
            )  # fmt: skip
        if activation == "linear":
            return LinearRNN(input_size, hidden_size, **common)
        return ElmanRNN(input_size, hidden_size, nonlinearity=activation, batch_first=True, **common)

    rnn = build() if generator is None else seeded_build(build, generator)
    initialize(rnn, init, generator=generator)
    return rnn


@torch.no_grad()
def initialize(
    rnn: nn.Module, init: str | float | None = None, *, generator: torch.Generator | None = None
) -> nn.Module:
    """Initialise a recurrent module in place (see `make_rnn`, `init`) and set LSTM forget biases to sum to 1."""
    if isinstance(init, str) and init not in ("orthogonal", "identity", "uniform"):
        raise ValueError(f"init must be orthogonal, identity, uniform or a spectral radius, got {init!r}")
    if isinstance(init, (int, float)) and not 0 <= init < math.inf:
        raise ValueError(f"a spectral radius must be finite and at least 0, got {init}")
    for name, p in rnn.named_parameters():
        if init == "uniform":
            p.uniform_(-0.08, 0.08, generator=generator)
        elif name.startswith("weight_hh"):
            for block in p.split(p.shape[1]) if p.shape[0] % p.shape[1] == 0 else (p,):
                if init == "orthogonal":
                    nn.init.orthogonal_(block, generator=generator)
                elif init == "identity":
                    nn.init.eye_(block)
                elif init is not None:
                    if isinstance(rnn, OuterProductLSTM) or p.shape[1] != rnn.hidden_size:
                        raise ValueError(f"init={init}: {type(rnn).__name__} feeds no square block back to scale")
                    block.mul_(float(init) / spectral_radius(block))
        elif init in ("orthogonal", "identity") and name.startswith("bias"):
            p.zero_()
    if isinstance(rnn, (nn.LSTM, MemoryLSTM)) or (isinstance(rnn, PeepholeLSTM) and rnn.forget_gate):
        h = rnn.hidden_size
        for name, p in rnn.named_parameters():
            if name.startswith("bias_ih"):
                p[h : 2 * h] = 1.0  # the gates stand in the order i, f, g, o
            elif name.startswith("bias_hh"):
                p[h : 2 * h] = 0.0
    return rnn


def swap_rows(state: Any) -> Any:
    """A recurrent state (layers, batch, ...) with rows on the first axis, as `decode` wants it, or back."""
    if isinstance(state, tuple):
        return tuple(swap_rows(s) for s in state)
    return state.transpose(0, 1).contiguous()


def spectral_radius(matrix: Tensor) -> float:
    """Largest absolute eigenvalue of a square matrix; ValueError for another shape."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a spectral radius needs a square matrix, got {tuple(matrix.shape)}")
    return float(torch.linalg.eigvals(matrix.detach().double()).abs().max())

"""Recurrent nets that torch has no kernel for: Jordan, linear, LSTM variants, outer-product LSTM.

One scan serves all: the input half of every step is one matmul over all steps, the Python loop carries only the
recurrent half. Parameters are named as in `torch.nn` (weight_ih_l0, weight_hh_l0_reverse, ...).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[Tensor, ...]
Weights = dict[str, Tensor]


def check_lengths(lengths: Tensor | Sequence[int], x: Tensor) -> Tensor:
    """Lengths as int64 (batch,); ValueError unless each is a whole number in 1..time of x (batch, time, ...)."""
    given = torch.as_tensor(lengths)
    size = given.to(torch.int64)
    if size.dim() != 1 or size.shape[0] != x.shape[0]:
        raise ValueError(f"lengths must have shape ({x.shape[0]},), got {tuple(size.shape)}")
    wrong = (size < 1) | (size > x.shape[1])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"row {row}: length {int(size[row])} is not in 1..{x.shape[1]}")
    if given.is_floating_point() and bool((given != size).any()):
        row = int((given != size).nonzero()[0])
        raise ValueError(f"row {row}: length {float(given[row]):g} is not a whole number of steps")
    return size


def check_batch_first(rnn: nn.Module) -> None:
    """ValueError for a `torch.nn` module that reads (time, batch, input): it would take rows for steps."""
    if not getattr(rnn, "batch_first", True):
        raise ValueError(f"{type(rnn).__name__} reads (time, batch, input): make it with batch_first=True")


def output_width(rnn: Any) -> int:
    """Width of a recurrent net's outputs, both directions together: an LSTM may project, a Jordan net names its own."""
    width = getattr(rnn, "output_size", 0) or getattr(rnn, "proj_size", 0) or rnn.hidden_size
    return int(width) * (2 if getattr(rnn, "bidirectional", False) else 1)


def reverse_padded(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row (batch, time, d) backwards, its padding left where it is."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    back = lengths.to(x.device)[:, None] - 1 - steps
    index = torch.where(back >= 0, back, steps)
    return x.gather(1, index[..., None].expand_as(x))


class ScannedRNN(nn.Module, ABC):
    """Base of the loops: layers, directions, lengths, states. A subclass names its parameters and writes one step."""

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, *, num_layers: int, bidirectional: bool,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.num_layers, self.bidirectional, self.dropout = num_layers, bidirectional, dropout
        self.batch_first = True
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else output_size * directions
            for suffix in self._suffixes(layer):
                for name, shape in self._shapes(width).items():
                    bound = hidden_size**-0.5
                    self.register_parameter(
                        f"{name}_{suffix}", nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                    )

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}"] + ([f"l{layer}_reverse"] if self.bidirectional else [])

    def _weights(self, suffix: str) -> Weights:
        """Parameters of one layer and direction by their names without suffix; the recurrent one transposed."""
        names = self._shapes(1)
        weights = {name: getattr(self, f"{name}_{suffix}") for name in names}
        return weights | {"weight_hh": weights["weight_hh"].t()}

    @abstractmethod
    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """Parameters of one layer and direction whose input is `width` wide."""

    @property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each part of the state below (num_layers * directions, batch)."""
        return ((self.output_size,),)

    @abstractmethod
    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        """Next state from the input half u (batch, ...); its first part is the output."""

    def forward(
        self, x: Tensor, state: Any = None, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, Any]:
        """``y (batch, time, directions * output), state`` of x (batch, time, input); padded outputs are 0."""
        if x.dim() != 3 or x.shape[1] < 1 or x.shape[-1] != self.input_size:
            raise ValueError(f"x must have shape (batch, time >= 1, {self.input_size}), got {tuple(x.shape)}")
        size = None if lengths is None else check_lengths(lengths, x).to(x.device)
        if size is not None and bool((size == x.shape[1]).all()):
            size = None
        if size is not None:  # what stands in the padding must reach no product, not even NaN
            x = x.masked_fill((torch.arange(x.shape[1], device=x.device) >= size[:, None])[..., None], 0.0)
        directions = 2 if self.bidirectional else 1
        start = self._start(state, x, self.num_layers * directions)
        final: list[Parts] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                source = reverse_padded(x, size) if direction else x
                first = tuple(part[layer * directions + direction] for part in start)
                w = self._weights(suffix)
                halves = F.linear(source, w["weight_ih"], w["bias_ih"] + w["bias_hh"])
                y, last = self._scan(halves, first, w, size)
                outputs.append(reverse_padded(y, size) if direction else y)
                final.append(last)
            x = torch.cat(outputs, dim=-1) if directions == 2 else outputs[0]
            if self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        parts = tuple(torch.stack(p) for p in zip(*final, strict=True))
        return x, parts if len(parts) > 1 else parts[0]

    def _scan(self, u: Tensor, state: Parts, w: Weights, size: Tensor | None) -> tuple[Tensor, Parts]:
        outputs = []
        for t, u_t in enumerate(u.unbind(1)):
            new = self._step(u_t, state, w)
            if size is None:
                outputs.append(new[0])
                state = new
            else:
                real = t < size
                state = tuple(torch.where(real.view(-1, *[1] * (n.dim() - 1)), n, s) for n, s in zip(new, state))
                outputs.append(new[0] * real[:, None])
        return torch.stack(outputs, dim=1), state

    def _start(self, state: Any, x: Tensor, num: int) -> Parts:
        wanted = [(num, x.shape[0], *size) for size in self._sizes]
        if state is None:
            return tuple(x.new_zeros(shape) for shape in wanted)
        parts = state if isinstance(state, tuple) else (state,)
        if len(parts) != len(wanted):
            raise RuntimeError(f"Expected a state of {len(wanted)} tensors, got {len(parts)}")
        for i, (part, shape) in enumerate(zip(parts, wanted)):
            if tuple(part.shape) != shape:
                raise RuntimeError(f"Expected hidden[{i}] size {shape}, got {list(part.shape)}")
        return parts

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets."""
        more = ", bidirectional=True" if self.bidirectional else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}{more}"


class LinearRNN(ScannedRNN):
    """h_t = W x_t + U h_{t-1} + b: no activation, so gradients through time are powers of U."""

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1, bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, hidden_size, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout
        )

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        h = self.hidden_size
        return {"weight_ih": (h, width), "weight_hh": (h, h), "bias_ih": (h,), "bias_hh": (h,)}

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        return (torch.addmm(u, state[0], w["weight_hh"]),)


class JordanRNN(ScannedRNN):
    """Jordan 1986: the *output* is fed back, h_t = act(W x_t + U y_{t-1} + b), y_t = out(V h_t + c).

    Returns y_t, and the last y as state; both are `output_size` wide (None: `hidden_size`).
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, output_size: int | None = None, activation: str = "tanh",
        output_activation: str = "tanh", num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        out: dict[str, Callable[[Tensor], Tensor]]
        out = {"softmax": _softmax, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "identity": _same}
        if output_activation not in out:
            raise ValueError(f"output_activation must be one of {', '.join(out)}, got {output_activation!r}")
        if output_size is not None and output_size < 1:
            raise ValueError(f"output_size must be at least 1, or None for hidden_size, got {output_size}")
        super().__init__(
            input_size, hidden_size, hidden_size if output_size is None else output_size,
            num_layers=num_layers, bidirectional=bidirectional, dropout=dropout,
        )  # fmt: skip
        self.activation, self.output_activation = activation, output_activation
        act: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "linear": _same}
        self._act = act[activation]
        self._out = out[output_activation]

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        h, o = self.hidden_size, self.output_size
        return {"weight_ih": (h, width), "weight_hh": (h, o), "bias_ih": (h,), "bias_hh": (h,),
                "weight_ho": (o, h), "bias_ho": (o,)}  # fmt: skip

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        hidden = self._act(torch.addmm(u, state[0], w["weight_hh"]))
        return (self._out(F.linear(hidden, w["weight_ho"], w["bias_ho"])),)


class PeepholeLSTM(ScannedRNN):
    """LSTM with or without forget gate and peepholes; gates in torch's order i, f, g, o (f left out in 1997's form).

    i, f = sigmoid(W x + U h + p * c_{t-1}), g = tanh(W x + U h), c = f * c_{t-1} + i * g,
    o = sigmoid(W x + U h + p * c), h = o * tanh(c). Without forget gate f = 1: the cell only adds (the "constant
    error carousel" of Hochreiter & Schmidhuber 1997). With forget gate and no peepholes it equals `torch.nn.LSTM`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, forget_gate: bool = True, peephole: bool = False,
        num_layers: int = 1, bidirectional: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        self.forget_gate, self.peephole = forget_gate, peephole
        super().__init__(
            input_size, hidden_size, hidden_size, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout
        )

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        h, gates = self.hidden_size, 4 if self.forget_gate else 3
        shapes = {"weight_ih": (gates * h, width), "weight_hh": (gates * h, h),
                  "bias_ih": (gates * h,), "bias_hh": (gates * h,)}  # fmt: skip
        return shapes | ({"weight_ch": ((gates - 1) * h,)} if self.peephole else {})  # i, f, o see the cell

    @property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.hidden_size,), (self.hidden_size,))

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        h, c = state
        z = torch.addmm(u, h, w["weight_hh"])
        n, early = self.hidden_size, (self.forget_gate + 1) * self.hidden_size  # i and f stand together
        if self.peephole:
            see, see_o = w["weight_ch"][:early], w["weight_ch"][early:]
            gates = torch.sigmoid(torch.addcmul(z[:, :early], see, c.repeat(1, 2) if self.forget_gate else c))
        else:
            gates = torch.sigmoid(z[:, :early])
        kept = gates[:, n:] * c if self.forget_gate else c
        c = torch.addcmul(kept, gates[:, :n], torch.tanh(z[:, early : early + n]))
        o = z[:, early + n :]
        return torch.sigmoid(torch.addcmul(o, see_o, c) if self.peephole else o) * torch.tanh(c), c


class OuterProductLSTM(ScannedRNN):
    """LSTM whose memory is a matrix per head: M_t = f * M_{t-1} + i * v k^T, read = o * tanh(M_t q).

    f, i, o are sigmoids, one number a head; k and q have unit length; all come from [x_t, read_{t-1}]. State: the
    last read (hidden) and M (heads, hidden / heads, hidden / heads).
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, num_heads: int = 1, num_layers: int = 1,
        bidirectional: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"hidden_size must be a multiple of num_heads, got {hidden_size} and {num_heads}")
        self.num_heads = num_heads
        super().__init__(
            input_size, hidden_size, hidden_size, num_layers=num_layers, bidirectional=bidirectional, dropout=dropout
        )

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        rows = 3 * self.hidden_size + 3 * self.num_heads
        return {"weight_ih": (rows, width), "weight_hh": (rows, self.hidden_size), "bias_ih": (rows,),
                "bias_hh": (rows,)}  # fmt: skip

    @property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        n = self.hidden_size // self.num_heads
        return ((self.hidden_size,), (self.num_heads, n, n))

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        read, memory = state
        z = torch.addmm(u, read, w["weight_hh"])
        h, k = self.hidden_size, self.num_heads
        query, key, value = (p.view(-1, k, h // k) for p in z[:, : 3 * h].chunk(3, dim=-1))
        f, i, o = torch.sigmoid(z[:, 3 * h :]).chunk(3, dim=-1)
        key, query = F.normalize(key, dim=-1), F.normalize(query, dim=-1)
        memory = f[..., None, None] * memory + i[..., None, None] * value[..., None] * key[..., None, :]
        out = o[..., None] * torch.tanh((memory @ query[..., None])[..., 0])
        return out.reshape(-1, h), memory


def _same(z: Tensor) -> Tensor:
    return z


def _softmax(z: Tensor) -> Tensor:  # a lambda could not be pickled
    return z.softmax(-1)

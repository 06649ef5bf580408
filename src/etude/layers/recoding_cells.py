"""One step of stacked LSTM, GRU and Elman cells, and the gradient of anything read off its states, in closed form.

The weights are those of the wrapped `torch.nn` module; nothing is copied. Gradients are of the step's own computation
only: the state before the step is a constant. For the LSTM, with dh = d delta / d h_t,

    dc = d delta / d c_t = (direct part) + dh * o * (1 - tanh(c_t)^2)

and what goes down to the layer below is dz W_ih, dz the gradient of the gates before their activations.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]
"""Parts of one layer's state, (h,) or (h, c), each (batch, hidden)."""
SINGLE = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class CellStack:
    """Steps through a `torch.nn` cell, or through the layers of a `torch.nn` recurrent net.

    Parameters
    ----------
    rnn
        `nn.LSTM`, `nn.GRU`, `nn.RNN` of any number of layers and one direction, or one of their cells.

    Raises
    ------
    ValueError
        For another kind of module, two directions, or a projected LSTM.
    """

    def __init__(self, rnn: nn.Module) -> None:
        if not isinstance(rnn, (nn.LSTM, nn.GRU, nn.RNN, *SINGLE)):
            raise ValueError(f"need nn.LSTM, nn.GRU, nn.RNN or one of their cells, got {type(rnn).__name__}")
        self.single = isinstance(rnn, SINGLE)
        net: Any = rnn
        if not self.single and (net.bidirectional or net.proj_size):
            raise ValueError("recoding runs forward in time on the hidden state: no two directions, no projections")
        self.rnn = net
        self.hidden_size = int(net.hidden_size)
        self.num_layers = 1 if self.single else int(net.num_layers)
        self.kind = "lstm" if isinstance(rnn, (nn.LSTM, nn.LSTMCell)) else "gru"
        if isinstance(rnn, (nn.RNN, nn.RNNCell)):
            self.kind = str(net.nonlinearity)
        self.num_parts = 2 if self.kind == "lstm" else 1

    @property
    def dropout(self) -> float:
        """Rate between layers, that of the wrapped net as it is now: 0 outside of its training mode."""
        return float(self.rnn.dropout) if not self.single and self.rnn.training else 0.0

    def weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer; the biases are None where the module has none."""
        end = "" if self.single else f"_l{layer}"
        if not self.rnn.bias:
            return getattr(self.rnn, f"weight_ih{end}"), getattr(self.rnn, f"weight_hh{end}"), None, None
        return tuple(getattr(self.rnn, f"{name}{end}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # type: ignore[return-value]

    def split(self, state: Any, x: Tensor) -> list[State]:
        """One tuple of parts a layer from a state as `torch.nn` has it; None: zeros.

        Raises ValueError for a state of another form or shape.
        """
        if state is None:
            zero = x.new_zeros(x.shape[0], self.hidden_size)
            return [(zero,) * self.num_parts for _ in range(self.num_layers)]
        parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)
        shape = (x.shape[0], self.hidden_size) if self.single else (self.num_layers, x.shape[0], self.hidden_size)
        if len(parts) != self.num_parts or any(tuple(p.shape) != shape for p in parts):
            got = [tuple(p.shape) for p in parts]
            raise ValueError(f"the state needs {self.num_parts} tensors of shape {shape}, got {got}")
        if self.single:
            return [parts]
        return [tuple(p[layer] for p in parts) for layer in range(self.num_layers)]

    def join(self, layers: Sequence[State]) -> Any:
        """The state as `torch.nn` has it."""
        parts = layers[0] if self.single else tuple(torch.stack(p) for p in zip(*layers, strict=True))
        return parts if self.num_parts == 2 else parts[0]

    def inputs(self, x: Tensor) -> Tensor:
        """The first layer's input half of all steps, (batch, time, gates * hidden), in one matmul."""
        w_ih, _, b_ih, b_hh = self.weights(0)
        return F.linear(x, w_ih, self._bias(b_ih, b_hh))

    def _bias(self, b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
        if b_ih is None or b_hh is None or self.kind == "gru":  # a GRU's reset gate acts on the recurrent bias
            return b_ih
        return b_ih + b_hh

    def step(
        self, u: Tensor, layers: Sequence[State], masks: Sequence[Tensor] | None
    ) -> tuple[list[State], list[tuple[Tensor, ...]]]:
        """States after one step, and what `pull_back` needs.

        u
            (batch, gates * hidden), a step of `inputs`.
        masks
            Of the dropout between layers, one fewer than layers; None: no dropout.
        """
        new: list[State] = []
        caches = []
        for layer, state in enumerate(layers):
            w_ih, w_hh, b_ih, b_hh = self.weights(layer)
            if layer:
                below = new[-1][0] if masks is None else new[-1][0] * masks[layer - 1]
                u = F.linear(below, w_ih, self._bias(b_ih, b_hh))
            parts, cache = self._cell(u, state, w_hh, b_hh)
            new.append(parts)
            caches.append(cache)
        return new, caches

    def _cell(self, u: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> tuple[State, tuple[Tensor, ...]]:
        n = self.hidden_size
        if self.kind == "lstm":
            z = torch.addmm(u, state[0], w_hh.t())
            gates = torch.sigmoid(z)
            i, f, o = gates[:, :n], gates[:, n : 2 * n], gates[:, 3 * n :]
            g = torch.tanh(z[:, 2 * n : 3 * n])
            c = f * state[1] + i * g
            squashed = torch.tanh(c)
            return (o * squashed, c), (i, f, g, o, state[1], squashed)
        if self.kind == "gru":
            v = F.linear(state[0], w_hh, b_hh)
            gates = torch.sigmoid(u[:, : 2 * n] + v[:, : 2 * n])
            r, z = gates[:, :n], gates[:, n:]
            fresh = torch.tanh(u[:, 2 * n :] + r * v[:, 2 * n :])
            return (fresh + z * (state[0] - fresh),), (r, z, fresh, v[:, 2 * n :], state[0])
        z = torch.addmm(u, state[0], w_hh.t())
        h = torch.tanh(z) if self.kind == "tanh" else torch.relu(z)
        return (h,), (h,)

    @torch.no_grad()
    def pull_back(
        self,
        caches: Sequence[tuple[Tensor, ...]],
        direct: Sequence[Sequence[Tensor | None]],
        masks: Sequence[Tensor] | None,
        lowest: int = 0,
    ) -> list[State]:
        """Gradients with respect to every part of every layer from `lowest` up, within the step.

        direct
            For each layer and part the gradient that does not run through another state of this step; None: zero.
        """
        grads: list[State] = []
        dx: Tensor | None = None
        for layer in range(self.num_layers - 1, lowest - 1, -1):
            own = direct[layer]
            dh = own[0]
            if dx is not None:
                dx = dx if masks is None else dx * masks[layer]
                dh = dx if dh is None else dh + dx
            if dh is None:
                dh = torch.zeros_like(caches[layer][0])
            parts, dz = self._cell_back(caches[layer], dh, own[1] if self.num_parts == 2 else None, layer > lowest)
            grads.append(parts)
            dx = None if dz is None else dz @ self.weights(layer)[0]
        return grads[::-1]

    def _cell_back(
        self, cache: tuple[Tensor, ...], dh: Tensor, dc: Tensor | None, further: bool
    ) -> tuple[State, Tensor | None]:
        if self.kind == "lstm":
            i, f, g, o, before, squashed = cache
            through = dh * o * (1 - squashed.square())
            dc = through if dc is None else dc + through
            if not further:
                return (dh, dc), None
            pieces = (
                dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g.square()), dh * squashed * o * (1 - o)
            )  # fmt: skip
            return (dh, dc), torch.cat(pieces, -1)
        if not further:
            return (dh,), None
        if self.kind == "gru":
            r, z, fresh, v, before = cache
            dn = dh * (1 - z) * (1 - fresh.square())
            return (dh,), torch.cat((dn * v * r * (1 - r), dh * (before - fresh) * z * (1 - z), dn), -1)
        (h,) = cache
        return (dh,), dh * (1 - h.square()) if self.kind == "tanh" else dh * (h > 0)

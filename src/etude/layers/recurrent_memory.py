"""An LSTM with an external memory: what it reads joins the next input, what it writes outlasts its state.

    h, c = LSTM([x_t, r_{t-1}], h, c);  q, v, g, m = W h + b
    write v with gate sigmoid(g) at  sigmoid(m) w_{t-1} + (1 - sigmoid(m)) least used;  r, w = read(q)
    y_t = [h, r]

Sources: Graves, Wayne & Danihelka 2014, arXiv 1410.5401 (the Neural Turing machine, which Lipton, Berkowitz & Elkan
2015, arXiv 1506.00019, name as the next step); Santoro et al. 2016, arXiv 1605.06065 (written at the slot least used).
Differs from the Turing machine: slots are found by content and by use, never by shifting from their neighbour.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.layers.memory import ContentMemory
from etude.layers.recurrent_cells import Parts, ScannedRNN, Weights


class MemoryLSTM(ScannedRNN):
    """LSTM that reads and writes a `ContentMemory` at every step; outputs are [h, read], twice `hidden_size` wide.

    State: the last output, c (hidden), the memory (slots, hidden), how much each slot was used and where the last
    reading looked (slots each). The memory starts from one learned value, the same in all layers and directions.

    Parameters
    ----------
    slots
        Number of memory slots, each `hidden_size` wide.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, slots: int = 16, num_layers: int = 1, bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            input_size, hidden_size, 2 * hidden_size, num_layers=num_layers, bidirectional=bidirectional,
            dropout=dropout,
        )  # fmt: skip
        self.memory = ContentMemory(slots, hidden_size, write="lru")

    def _shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        h = self.hidden_size
        return {"weight_ih": (4 * h, width), "weight_hh": (4 * h, 2 * h), "bias_ih": (4 * h,), "bias_hh": (4 * h,),
                "weight_ho": (2 * h + 2, h), "bias_ho": (2 * h + 2,)}  # fmt: skip

    @property
    def _sizes(self) -> tuple[tuple[int, ...], ...]:
        h, n = self.hidden_size, self.memory.slots
        return ((2 * h,), (h,), (n, h), (n,), (n,))

    def _start(self, state: Any, x: Tensor, num: int) -> Parts:
        parts = super()._start(state, x, num)
        if state is None:
            parts = (*parts[:2], self.memory.start(x.shape[0]).expand(num, -1, -1, -1), *parts[3:])
        return parts

    def _step(self, u: Tensor, state: Parts, w: Weights) -> Parts:
        output, c, memory, usage, looked = state
        n = self.hidden_size
        z = torch.addmm(u, output, w["weight_hh"])
        i, f, o = torch.sigmoid(z[:, :n]), torch.sigmoid(z[:, n : 2 * n]), torch.sigmoid(z[:, 3 * n :])
        c = f * c + i * torch.tanh(z[:, 2 * n : 3 * n])
        h = o * torch.tanh(c)
        heads = F.linear(h, w["weight_ho"], w["bias_ho"])
        gate, mix = torch.sigmoid(heads[:, -2:]).chunk(2, dim=-1)
        written = self.memory.where(looked, usage, mix)
        memory = self.memory.write(memory, written, torch.tanh(heads[:, n : 2 * n]), gate)
        value, looked = self.memory.read(heads[:, :n], memory)
        return torch.cat([h, value], dim=-1), c, memory, self.memory.used(usage, looked, written), looked

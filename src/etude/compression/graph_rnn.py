"""A recurrent net wired as a graph: a layer of cells for each layer of nodes, edges as masks.

Source: Darji 2021, arXiv 2407.20601, section on random structures.
Differs from the official code in how it computes, not in what: all cells that lead to one layer (that of the previous
layer and those of skipping edges) run as one wide `torch.nn` kernel, whose recurrent weights are block diagonal.
"""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from etude.compression.graphs import Graph, depths, oriented
from etude.data.randomness import fork_global
from etude.layers.masks import apply_masks
from etude.layers.recurrent import GRU, LSTM, ElmanRNN

Cell = Literal["elman", "tanh", "relu", "gru", "lstm"]


class GraphRNN(nn.Module):
    """(batch, time, input_size) -> (batch, time, nodes of the last layer).

    Edges run from lower to higher node; a node's layer is one more than its deepest parent's. The first layer reads
    the input densely. A later layer of n nodes is the sum of one recurrent cell of n units for each earlier layer that
    has an edge to it: its input weights are masked by these edges, its recurrent weights are dense.

    Parameters
    ----------
    graph
        A networkx graph or pairs of nodes; directions and parallel edges are ignored.
    cell
        "elman" or "tanh" (two names of one), "relu", "gru" or "lstm".
    generator
        Source of the initial weights, U(-1/sqrt(n), 1/sqrt(n)) for a cell of n units; None: torch's global one.

    Raises
    ------
    ValueError
        For a graph of several parts, loops, no nodes, or an unknown cell.

    Examples
    --------
    >>> import torch
    >>> net = GraphRNN([(0, 1), (0, 2), (1, 2)], cell="gru", input_size=4)
    >>> net.sizes, net(torch.zeros(2, 5, 4)).shape
    ((1, 1, 1), torch.Size([2, 5, 1]))
    """

    def __init__(
        self, graph: Graph, cell: Cell = "gru", input_size: int = 50, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        cell = "elman" if cell == "tanh" else cell
        if cell not in ("elman", "relu", "gru", "lstm"):
            raise ValueError(f'cell must be "elman" (or "tanh"), "relu", "gru" or "lstm", got {cell!r}')
        if input_size < 1:
            raise ValueError(f"input_size must be at least 1, got {input_size}")
        nodes, edges = oriented(graph)
        layer = depths(len(nodes), edges)
        members = [[v for v in range(len(nodes)) if layer[v] == depth] for depth in range(max(layer) + 1)]
        place = {v: i for row in members for i, v in enumerate(row)}
        self.sizes: tuple[int, ...] = tuple(len(row) for row in members)
        self.input_size, self.hidden_size, self.cell = input_size, self.sizes[-1], cell
        self.sources: list[tuple[int, ...]] = [()]
        self.layers = nn.ModuleList([_rnn(cell, input_size, self.sizes[0], self.sizes[0], generator)])
        for depth in range(1, len(members)):
            into = [(a, b) for a, b in edges if layer[b] == depth]
            sources = tuple(sorted({layer[a] for a, _ in into}))
            n, width = self.sizes[depth], sum(self.sizes[s] for s in sources)
            offset = {s: sum(self.sizes[r] for r in sources if r < s) for s in sources}
            inputs = torch.zeros(len(sources), n, width, dtype=torch.bool)
            for a, b in into:
                inputs[sources.index(layer[a]), place[b], offset[layer[a]] + place[a]] = True
            rnn = _rnn(cell, width, n, len(sources) * n, generator)
            gates = {"gru": 3, "lstm": 4}.get(cell, 1)
            blocks = torch.block_diag(*[torch.ones(n, n)] * len(sources)).bool()
            masks = {"weight_ih_l0": inputs.flatten(0, 1).repeat(gates, 1), "weight_hh_l0": blocks.repeat(gates, 1)}
            apply_masks(rnn, masks)
            self.layers.append(rnn)
            self.sources.append(sources)

    def forward(self, x: Tensor) -> Tensor:
        """States of the last layer's nodes at every step; what stands behind a row's end does not reach back."""
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            raise ValueError(f"x must be (batch, time, {self.input_size}), got {tuple(x.shape)}")
        out = [self.layers[0](x)[0]]
        for sources, n, rnn in zip(self.sources[1:], self.sizes[1:], self.layers[1:]):
            wide = rnn(torch.cat([out[s] for s in sources], -1))[0]
            out.append(wide.unflatten(-1, (len(sources), n)).sum(-2))
        return out[-1]


def _rnn(cell: Cell, input_size: int, units: int, width: int, generator: torch.Generator | None) -> nn.RNNBase:
    """`width` units in cells of `units`, weights U(-1/sqrt(units), 1/sqrt(units))."""
    # with a generator given, what torch's constructors draw must not move the global one
    with nullcontext() if generator is None else fork_global(torch.Generator()):
        rnn = _made(cell, input_size, width)
    for p in rnn.parameters():
        nn.init.uniform_(p, -(units**-0.5), units**-0.5, generator=generator)
    return rnn


def _made(cell: Cell, input_size: int, hidden_size: int) -> nn.RNNBase:
    if cell in ("gru", "lstm"):
        return (GRU if cell == "gru" else LSTM)(input_size, hidden_size, batch_first=True)
    return ElmanRNN(input_size, hidden_size, nonlinearity="tanh" if cell == "elman" else "relu", batch_first=True)

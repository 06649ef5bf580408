"""A hypernetwork over graphs: one generator for nets of every architecture, conditioned on the architecture itself.

Nodes are the layers that hold weights, edges the way from one to the next. Nodes pass messages along the edges and
against them; the rows of each tensor of a layer are then emitted in chunks from its node's state.

Sources: Zhang, Ren & Urtasun 2019, arXiv 1810.05749 (graph hypernetworks); Knyazev et al. 2021, arXiv 2110.13100 (sizes
by fan-in).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from etude.layers.hypernetwork_targets import check_target, select_targets
from etude.layers.mlp import mlp
from etude.layers.parameters import Layout, forward_with, layout_of, unflatten

KINDS = ("linear", "conv", "norm", "embedding", "other")
_AXES = 4  # the first axes of a layer's weight that its node is told, as logarithms


@dataclass(frozen=True)
class ArchitectureGraph:
    """The layers of a net that hold weights, in the order of their use, and (from, to) edges between them."""

    nodes: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        wrong = [e for e in self.edges if not all(0 <= at < len(self.nodes) for at in e)]
        if wrong:
            raise ValueError(f"edge {wrong[0]} leaves the {len(self.nodes)} nodes")


def architecture_graph(net: nn.Module) -> ArchitectureGraph:
    """The graph of a net's forward pass, traced symbolically: nothing is computed.

    Layers are modules of torch.nn that hold parameters. There is an edge where one's output reaches another without
    passing a third.

    Raises
    ------
    ValueError
        If the net cannot be traced, as its way depends on the data, or holds parameters outside such layers.
    """
    try:
        traced = fx.symbolic_trace(net)
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot be traced ({error}): give graph=ArchitectureGraph(nodes, edges)"
        ) from error
    nodes: list[str] = []
    edges: dict[tuple[int, int], None] = {}
    reached: dict[fx.Node, set[int]] = {}
    for step in traced.graph.nodes:
        before = set().union(*(reached[n] for n in step.all_input_nodes)) if step.all_input_nodes else set()
        if step.op == "get_attr" and any(p is _at(net, str(step.target)) for p in net.parameters()):
            raise ValueError(f"{step.target!r} is a parameter outside a layer of torch.nn: give graph=")
        if step.op == "call_module" and any(True for _ in net.get_submodule(str(step.target)).parameters()):
            if step.target not in nodes:
                nodes.append(str(step.target))
            here = nodes.index(str(step.target))
            edges.update({(b, here): None for b in sorted(before)})
            before = {here}
        reached[step] = before
    return ArchitectureGraph(tuple(nodes), tuple(edges))


def _at(net: nn.Module, path: str) -> Any:
    owner, _, leaf = path.rpartition(".")
    return getattr(net.get_submodule(owner), leaf)


class GraphHyperNetwork(nn.Module):
    """theta of any net from its graph; y = f(x; theta(graph of f)).

    One set of parameters serves all nets. Nets of one graph and one set of shapes get the same weights, whatever their
    modules are called; names and own values of their weights play no part. Training is the usual loop over nets:
    ``loss(ghn(net, x), y)``.

    Parameters
    ----------
    hidden
        Units of a node's state.
    rounds
        Rounds of messages; each carries what a node knows one edge further.
    chunk_size
        Weights of a row (of all that lead to one unit; a bias is one row) that are emitted at a time; the surplus of a
        row's last chunk is cut off.

    Raises
    ------
    ValueError
        For a size below 1, or negative rounds.
    """

    def __init__(self, hidden: int = 32, *, rounds: int = 3, chunk_size: int = 64) -> None:
        super().__init__()
        if min(hidden, chunk_size) < 1 or rounds < 0:
            raise ValueError(f"hidden and chunk_size must be at least 1, rounds 0, got {(hidden, chunk_size, rounds)}")
        self.hidden, self.rounds, self.chunk_size = hidden, rounds, chunk_size
        self.enter = nn.Linear(len(KINDS) + _AXES, hidden)
        self.along = nn.Linear(hidden, hidden, bias=False)
        self.against = nn.Linear(hidden, hidden, bias=False)
        self.update = nn.GRUCell(hidden, hidden)
        # a chunk is told its node's state and which tensor of it this is, whether a bias, its row, its place in the row
        self.decode = nn.Sequential(mlp((3 * hidden + 1, 2 * hidden)), nn.ReLU(), nn.LayerNorm(2 * hidden))
        self.head = nn.Linear(2 * hidden, chunk_size)
        nn.init.normal_(self.head.weight, std=(2 * hidden) ** -0.5)  # features of size 1: outputs of size 1
        nn.init.zeros_(self.head.bias)

    def states(self, net: nn.Module, graph: ArchitectureGraph) -> Tensor:
        """The nodes' states (nodes, hidden) after all messages: means over those before and those behind each."""
        at = self.head.weight
        h = torch.tanh(self.enter(torch.stack([_features(net.get_submodule(n)) for n in graph.nodes]).to(at)))
        ends = torch.tensor(graph.edges, dtype=torch.long, device=at.device).view(-1, 2)
        for _ in range(self.rounds):
            heard = _mean_to(self.along(h), ends[:, 0], ends[:, 1]) + _mean_to(self.against(h), ends[:, 1], ends[:, 0])
            h = self.update(heard, h)
        return h

    def generate_flat(self, net: nn.Module, graph: ArchitectureGraph | None = None) -> Tensor:
        """The flat weights (P,), in the order of the net's parameters.

        Matrices and kernels have the size of an ordinary net's (kaiming by fan-in) when the generator is new; other
        tensors lie 0.01 around their start: 1 for gains, 0 for biases.

        Raises
        ------
        ValueError
            If the net cannot be traced and no graph is given, a parameter lies in none of its nodes, or a module cannot
            run with given weights.
        """
        graph = architecture_graph(net) if graph is None else graph
        return self._emit(net, graph, _layout(net))

    def generate(self, net: nn.Module, graph: ArchitectureGraph | None = None) -> dict[str, Tensor]:
        """The weights by name, tied ones under all names."""
        return unflatten(self.generate_flat(net, graph), _layout(net))

    def forward(self, net: nn.Module, x: Any, graph: ArchitectureGraph | None = None) -> Any:
        """f(x; theta). The net itself is not changed: of its buffers (batch norm's statistics) a copy is used."""
        buffers = {n: b.clone() for n, b in net.named_buffers()}
        return forward_with(net, {**buffers, **self.generate(net, graph)}, x)

    @torch.no_grad()
    def export(self, net: nn.Module, graph: ArchitectureGraph | None = None) -> nn.Module:
        """A copy of the net, in its mode, with the generated weights as ordinary parameters: a start for training."""
        out, made = copy.deepcopy(net), self.generate(net, graph)
        for name, p in out.named_parameters():
            p.copy_(made[name])
        return out

    def _emit(self, net: nn.Module, graph: ArchitectureGraph, layout: Layout) -> Tensor:
        states, tokens, counts = self.states(net, graph), [], []
        orders = [0] * len(graph.nodes)
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            rows, chunks = self._chunks(shape)
            node = _node_of(name, graph.nodes)
            order = _sinusoids(orders[node] + 1, self.hidden)[-1].to(states)
            orders[node] += 1
            whole = torch.cat([states[node] + order, states.new_tensor([float("bias" in name.rpartition(".")[2])])])
            of_row, in_row = _sinusoids(rows, self.hidden).to(states), _sinusoids(chunks, self.hidden).to(states)
            places = torch.cat([of_row.repeat_interleave(chunks, 0), in_row.repeat(rows, 1)], 1)
            tokens.append(torch.cat([whole.expand(rows * chunks, -1), places], 1))
            counts.append(rows * chunks)
        parts = []
        made = self.head(self.decode(torch.cat(tokens))).split(counts)
        for out, name, shape in zip(made, layout.names, layout.shapes, strict=True):
            std, start = _size_of(name, shape)
            rows, _ = self._chunks(shape)
            parts.append((start + std * out.reshape(rows, -1)[:, : math.prod(shape) // rows]).reshape(-1))
        return torch.cat(parts)

    def _chunks(self, shape: torch.Size) -> tuple[int, int]:
        """Rows of a tensor, and chunks of each."""
        rows = shape[0] if len(shape) > 1 else 1
        return rows, math.ceil(math.prod(shape) / rows / self.chunk_size)


def _layout(net: nn.Module) -> Layout:
    chosen = select_targets(net, None)
    check_target(net, chosen)
    return layout_of(chosen)


def _node_of(name: str, nodes: Sequence[str]) -> int:
    """The node whose module holds a parameter: the one with the longest fitting name."""
    fits = [n for n in nodes if name.startswith(f"{n}." if n else "")]
    if not fits:
        raise ValueError(f"parameter {name!r} lies in none of the graph's nodes: {', '.join(nodes)}")
    return list(nodes).index(max(fits, key=len))


def _features(layer: nn.Module) -> Tensor:
    """What a node is told of its layer: its kind, and the logarithms of its largest weight's axes."""
    convolution, norms = nn.modules.conv._ConvNd, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    tests: tuple[Any, ...] = (nn.Linear, convolution, norms, nn.Embedding)
    kind = next((i for i, test in enumerate(tests) if isinstance(layer, test)), len(tests))
    shape = max((p.shape for p in layer.parameters()), key=math.prod)
    out = torch.zeros(len(KINDS) + _AXES)
    out[kind] = 1.0
    for axis, n in enumerate(shape[:_AXES]):
        out[len(KINDS) + axis] = math.log(1 + n) / 4
    return out


def _mean_to(messages: Tensor, source: Tensor, goal: Tensor) -> Tensor:
    """The mean of what reaches each node, (nodes, hidden); 0 where nothing does."""
    total = torch.zeros_like(messages).index_add(0, goal, messages[source])
    count = torch.bincount(goal, minlength=len(messages)).clamp_min(1)
    return total / count[:, None]


def _sinusoids(count: int, width: int) -> Tensor:
    """Places (count, width) as sines and cosines of falling frequency, as in a transformer."""
    at, k = torch.arange(count)[:, None], torch.arange(width)
    angle = at / 1000 ** ((k - k % 2) / width)
    return torch.where(k % 2 == 0, angle.sin(), angle.cos())


def _size_of(name: str, shape: torch.Size) -> tuple[float, float]:
    """Standard deviation and mean of a tensor in an ordinary net."""
    if len(shape) > 1:
        return math.sqrt(2 / math.prod(shape[1:])), 0.0
    return 0.01, 0.0 if "bias" in name.rpartition(".")[2] else 1.0

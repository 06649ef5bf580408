"""From a condition to a flat weight vector: how a hypernetwork's output is organised.

Every generator maps (C, width) to (C, P), the weights of C conditions in the order of a `Layout`.

Sources: Chauhan et al. 2023, arXiv 2306.06955, criterion 2 (output): all at once, split heads, layer-wise, chunk-wise;
Dupati et al. 2022, arXiv 2209.07712: chunks one after the other from a recurrent net, which can be widened.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from etude.layers.hypernetwork_places import AttentionChunks, ConvolutionalChunks, paired
from etude.layers.mlp import activation_by_name, mlp
from etude.layers.parameters import Layout

Strategy = Literal["all", "split", "layerwise", "chunk", "rnn", "attention", "conv"]
Unit = Literal["tensor", "channel", "layer", "chunk"]
STRATEGIES: tuple[Strategy, ...] = ("all", "split", "layerwise", "chunk", "rnn", "attention", "conv")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def kaiming_kind(activation: str) -> Literal["tanh", "sigmoid", "linear", "leaky_relu"]:
    """The name under which torch has the gain of an activation: 5/3 for tanh, 1 for sigmoid and identity.

    All others are taken as ReLU, sqrt 2: GELU and their like have no gain of their own, and the slope of the leaky one,
    which would take a 20,000th off it, is left out.
    """
    kinds: dict[str, Any] = {"tanh": "tanh", "sigmoid": "sigmoid", "identity": "linear"}
    return kinds.get(activation, "leaky_relu")  # type: ignore[no-any-return]


def trunk(width: int, hidden: Sequence[int], activation: str, norm: str | None) -> nn.Module:
    """The shared body, (C, width) -> (C, hidden[-1]); the last layer is activated too."""
    if not hidden:
        return nn.Identity()
    of_layers = None if norm == "weight" else norm
    body = nn.Sequential(mlp((width, *hidden), activation=activation, norm=of_layers), activation_by_name(activation))
    for module in body.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity=kaiming_kind(activation))
            nn.init.zeros_(module.bias)
    if norm == "weight":
        for module in [m for m in body.modules() if isinstance(m, nn.Linear)]:
            weight_norm(module)
    return body


class AllAtOnce(nn.Module):
    """One head with P outputs."""

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, make: Callable[..., nn.Module], bias: bool
    ) -> None:
        super().__init__()
        self.trunk = make(width, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width, layout.size, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.trunk(z))  # type: ignore[no-any-return]


class SplitHeads(nn.Module):
    """k heads of ceil(P / k) outputs, each seeing its own k-th of the trunk's units (as the authors' code has it)."""

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, make: Callable[..., nn.Module], k: int
    ) -> None:
        super().__init__()
        units = hidden[-1] if hidden else width
        if k < 1 or units % k or k > layout.size:
            raise ValueError(f"num_heads={k} must divide the {units} last units and be at most {layout.size}")
        self.trunk, self.size = make(width, hidden), layout.size
        self.heads = nn.ModuleList(nn.Linear(units // k, math.ceil(layout.size / k)) for _ in range(k))

    def forward(self, z: Tensor) -> Tensor:
        parts = self.trunk(z).chunk(len(self.heads), 1)
        return torch.cat([head(part) for head, part in zip(self.heads, parts, strict=True)], 1)[:, : self.size]


class LayerWise(nn.Module):
    """One generator, called once a part of the target with an embedding of it; as wide as the largest, surplus cut.

    `unit`: a part is a "tensor", a "layer" (its tensors together), or a "channel": what leads to one output of a layer,
    row and bias.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, make: Callable[..., nn.Module], dim: int,
        unit: str = "tensor",
    ) -> None:  # fmt: skip
        super().__init__()
        if unit not in ("tensor", "layer", "channel"):
            raise ValueError(f'unit of strategy="layerwise" must be "tensor", "layer" or "channel", got {unit!r}')
        self.pieces = _pieces(layout, unit)
        widest = max(start + n for _, _, start, n in self.pieces)
        if widest > 0.8 * layout.size:
            warnings.warn(
                f"the largest {unit} has {widest} of {layout.size} weights: nothing is saved", stacklevel=4
            )  # fmt: skip
        self.places = nn.Parameter(torch.randn(max(first + calls for first, calls, _, _ in self.pieces), dim))
        self.trunk = make(width + dim, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width + dim, widest)

    def forward(self, z: Tensor) -> Tensor:
        out = self.head(self.trunk(paired(z, self.places)))  # (C, parts, widest)
        return torch.cat([out[:, i : i + k, a : a + n].flatten(1) for i, k, a, n in self.pieces], 1)


def _pieces(layout: Layout, unit: str) -> list[tuple[int, int, int, int]]:
    """For each tensor: its first call, its number of calls, and in each the first and the number of its weights."""
    out: list[tuple[int, int, int, int]] = []
    before, calls, used = None, 0, 0  # the layer and the rows of the part in hand, its last call, weights in it so far
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        rows = shape[0] if unit == "channel" and shape else 1
        part = (name if unit == "tensor" else name.rpartition(".")[0], rows)
        if part != before:
            before, calls, used = part, calls + rows, 0
        n = math.prod(shape) // rows
        out.append((calls - rows, rows, used, n))
        used += n
    return out


class ChunkWise(nn.Module):
    """One generator, called once a chunk of the flat weights with an embedding of its place."""

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, make: Callable[..., nn.Module], chunks: int, dim: int
    ) -> None:
        super().__init__()
        if not 1 <= chunks <= layout.size:
            raise ValueError(f"num_chunks={chunks} must lie between 1 and the {layout.size} weights")
        self.size, self.places = layout.size, nn.Parameter(torch.randn(chunks, dim))
        self.trunk = make(width + dim, hidden)
        self.head = nn.Linear(hidden[-1] if hidden else width + dim, math.ceil(layout.size / chunks))

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.trunk(paired(z, self.places))).flatten(1)[:, : self.size]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A recurrent net that emits the chunks one after the other: its state tells later ones of the earlier.

    `unit` "layer": one step a layer of the target, with a head as wide as the largest, surplus cut. `feed_previous`:
    each step is also given a linear read-out of the weights emitted before it, at the price of a loop over steps.
    """

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, make: Callable[..., nn.Module], chunks: int, dim: int,
        cell: Literal["lstm", "gru", "elman", "rnn"], unit: str = "chunk", feed_previous: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if unit not in ("chunk", "layer"):
            raise ValueError(f'unit of strategy="rnn" must be "chunk" or "layer", got {unit!r}')
        layers = _layer_sizes(layout)
        chunks = len(layers) if unit == "layer" else chunks
        if not 1 <= chunks <= layout.size:
            raise ValueError(f"num_chunks={chunks} must lie between 1 and the {layout.size} weights")
        if not hidden:
            raise ValueError("the recurrent strategy needs at least one hidden size")
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN, "rnn": nn.RNN}
        if len(set(hidden)) > 1:
            raise ValueError(f"the layers of a recurrent generator have one size, got hidden={tuple(hidden)}")
        if cell not in kinds:
            raise ValueError(f"cell must be lstm, gru or elman (also called rnn), got {cell!r}")
        self.size, self.places = layout.size, nn.Parameter(torch.randn(chunks, dim))
        self.sizes = layers if unit == "layer" else None
        wide = max(layers) if unit == "layer" else math.ceil(layout.size / chunks)
        inputs = width + dim + (dim if feed_previous else 0)
        self.rnn = kinds[cell](inputs, hidden[-1], num_layers=len(hidden), batch_first=True)
        self.start = nn.Linear(width, hidden[-1])
        self.head = nn.Linear(hidden[-1], wide)
        self.previous = nn.Linear(wide, dim, bias=False) if feed_previous else None
        if cell == "lstm":
            forget = slice(hidden[-1], 2 * hidden[-1])
            with torch.no_grad():
                for k in range(len(hidden)):
                    getattr(self.rnn, f"bias_ih_l{k}")[forget] = 1.0
                    getattr(self.rnn, f"bias_hh_l{k}")[forget] = 0.0

    def forward(self, z: Tensor) -> Tensor:
        first = torch.tanh(self.start(z)).expand(self.rnn.num_layers, -1, -1).contiguous()
        state = (first, torch.zeros_like(first)) if isinstance(self.rnn, nn.LSTM) else first
        inputs = paired(z, self.places)
        if self.previous is None:
            out = self.head(self.rnn(inputs, state)[0])  # (C, chunks, wide)
        else:
            out = self._step_by_step(inputs, state, self.previous)
        if self.sizes is not None:
            return torch.cat([out[:, i, :n] for i, n in enumerate(self.sizes)], 1)
        return out.flatten(1)[:, : self.size]  # type: ignore[no-any-return]

    def _step_by_step(self, inputs: Tensor, state: Any, previous: nn.Linear) -> Tensor:
        before, made = inputs.new_zeros(len(inputs), self.head.out_features), []
        for step in inputs.unbind(1):
            h, state = self.rnn(torch.cat([step, previous(before)], 1)[:, None], state)
            before = self.head(h[:, 0])
            made.append(before)
        return torch.stack(made, 1)

    @torch.no_grad()
    def widen(self, n: int, std: float = 0.05) -> None:
        """n more units a layer: old gates read nothing from new units and the head does not either."""
        old, h = self.rnn, self.rnn.hidden_size
        self.rnn = type(old)(old.input_size, h + n, num_layers=old.num_layers, batch_first=True).to(self.head.weight)
        gates = old.weight_hh_l0.shape[0] // h
        for name, new in self.rnn.named_parameters():
            before = getattr(old, name)
            new.normal_(0, std)
            fresh, kept = new.view(gates, h + n, *new.shape[1:]), before.view(gates, h, *before.shape[1:])
            fresh[:, :h] = 0
            if new.ndim == 2:
                fresh[:, :h, : before.shape[1]] = kept
            else:
                fresh[:, :h] = kept
        self.start = widened(self.start, rows=n, std=std)
        self.head = widened(self.head, columns=n)


def _layer_sizes(layout: Layout) -> list[int]:
    """Weights of each layer (tensors of one module that stand together) of the target."""
    sizes: dict[str, int] = {}
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        owner = name.rpartition(".")[0]
        sizes[owner] = sizes.get(owner, 0) + math.prod(shape)
    return list(sizes.values())


@torch.no_grad()
def widened(linear: nn.Linear, *, rows: int = 0, columns: int = 0, std: float = 0.0) -> nn.Linear:
    """A copy with more outputs (small random) and inputs (read with weight 0 by the old outputs)."""
    (d_out, d_in), bias = linear.weight.shape, linear.bias is not None
    new = nn.Linear(d_in + columns, d_out + rows, bias=bias).to(linear.weight)
    new.weight.normal_(0, std or 1e-3)
    new.weight[:d_out] = 0
    new.weight[:d_out, :d_in] = linear.weight
    if bias:
        new.bias.zero_()
        new.bias[:d_out] = linear.bias
    return new


def widenable(generator: nn.Module) -> list[nn.Linear]:
    """The last hidden layer and the head, which `widen_generator` replaces; none of `Recurrent`, which widens itself.

    Raises
    ------
    ValueError
        If the generator has another form and cannot be widened.
    """
    if isinstance(generator, Recurrent):
        return []
    linears = [m for m in generator.modules() if isinstance(m, nn.Linear)]
    plain = not any(isinstance(m, NORMS) or is_parametrized(m) for m in generator.modules())
    if isinstance(generator, SplitHeads) or len(linears) < 2 or not plain:
        raise ValueError("widen needs one head over a hidden layer without norm")
    return linears[-2:]


def widen_generator(generator: nn.Module, n: int) -> None:
    """n more units in the last hidden layer ("rnn": in every one); ValueError as of `widenable`."""
    if isinstance(generator, Recurrent):
        generator.widen(n)
        return
    layer, head = widenable(generator)
    std = float(layer.weight.detach().std())
    for old, new in ((layer, widened(layer, rows=n, std=std)), (head, widened(head, columns=n))):
        for module in list(generator.modules()):
            for name, child in list(module.named_children()):
                if child is old:
                    setattr(module, name, new)


def make_generator(
    strategy: Strategy,
    width: int,
    hidden: Sequence[int],
    layout: Layout,
    *,
    activation: str,
    norm: str | None,
    num_heads: int,
    num_chunks: int,
    chunk_dim: int,
    cell: Literal["lstm", "gru", "elman", "rnn"],
    bias: bool = True,
    unit: Unit | None = None,
    feed_previous: bool = False,
) -> nn.Module:
    """The generator of a strategy.

    Raises
    ------
    ValueError
        For an unknown strategy or norm, or numbers that do not fit the target.
    """

    if norm not in (None, "batch", "layer", "weight"):
        raise ValueError(f"unknown norm {norm!r}: choose one of batch, layer, weight or None")
    if norm is not None and strategy in ("rnn", "attention", "conv"):
        raise ValueError(f"norm={norm!r} has no place in strategy={strategy!r}: it is for all, split, layerwise, chunk")
    if norm == "batch" and strategy in ("layerwise", "chunk"):
        raise ValueError(f'norm="batch" mixes the places of strategy={strategy!r}: take norm="layer" or "weight"')

    if strategy not in ("all", "split") and chunk_dim < 1:
        raise ValueError(f"chunk_dim must be at least 1, got {chunk_dim}: without places all weights come out alike")

    if unit is not None and strategy not in ("layerwise", "rnn"):
        raise ValueError(f'unit={unit!r} has no place in strategy={strategy!r}: it is for "layerwise" and "rnn"')

    def make(inputs: int, sizes: Sequence[int]) -> nn.Module:
        return trunk(inputs, sizes, activation, norm)

    if strategy == "all":
        return AllAtOnce(width, hidden, layout, make, bias)
    if strategy == "split":
        return SplitHeads(width, hidden, layout, make, num_heads)
    if strategy == "layerwise":
        return LayerWise(width, hidden, layout, make, chunk_dim, unit or "tensor")
    if strategy == "chunk":
        return ChunkWise(width, hidden, layout, make, num_chunks, chunk_dim)
    if strategy == "rnn":
        return Recurrent(width, hidden, layout, make, num_chunks, chunk_dim, cell, unit or "chunk", feed_previous)
    if strategy == "attention":
        return AttentionChunks(width, hidden, layout, num_chunks, chunk_dim)
    if strategy == "conv":
        return ConvolutionalChunks(width, hidden, layout, num_chunks, chunk_dim, activation)
    raise ValueError(f"unknown strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}")

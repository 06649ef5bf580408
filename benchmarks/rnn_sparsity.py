"""Pruning beside torch.nn.utils.prune, masked kernels beside a cell loop, wired nets beside single cells.

`torch-pruning` removes whole channels and `deepstruct` wires feed-forward nets, so neither does the same work: they
are named here and not timed.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from etude.compression import GraphRNN, prune, random_graph, sparsity
from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers.masks import current_masks

AMOUNTS = (0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class MaskedCellLoop(nn.Module):
    """A GRU layer step by step, weights multiplied by their masks at every step: as the thesis' code computes."""

    def __init__(self, gru: nn.GRU, masks: dict[str, Tensor]) -> None:
        super().__init__()
        self.gru, self.masks = gru, masks

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(len(x), self.gru.hidden_size), []
        for t in range(x.shape[1]):
            wi = self.gru.weight_ih_l0 * self.masks["weight_ih_l0"]
            wh = self.gru.weight_hh_l0 * self.masks["weight_hh_l0"]
            a = (x[:, t] @ wi.T + self.gru.bias_ih_l0).chunk(3, -1)
            b = (h @ wh.T + self.gru.bias_hh_l0).chunk(3, -1)
            reset, update = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
            h = (1 - update) * torch.tanh(a[2] + reset * b[2]) + update * h
            out.append(h)
        return torch.stack(out, 1)


class SingleCells(nn.Module):
    """A wired net with one recurrent module for each earlier layer that leads to a layer."""

    def __init__(self, net: GraphRNN) -> None:
        super().__init__()
        self.net = net
        self.first = copy.deepcopy(net.layers[0])
        self.cells = nn.ModuleList()
        for sources, n, wide in zip(net.sources[1:], net.sizes[1:], net.layers[1:]):
            row, offset = nn.ModuleList(), 0
            for k, s in enumerate(sources):
                one = nn.GRU(net.sizes[s], n, batch_first=True)
                for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                    block = getattr(wide, name).detach().view(3, len(sources), n, -1)[:, k]
                    start = {"weight_ih_l0": offset, "weight_hh_l0": k * n}.get(name, 0)
                    width = {"weight_ih_l0": net.sizes[s], "weight_hh_l0": n}.get(name, 1)
                    block = block[..., start : start + width]
                    getattr(one, name).data = block.reshape(getattr(one, name).shape).clone()
                offset += net.sizes[s]
                row.append(one)
            self.cells.append(row)

    def forward(self, x: Tensor) -> Tensor:
        out = [self.first(x)[0]]
        for sources, row in zip(self.net.sources[1:], self.cells):
            out.append(torch.stack([cell(out[s])[0] for s, cell in zip(sources, row)]).sum(0))  # type: ignore[arg-type]
        return out[-1]


def _pass(net: nn.Module, x: Tensor) -> Tensor:
    net.zero_grad()
    y = net(x)
    y = y[0] if isinstance(y, tuple) else y
    y.square().mean().backward()
    return y.detach()


def _close(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def cases() -> list[Case]:
    """Three layers of 50 as in the thesis; 64 rows of 30 steps; one thread or as many as torch has."""
    net = seeded_build(lambda: nn.LSTM(50, 50, num_layers=3, batch_first=True), stream(0, "init"))

    def kept(model: nn.Module) -> float:
        return float(sum((getattr(model, n) != 0).sum() for n, _ in net.named_parameters() if n.startswith("weight")))

    def ours() -> list[float]:
        return [row.value for row in sparsity.sweep(net, AMOUNTS, kept)]

    def anew() -> list[float]:
        values = []
        for targets in sparsity.PARTS.values():
            for amount in AMOUNTS:
                model = copy.deepcopy(net)
                kept(net)  # the dense model again for every comparison
                names = [(model, n) for n, _ in net.named_parameters() if n.startswith(targets)]
                torch_prune.global_unstructured(names, torch_prune.L1Unstructured, amount=amount)
                values.append(kept(model))
        return values

    gru = seeded_build(lambda: nn.GRU(50, 50, batch_first=True), stream(0, "init"))
    plain = copy.deepcopy(gru)
    prune(gru, 0.8)
    loop = MaskedCellLoop(plain, {n: m.clone() for n, m in current_masks(gru).items()})
    x = torch.randn(64, 30, 50, generator=stream(0, "x"))
    wired = GraphRNN(random_graph("watts_strogatz", 40, stream(0, "graph")), "gru", 50, generator=stream(0, "init"))
    single = SingleCells(wired)
    return [
        Case("sweep of 7 amounts x 3 parts, masks alone", ours, anew, "torch.nn.utils.prune, anew for each",
             lambda a, b: a == b, 3.0),
        Case("forward and backward of a GRU layer, 80 % pruned", lambda: _pass(gru, x), lambda: _pass(loop, x),
             "masked cell loop (as the thesis' code)", _close, 5.0),
        Case("forward and backward of a wired net of 40 nodes", lambda: _pass(wired, x), lambda: _pass(single, x),
             "one module for each pair of layers", _close),
    ]  # fmt: skip

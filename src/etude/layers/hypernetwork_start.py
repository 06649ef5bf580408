"""Where generated weights start: sizes of an ordinary net, norm gains, the initial values of the generator's head.

Sources: Ortiz, Guttag & Dalca 2023, arXiv 2304.07645 (theta_0, head tensor by tensor); Chang, Flokas & Lipson 2020
(hyperfan-in).
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from etude.layers.hypernetwork_generators import NORMS, AllAtOnce, kaiming_kind
from etude.layers.parameters import Layout

Init = Literal["gain", "scaled", "hyperfan", "default"]
CHANGE = 0.1  # size of a generated change of theta_0, in that of theta_0: small against it, as the paper asks


class Start:
    """The constant part of each generated tensor at the beginning.

    Matrices and kernels have none, biases start at 0 and gains of batch, layer and group norm at 1. Any other tensor of
    fewer than two axes (the gain of another norm, a slope, a scale) starts at the value that the target holds when the
    hypernetwork is built: at 0 it would make a dead target. So does the row of an embedding's `padding_idx`.
    """

    def __init__(self, target: nn.Module, layout: Layout, chosen: Mapping[str, nn.Parameter]) -> None:
        norms = [n for n, m in target.named_modules() if isinstance(m, NORMS)]
        gains = {f"{n}.weight" if n else "weight" for n in norms}
        rows = _padding_rows(target, layout)
        slices = layout.slices()
        self.parts: list[Tensor] = []
        own, padding = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            if len(shape) > 1 or name in gains or "bias" in name.rpartition(".")[2]:
                self.parts.append(torch.full(shape, float(name in gains)))
                if name in rows:
                    at, width = rows[name], shape[1]
                    self.parts[-1][at] = chosen[name].detach()[at]
                    padding.append(slices[name].start + at * width + torch.arange(width))
            else:
                own.append(torch.arange(slices[name].start, slices[name].stop))
                self.parts.append(torch.empty(shape, dtype=chosen[name].dtype).copy_(chosen[name].detach()))
        self.padding = torch.cat(padding)
        """Places in the flat weights of rows that stay as they are."""
        self.own = torch.cat([*own, self.padding])
        """Places in the flat weights that hold the target's own values, which another build may not have."""

    def offset(self) -> Tensor:
        """The constant part of all tensors, (P,)."""
        return torch.cat([p.reshape(-1) for p in self.parts])

    def ordinary(self, layout: Layout) -> Tensor:
        """(P,) weights as an ordinary net starts: kaiming by fan-in, and the constant part."""
        stds = ordinary_stds(layout)
        parts = [torch.randn(p.shape) * std if p.ndim > 1 else p for p, std in zip(self.parts, stds, strict=True)]
        flat = torch.cat([p.reshape(-1) for p in parts])
        flat[self.padding] = self.offset()[self.padding]
        return flat


def _padding_rows(target: nn.Module, layout: Layout) -> dict[str, int]:
    """The row of `padding_idx` of each embedding, by the name under which its weight stands in the layout."""
    first, rows = dict(layout.tied), dict[str, int]()
    for name, module in target.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            weight = f"{name}.weight" if name else "weight"
            rows[first.get(weight, weight)] = module.padding_idx
    return rows


def ordinary_stds(layout: Layout) -> list[float]:
    """The size of each tensor in an ordinary net: kaiming by fan-in, 0.01 for biases and norm gains."""
    return [math.sqrt(2 / math.prod(s[1:])) if len(s) > 1 else 0.01 for s in layout.shapes]


@torch.no_grad()
def init_head(
    generator: nn.Module,
    layout: Layout,
    init: Init,
    activation: str,
    z: Tensor | None,
    gain: Tensor,
    residual: bool,
) -> None:
    """Draw the head's weights, and with "gain" fill `gain`, one factor a tensor.

    `z`: encoded conditions (C, width) at which sizes are measured; None with "default". `residual`: what is generated
    is a change of theta_0, which brings the ordinary size.
    """
    heads = [
        m for n, m in generator.named_modules() if n.split(".")[0] in ("head", "heads") and isinstance(m, nn.Linear)
    ]
    kind = kaiming_kind(activation)
    for head in heads:
        nn.init.kaiming_normal_(head.weight, mode="fan_out", nonlinearity=kind)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    generator.eval()  # a batch norm inside cannot normalise one condition
    if isinstance(generator, AllAtOnce):
        energy = 1.0 if z is None else float(generator.trunk(z).square().mean())
        for (name, part), shape in zip(layout.slices().items(), layout.shapes, strict=True):
            rows = generator.head.weight[part]
            if init == "hyperfan":  # Var(theta) = 2 / fan_in (weights), halved between weight and bias
                owner = name.rpartition(".")[0]
                both = (f"{owner}.bias" if owner else "bias") in layout.names
                fan = math.prod(shape[1:]) if len(shape) > 1 else 1
                rows.normal_(0, math.sqrt((1 if both or len(shape) == 1 else 2) / (fan * rows.shape[1] * energy)))
            elif kind == "leaky_relu":
                rows.normal_(0, math.sqrt(2 / len(rows)))
            else:
                rows.normal_(0, nn.init.calculate_gain(kind) / math.sqrt(len(rows)))
    if init in ("gain", "scaled"):
        assert z is not None
        flat = generator(z)
        for i, (part, std) in enumerate(zip(layout.slices().values(), ordinary_stds(layout), strict=True)):
            wanted = CHANGE * std if residual else std
            gain[i] = wanted / float(flat[:, part].square().mean().sqrt().clamp_min(1e-12))
    if init == "scaled":
        sizes = torch.tensor([math.prod(s) for s in layout.shapes], device=gain.device)
        generator.head.weight.mul_(torch.repeat_interleave(gain, sizes)[:, None])  # type: ignore[operator,union-attr]
        gain.fill_(1.0)
    generator.train()

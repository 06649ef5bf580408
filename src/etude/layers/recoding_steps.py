"""How far a recoded state moves."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.mlp import mlp


def softplus_inverse(value: float) -> float:
    """x with softplus(x) = value > 0."""
    return float(torch.log(torch.expm1(torch.tensor(value, dtype=torch.float64))))


class StepSizes(nn.Module):
    """Step sizes of every layer and part (h, c): one constant, one learned scalar each, or predicted from h.

    All kinds start at ``scale``, and scale 0 is no step in all of them: alpha = scale * softplus(u) / softplus(u_0).

    Parameters
    ----------
    kind
        "fixed"; "learned": a scalar u for each; "mlp": u from the detached h of the layer, hidden widths 300 and 100.
    """

    def __init__(self, kind: Literal["fixed", "learned", "mlp"], layers: int, parts: int, hidden_size: int) -> None:
        super().__init__()
        if kind not in ("fixed", "learned", "mlp"):
            raise ValueError(f"step must be 'fixed', 'learned' or 'mlp', got {kind!r}")
        self.kind, self.layers, self.parts = kind, layers, parts
        start = softplus_inverse(1.0)
        if kind == "learned":
            self.raw = nn.Parameter(torch.full((layers, parts), start))
        elif kind == "mlp":
            self.nets = nn.ModuleList(mlp((hidden_size, 300, 100, 1)) for _ in range(layers * parts))
            for net in self.nets:
                nn.init.zeros_(net[-1].weight)  # type: ignore[index,arg-type]
                nn.init.constant_(net[-1].bias, start)  # type: ignore[index,arg-type]

    def forward(self, layer: int, part: int, hidden: Tensor, scale: float) -> Tensor | float:
        """A number, or (batch, 1) for "mlp"; hidden (batch, hidden) is the layer's h."""
        if self.kind == "fixed":
            return scale
        if self.kind == "learned":
            return scale * F.softplus(self.raw[layer, part])
        return scale * F.softplus(self.nets[layer * self.parts + part](hidden.detach()))

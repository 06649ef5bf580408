"""Nets of finite width beside the kernels that they tend to.

Source: Radhakrishnan, Belkin & Uhler 2022, arXiv 2204.14126, whose nets are infinitely wide. Polynomial activations
have heavy tails: a length above 1 grows from layer to layer, so that a finite net needs great width, clipped
activations or rows that are scaled back; in the limit of width the last changes nothing.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from etude.kernels.hermite import Activation


class FiniteNet(nn.Module):
    """h_l = phi(W_l h_{l-1}) / sqrt(width) and f = v . h_L, with standard normal weights and no bias.

    Parameters
    ----------
    in_features, depth, width, out_features
        Coordinates of the unit inputs, hidden layers, units of each, outputs.
    activation
        phi, scaled to E phi(g)^2 = 1 (`HermiteActivation`, or `activation_report(...).centered()`).
    unit_rows
        Scale the rows of every hidden layer to length 1, which they have in the limit.
    generator
        Draws the weights.

    Raises
    ------
    ValueError
        If a size is below 1, or the depth below 0.
    """

    def __init__(
        self,
        in_features: int,
        depth: int,
        width: int,
        out_features: int = 1,
        *,
        activation: Activation,
        unit_rows: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if min(in_features, width, out_features) < 1 or depth < 0:
            raise ValueError(
                f"in_features, width and out_features must be at least 1 and depth at least 0, got {in_features}, "
                f"{width}, {out_features} and {depth}"
            )
        self.activation, self.unit_rows = activation, unit_rows
        sizes = [in_features, *[width] * depth]
        drawn = [torch.randn(k, q, generator=generator) for q, k in itertools.pairwise(sizes)]
        self.hidden = nn.ParameterList(drawn)
        self.head = nn.Parameter(torch.randn(out_features, sizes[-1], generator=generator))

    def features(self, x: Tensor) -> Tensor:
        """h_L of unit rows (n, in_features): (n, width); their inner products are the NNGP kernel of this draw."""
        for weight in self.hidden:
            x = self.activation(x @ weight.T) / math.sqrt(len(weight))
            if self.unit_rows:
                x = x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(n, out_features)."""
        return self.features(x) @ self.head.T


@torch.no_grad()
def empirical_nngp(
    x: Tensor,
    activation: Activation,
    depth: int,
    *,
    width: int,
    unit_rows: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """The kernel (n, n) of one draw of a net on unit rows (n, d).

    It tends to ``deep_kernel(..., kind="nngp")``, with an error like one over the square root of the width.
    """
    net = FiniteNet(x.shape[1], depth, width, activation=activation, unit_rows=unit_rows, generator=generator)
    h = net.to(x.dtype).features(x)
    return h @ h.T

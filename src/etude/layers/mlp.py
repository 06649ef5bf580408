"""Multilayer perceptrons, and the linear layer of many seeds at once."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def activation_by_name(name: str) -> nn.Module:
    """A new activation module: ``"relu"``, ``"gelu"``, ``"tanh"`` and so on."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def mlp(
    sizes: Sequence[int], *, activation: str = "relu", norm: str | None = None, dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with an activation between them; the last one is bare.

    Parameters
    ----------
    sizes
        Widths from input to output, at least two, e.g. ``(64, 128, 10)``. Input (B, sizes[0]).
    norm
        ``"batch"`` or ``"layer"`` after each hidden linear layer, or None.
    dropout
        Probability of a zero after each hidden activation.

    Raises
    ------
    ValueError
        For fewer than two sizes, a size below 1, an unknown name, or a probability outside [0, 1).
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes need an input and an output width of at least 1, got {tuple(sizes)}")
    if norm is not None and norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)} or None")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(sizes[:-1]):
        layers.append(nn.Linear(d_in, d_out))
        if norm is not None:
            layers.append(NORMS[norm](d_out))
        layers.append(activation_by_name(activation))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(sizes[-2], sizes[-1]))
    activation_by_name(activation)
    return nn.Sequential(*layers)


class StackedLinear(nn.Module):
    """`num_seeds` linear layers in one `baddbmm`: (S, B, ..., d_in) to (S, B, ..., d_out).

    Rows (B, d_in) go to every seed.

    `weight` is (S, d_in, d_out), the transpose of `nn.Linear`'s; `bias` is (S, 1, d_out).
    """

    def __init__(self, num_seeds: int, d_in: int, d_out: int, *, bias: bool = True) -> None:
        super().__init__()
        if min(num_seeds, d_in, d_out) < 1:
            raise ValueError(f"num_seeds, d_in and d_out must be at least 1, got {(num_seeds, d_in, d_out)}")
        self.num_seeds, self.d_in, self.d_out = num_seeds, d_in, d_out
        self.weight = nn.Parameter(torch.empty(num_seeds, d_in, d_out))
        self.bias = nn.Parameter(torch.empty(num_seeds, 1, d_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """nn.Linear's initialisation, drawn for each seed."""
        bound = 1 / math.sqrt(self.d_in)
        for p in self.parameters():
            nn.init.uniform_(p, -bound, bound)

    @classmethod
    def from_linears(cls, linears: Sequence[nn.Linear]) -> "StackedLinear":
        """Stack the weights of linear layers of one shape (copies)."""
        first = linears[0]
        if any(m.weight.shape != first.weight.shape or (m.bias is None) != (first.bias is None) for m in linears):
            raise ValueError(f"linear layers differ in shape: {[tuple(m.weight.shape) for m in linears]}")
        with torch.device("meta"):  # draw no numbers for weights that are overwritten
            made = cls(len(linears), first.in_features, first.out_features, bias=first.bias is not None)
        made = made.to(dtype=first.weight.dtype).to_empty(device=first.weight.device)
        with torch.no_grad():
            made.weight.copy_(torch.stack([m.weight.T for m in linears]))
            if made.bias is not None:
                made.bias.copy_(torch.stack([m.bias[None] for m in linears]))
        return made

    def forward(self, x: Tensor) -> Tensor:
        seeds = len(self.weight)
        if x.ndim == 2:  # the same rows for every seed
            x = x.expand(seeds, *x.shape)
        rows = x if x.ndim == 3 else x.reshape(seeds, -1, self.d_in)
        y = torch.bmm(rows, self.weight) if self.bias is None else torch.baddbmm(self.bias, rows, self.weight)
        return y if x.ndim == 3 else y.view(*x.shape[:-1], self.d_out)

    def extra_repr(self) -> str:
        return f"num_seeds={self.num_seeds}, d_in={self.d_in}, d_out={self.d_out}, bias={self.bias is not None}"

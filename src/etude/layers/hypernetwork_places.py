"""Generators whose chunks see each other at once: attention over the chunks' places, convolution along them.

Source: Chauhan et al. 2023, arXiv 2306.06955, criterion 5 (architecture of the hypernetwork).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from etude.layers.mlp import activation_by_name
from etude.layers.parameters import Layout


def paired(z: Tensor, places: Tensor) -> Tensor:
    """Every condition with every place: (C, width), (n, dim) -> (C, n, width + dim)."""
    c, n = len(z), len(places)
    return torch.cat([z[:, None].expand(c, n, z.shape[1]), places.expand(c, n, places.shape[1])], 2)


class AttentionChunks(nn.Module):
    """A transformer encoder over the chunks, one token each: condition and place in, the chunk's weights out.

    One pre-norm layer for each entry of `hidden`, all of one size; four heads where they divide it, else one.

    Raises
    ------
    ValueError
        For no hidden size, sizes that differ, or a number of chunks that does not fit the target.
    """

    def __init__(self, width: int, hidden: Sequence[int], layout: Layout, chunks: int, dim: int) -> None:
        super().__init__()
        if not hidden or len(set(hidden)) > 1:
            raise ValueError(f"attention needs hidden layers of one size, got hidden={tuple(hidden)}")
        if not 1 <= chunks <= layout.size:
            raise ValueError(f"num_chunks={chunks} must lie between 1 and the {layout.size} weights")
        d = hidden[0]
        self.size, self.places = layout.size, nn.Parameter(torch.randn(chunks, dim))
        self.embed = nn.Linear(width + dim, d)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d, 4 if d % 4 == 0 else 1, 2 * d, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in hidden
        )  # fmt: skip
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, math.ceil(layout.size / chunks))

    def forward(self, z: Tensor) -> Tensor:
        x = self.embed(paired(z, self.places))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(1)[:, : self.size]  # type: ignore[no-any-return]


class ConvolutionalChunks(nn.Module):
    """Convolutions of width 3 along the chunks, one for each entry of `hidden`; neighbours' weights share features."""

    def __init__(
        self, width: int, hidden: Sequence[int], layout: Layout, chunks: int, dim: int, activation: str
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("the convolutional strategy needs at least one hidden size")
        if not 1 <= chunks <= layout.size:
            raise ValueError(f"num_chunks={chunks} must lie between 1 and the {layout.size} weights")
        self.size, self.places = layout.size, nn.Parameter(torch.randn(chunks, dim))
        sizes = (width + dim, *hidden)
        body: list[nn.Module] = []
        for a, b in pairwise(sizes):
            body += [nn.Conv1d(a, b, 3, padding=1), activation_by_name(activation)]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(hidden[-1], math.ceil(layout.size / chunks))

    def forward(self, z: Tensor) -> Tensor:
        x = self.body(paired(z, self.places).transpose(1, 2)).transpose(1, 2)
        return self.head(x).flatten(1)[:, : self.size]  # type: ignore[no-any-return]

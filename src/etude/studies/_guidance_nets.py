"""The nets of the study of guidance: those that do not train by themselves, and their guides."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers import RecurrentLM, make_rnn, resnet
from etude.layers.blocks import TransformerConfig, TransformerStack
from etude.layers.positions import LearnedPositions


class StridedCNN(nn.Module):
    """Three convolutions of stride 2 on signals (B, length), then linear."""

    def __init__(self, length: int, num_classes: int, channels: int = 25) -> None:
        super().__init__()
        sizes = [1, channels, channels, channels]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 5, stride=2, padding=1) for a, b in pairwise(sizes))
        for _ in self.convs:
            length = (length - 3) // 2 + 1
        self.fc = nn.Linear(channels * length, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.fc(x.flatten(1))


class DeepCNN(nn.Module):
    """`depth` 3-convolutions with batch norm on signals (B, length), stride 2 at a third and two thirds."""

    def __init__(self, num_classes: int, depth: int = 24, channels: int = 16, *, skip: bool) -> None:
        super().__init__()
        self.strides = [2 if i in (depth // 3, 2 * depth // 3) else 1 for i in range(depth)]
        self.convs = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else channels, channels, 3, stride=s, padding=1, bias=False)
            for i, s in enumerate(self.strides)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels) for _ in range(depth))
        self.fc = nn.Linear(channels, num_classes)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            y = norm(conv(x))
            x = F.relu(x + y if self.skip and stride == 1 and x.shape == y.shape else y)
        return self.fc(x.mean(2))


class Tagger(RecurrentLM):
    """A recurrent net that labels each step: ids (B, T) -> logits (B, T, vocab_size)."""

    def __init__(self, width: int, num_layers: int, vocab_size: int) -> None:
        super().__init__(make_rnn("elman", width, width, num_layers=num_layers), vocab_size)

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.run(ids)[0])


class Encoder(nn.Module):
    """Embedding, positions, full attention, head: ids (B, T) -> logits (B, T, classes)."""

    def __init__(self, vocab_size: int, num_classes: int, hidden_dim: int, num_layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_dim)
        self.positions = LearnedPositions(length, hidden_dim)
        config = TransformerConfig(num_layers=num_layers, hidden_dim=hidden_dim, causal=False, max_length=length)
        self.stack = TransformerStack(config)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1], device=ids.device)
        return self.head(self.stack(self.embed(ids) + self.positions(where, ids.shape[1])))


def residual_net(length: int, num_classes: int, depth: int = 20) -> nn.Sequential:
    """The residual net for small images on signals (B, length), seen as images one pixel high."""
    return nn.Sequential(nn.Unflatten(1, (1, 1, length)), *resnet((1, 1, length), depth, 16, num_classes))

"""The nets that the comparison of hypernetworks trains. Every one is small; their sizes are printed beside them."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.hypernetworks import DataCondition, HyperNetwork, NoiseCondition, TaskCondition
from etude.layers import StackedLinear, mlp

HIDDEN, TASK_DIM, NOISE_DIM = (32, 32), 8, 8
STRATEGIES: dict[str, dict[str, Any]] = {
    "all_at_once": {"strategy": "all"}, "split": {"strategy": "split", "num_heads": 4},
    "layerwise": {"strategy": "layerwise"}, "chunk": {"strategy": "chunk", "num_chunks": 20, "chunk_dim": 8},
    "rnn": {"strategy": "rnn", "num_chunks": 20, "chunk_dim": 8},
    "attention": {"strategy": "attention", "num_chunks": 20, "chunk_dim": 8},
    "conv": {"strategy": "conv", "num_chunks": 20, "chunk_dim": 8},
}  # fmt: skip


class PerTask(nn.Module):
    """Logits (T, B, classes) of T tasks' rows (T, B, d): one net a task, one for all, or one told the task."""

    def __init__(self, kind: str, tasks: int, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        d, h, classes = sizes
        self.embedding = nn.Parameter(torch.randn(tasks, TASK_DIM)) if kind == "shared_with_embedding" else None
        if kind == "independent":
            self.net: nn.Module = nn.Sequential(StackedLinear(tasks, d, h), nn.ReLU(), StackedLinear(tasks, h, classes))
        else:
            self.net = mlp((d + (TASK_DIM if self.embedding is not None else 0), h, classes))

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = torch.cat([x, self.embedding[:, None].expand(-1, x.shape[1], -1)], 2)
        return self.net(x)  # type: ignore[no-any-return]


class Generated(nn.Module):
    """The same logits from generated weights; `same`: one frozen embedding for all tasks."""

    def __init__(self, strategy: str, tasks: int, sizes: tuple[int, int, int], *, same: bool = False) -> None:
        super().__init__()
        condition = TaskCondition(1 if same else tasks, TASK_DIM)
        if same:
            condition.freeze(0)
        with warnings.catch_warnings():  # layer-wise: it says that one tensor is most of this target
            warnings.simplefilter("ignore", UserWarning)
            self.hyper = HyperNetwork(mlp(sizes), condition, hidden=HIDDEN, init="gain", **STRATEGIES[strategy])
        self.same = same

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.zeros(len(x), dtype=torch.long) if self.same else torch.arange(len(x))
        return self.hyper.forward_each(x, task=ids.to(x.device))  # type: ignore[no-any-return]


def per_task_net(kind: str, tasks: int, sizes: tuple[int, int, int]) -> nn.Module:
    """The net of an arm; `kind` is the arm's name without its stream."""
    if kind == "same_embedding":
        return Generated("chunk", tasks, sizes, same=True)
    return Generated(kind, tasks, sizes) if kind in STRATEGIES else PerTask(kind, tasks, sizes)


class NoisyNet(nn.Module):
    """Rows (B, d) and noise (K, 8) to logits (K, B, classes) of K drawn nets."""

    def __init__(self, sizes: tuple[int, int, int]) -> None:
        super().__init__()
        self.hyper = HyperNetwork(mlp(sizes), NoiseCondition(NOISE_DIM), hidden=HIDDEN, init="gain")

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.hyper.forward_each(x, shared=True, noise=noise)  # type: ignore[no-any-return]


class WaveNet(nn.Module):
    """y (B, 1) of x (B, 1) and a condition (B, 3); the target is 1-16-16-1 in every arm.

    "data_conditioned": an encoder and a hypernetwork give each row its own target; "concatenation": the condition is a
    further input of the target; "concatenation_wide": the same with about as many parameters as the hypernetwork;
    "film": an encoder scales and shifts the target's hidden units.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind in ("data_conditioned", "shuffled_condition"):
            condition = DataCondition(mlp((3, 32, 8)), 8)
            self.net: nn.Module = HyperNetwork(mlp((1, 16, 16, 1)), condition, hidden=HIDDEN, init="gain")
        elif kind == "film":
            self.encoder, self.net = mlp((3, 32, 64)), mlp((1, 16, 16, 1))
        else:
            self.net = mlp((4, 16, 16, 1) if kind == "concatenation" else (4, 110, 110, 1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if isinstance(self.net, HyperNetwork):
            return self.net(x, data=c)  # type: ignore[no-any-return]
        if self.kind != "film":
            return self.net(torch.cat([x, c], 1))  # type: ignore[no-any-return]
        assert isinstance(self.net, nn.Sequential)
        linears = [m for m in self.net if isinstance(m, nn.Linear)]
        for linear, own in zip(linears[:-1], self.encoder(c).chunk(2, 1), strict=True):
            scale, shift = own.chunk(2, 1)
            x = F.relu((1 + scale) * linear(x) + shift)
        return linears[-1](x)  # type: ignore[no-any-return]

"""Importance, GSS and MIR beside the loops over single samples that the published codes run.

avalanche-lib imports torchvision, whose published wheels do not load beside a CPU build of torch, and Mammoth and the
official repositories are no packages: none is timed here. The loops below do the same work in the
same order; `continuum` makes streams only and has nothing to compare.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual import GSSBuffer, importance, interference
from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import mlp

SIZES = (784, 100, 100, 10)


def _net(sizes: tuple[int, ...] = SIZES) -> nn.Module:
    return seeded_build(lambda: mlp(sizes), stream(0, "init"))


def _conv() -> nn.Module:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 36, 10),
        )  # fmt: skip

    return seeded_build(build, stream(0, "init"))


def _mas_loop(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    params = list(model.parameters())

    def run() -> Tensor:
        total = [torch.zeros_like(p) for p in params]
        for i in range(len(x)):
            grads = torch.autograd.grad(model(x[i : i + 1]).square().sum(), params)
            for t, g in zip(total, grads):
                t.add_(g.abs())
        return torch.cat([t.flatten() for t in total]) / len(x)

    return run


def _mas(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: torch.cat([t.flatten() for t in importance(model, x).values()])


class _GSSLoop:
    """GSS-Greedy with one backward pass a sample and a replay batch, as the published code has it."""

    def __init__(self, size: int, model: nn.Module) -> None:
        self.model, self.size, self.rng = model, size, stream(0, "loop")
        self.x, self.y, self.scores = torch.zeros(0, SIZES[0]), torch.zeros(0).long(), torch.zeros(0)

    def grad(self, x: Tensor, y: Tensor) -> Tensor:
        g = torch.autograd.grad(F.cross_entropy(self.model(x), y), list(self.model.parameters()))
        return torch.cat([p.flatten() for p in g])

    def memory(self) -> Tensor:
        draws = [torch.randperm(len(self.x), generator=self.rng)[:10] for _ in range(10)]
        return torch.stack([self.grad(self.x[d], self.y[d]) for d in draws])

    def observe(self, x: Tensor, y: Tensor) -> None:
        if len(self.x) < self.size:
            memory = self.memory() if len(self.x) else None
            scores = [
                0.1
                if memory is None
                else F.cosine_similarity(memory, self.grad(x[i : i + 1], y[i : i + 1])[None]).max()
                for i in range(len(x))
            ]
            self.x, self.y = torch.cat([self.x, x]), torch.cat([self.y, y])
            self.scores = torch.cat([self.scores, torch.tensor([float(s) for s in scores])])
            return
        memory = self.memory()
        if F.cosine_similarity(memory, self.grad(x, y)[None]).max() >= 0:
            return
        spread = self.scores.max() - self.scores.min()
        chosen = torch.multinomial(
            (self.scores - self.scores.min()) / (spread + 0.01) + 1e-9, len(x), generator=self.rng
        )
        for i, place in enumerate(chosen.tolist()):
            new = F.cosine_similarity(memory, self.grad(x[i : i + 1], y[i : i + 1])[None]).max()
            old = (self.scores[place] + 1) / 2
            if torch.rand((), generator=self.rng) < old / (old + (new + 1) / 2):
                self.x[place], self.y[place], self.scores[place] = x[i], y[i], new


def _batches(n: int) -> list[tuple[Tensor, Tensor]]:
    g = stream(0, "batches")
    return [(torch.randn(10, SIZES[0], generator=g), torch.randint(0, 10, (10,), generator=g)) for _ in range(n)]


def _observing(make: Callable[[], Any]) -> Callable[[], int]:
    batches = _batches(12)

    def run() -> int:
        buffer = make()
        for x, y in batches:
            buffer.observe(x, y)
        return len(buffer.rows()[0]) if hasattr(buffer, "rows") else len(buffer.x)

    return run


def _close(a: Any, b: Any) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def cases() -> list[Case]:
    """MLP 784-100-100-10 as in the GSS paper; a small convnet; 500 samples of importance, 12 batches of 10 for GSS."""
    model, conv = _net(), _conv()
    x, images = torch.randn(500, 784, generator=stream(0, "x")), torch.randn(200, 1, 28, 28, generator=stream(0, "x"))
    (bx, by), (cx, cy) = (
        _batches(1)[0],
        (torch.cat([b[0] for b in _batches(5)]), torch.cat([b[1] for b in _batches(5)])),
    )

    def real_step() -> Tensor:
        import copy

        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        F.cross_entropy(net(bx), by).backward()
        optimizer.step()
        with torch.no_grad():
            each = F.cross_entropy(net(cx), cy, reduction="none") - F.cross_entropy(model(cx), cy, reduction="none")
        return each

    def virtual_step() -> Tensor:
        before, after = interference(model, bx, by, (cx, cy), lr=0.05)
        return after - before

    return [
        Case("MAS importance, MLP, 500 samples", _mas(model, x), _mas_loop(model, x), "loop of batch size 1", _close,
             5.0),
        Case("MAS importance, convnet, 200 images", _mas(conv, images), _mas_loop(conv, images), "loop of batch size 1",
             _close, 5.0),
        Case("GSS-Greedy, 12 batches into a full buffer of 60",
             _observing(lambda: GSSBuffer(60, model, F.cross_entropy)), _observing(lambda: _GSSLoop(60, model)),
             "a backward pass a sample (as the official code)", lambda a, b: a == b, 5.0),
        Case("MIR scores of 50 candidates", virtual_step, real_step, "copy of the net and a real step", _close),
    ]  # fmt: skip

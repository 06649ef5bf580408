"""The training engine beside hand-written loops.

Peers: the loop that a user writes, with the same data order, the same fused Adam and all threads, one seed after
another. Ours: `train` with `plan="auto"` (so the choice is in the time). Same result: the validation outputs
of every seed agree to 1e-3, or 2e-2 for the convolutional net (batch norm's idle biases).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data import Split, seeded_build, stream
from etude.lab.bench import Case
from etude.layers import convnet, mlp
from etude.training import TrainConfig, train, workers
from etude.training.workers import WorkerPool, cores


def rows(n: int, *shape: int, classes: int = 10) -> Split:
    """Rows about class centres."""
    generator = stream(0, "benchmark")
    y = torch.randint(classes, (n,), generator=generator)
    centres = torch.randn(classes, *shape, generator=generator)
    return Split(centres[y] + 0.5 * torch.randn(n, *shape, generator=generator), y)


class Transformer(nn.Module):
    """Width 64, 4 layers, 18 tokens of 12 numbers, the mean token classified."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.position = nn.Parameter(torch.zeros(18, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp((width, 4 * width, width), activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, 4, d // 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x))


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(12, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def cross_entropy(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def by_hand(
    build: Callable[[int], nn.Module], data: Split, seeds: Sequence[int], steps: int, batch: int, fused: bool,
    threads: int | None = None,
) -> Tensor:  # fmt: skip
    """One seed after another, by default with all threads; returns the outputs on the first rows."""
    torch.set_num_threads(threads or cores())
    outputs = []
    for seed in seeds:
        model = seeded_build(functools.partial(build, seed), stream(seed, "init"))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        order, done = stream(seed, "order"), 0
        while done < steps:
            for index in torch.randperm(data.n, generator=order).split(batch):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(data.x[index]), data.y[index])
                loss.backward()
                optimizer.step()
                loss.item()
                done += 1
                if done == steps:
                    break
        with torch.no_grad():
            outputs.append(model.eval()(data.x[:100]))
    return torch.stack(outputs)


def engine(
    build: Callable[[int], nn.Module], data: Split, seeds: Sequence[int], steps: int, batch: int, plan: str
) -> Tensor:
    """The same by `train`."""
    torch.set_num_threads(cores())
    config = TrainConfig(steps=steps, batch_size=batch, eval_every=steps)
    results = train(build, data, loss=cross_entropy, config=config, seeds=seeds, plan=plan)
    with torch.no_grad():
        return torch.stack([t.module(data.x[:100]) for t in results])


def case(
    name: str, build: Callable[[int], nn.Module], data: Split, seeds: int, steps: int, batch: int, target: float,
    *, plan: str = "auto", tolerance: float = 1e-3, fused: bool = True,
) -> Case:  # fmt: skip
    arguments = (build, data, range(seeds), steps, batch)
    return Case(
        name,
        functools.partial(engine, *arguments, plan),
        functools.partial(by_hand, *arguments, fused),
        "hand-written loop" if fused else "hand-written loop, Adam as it comes",
        lambda a, b: bool(torch.allclose(a, b, atol=tolerance, rtol=tolerance)),
        target,
        note=plan,
    )


@functools.cache
def _worker(keep: bool) -> WorkerPool:
    """A warm worker, with or without the settings that let it keep freed memory."""
    with mock.patch.object(workers, "KEEP_MEMORY", workers.KEEP_MEMORY if keep else {}):
        pool = WorkerPool(1)
        pool.start()
    return pool


def _in_worker(keep: bool) -> Tensor:
    data = rows(2048, 1, 14, 14)

    def call(seed: int) -> Tensor:
        return by_hand(lambda _: convnet((1, 14, 14), (16, 32), 10), data, [seed], 60, 128, True, threads=1)

    return _worker(keep).map(call, [0])[0]


def cases() -> list[Case]:
    small, wide = rows(4096, 20), rows(4096, 64)
    images, series = rows(2048, 1, 14, 14), rows(2048, 18, 12)
    return [
        case("overhead, 1 seed of a linear net", lambda s: nn.Linear(20, 10), small, 1, 2000, 32, 0.91),
        case("overhead, 1 seed of an MLP 20-32-10", lambda s: mlp((20, 32, 10)), small, 1, 2000, 32, 0.91),
        case("overhead, the same", lambda s: mlp((20, 32, 10)), small, 1, 2000, 32, 0.91, fused=False),
        case("8 seeds of an MLP 64-128-128-10, batch 64", lambda s: mlp((64, 128, 128, 10)), wide, 8, 1000, 64, 2.0),
        case("5 seeds of a convnet 16-32, batch 128", lambda s: convnet((1, 14, 14), (16, 32), 10), images, 5, 300,
             128, 1.3, tolerance=2e-2),
        case("5 seeds of a transformer 64 x 4, batch 64", lambda s: Transformer(), series, 5, 120, 64, 1.4),
        case("5 seeds of an LSTM 64, batch 64", lambda s: Lstm(), series, 5, 300, 64, 1.4),
        Case("60 updates of the convnet in a worker process", functools.partial(_in_worker, True),
             functools.partial(_in_worker, False), "malloc as it comes", torch.equal, 1.0),
    ]  # fmt: skip

"""The tasks of the study of magnitude-invariant hypernetworks: shifted and shrunk images, a denoiser's preference.

A problem draws training batches of `SETS` conditions with `ROWS` rows each, and scores a net on a fixed grid of them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from etude.data import Split, mnist1d
from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.layers import HyperNetwork, mlp

SETS, ROWS, SHIFTS = 4, 32, 7


class Drawn(NamedTuple):
    """x (C, B, ...), y (C, B, ...) and the condition of each of the C sets."""

    x: Tensor
    y: Tensor
    gamma: Tensor


def train_and_test(images: ImageSet, seed: int) -> tuple[Split, Split]:
    """Four fifths of the rows to train on, the rest to test, at most 5,000 in all."""
    count = min(len(images.y), 5000)
    task = images.task(seed, (int(0.8 * count), 0, count - int(0.8 * count)))
    assert task.test is not None
    return task.train, task.test


@dataclass
class ShiftedImages:
    """Images moved cyclically by round(6 gamma) pixels; the target is a perceptron."""

    train_x: Tensor  # (7, N, d): every shift
    train_y: Tensor
    test: Drawn
    classes: int

    @classmethod
    def of(cls, images: ImageSet, seed: int) -> "ShiftedImages":
        """Every shift of the rows of `train_and_test`."""
        train, test_rows = train_and_test(images, seed)

        def moved(x: Tensor) -> Tensor:
            return torch.stack([x.roll(s, -1).flatten(1) for s in range(SHIFTS)])

        gammas = torch.linspace(0, 1, SHIFTS)
        test = Drawn(moved(test_rows.x), test_rows.y.expand(SHIFTS, -1), gammas)
        return cls(moved(train.x), train.y, test, len(images.classes))

    def target(self) -> nn.Module:
        return mlp((self.train_x.shape[-1], 32, self.classes))

    def draw(self, generator: Generator, step: int = 0) -> Drawn:
        gamma = torch.rand(SETS, generator=generator)
        rows = torch.randint(len(self.train_y), (SETS, ROWS), generator=generator)
        at = (gamma * (SHIFTS - 1)).round().long()
        return Drawn(self.train_x[at[:, None], rows], self.train_y[rows], gamma)

    @staticmethod
    def losses(net: HyperNetwork, batch: Drawn, gamma: Tensor) -> Tensor:
        """Cross-entropy of each set, (C,), under the conditions that the net is told."""
        out = net.forward_each(batch.x, gamma=gamma)
        return F.cross_entropy(out.flatten(0, 1), batch.y.flatten(), reduction="none").view(len(gamma), -1).mean(1)


def shrunk(x: Tensor, gamma: Tensor) -> Tensor:
    """Images (C, B, 1, h, w) drawn at 0.4 + 0.6 gamma of their size, bilinear, on a ground of zeros."""
    scale = 0.4 + 0.6 * gamma.repeat_interleave(x.shape[1])
    theta = torch.zeros(len(scale), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    flat = x.flatten(0, 1)
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(x)


@dataclass
class ShrunkImages:
    """Task A2: images of every size; the target is a small convnet, all of whose layers are generated."""

    train_x: Tensor  # (N, 1, h, w)
    train_y: Tensor
    test: Drawn
    classes: int

    @classmethod
    def of(cls, images: ImageSet, seed: int) -> "ShrunkImages":
        """The rows of `train_and_test`."""
        train, test_rows = train_and_test(images, seed)
        gammas, x = torch.linspace(0, 1, 11), test_rows.x.mean(1, keepdim=True)
        test = Drawn(shrunk(x.expand(11, *x.shape), gammas), test_rows.y.expand(11, -1), gammas)
        return cls(train.x.mean(1, keepdim=True), train.y, test, len(images.classes))

    def target(self) -> nn.Module:
        first = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2) if self.train_x.shape[-1] > 8 else nn.Identity()]
        last = [nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, self.classes)]
        return nn.Sequential(*first, *last)

    def draw(self, generator: Generator, step: int = 0) -> Drawn:
        gamma = torch.rand(SETS, generator=generator)
        rows = torch.randint(len(self.train_y), (SETS, ROWS), generator=generator)
        return Drawn(shrunk(self.train_x[rows], gamma), self.train_y[rows], gamma)

    losses = staticmethod(ShiftedImages.losses)


@dataclass
class Denoiser:
    """Noisy signals; gamma weighs smoothness of the output against fidelity."""

    clean: Tensor
    test: Drawn

    @classmethod
    def of(cls, seed: int, rows: int) -> "Denoiser":
        task = mnist1d(rows, rows // 4, seed)
        assert task.test is not None
        gammas = torch.linspace(0, 1, 11)
        noise = torch.randn(task.test.x.shape, generator=stream(seed, "test_noise"))
        x, y = (task.test.x + 0.3 * noise)[:, None], task.test.x[:, None]
        return cls(task.train.x[:, None], Drawn(x.expand(11, *x.shape), y.expand(11, *y.shape), gammas))

    def target(self) -> nn.Module:
        convolutions = [nn.Conv1d(a, b, 5, padding=2) for a, b in ((1, 8), (8, 8), (8, 1))]
        return nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def draw(self, generator: Generator, step: int = 0) -> Drawn:
        y = self.clean[torch.randint(len(self.clean), (SETS, ROWS), generator=generator)]
        x = y + 0.3 * torch.randn(y.shape, generator=generator)
        return Drawn(x, y, torch.rand(SETS, generator=generator))

    @staticmethod
    def losses(net: HyperNetwork, batch: Drawn, gamma: Tensor) -> Tensor:
        """(1 - gamma) MSE + gamma mean |step of the output|, weighed by the batch's own conditions."""
        out: Any = net.forward_each(batch.x, gamma=gamma)
        error = (out - batch.y).square().flatten(1).mean(1)
        rough = out.diff(dim=-1).abs().flatten(1).mean(1)
        return (1 - batch.gamma) * error + batch.gamma * rough

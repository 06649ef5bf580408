"""Tasks of the comparison of hypernetworks: turned digits, digits of unknown classes, a regression with a condition."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.data.streams import rotated_stream
from etude.data.tasks import Split

DEGREES = {"near": 10.0, "far": 30.0}
SHARE = (0.8, 0.0, 0.2)


@dataclass(frozen=True)
class TurnedTasks:
    """T tasks: the same digits, turned by a step more in each. x (T, n, d), y (T, n)."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @classmethod
    def of(cls, images: ImageSet, seed: int, degrees: float, tasks: int, rows: int, test_rows: int) -> "TurnedTasks":
        """Disjoint training rows for each task; ValueError where the set has too few."""
        task = images.task(seed, SHARE)
        assert task.test is not None
        for what, asked, there, each in (("rows", rows, task.train.n, tasks), ("test_rows", test_rows, task.test.n, 1)):
            if asked * each > there:
                raise ValueError(
                    f"{what}={asked} asks for {asked * each} images in {tasks} tasks, the set leaves {there}: "
                    f"--set {what}={max(1, there // each)}"
                )
        angles = [degrees * t for t in range(tasks)]
        segments = rotated_stream(task, angles, seed=seed, sizes=rows, test_size=test_rows, disjoint=True)
        train, test = [s.split("train") for s in segments], [s.split("test") for s in segments]
        n, m = min(s.n for s in train), min(s.n for s in test)
        x, test_x = (torch.stack([s.x[:k].flatten(1) for s in part]) for part, k in ((train, n), (test, m)))
        y, test_y = (torch.stack([s.y[:k] for s in part]) for part, k in ((train, n), (test, m)))
        return cls(x, y, test_x, test_y, task.num_classes)

    def draw(self, batch: int, generator: Generator) -> Split:
        """`batch` rows of every task, with replacement: x (T, batch, d)."""
        tasks, n = self.y.shape
        rows = torch.randint(n, (tasks, batch), generator=generator)
        at = torch.arange(tasks)[:, None]
        return Split(self.x[at, rows], self.y[at, rows])


@dataclass(frozen=True)
class OpenSet:
    """Upright images of the first half of the classes, and test images of the other half."""

    train: Split
    test: Split
    unknown: Tensor
    classes: int

    @classmethod
    def of(cls, images: ImageSet, seed: int, rows: int) -> "OpenSet":
        """`rows` training rows of known classes."""
        task = images.task(seed, SHARE)
        assert task.test is not None
        known = task.num_classes // 2
        train, test = (Split(p.x.flatten(1), p.y) for p in (task.train, task.test))
        mine = (train.y < known).nonzero()[:rows, 0]
        return cls(train.take(mine), test.take(test.y < known), test.x[test.y >= known], known)


@dataclass(frozen=True)
class Waves:
    """y = (1/2 + c_1) sin(pi (1 + 3 c_2) x + 2 pi c_3) + noise of 0.05; x in [-1, 1], c in [0, 1]^3: (n, 1), (n, 3)."""

    x: Tensor
    c: Tensor
    y: Tensor

    @classmethod
    def of(cls, seed: int, rows: int, part: str) -> "Waves":
        """Rows of one part ("train" or "test")."""
        g = stream(seed, "waves", part)
        x, c = 2 * torch.rand(rows, 1, generator=g) - 1, torch.rand(rows, 3, generator=g)
        clean = (0.5 + c[:, :1]) * torch.sin(math.pi * (1 + 3 * c[:, 1:2]) * x + 2 * math.pi * c[:, 2:])
        return cls(x, c, clean + 0.05 * torch.randn(rows, 1, generator=g))

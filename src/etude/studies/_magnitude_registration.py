"""Registration of pairs of images, the paper's second task in small: the condition weighs smoothness against likeness.

    loss(gamma) = (1 - gamma) mean (m o phi - f)^2 + gamma mean |grad u|^2,   phi(p) = p + u(p)

for a moving image m and a fixed one f of the same class; u (in pixels) comes from a small U-Net that sees both, all of
whose weights are generated. Source: HyperMorph (Hoopes et al. 2021, arXiv 2101.01035), as the paper uses it.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.layers import HyperNetwork
from etude.studies._magnitude_problems import ROWS, SETS, Drawn, train_and_test

TEST_PAIRS = 200


class SmallUNet(nn.Module):
    """Two halvings and back with skips: (B, 2, h, w) to displacements (B, 2, h, w)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.up1 = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.up2 = nn.Conv2d(3 * width, width, 3, padding=1)
        self.flow = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        whole = F.leaky_relu(self.enter(x), 0.2)
        halved = F.leaky_relu(self.down1(whole), 0.2)
        low = F.leaky_relu(self.down2(halved), 0.2)
        low = torch.cat([F.interpolate(low, size=halved.shape[-2:]), halved], -3)
        low = F.leaky_relu(self.up1(low), 0.2)
        low = torch.cat([F.interpolate(low, size=whole.shape[-2:]), whole], -3)
        return self.flow(F.leaky_relu(self.up2(low), 0.2))


def warped(moving: Tensor, u: Tensor) -> Tensor:
    """Images (B, 1, h, w) read at p + u(p), bilinear, with u (B, 2, h, w) in pixels along x and y; edges go on."""
    h, w = moving.shape[-2:]
    theta = torch.eye(2, 3, device=u.device, dtype=u.dtype).expand(len(u), 2, 3)
    grid = F.affine_grid(theta, [len(u), 1, h, w], align_corners=True)
    step = u.new_tensor([2 / max(1, w - 1), 2 / max(1, h - 1)])
    return F.grid_sample(moving, grid + u.movedim(1, -1) * step, padding_mode="border", align_corners=True)


def roughness(u: Tensor) -> Tensor:
    """Mean squared forward difference of each field, (B,)."""
    return u.diff(dim=-1).square().flatten(1).mean(1) + u.diff(dim=-2).square().flatten(1).mean(1)


class Pairs:
    """Images that can be paired with others of their class."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x.mean(1, keepdim=True), y
        self.order, self.counts = y.argsort(stable=True), torch.bincount(y)
        self.starts = self.counts.cumsum(0) - self.counts

    def of(self, fixed: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """For rows `fixed` (...), a moving image of the same class each: both (..., 2, h, w), fixed (..., 1, h, w)."""
        kinds = self.y[fixed]
        at = (torch.rand(fixed.shape, generator=generator) * self.counts[kinds]).long()
        moving = self.order[self.starts[kinds] + at]
        return torch.cat([self.x[moving], self.x[fixed]], -3), self.x[fixed]


@dataclass
class Registration:
    """A batch's x (C, B, 2, h, w) stacks moving and fixed image, y is the fixed one."""

    train: Pairs
    test: Drawn

    @classmethod
    def of(cls, images: ImageSet, seed: int) -> "Registration":
        """The rows of `train_and_test`."""
        train, test_rows = train_and_test(images, seed)
        g, gammas = stream(seed, "test_pairs"), torch.linspace(0, 1, 11)
        x, y = Pairs(test_rows.x, test_rows.y).of(torch.randint(test_rows.n, (TEST_PAIRS,), generator=g), g)
        test = Drawn(x.expand(11, *x.shape), y.expand(11, *y.shape), gammas)
        return cls(Pairs(train.x, train.y), test)

    def target(self) -> nn.Module:
        return SmallUNet()

    def draw(self, generator: Generator, step: int = 0) -> Drawn:
        gamma = torch.rand(SETS, generator=generator)
        x, y = self.train.of(torch.randint(len(self.train.y), (SETS, ROWS), generator=generator), generator)
        return Drawn(x, y, gamma)

    @staticmethod
    def losses(net: HyperNetwork, batch: Drawn, gamma: Tensor) -> Tensor:
        """Each set's loss, (C,), weighed by the batch's own conditions; the net is told `gamma`."""
        u = net.forward_each(batch.x, gamma=gamma).flatten(0, 1)  # type: ignore[union-attr]
        x, y = batch.x.flatten(0, 1), batch.y.flatten(0, 1)
        unlike = (warped(x[:, :1], u) - y).square().flatten(1).mean(1).view(len(gamma), -1).mean(1)
        rough = roughness(u).view(len(gamma), -1).mean(1)
        return (1 - batch.gamma) * unlike + batch.gamma * rough

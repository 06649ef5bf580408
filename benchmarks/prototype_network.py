"""Prototype network against a straight port of the authors' code, and elastic deformation image by image."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor
from torch.nn import functional as F

from etude.data.randomness import fork_global, seeded_build, stream
from etude.data.transforms import elastic
from etude.lab.bench import Case
from etude.trust import PrototypeNetwork, prototype_loss, prototype_network

BATCH = 250


def _deform_one_by_one(x: Tensor, rng: np.random.Generator) -> Tensor:
    """The authors' way: two smoothed fields and a bilinear look-up for each image."""
    height, width = x.shape[-2:]
    grid = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    made = []
    for image in x[:, 0].numpy():
        shifts = [20 * gaussian_filter(rng.uniform(-1, 1, image.shape), 4, mode="constant") for _ in range(2)]
        made.append(map_coordinates(image, [g + s for g, s in zip(grid, shifts)], order=1, mode="constant"))
    return torch.from_numpy(np.stack(made))[:, None].float()


def _port_loss(net: PrototypeNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Norms computed anew for distances, R1 and R2, contiguous memory: as the authors' code reads."""

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T

    z = net.encoder(x)
    to_prototypes = distances(z, net.layer.prototypes)
    to_codes = distances(net.layer.prototypes, z)
    error = (net.decoder(z) - x).pow(2).flatten(1).sum(1).mean()
    classify = F.cross_entropy(to_prototypes @ net.head.weight.T, y)
    return 20 * classify + error + to_codes.min(1).values.mean() + to_prototypes.min(1).values.mean()


def _train(net: PrototypeNetwork, loss: Callable[[PrototypeNetwork, Tensor, Tensor], Any], x: Tensor, y: Tensor) -> Any:
    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, fused=True)
    for a, b in zip(x.split(BATCH), y.split(BATCH)):
        optimizer.zero_grad()
        loss(net, a, b).backward()
        optimizer.step()
    return net.layer.prototypes.detach()


def cases() -> list[Case]:
    """1,000 images of 28 x 28, one epoch, one thread or as many as torch has."""
    g = stream(0, "bench")
    x, y = torch.rand(1000, 1, 28, 28, generator=g), torch.randint(10, (1000,), generator=g)
    net = seeded_build(lambda: prototype_network((1, 28, 28), 10), stream(0, "init"))
    port = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def ours_loss(n: PrototypeNetwork, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([*prototype_loss(n, a, b).values()]).sum()

    def ours_deformed(n: PrototypeNetwork, a: Tensor, b: Tensor) -> Tensor:
        with fork_global(stream(0, "noise")):
            return torch.stack([*prototype_loss(n, a, b, deform=True).values()]).sum()

    rng = np.random.default_rng(0)

    def port_deformed(n: PrototypeNetwork, a: Tensor, b: Tensor) -> Tensor:
        return _port_loss(n, _deform_one_by_one(a, rng), b)

    def same(a: Any, b: Any) -> bool:
        return torch.allclose(a, b, atol=1e-2)

    return [
        Case(
            f"elastic deformation of {BATCH} images", lambda: elastic(x[:BATCH], generator=stream(0, "e")),
            lambda: _deform_one_by_one(x[:BATCH], rng), "scipy, image by image", None, 20.0,
        ),
        Case(
            "one epoch of 1,000 images, deformed", lambda: _train(net, ours_deformed, x, y),
            lambda: _train(port, port_deformed, x, y), "port of the authors' code", None, 5.0,
            "convolutions take most of the time",
        ),
        Case(
            "one epoch of 1,000 images, not deformed", lambda: _train(net, ours_loss, x, y),
            lambda: _train(port, _port_loss, x, y), "port of the authors' code", same,
        ),
    ]  # fmt: skip

"""Image transforms against the per-image loop, batches against torch's DataLoader; images of the size of MNIST's."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates, rotate
from torch.utils.data import DataLoader, TensorDataset

from etude.data import Batches, Split, affine, elastic, stream
from etude.lab.bench import Case

N, SIDE, ALPHA, SIGMA, DEGREES = 256, 28, 20.0, 4.0, 20.0


def elastic_of_one(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simard's deformation of one image, as it is usually written."""
    shape = image.shape
    down = gaussian_filter(rng.random(shape) * 2 - 1, SIGMA, mode="constant") * ALPHA
    right = gaussian_filter(rng.random(shape) * 2 - 1, SIGMA, mode="constant") * ALPHA
    rows, columns = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    return map_coordinates(image, [rows + down, columns + right], order=1, mode="grid-constant")


def on_one_thread(call: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """SciPy's loop has one thread, so ours gets one."""

    def run() -> torch.Tensor:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return run


def alike(ours: torch.Tensor, peer: np.ndarray) -> bool:
    """Both draw their own fields: the moved images must agree in mean and spread to 5 %."""
    return bool(
        np.isclose(float(ours.mean()), peer.mean(), rtol=0.05) and np.isclose(float(ours.std()), peer.std(), rtol=0.05)
    )


def cases() -> list[Case]:
    x = torch.rand(N, 1, SIDE, SIDE, generator=stream(0, "bench"))
    plain = x[:, 0].numpy()
    generator, rng = stream(0, "ours"), np.random.default_rng(0)
    table = Split(torch.rand(20_000, 64, generator=generator), torch.zeros(20_000, dtype=torch.int64))
    loader = DataLoader(TensorDataset(table.x, table.y), batch_size=64, shuffle=True)

    def turned() -> np.ndarray:
        angles = rng.uniform(-DEGREES, DEGREES, N)
        return np.stack(
            [rotate(i, a, reshape=False, order=1, mode="grid-constant") for i, a in zip(plain, angles, strict=True)]
        )

    return [
        Case(
            "elastic deformation, 256 images 28 x 28",
            ours=on_one_thread(lambda: elastic(x, alpha=ALPHA, sigma=SIGMA, generator=generator)),
            peer=lambda: np.stack([elastic_of_one(image, rng) for image in plain]),
            peer_name="SciPy, image by image",
            same=alike,
            target=20.0,
        ),
        Case(
            "random rotation, 256 images 28 x 28",
            ours=on_one_thread(lambda: affine(x, degrees=(-DEGREES, DEGREES), generator=generator)),
            peer=turned,
            peer_name="SciPy, image by image",
            same=alike,
        ),
        Case(
            "one epoch of batches, 20,000 rows of 64, batch 64",
            ours=lambda: sum(batch.n for batch in Batches(table, 64, generator)),
            peer=lambda: sum(len(batch) for batch, _ in loader),
            peer_name="torch DataLoader",
            same=lambda a, b: a == b,
            target=10.0,
        ),
    ]

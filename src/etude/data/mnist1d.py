"""MNIST-1D: ten short templates, padded, stretched, shifted, sheared and drowned in correlated noise.

Source: Greydanus, Kobak 2024, "Scaling down deep learning with MNIST-1D", section 2 and its default settings; the
templates are those of the published data (Apache-2.0). Differs from the published generator: training and test
signals come from streams of their own, and both are scaled by the mean and deviation of the training signals.
"""

from typing import NamedTuple

import numpy as np
import torch

from etude.data.randomness import numpy_stream
from etude.data.tasks import Split, Task

LENGTH = 40
PADDING = (36, 60)
SCALE = 0.4
MAX_SHIFT = 48
CORRELATED_NOISE = 0.25
CORRELATION = 2.0  # standard deviation of the noise's filter, in samples
NOISE = 0.02
SHEAR = 0.75
EPSILON = 1e-8  # lifts a template off zero: exact zeros mark where the correlated noise goes
VERSION = "1"
_TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)


class Draws(NamedTuple):
    """What is random about n signals of `width` samples before they are cut to `LENGTH`."""

    padding: np.ndarray  # (n,) zeros behind the template
    scale: np.ndarray  # (n,) factor
    shift: np.ndarray  # (n,) circular
    correlated: np.ndarray  # (n, width) standard normal
    noise: np.ndarray  # (n, width) standard normal
    shear: np.ndarray  # (n,) slope

    @classmethod
    def of(cls, n: int, rng: np.random.Generator) -> "Draws":
        width = len(_TEMPLATES[0]) + PADDING[1]
        return cls(
            rng.integers(PADDING[0], PADDING[1] + 1, n),
            1 + SCALE * (rng.random(n) - 0.5),
            rng.integers(0, MAX_SHIFT, n),
            rng.standard_normal((n, width)),
            rng.standard_normal((n, width)),
            SHEAR * (rng.random(n) - 0.5),
        )


def templates() -> np.ndarray:
    """The ten templates (10, 12): whitened, starting at 0, a sixth of their size."""
    x = np.array(_TEMPLATES, dtype=np.float64)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return (x - x[:, :1]) / 6


def render(labels: np.ndarray, draws: Draws) -> np.ndarray:
    """Signals (n, LENGTH) of the given classes, before they are scaled."""
    from scipy.ndimage import gaussian_filter1d

    n, width = draws.noise.shape
    base = templates()[labels] + EPSILON
    padded = np.concatenate([base, np.zeros((n, width - base.shape[1]))], axis=1)
    # stretch: the signal with its own number of zeros, read at `width` places
    places = np.linspace(0, 1, width) * (base.shape[1] + draws.padding[:, None] - 1)
    low = np.minimum(places.astype(int), (base.shape[1] + draws.padding[:, None] - 2))
    rows = np.arange(n)[:, None]
    left, right = padded[rows, low], padded[rows, np.minimum(low + 1, width - 1)]
    x = (left + (right - left) * (places - low)) * draws.scale[:, None]
    x = x[rows, (np.arange(width) - draws.shift[:, None]) % width]
    background = CORRELATED_NOISE * gaussian_filter1d(draws.correlated, CORRELATION, axis=1)
    x = np.where(x != 0, x, background) + NOISE * draws.noise
    x = x - draws.shear[:, None] * np.linspace(-0.5, 0.5, width)
    return _resample(x, LENGTH)


def mnist1d(n_train: int = 4000, n_test: int = 1000, seed: int = 0, *, n_val: int = 0) -> Task:
    """MNIST-1D drawn anew: x (n, 40) float32, y in 0..9, classes as equal as n allows.

    Every part has a stream of its own: its signals do not depend on the size of the others (their common scale
    does, on the training part). There is no closed form of the Bayes error; people reach about 96 %.

    Raises
    ------
    ValueError
        If a part is negative or there is no training part.
    """
    if n_train < 1 or n_test < 0 or n_val < 0:
        raise ValueError(f"need n_train >= 1 and the others >= 0, got {n_train}, {n_test}, {n_val}")
    raw = {p: _draw(n, seed, p) for p, n in (("train", n_train), ("val", n_val), ("test", n_test))}
    mean, deviation = raw["train"][0].mean(), raw["train"][0].std()
    parts = {
        p: Split(torch.from_numpy(((x - mean) / deviation).astype(np.float32)), torch.from_numpy(y))
        for p, (x, y) in raw.items()
        if len(y)
    }
    record = {"name": "mnist1d", "version": f"generator {VERSION}", "sha256": "", "license": "Apache-2.0"}
    meta = {"mean": float(mean), "deviation": float(deviation), "chance": 0.1, "classes": tuple("0123456789")}
    return Task("mnist1d", "signals", parts["train"], parts.get("val"), parts.get("test"), 10, meta, (record,))


def _draw(n: int, seed: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_stream(seed, "mnist1d", part)
    labels = rng.permutation(np.arange(n) % 10)
    return render(labels, Draws.of(n, rng)), labels


def _resample(x: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation of each row at `length` even places."""
    places = np.linspace(0, 1, length) * (x.shape[1] - 1)
    low = np.minimum(places.astype(int), x.shape[1] - 2)
    return x[:, low] + (x[:, low + 1] - x[:, low]) * (places - low)

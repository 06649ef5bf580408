"""Eight small Gaussians in the unit square, two new classes a task: the toy stream of the key-value bottleneck.

Source: Traeuble et al. 2022, arXiv 2207.11240, fig. 2 and its official notebook (means, spread, sizes). Task t
brings the classes t and t + 4, on opposite sides of the square.
"""

import torch
from torch import Tensor

from etude.data.randomness import stream
from etude.data.streams import Segment, class_stream
from etude.data.tasks import Split, Task

MEANS = (
    (0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75),
    (0.75, 0.5), (0.5, 0.75), (0.25, 0.5), (0.5, 0.25),
)  # fmt: skip
STD = 0.035


def gaussian_stream(seed: int, *, per_class: int = 50, test_per_class: int = 200) -> list[Segment]:
    """Four segments of two classes each; inputs (n, 2) float32. At most one point in 1,000 lies nearer to the mean
    of another class, so that right answers on all of them are possible."""
    if min(per_class, test_per_class) < 1:
        raise ValueError(f"per_class and test_per_class must be at least 1, got {per_class} and {test_per_class}")
    parts = [
        _draw(n, stream(seed, "gaussians", part)) for part, n in (("train", per_class), ("test", test_per_class))
    ]  # fmt: skip
    task = Task("gaussians", "table", parts[0], None, parts[1], len(MEANS))
    return class_stream(task, 2, seed=seed, order=(0, 4, 1, 5, 2, 6, 3, 7))


def _draw(n: int, generator: torch.Generator) -> Split:
    means: Tensor = torch.tensor(MEANS).repeat_interleave(n, 0)
    x = means + STD * torch.randn(means.shape, generator=generator)
    return Split(x, torch.arange(len(MEANS)).repeat_interleave(n))

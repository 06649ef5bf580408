"""Few-shot episodes: sinusoids, classes around prototypes, images of few classes, and accuracy by presentation.

Labels are drawn independently at every step. Where an episode is balanced, later items can be guessed by counting the
labels not yet seen: such a guesser has H_n / n accuracy over n classes without looking at an item (61 % for 3, 46 %
for 5).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Episodes(NamedTuple):
    """A batch of episodes."""

    x: Tensor
    """(B, T, ...)"""
    y: Tensor
    """(B, T) classes, or values."""
    rarest: Tensor
    """(B,) the label that its episode draws least often; -1 for values."""


def sinusoid_episodes(
    batch: int, points: int, generator: torch.Generator, *, family: Literal["sine", "triangle"] = "sine"
) -> Episodes:
    """Points of ``y = A f(x - phase)``, A in U(0.1, 5), phase in U(0, pi), x in U(-5, 5) (Finn et al. 2017).

    "triangle" replaces the sine by a triangular wave of the same period and height, as a second family.
    """
    if batch < 1 or points < 1:
        raise ValueError(f"batch and points must be at least 1, got {batch} and {points}")
    u = torch.rand(batch, points + 2, generator=generator)
    amplitude, phase, x = 0.1 + 4.9 * u[:, :1], torch.pi * u[:, 1:2], 10 * u[:, 2:] - 5
    wave = torch.sin(x - phase)
    if family == "triangle":
        wave = 2 / torch.pi * torch.asin(wave)
    elif family != "sine":
        raise ValueError(f"family must be 'sine' or 'triangle', got {family!r}")
    return Episodes(x[..., None], amplitude * wave, torch.full((batch,), -1))


def zipf_labels(
    batch: int, steps: int, classes: int, exponent: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Labels (B, T), drawn independently with probabilities 1 / rank^exponent, and the rarest of each episode (B,).

    Ranks are dealt to the labels at random in every episode; exponent 0 is uniform.
    """
    if classes < 2 or exponent < 0:
        raise ValueError(f"need at least 2 classes and an exponent of at least 0, got {classes} and {exponent}")
    share = torch.arange(1, classes + 1, dtype=torch.float64) ** -exponent
    rank = torch.multinomial(share, batch * steps, replacement=True, generator=generator).view(batch, steps)
    dealt = torch.rand(batch, classes, generator=generator).argsort(1)
    return dealt.gather(1, rank), dealt[:, -1]


def prototype_episodes(
    batch: int, steps: int, generator: torch.Generator, *, classes: int = 3, dim: int = 16, radius: float = 2.0,
    noise: float = 0.35, exponent: float = 1.5, switch_at: int | None = None,
) -> Episodes:  # fmt: skip
    """Items around class means on a sphere, new means in every episode.

    switch_at
        From this step on the means are others: another task in the same episode.
    """
    y, rarest = zipf_labels(batch, steps, classes, exponent, generator)
    means = [radius * F.normalize(torch.randn(batch, classes, dim, generator=generator), dim=-1) for _ in range(2)]
    x = means[0].gather(1, y[..., None].expand(-1, -1, dim))
    if switch_at is not None:
        later = means[1].gather(1, y[..., None].expand(-1, -1, dim))
        x = torch.where((torch.arange(steps) >= switch_at)[:, None], later, x)
    return Episodes(x + noise * torch.randn(x.shape, generator=generator), y, rarest)


def image_episodes(
    images: Tensor, labels: Tensor, classes: int, steps: int, *, exponent: float = 0.0
) -> Callable[[torch.Generator, int], Episodes]:
    """``draw(generator, batch)``: few classes of a labelled set, dealt new labels in every episode.

    Raises ValueError where the set has fewer classes than an episode.
    """
    kinds = labels.unique()
    if len(kinds) < classes:
        raise ValueError(f"an episode has {classes} classes, the set only {len(kinds)}")
    members = [(labels == k).nonzero()[:, 0] for k in kinds]
    count = torch.tensor([len(m) for m in members])
    table = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)

    def draw(generator: torch.Generator, batch: int) -> Episodes:
        y, rarest = zipf_labels(batch, steps, classes, exponent, generator)
        chosen = torch.rand(batch, len(kinds), generator=generator).argsort(1)[:, :classes].gather(1, y)
        place = (torch.rand(batch, steps, generator=generator) * count[chosen]).long()
        return Episodes(images[table[chosen, place]], y, rarest)

    return draw


def presentations(y: Tensor) -> Tensor:
    """(B, T) how often the item's label has come by then, itself included: 1 = its first presentation."""
    same = y[:, :, None] == y[:, None, :]
    return same.tril().sum(-1)


def presentation_accuracy(predictions: Tensor, y: Tensor, k: int, rarest: Tensor | None = None) -> float:
    """Share of right answers among k-th presentations, of every class or of each episode's `rarest`; NaN for none."""
    picked = presentations(y) == k
    if rarest is not None:
        picked = picked & (y == rarest[:, None])
    right = (predictions.argmax(-1) == y)[picked]
    return float(right.float().mean()) if len(right) else float("nan")


def label_counts(y: Tensor, classes: int) -> Tensor:
    """(B, T, C) how often each label came before each step: the prediction of one who only counts labels."""
    return F.pad(F.one_hot(y, classes).cumsum(1), (0, 0, 1, 0))[:, :-1].float()

"""The families of episodes of the study of fast and slow learning."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from etude.data import stream
from etude.incontext.few_shot_tasks import Episodes, image_episodes, prototype_episodes, sinusoid_episodes

Draw = Callable[[torch.Generator, int, int], Episodes]


@dataclass(frozen=True)
class Problem:
    """What a protocol asks; draws are ``draw(generator, batch, steps)``."""

    draw: Draw
    test: Draw
    input_size: int
    output_size: int
    kind: str
    steps: int
    test_steps: int
    images: tuple[int, ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()


def sinusoids(c: Any, family: Any = "sine") -> Problem:
    """Points of a sinusoid in order; tested on twice as many as were trained on."""

    def draw(g: torch.Generator, batch: int, steps: int) -> Episodes:
        return sinusoid_episodes(batch, steps, g, family=family)

    return Problem(draw, draw, 1, 1, "regression", c.points, 2 * c.points)


def classes(c: Any) -> Problem:
    """Items around three prototypes, labels drawn by Zipf's law."""

    def draw(g: torch.Generator, batch: int, steps: int) -> Episodes:
        return prototype_episodes(batch, steps, g)

    return Problem(draw, draw, 16, 3, "classification", c.items, c.items)


def images(data: Any, c: Any, ways: int, steps: int, exponent: float) -> Problem:
    """Episodes of a labelled image set; half of its classes are only seen in the tests."""
    kinds = data.y.unique()
    if len(kinds) < 2 * ways:
        raise ValueError(f"the set has {len(kinds)} classes and needs {2 * ways}: half are kept for the tests")
    order = kinds[torch.randperm(len(kinds), generator=stream(0, "classes"))]
    halves = (torch.isin(data.y, part) for part in (order[: len(order) // 2], order[len(order) // 2 :]))
    parts = [image_episodes(data.x[rows], data.y[rows], ways, steps, exponent=exponent) for rows in halves]

    def drawn(part: Callable[[torch.Generator, int], Episodes]) -> Draw:
        return lambda g, batch, n: part(g, batch)

    shape = tuple(data.x.shape[1:])
    return Problem(drawn(parts[0]), drawn(parts[1]), 64, ways, "classification", steps, steps, shape, data.provenance)

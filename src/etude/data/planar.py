"""Planar problems as batches with labels (fresh ones without end, or from a labelled pool), and their scores."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etude.data.batching import Sampled, sampled
from etude.data.geometry import (
    convex_hull_targets,
    delaunay_targets,
    hull_area_coverage,
    same_cycle,
    tour_length,
    triangle_coverage,
    tsp_targets,
    uniform_points,
)
from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.data.tours import Method

PROBLEMS = ("hull", "delaunay", "tsp")


def planar_problem(
    problem: str, batch: int, n: int, generator: torch.Generator, *, method: Method = "auto", restarts: int = 20
) -> Split:
    """Uniform points x (batch, n, 2) and their label y (batch, m), padded with -1 and no wider than needed.

    Parameters
    ----------
    problem
        "hull", "delaunay" or "tsp" (see `etude.data.geometry` for the order of each label).
    method, restarts
        How tours are labelled; see `tsp_targets`.

    Raises
    ------
    ValueError
        For an unknown problem or sizes below 1.
    """
    _check(problem)
    x = uniform_points(batch, n, generator)
    if problem == "tsp":
        return Split(x, tsp_targets(x, method=method, restarts=restarts))
    y = convex_hull_targets(x) if problem == "hull" else delaunay_targets(x)
    return Split(x, y[:, : int((y >= 0).sum(1).max())])


def fresh_batches(
    problem: str, batch: int, sizes: tuple[int, int], *, method: Method = "auto", restarts: int = 20
) -> Sampled:
    """Endless new instances; each batch has one n, drawn evenly from sizes[0]..sizes[1]."""
    low, high = _sizes(sizes)

    def draw(generator: torch.Generator, step: int) -> Split:
        n = int(torch.randint(low, high + 1, (1,), generator=generator))
        return planar_problem(problem, batch, n, generator, method=method, restarts=restarts)

    return sampled(draw)


def labelled_pool(
    problem: str, rows: int, sizes: tuple[int, int], *, seed: int, method: Method = "auto", restarts: int = 20
) -> dict[int, Split]:
    """`rows` instances of every n in sizes[0]..sizes[1], labelled once: for labels that cost more than a step."""
    low, high = _sizes(sizes)
    return {
        n: planar_problem(problem, rows, n, stream(seed, "pool", problem, n), method=method, restarts=restarts)
        for n in range(low, high + 1)
    }


def pool_batches(pool: Mapping[int, Split], batch: int) -> Sampled:
    """Endless batches from a pool; each has one n, and rows drawn with replacement."""
    if not pool:
        raise ValueError("the pool is empty")
    splits = list(pool.values())

    def draw(generator: torch.Generator, step: int) -> Split:
        part = splits[int(torch.randint(len(splits), (1,), generator=generator))]
        return part.take(torch.randint(part.n, (batch,), generator=generator))

    return sampled(draw)


def _check(problem: str) -> None:
    if problem not in PROBLEMS:
        raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")


def _sizes(sizes: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= sizes[0] <= sizes[1]:
        raise ValueError(f"sizes must be 1 <= low <= high, got {sizes}")
    return sizes


def planar_scores(problem: str, split: Split, sequences: Tensor) -> dict[str, float]:
    """How good index sequences (batch, m), padded with -1, are for the instances of a split.

    Returns
    -------
    dict
        hull: `exact` (share equal to the label as a polygon), `valid` (share of simple polygons), `area` (mean share
        of the true area that the valid ones cover; 0 if none is valid). delaunay: `exact`, `triangle_coverage`.
        tsp: `tour_length` (mean), `tour_ratio` (mean length over mean length of the labels).
    """
    _check(problem)
    sequences = sequences.to(split.x.device)
    if problem == "hull":
        area = hull_area_coverage(split.x, sequences)
        valid = area.isfinite()
        exact = same_cycle(sequences, split.y, points=split.x)
        covered = float(area[valid].mean()) if bool(valid.any()) else 0.0
        return {"exact": float(exact.double().mean()), "valid": float(valid.double().mean()), "area": covered}
    if problem == "delaunay":
        share = triangle_coverage(sequences, split.y)
        same_size = (sequences >= 0).sum(1) == (split.y >= 0).sum(1)
        exact = (share == 1) & same_size
        return {"exact": float(exact.double().mean()), "triangle_coverage": float(share.double().mean())}
    length, label = (float(tour_length(split.x, s).double().mean()) for s in (sequences, split.y))
    return {"tour_length": length, "tour_ratio": length / label}


def outline_rows(split: Split, sequences: Tensor, cases: int = 4) -> list[Any]:
    """The first answers beside their labels as records (case, what, step, x, y) for a plot; polygons are closed."""
    rows: list[Any] = []
    for case in range(min(cases, split.n)):
        for what, sequence in (("answer", sequences[case]), ("truth", split.y[case])):
            corners = sequence[sequence >= 0].tolist()
            for step, index in enumerate(corners + corners[:1]):
                x, y = (round(float(v), 4) for v in split.x[case, index])
                rows.append({"case": case + 1, "what": what, "step": step, "x": x, "y": y})
        for x, y in split.x[case].tolist():
            rows.append({"case": case + 1, "what": "points", "step": 0, "x": round(x, 4), "y": round(y, 4)})
    return rows


def cell_rows(matrix: Tensor) -> list[Any]:
    """A matrix (steps, slots) as records (step, slot, value) for a heat map; steps count from 1, slots from 0."""
    return [
        {"step": i, "slot": j, "value": round(v, 4)}
        for i, row in enumerate(matrix.tolist(), start=1)
        for j, v in enumerate(row)
    ]

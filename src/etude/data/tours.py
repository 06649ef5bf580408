"""Travelling-salesman labels for small planar instances: exact, local search and weak heuristics, many at once.

Every function takes a batch of instances and works on all of them in step. A tour is an index sequence
that starts at city 0; which way round it goes is a convention that a learner has to guess, so it is geometric:
counter-clockwise (Vinyals et al. 2015 fix only the start).
"""

import math
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Method = Literal["auto", "exact", "local", "nearest", "insertion"]
EXACT_LIMIT = 12
"""Most cities that `exact` takes (subset dynamic programming holds 2**n numbers an instance)."""
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def tsp_targets(
    points: Tensor, *, method: Method = "auto", restarts: int = 20, generator: torch.Generator | None = None
) -> Tensor:
    """Label a batch of planar instances with a tour each.

    Parameters
    ----------
    points
        Shape (batch, n, 2), or (n, 2) for one instance; n >= 1.
    method
        "exact": optimal (all tours up to 6 cities, Held-Karp up to 12). "local": 2-opt and or-opt from the
        cheapest insertion, then `restarts` double-bridge kicks. "nearest", "insertion": one pass of the
        nearest-neighbour or cheapest-insertion rule, weak teachers on purpose.
        "auto": exact up to 12 cities, local above.
    generator
        Source of the kicks; by default they are the same in every call.

    Returns
    -------
    Tensor
        Shape (batch, n) int64: starts at city 0 and runs counter-clockwise (signed area >= 0; when it is
        exactly 0, the direction whose second city has the smaller index). Of cities at one place, the lower index
        comes first.

    Raises
    ------
    ValueError
        For a NaN or infinite coordinate, a wrong shape, an unknown method, negative restarts, or more than 12 cities
        with "exact".
    """
    p, single = as_batch(points)
    n = p.shape[1]
    if method not in ("auto", "exact", "local", "nearest", "insertion"):
        raise ValueError(f"method must be auto, exact, local, nearest or insertion, got {method!r}")
    if method == "exact" and n > EXACT_LIMIT:
        raise ValueError(f"exact tours go up to {EXACT_LIMIT} cities, got {n}: use method='local'")
    if restarts < 0:
        raise ValueError(f"restarts must be at least 0, got {restarts}")
    p = rescaled(p)
    d = distances(p)
    if n <= 3:
        tours = np.broadcast_to(np.arange(n), p.shape[:2]).copy()
    elif method == "nearest":
        tours = _nearest_neighbour(d)
    elif method == "insertion":
        tours = _cheapest_insertion(d)
    elif n <= EXACT_LIMIT and method in ("auto", "exact"):
        tours = _all_tours(d) if n <= 6 else _held_karp(d)
    else:
        tours = _iterated_local_search(d, restarts, _numpy_generator(generator))
    out = torch.from_numpy(_counter_clockwise(p, tours))
    out = out.to(points.device) if isinstance(points, Tensor) else out
    return out[0] if single else out


def tour_length(points: Tensor, tour: Tensor) -> Tensor:
    """Length of closed tours.

    Parameters
    ----------
    points
        Shape (batch, n, 2) or (n, 2).
    tour
        Shape (batch, m) or (m,), indices into the points, padded with -1 at the end. A tour need not visit
        every point.

    Returns
    -------
    Tensor
        Shape (batch,), or a scalar, in the unit and dtype of the points (float64 where they are integers); 0 for fewer
        than two cities.

    Raises
    ------
    ValueError
        If points have another shape, an index lies outside 0..n-1 (other than the padding) or is no integer, or padding
        stands before an index.
    """
    points, tour = torch.as_tensor(points), torch.as_tensor(tour)
    points = points if points.is_floating_point() else points.double()
    single = points.dim() == 2
    if single:
        points, tour = points[None], tour[None]
    if points.dim() != 3 or points.shape[2] != 2:
        raise ValueError(f"points must have shape (batch, n, 2), got {tuple(points.shape)}")
    size = check_sequences(tour, points.shape[1], points.shape[0])
    steps = torch.arange(tour.shape[1], device=tour.device)
    inside = steps < size[:, None]
    following = torch.where(steps + 1 < size[:, None], steps + 1, 0)
    at = points.gather(1, tour.long().clamp_min(0)[..., None].expand(-1, -1, 2))
    then = at.gather(1, following[..., None].expand(-1, -1, 2))
    gap = at - then
    unit = _power_of_two(gap)
    length = ((gap * unit[:, None, None]).norm(dim=-1) * inside).sum(1) / unit
    return length[0] if single else length


def _power_of_two(gap: Tensor) -> Tensor:
    """(batch,) factors that bring the largest entry of each row near 1: exact, and squares stay within the type."""
    largest = gap.detach().flatten(1).abs().double()
    exponent = torch.frexp(torch.nn.functional.pad(largest, (0, 1)).amax(1)).exponent
    most = 1 - math.frexp(torch.finfo(gap.dtype).tiny)[1]
    return torch.ldexp(torch.ones_like(exponent, dtype=gap.dtype), exponent.clamp(-most, most).neg())


def check_sequences(sequences: Tensor, n: int, batch: int) -> Tensor:
    """Lengths (batch,) of index sequences padded with -1; raises ValueError for anything else in them."""
    if sequences.dim() != 2 or sequences.shape[0] != batch:
        raise ValueError(f"need index sequences of shape ({batch}, m), got {tuple(sequences.shape)}")
    if sequences.is_floating_point():
        raise ValueError(f"index sequences must be integers, got {sequences.dtype}")
    sequences = sequences.long()
    wrong = (sequences >= n) | (sequences < -1)
    if wrong.any():
        row, at = (int(v) for v in wrong.nonzero()[0])
        raise ValueError(f"row {row}: index {int(sequences[row, at])} at step {at} is not in 0..{n - 1}")
    real = sequences >= 0
    if (real[:, 1:] & ~real[:, :-1]).any():
        row = int((real[:, 1:] & ~real[:, :-1]).any(1).nonzero()[0])
        raise ValueError(f"row {row}: padding (-1) stands before an index; pad at the end only")
    return real.sum(1)


def as_batch(points: Tensor | NDArray) -> tuple[Floats, bool]:
    """Points as float64 (batch, n, 2), and whether they came as a single instance."""
    p = np.asarray(points.detach().cpu().double() if isinstance(points, Tensor) else points, dtype=np.float64)
    single = p.ndim == 2
    p = p[None] if single else p
    if p.ndim != 3 or p.shape[2] != 2 or p.shape[1] < 1:
        raise ValueError(f"points must have shape (batch, n, 2) with n >= 1, got {p.shape}")
    bad = ~np.isfinite(p).all(axis=(1, 2))
    if bad.any():
        raise ValueError(f"row {int(np.flatnonzero(bad)[0])} of points holds a NaN or infinite coordinate")
    return p, single


def rescaled(p: Floats) -> Floats:
    """Points of each row times the power of two that brings its extent into [1, 2).

    Exact, so that nothing else changes: squares neither overflow nor vanish, and a tolerance is one relative to the
    instance.
    """
    half = (p.max(1) / 2 - p.min(1) / 2).max(-1)  # the whole may overflow
    return np.ldexp(p, -np.frexp(half)[1][:, None, None])


def distances(p: Floats) -> Floats:
    """Euclidean distances (batch, n, n)."""
    gap = p[:, :, None] - p[:, None]
    return np.sqrt((gap**2).sum(-1))


def _numpy_generator(generator: torch.Generator | None) -> np.random.Generator:
    if generator is None:
        return np.random.default_rng(0)
    return np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))


def _counter_clockwise(p: Floats, tours: Ints) -> Ints:
    """Start at city 0, signed area >= 0; of a tour of area 0 the direction that comes first in lexicographic order."""
    start = (tours == 0).argmax(1)
    n = tours.shape[1]
    tours = np.take_along_axis(tours, (start[:, None] + np.arange(n)) % n, 1)
    c = np.take_along_axis(p, tours[..., None], 1)
    c = c - c[:, :1]
    then = np.roll(c, -1, axis=1)
    area = (c[..., 0] * then[..., 1] - c[..., 1] * then[..., 0]).sum(1)
    backwards = _lowest_first(p, np.concatenate([tours[:, :1], tours[:, :0:-1]], axis=1))
    tours = _lowest_first(p, tours)
    rows, differ = np.arange(len(tours)), (tours != backwards).argmax(1)
    flip = (area < 0) | ((area == 0) & (tours[rows, differ] > backwards[rows, differ]))
    return np.where(flip[:, None], backwards, tours)


def _lowest_first(p: Floats, tours: Ints) -> Ints:
    """Of cities at one place that a tour visits one after another, the lower index first."""
    at = np.take_along_axis(p, tours[..., None], 1)
    same = (at == np.roll(at, -1, axis=1)).all(-1)  # as the next city's place
    for row in np.flatnonzero(same.any(1)):
        tour, joined = tours[row], same[row]
        if joined.all():  # all cities at one place
            tours[row] = np.sort(tour)
            continue
        first = int(np.flatnonzero(~joined)[0]) + 1  # a run begins here
        order = np.roll(tour, -first)
        run = np.concatenate([[0], np.cumsum(~np.roll(joined, -first))[:-1]])
        order = order[np.lexsort((order, run))]
        tours[row] = np.roll(order, -int((order == 0).argmax()))
    return tours


@lru_cache(maxsize=8)
def _orders(n: int) -> Ints:
    """All tours of n cities from city 0, one of the two directions, in lexicographic order."""
    rest = [p for p in permutations(range(1, n)) if n < 3 or p[0] < p[-1]]
    return np.array([(0, *p) for p in rest], dtype=np.int64)


def _all_tours(d: Floats) -> Ints:
    orders = _orders(d.shape[1])
    length = d[:, orders, np.roll(orders, -1, axis=1)].sum(-1)
    return orders[length.argmin(1)]


def _held_karp(d: Floats) -> Ints:
    """Shortest path through every subset of cities 1..n-1 to each of its members (Held & Karp 1962)."""
    batch, n = d.shape[:2]
    k = n - 1
    best = np.full((batch, 1 << k, k), np.inf)
    parent = np.zeros((batch, 1 << k, k), dtype=np.int8)
    for j in range(k):
        best[:, 1 << j, j] = d[:, 0, j + 1]
    inner = d[:, 1:, 1:]
    for subset in range(1, 1 << k):
        members = [j for j in range(k) if subset >> j & 1]
        if len(members) < 2:
            continue
        reach = best[:, [subset ^ (1 << j) for j in members], :] + inner[:, members, :]  # last stop -> member
        arg = reach.argmin(-1)
        parent[:, subset, members] = arg
        best[:, subset, members] = np.take_along_axis(reach, arg[..., None], -1)[..., 0]
    subset_of = np.full(batch, (1 << k) - 1)
    at = (best[:, -1, :] + d[:, 1:, 0]).argmin(-1)
    rows = np.arange(batch)
    tours = np.zeros((batch, n), dtype=np.int64)
    for step in range(k, 0, -1):
        tours[:, step] = at + 1
        before = parent[rows, subset_of, at].astype(np.int64)
        subset_of = subset_of ^ (1 << at)
        at = before
    return tours


def _nearest_neighbour(d: Floats) -> Ints:
    batch, n = d.shape[:2]
    rows, free = np.arange(batch), d.copy()
    tours = np.zeros((batch, n), dtype=np.int64)
    for step in range(1, n):
        free[rows, :, tours[:, step - 1]] = np.inf
        tours[:, step] = free[rows, tours[:, step - 1]].argmin(-1)
    return tours


def _cheapest_insertion(d: Floats) -> Ints:
    """Insert, again and again, the city that lengthens the tour least, where it does so."""
    batch, n = d.shape[:2]
    rows = np.arange(batch)
    tours = np.zeros((batch, n), dtype=np.int64)
    left = np.ones((batch, n), dtype=bool)
    left[:, 0] = False
    for size in range(1, n):
        a = tours[:, :size]
        b = np.roll(a, -1, axis=1)
        cost = d[rows[:, None], a] + d[rows[:, None], b] - d[rows[:, None], a, b][..., None]  # (batch, size, n)
        cost = np.where(left[:, None], cost, np.inf).reshape(batch, -1)
        place, city = np.divmod(cost.argmin(1), n)
        old = np.arange(size + 1)[None] - (np.arange(size + 1)[None] > place[:, None] + 1)
        new = np.take_along_axis(tours, np.minimum(old, size - 1), 1)
        new[rows, place + 1] = city
        tours[:, : size + 1] = new
        left[rows, city] = False
    return tours


def _lengths(d: Floats, tours: Ints) -> Floats:
    return d[np.arange(len(d))[:, None], tours, np.roll(tours, -1, axis=1)].sum(1)


def _local_search(d: Floats, tours: Ints) -> Ints:
    """Best 2-opt or or-opt move (segments of 1 to 3 cities, either way round) of every row until none helps."""
    batch, n = tours.shape
    rows = np.arange(batch)
    i, j = np.triu_indices(n, 2)
    keep = ~((i == 0) & (j == n - 1))
    i, j = i[keep], j[keep]
    moves = [("reverse", i, j, 0)]
    for size in (1, 2, 3):
        s, t = np.meshgrid(np.arange(1, n - size + 1), np.arange(n), indexing="ij")
        apart = (t < s - 1) | (t >= s + size)
        moves.append(("shift", s[apart], t[apart], size))
    open_rows = rows
    while open_rows.size:
        tour, dist = tours[open_rows], d[open_rows]
        here = np.arange(open_rows.size)[:, None]
        ahead = np.roll(tour, -1, axis=1)
        gain = np.zeros(open_rows.size)
        found = tour.copy()
        for kind, s, t, size in moves:
            if s.size == 0:
                continue
            if kind == "reverse":
                delta = (dist[here, tour[:, s], tour[:, t]] + dist[here, ahead[:, s], ahead[:, t]]
                         - dist[here, tour[:, s], ahead[:, s]] - dist[here, tour[:, t], ahead[:, t]])  # fmt: skip
                flipped = np.zeros(delta.shape[1], bool)
            else:
                first, last = tour[:, s], tour[:, s + size - 1]
                before, after = tour[:, s - 1], tour[:, (s + size) % n]
                cut = dist[here, before, after] - dist[here, before, first] - dist[here, last, after]
                cut = cut - dist[here, tour[:, t], ahead[:, t]]
                straight = cut + dist[here, tour[:, t], first] + dist[here, last, ahead[:, t]]
                turned = cut + dist[here, tour[:, t], last] + dist[here, first, ahead[:, t]]
                delta = np.concatenate([straight, turned], axis=1)
                flipped = np.repeat([False, True], s.size)
                s, t = np.tile(s, 2), np.tile(t, 2)
            best = delta.argmin(1)
            value = delta[np.arange(open_rows.size), best]
            for r in np.flatnonzero(value < gain - 1e-12):
                found[r] = _moved(tour[r], kind, int(s[best[r]]), int(t[best[r]]), size, bool(flipped[best[r]]))
            gain = np.minimum(gain, value)
        tours[open_rows] = found
        open_rows = open_rows[gain < -1e-12]
    return tours


def _moved(tour: Ints, kind: str, s: int, t: int, size: int, flipped: bool) -> Ints:
    if kind == "reverse":
        return np.concatenate([tour[: s + 1], tour[s + 1 : t + 1][::-1], tour[t + 1 :]])
    piece = tour[s : s + size][::-1] if flipped else tour[s : s + size]
    if t < s:
        return np.concatenate([tour[: t + 1], piece, tour[t + 1 : s], tour[s + size :]])
    return np.concatenate([tour[:s], tour[s + size : t + 1], piece, tour[t + 1 :]])


def _iterated_local_search(d: Floats, restarts: int, generator: np.random.Generator) -> Ints:
    best = _local_search(d, _cheapest_insertion(d))
    length = _lengths(d, best)
    batch, n = best.shape
    for _ in range(restarts if n >= 8 else 0):
        cuts = np.sort(np.stack([generator.choice(n - 1, 3, replace=False) + 1 for _ in range(batch)]), axis=1)
        kicked = np.stack([
            np.concatenate([t[:a], t[b:c], t[a:b], t[c:]]) for t, (a, b, c) in zip(best, cuts, strict=True)
        ])  # fmt: skip
        tours = _local_search(d, kicked)
        new = _lengths(d, tours)
        better = new < length - 1e-12
        best[better], length = tours[better], np.minimum(new, length)
    return best

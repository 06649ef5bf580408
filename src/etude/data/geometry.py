"""Planar problems whose answer is a sequence of the given points: hulls, triangulations, tours.

Label makers and scores for Pointer Networks (Vinyals, Fortunato & Jaitly 2015, arXiv 1506.03134, section 3).
Arbitrary target orders make learning fail, so each label has one order: a hull runs counter-clockwise from its
lowest input index, triangles are sorted by incentre, a tour starts at city 0 (`etude.data.tours`). Index
sequences are int64, padded with -1 at the end; of points that coincide, the lowest index stands for all.
"""

import numpy as np
import torch
from torch import Tensor

from etude.data.tours import Floats, Ints, as_batch, check_sequences, rescaled
from etude.data.tours import tour_length as tour_length
from etude.data.tours import tsp_targets as tsp_targets
from etude.errors import DataError


def uniform_points(batch: int, n: int, generator: torch.Generator) -> Tensor:
    """Points (batch, n, 2), independent and uniform in the unit square (float32)."""
    if batch < 1 or n < 1:
        raise ValueError(f"need at least one row and one point, got batch={batch}, n={n}")
    return torch.rand(batch, n, 2, generator=generator)


def convex_hull_targets(points: Tensor, *, lengths: Tensor | None = None, strict: bool = False) -> Tensor:
    """Corners of the convex hull of every row, counter-clockwise from the corner with the lowest index.

    Andrew's monotone chain, all rows in step (no loop over instances). Points inside an edge are no corners.

    Parameters
    ----------
    points
        Shape (batch, n, 2), or (n, 2) for one instance.
    lengths
        Number of real points of each row, shape (batch,); None: all n.
    strict
        Raise instead of returning the two extremes where a row has no area.

    Returns
    -------
    Tensor
        Shape (batch, n), or (n,), int64, padded with -1. A row whose points are fewer than 3 or all on one line
        gives its 2 extremes, the lower index first (1 index if all points coincide).

    Raises
    ------
    ValueError
        For wrong shapes or lengths and NaN or infinite coordinates; with `strict` for a row without area.
    """
    p, single = as_batch(points)
    size = _lengths(lengths, p)
    hulls, count = _monotone_chain(rescaled(p), size)
    flat = count < 3
    if strict and flat.any():
        row = int(np.flatnonzero(flat)[0])
        raise DataError(f"row {row}: fewer than 3 points or all on one line, so the hull has no area")
    n = p.shape[1]
    steps = np.arange(n)
    inside = steps < count[:, None]
    first = np.where(inside, hulls[:, :n], n).argmin(1)
    turned = np.take_along_axis(hulls, (first[:, None] + steps) % np.maximum(count, 1)[:, None], 1)
    out = torch.from_numpy(np.where(inside, turned, -1))
    out = out.to(points.device) if isinstance(points, Tensor) else out
    return out[0] if single else out


def delaunay_targets(points: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Delaunay triangles of every row as one flat index sequence, three pointers a triangle.

    Each triangle is an ascending index triple; triangles are sorted by incentre, first by x, then by y.
    Where four points lie on a circle the triangulation is not unique: Qhull's choice stands. Of points at one place the
    lowest index is named.

    Returns
    -------
    Tensor
        Shape (batch, 3 * most triangles), or (3 * triangles,), int64, padded with -1; nothing but padding for
        a row without area.

    Raises
    ------
    ValueError
        For wrong shapes or lengths and NaN or infinite coordinates.
    """
    from scipy.spatial import Delaunay, QhullError

    p, single = as_batch(points)
    size = _lengths(lengths, p)
    rows = []
    for row, k in zip(rescaled(p), size, strict=True):
        try:  # Qhull lifts the points to x^2 + y^2, of which little is left far from the origin
            corners = Delaunay(row[:k] - row[:k].min(0)).simplices.astype(np.int64) if k >= 3 else _NONE
            triangles = np.sort(_first_equal(row[None])[0][corners], axis=1)
        except QhullError:
            triangles = _NONE
        rows.append(triangles[_by_incentre(row, triangles)].reshape(-1))
    out = torch.full((len(rows), max((r.size for r in rows), default=0)), -1, dtype=torch.int64)
    for i, r in enumerate(rows):
        out[i, : r.size] = torch.from_numpy(r)
    out = out.to(points.device) if isinstance(points, Tensor) else out
    return out[0] if single else out


def triangle_coverage(sequences: Tensor, targets: Tensor, *, points: Tensor | None = None) -> Tensor:
    """Share of the true triangles that the output names, in any order of triangles or corners.

    Parameters
    ----------
    sequences, targets
        Shape (batch, m) or (m,), three pointers a triangle, padded with -1; widths may differ. An unfinished triple
        counts for nothing.
    points
        Shape (batch, n, 2) or (n, 2): points that coincide count as one.

    Returns
    -------
    Tensor
        Shape (batch,), or a scalar, in [0, 1]; 1 where the target is empty.

    Raises
    ------
    ValueError
        For another shape, an index outside the points, no integers, or padding before an index.
    """
    single, (sequences, targets) = _as_sequences(sequences, targets, points)
    want, ours = (map(_triples, s.tolist()) for s in (targets, sequences))
    out = torch.tensor([len(w & o) / len(w) if w else 1.0 for w, o in zip(want, ours, strict=True)])
    return out[0] if single else out


def same_cycle(a: Tensor, b: Tensor, *, points: Tensor | None = None, directed: bool = False) -> Tensor:
    """Whether two index sequences are the same closed polygon or tour, wherever they start.

    Parameters
    ----------
    a, b
        Shape (batch, m) or (m,), padded with -1; widths may differ.
    points
        Shape (batch, n, 2): points that coincide count as one (the lowest index stands for all).
    directed
        Also ask for the same way round. By default a cycle equals its reverse.

    Returns
    -------
    Tensor
        Bool, shape (batch,), or a scalar. Two empty sequences are the same.

    Raises
    ------
    ValueError
        For another shape, an index outside the points, no integers, or padding before an index.
    """
    single, (a, b) = _as_sequences(a, b, points)
    size, size_b = (a >= 0).sum(1), (b >= 0).sum(1)
    width = int(size.max()) if size.numel() else 0
    steps = torch.arange(width, device=a.device)
    inside = steps < size[:, None]
    length = size.clamp_min(1)[:, None]
    same = torch.zeros(a.shape[0], dtype=torch.bool, device=a.device)
    b = torch.nn.functional.pad(b, (0, max(0, width - b.shape[1])), value=-1)
    for shift in range(max(1, width)):
        for sign in (1, -1) if not directed else (1,):
            turned = b.gather(1, (shift + sign * steps).remainder(length).expand_as(inside))
            same |= ((turned == a[:, :width]) | ~inside).all(1)
    same &= size == size_b
    return same[0] if single else same


def hull_area_coverage(points: Tensor, sequences: Tensor, *, lengths: Tensor | None = None) -> Tensor:
    """Area of the predicted polygon over the area of the true hull.

    Parameters
    ----------
    points
        Shape (batch, n, 2) or (n, 2).
    sequences
        Shape (batch, m) or (m,), padded with -1.
    lengths
        Number of real points of each row.

    Returns
    -------
    Tensor
        Shape (batch,), or a scalar, float64. NaN where the output is no simple polygon (see `is_simple_polygon`) or
        the true hull has no area: the share of finite entries is the share of valid outputs.
    """
    points, sequences = torch.as_tensor(points), torch.as_tensor(sequences)
    single = points.dim() == 2
    if single:
        points, sequences = points[None], sequences[None]
    p = rescaled(as_batch(points)[0])
    true = _area(p, convex_hull_targets(points, lengths=lengths).cpu().numpy())
    valid = is_simple_polygon(points, sequences).cpu().numpy()
    ours = _area(p, sequences.cpu().numpy())
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(valid & (true > 0), ours / true, np.nan)
    out = torch.from_numpy(ratio).to(points.device)
    return out[0] if single else out


def is_simple_polygon(points: Tensor, sequences: Tensor) -> Tensor:
    """Whether an output is a polygon: at least 3 points, none twice, no two edges that cross or touch.

    `points` (batch, n, 2), `sequences` (batch, m) padded with -1; returns bool (batch,).
    """
    p, single = as_batch(points)
    p, sequences = rescaled(p), torch.as_tensor(sequences)
    sequences = sequences[None] if sequences.dim() == 1 else sequences
    block = max(1, _PAIRS_AT_ONCE // max(1, sequences.shape[1] ** 2))
    if p.shape[0] > block:
        parts = range(0, p.shape[0], block)
        return torch.cat([is_simple_polygon(points[i : i + block], sequences[i : i + block]) for i in parts])
    size = check_sequences(sequences, p.shape[1], p.shape[0]).cpu().numpy()
    s = np.maximum(sequences.cpu().numpy(), 0)
    steps = np.arange(s.shape[1])
    inside = steps < size[:, None]
    following = np.where(steps + 1 < size[:, None], steps + 1, 0)
    a = np.take_along_axis(p, s[..., None], 1)
    b = np.take_along_axis(a, following[..., None], 1)
    pair = inside[:, :, None] & inside[:, None]
    twice = ((a[:, :, None] == a[:, None]).all(-1) & pair & (steps[:, None] != steps)).any((1, 2))
    near = (steps[:, None] == steps) | (following[:, :, None] == steps) | (following[:, None] == steps[:, None])
    side = np.sign(_cross(a[:, :, None], b[:, :, None], a[:, None]))  # (batch, edge, start of other edge)
    side_end = np.sign(_cross(a[:, :, None], b[:, :, None], b[:, None]))
    straddle = side * side_end <= 0
    overlap = np.ones_like(pair)
    for axis in (0, 1):  # boxes of two edges that only share a line need not meet
        low, high = np.minimum(a, b)[..., axis], np.maximum(a, b)[..., axis]
        overlap &= (low[:, :, None] <= high[:, None]) & (low[:, None] <= high[:, :, None])
    crossing = (straddle & straddle.transpose(0, 2, 1) & overlap & pair & ~near).any((1, 2))
    out = torch.from_numpy((size >= 3) & ~twice & ~crossing & ~_folded(a, b, following, inside))
    out = out.to(points.device) if isinstance(points, Tensor) else out
    return out[0] if single else out


_PAIRS_AT_ONCE = 2**22  # pairs of edges compared in one go
_NONE: Ints = np.zeros((0, 3), dtype=np.int64)


def _cross(o: Floats, a: Floats, b: Floats) -> Floats:
    return (a[..., 0] - o[..., 0]) * (b[..., 1] - o[..., 1]) - (a[..., 1] - o[..., 1]) * (b[..., 0] - o[..., 0])


def _folded(a: Floats, b: Floats, following: Ints, inside: np.ndarray) -> np.ndarray:
    """Whether an edge runs straight back over the one before it."""
    c = np.take_along_axis(b, following[..., None], 1)
    back = ((b - a) * (c - b)).sum(-1) < 0
    return ((_cross(a, b, c) == 0) & back & inside).any(1)


def _as_sequences(a: Tensor, b: Tensor, points: Tensor | None) -> tuple[bool, tuple[Tensor, Tensor]]:
    """Whether two sequences are single ones, and both as checked int64 (batch, m); of coinciding points the lowest."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    single = a.dim() == 1
    if single:
        a, b = a[None], b[None] if b.dim() == 1 else b
    known = None if points is None else as_batch(points)[0]
    limit = 1 + max([int(s.max()) for s in (a, b) if s.numel()], default=-1) if known is None else known.shape[1]
    for s in (a, b):
        check_sequences(s, limit, len(a) if known is None else len(known))
    a, b = a.long(), b.long()
    if known is not None:
        alias = torch.from_numpy(_first_equal(known)).to(a.device)
        a, b = (torch.where(s >= 0, alias.gather(1, s.clamp_min(0)), s) for s in (a, b))
    return single, (a, b)


def _lengths(lengths: Tensor | None, p: Floats) -> Ints:
    if lengths is None:
        return np.full(p.shape[0], p.shape[1])
    given = torch.as_tensor(lengths).cpu()
    size = np.asarray(given, dtype=np.int64)
    if given.dtype == torch.bool or bool((given != torch.from_numpy(size)).any()):
        raise ValueError(f"lengths must be whole numbers of points, got {given.tolist()}")
    if size.shape != p.shape[:1] or (size < 1).any() or (size > p.shape[1]).any():
        raise ValueError(f"lengths must be {p.shape[0]} integers in 1..{p.shape[1]}, got {size.tolist()}")
    return size


def _first_equal(p: Floats) -> Ints:
    """For each point the lowest index of a point at the same place, (batch, n)."""
    return (p[:, :, None] == p[:, None]).all(-1).argmax(-1)


def _monotone_chain(p: Floats, size: Ints) -> tuple[Ints, Ints]:
    """Counter-clockwise corners (batch, n + 1) and their number (batch,), from the leftmost point on."""
    batch, n = p.shape[:2]
    real = np.arange(n) < size[:, None]
    x, y = (np.where(real, p[..., axis], np.inf) for axis in (0, 1))
    order = np.lexsort((y, x), axis=-1)  # stable: of equal points the lowest index comes first
    xs, ys = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    fresh = np.take_along_axis(real, order, 1)
    fresh[:, 1:] &= (xs[:, 1:] != xs[:, :-1]) | (ys[:, 1:] != ys[:, :-1])
    stack = np.zeros((batch, n + 2), dtype=np.int64)  # positions in sorted order
    top = np.zeros(batch, dtype=np.int64)
    base = np.full(batch, 2)
    rows = np.arange(batch)
    for sweep in (range(n), range(n - 1, -1, -1)):
        for i in sweep:
            pushed = fresh[:, i]
            if sweep.step < 0:  # the rightmost point lies on the stack already
                pushed = pushed & (stack[rows, top - 1] != i)
            open_rows = rows[pushed & (top >= base)]
            while open_rows.size:
                k = top[open_rows]
                o, a = stack[open_rows, k - 2], stack[open_rows, k - 1]
                ox, oy = xs[open_rows, o], ys[open_rows, o]
                turn = (xs[open_rows, a] - ox) * (ys[open_rows, i] - oy)
                turn -= (ys[open_rows, a] - oy) * (xs[open_rows, i] - ox)
                open_rows = open_rows[turn <= 0]
                top[open_rows] -= 1
                open_rows = open_rows[top[open_rows] >= base[open_rows]]
            target = rows[pushed]
            stack[target, top[target]] = i
            top[target] += 1
        base = top + 1
    count = np.where(top > 1, top - 1, top)  # the chain closes on its first point
    return np.take_along_axis(order, np.minimum(stack[:, : n + 1], n - 1), 1), count


def _area(p: Floats, sequences: Ints) -> Floats:
    corners = np.take_along_axis(p, np.maximum(sequences, 0)[..., None], 1)
    corners = np.where((sequences >= 0)[..., None], corners, corners[:, :1])  # padding closes the polygon
    c = corners - corners[:, :1]
    then = np.roll(c, -1, axis=1)
    return np.abs((c[..., 0] * then[..., 1] - c[..., 1] * then[..., 0]).sum(1)) / 2


def _by_incentre(p: Floats, triangles: Ints) -> Ints:
    """Order of triangles by incentre (aA + bB + cC) / (a + b + c), with a, b, c the opposite sides."""
    if not len(triangles):
        return np.zeros(0, dtype=np.int64)
    corner = p[triangles]
    side = np.stack([np.linalg.norm(corner[:, (i + 1) % 3] - corner[:, (i + 2) % 3], axis=-1) for i in range(3)], 1)
    centre = (side[..., None] * corner).sum(1) / side.sum(1, keepdims=True)
    return np.lexsort((centre[:, 1], centre[:, 0]))


def _triples(sequence: list[int]) -> set[tuple[int, ...]]:
    real = [i for i in sequence if i >= 0]
    return {tuple(sorted(real[i : i + 3])) for i in range(0, len(real) - 2, 3)}

"""A task and its parts: what every loader and generator returns and every study consumes.

A `Split` is a named tuple of aligned columns, so ``len(split)`` is the number of its fields: ask `split.n`
for the number of rows. Batches are splits too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.data.randomness import numpy_stream


class Split(NamedTuple):
    """Aligned rows. Every field is a tensor, an array or a list with one entry a row, or None.

    x
        Inputs: images (n, C, H, W) float32 in [0, 1], tables (n, d) float32, token ids (n, T), a list of
        texts.
    y
        Targets: int64 class numbers (n,) or whatever the task's kind asks for.
    groups
        Integer names of what must stay together (the photo of a crop, the document of a sentence).
    lengths
        Number of true entries of a padded row.
    index
        Row numbers in the set that the rows came from, int64.
    """

    x: Any
    y: Any = None
    groups: Any = None
    lengths: Any = None
    index: Any = None  # type: ignore[assignment]

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.x)

    def take(self, rows: Any) -> "Split":
        """The split of the given row numbers (or of a boolean mask), in that order."""
        rows = torch.as_tensor(rows)
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows.long()
        return Split(*(None if column is None else _take(column, rows) for column in self))

    def to(self, device: str | torch.device) -> "Split":
        """The split with its tensors on `device`."""
        return Split(*(column.to(device) if isinstance(column, Tensor) else column for column in self))


def _take(column: Any, rows: Tensor) -> Any:
    if isinstance(column, Tensor):
        return column[rows.to(column.device)]
    if isinstance(column, np.ndarray):
        return column[rows.cpu().numpy()]
    return [column[i] for i in rows.tolist()]


@dataclass(frozen=True)
class Task:
    """Data ready for a study: its kind, its parts, and where they came from.

    `kind` is "images", "table", "documents" or the name that a generator gives. `provenance` holds one record
    a source (name, version, sha256, license) for the record of a run.
    """

    name: str
    kind: str
    train: Split
    val: Split | None = None
    test: Split | None = None
    num_classes: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()


def numbered(labels: Sequence[Any]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names in order (by value where all are whole numbers) and each row's int64 number into them."""
    names, codes = np.unique(np.array(labels, dtype=str), return_inverse=True)
    if all(name.removeprefix("-").isdecimal() for name in names.tolist()):
        order = np.array(sorted(range(len(names)), key=[int(name) for name in names.tolist()].__getitem__))
        return tuple(names[order].tolist()), np.argsort(order)[codes].astype(np.int64)
    return tuple(names.tolist()), codes.astype(np.int64)


def split(
    data: Split,
    sizes: Sequence[float | int],
    *,
    seed: int,
    by: Literal["row", "class", "group"] = "row",
    classes: Sequence[str] | None = None,
) -> tuple[Split, ...]:
    """Cut `data` into disjoint parts; the same seed gives the same rows in the same order.

    Parameters
    ----------
    sizes
        One entry a part: an int is a number of rows, a float a share of all rows. They may sum to less than
        the whole; the rest is left out. A part of 0 rows is empty.
    by
        "row": at random. "class": every part holds the classes of `data.y` in the proportions of the whole
        (to within a row or two) and at least one row of each. "group": rows of one group stay together, so
        sizes and proportions of classes are met as nearly as the groups allow.
    classes
        Names of the classes, for the text of an error.

    Returns
    -------
    Parts with `index` = row numbers in `data` (or `data.index` of these, where it is set).

    Raises
    ------
    ValueError
        If the sizes ask for more rows than there are, a class is too small to stand in every part, there are
        fewer groups than parts, or `data` has groups and `by` would tear them apart.
    """
    counts = _counts(sizes, data.n)
    rng = numpy_stream(seed, "split")
    if by != "group" and data.groups is not None:
        raise ValueError(f'the data have groups, which by={by!r} would tear apart: split by="group"')
    if by == "row":
        order = rng.permutation(data.n)
        parts = np.split(order[: sum(counts)], np.cumsum(counts)[:-1])
    elif by == "class":
        parts = _by_class(_labels(data.y), counts, rng, classes)
    elif by == "group":
        parts = _by_group(data.groups, data.y, counts, rng)
    else:
        raise ValueError(f'by must be "row", "class" or "group", got {by!r}')
    return tuple(_part(data, rows) for rows in parts)


def _part(data: Split, rows: np.ndarray) -> Split:
    chosen = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
    part = data.take(chosen)
    return part if data.index is not None else part._replace(index=chosen)


def _counts(sizes: Sequence[float | int], n: int) -> list[int]:
    if not len(sizes):
        raise ValueError("sizes is empty: give one size a part, e.g. (0.6, 0.2, 0.2)")
    shares = [s for s in sizes if isinstance(s, float)]
    if any(s < 0 for s in sizes) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"sizes must be at least 0 and shares sum to at most 1, got {tuple(sizes)}")
    # cumulative rounding, so that shares that sum to 1 use every row
    edges = np.rint(np.cumsum([s if isinstance(s, float) else 0.0 for s in sizes]) * n).astype(int)
    shared = np.diff(edges, prepend=0)
    counts = [int(shared[i]) if isinstance(s, float) else int(s) for i, s in enumerate(sizes)]
    if sum(counts) > n:
        raise ValueError(f"sizes {tuple(sizes)} ask for {sum(counts)} rows, there are {n}")
    return counts


def _labels(y: Any) -> np.ndarray:
    if y is None:
        raise ValueError('by="class" needs labels: data.y is None')
    labels = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.ndim != 1:
        raise ValueError(f'by="class" needs one label a row, got y of shape {labels.shape}')
    return labels


def _by_class(
    labels: np.ndarray, counts: list[int], rng: np.random.Generator, classes: Sequence[str] | None
) -> list[np.ndarray]:
    values, codes, totals = np.unique(labels, return_inverse=True, return_counts=True)
    names = [str(v) if classes is None else str(classes[int(v)]) for v in values]
    wanted = [p for p, count in enumerate(counts) if count]
    small = [f"{names[c]} ({totals[c]})" for c in np.flatnonzero(totals < len(wanted))]
    if small:
        raise ValueError(
            f"too few rows to stand in each of {len(wanted)} parts: {', '.join(small)}; "
            "add rows, drop or merge these classes, or ask for fewer parts"
        )
    tight = [counts[p] for p in wanted if counts[p] < len(values)]
    if tight:
        raise ValueError(f'a part of {tight[0]} rows cannot hold {len(values)} classes: enlarge it or use by="row"')
    # every class spread evenly over [0, 1]: any stretch of that line holds the classes in proportion
    position = np.empty(len(codes))
    for c in range(len(values)):
        rows = rng.permutation(np.flatnonzero(codes == c))
        position[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    order = np.lexsort((rng.random(len(codes)), position))
    part_of = np.full(len(codes), len(counts))
    part_of[order[: sum(counts)]] = np.repeat(np.arange(len(counts)), counts)
    _repair(part_of, codes, wanted, len(values), len(counts) + 1)
    return [rng.permutation(np.flatnonzero(part_of == p)) for p in range(len(counts))]


def _repair(part_of: np.ndarray, codes: np.ndarray, wanted: list[int], n_classes: int, n_parts: int) -> None:
    """Exchange rows until every wanted part holds every class; sizes of parts stay. Every exchange takes
    from a cell that can spare one, so it cannot undo another."""
    table = np.zeros((n_parts, n_classes), dtype=int)
    np.add.at(table, (part_of, codes), 1)
    floor = np.zeros(n_parts, dtype=int)
    floor[wanted] = 1
    for part in wanted:
        for c in np.flatnonzero(table[part] == 0):
            donor = int(np.argmax(table[:, c] - floor))
            surplus = int(np.argmax(table[part]))
            assert table[donor, c] > floor[donor], "a class with enough rows has a part that can spare one"
            assert table[part, surplus] > 1, "a part larger than the number of classes has a class twice"
            give = np.flatnonzero((part_of == donor) & (codes == c))[0]
            back = np.flatnonzero((part_of == part) & (codes == surplus))[0]
            part_of[give], part_of[back] = part, donor
            table[donor, c] -= 1
            table[part, c] += 1
            table[part, surplus] -= 1
            table[donor, surplus] += 1


def _by_group(groups: Any, y: Any, counts: list[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Whole groups, the largest first, each to a part that still has room, there to the one that lacks its
    classes most; the last groups go to parts that are still empty."""
    if groups is None:
        raise ValueError('by="group" needs data.groups, which is None')
    names = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    n = len(names)
    _, codes, totals = np.unique(names, return_inverse=True, return_counts=True)
    wanted = [p for p, count in enumerate(counts) if count]
    if len(totals) < len(wanted):
        raise ValueError(f"{len(totals)} groups cannot fill {len(wanted)} parts: a group stays in one part")
    table = _class_counts(codes, y, len(totals))
    share = table / table.sum(0)  # of each class that stands in each group
    room = np.array([*counts, n - sum(counts)], dtype=float)
    lack = np.repeat(room[:, None] / n, table.shape[1], axis=1)  # of each class that each part is short of
    rest = [len(counts)] if sum(counts) < n else []
    part_of_group = np.empty(len(totals), dtype=int)
    empty = set(wanted)
    for done, g in enumerate(np.lexsort((rng.random(len(totals)), -totals))):
        open_parts = sorted(empty) if len(totals) - done <= len(empty) else [*wanted, *rest]
        roomy = [p for p in open_parts if room[p] >= totals[g] / 2]
        part = max(roomy, key=lambda p: (table[g] @ lack[p], room[p])) if roomy else max(open_parts, key=room.item)
        part_of_group[g] = part
        room[part] -= totals[g]
        lack[part] -= share[g]
        empty.discard(part)
    part_of = part_of_group[codes]
    return [rng.permutation(np.flatnonzero(part_of == p)) for p in range(len(counts))]


def _class_counts(groups: np.ndarray, y: Any, n_groups: int) -> np.ndarray:
    """(groups, classes) rows of each class in each group; one column where there are no classes."""
    labels = np.zeros(len(groups), dtype=int)
    if y is not None:
        given = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if given.ndim == 1 and not np.issubdtype(given.dtype, np.floating):
            labels = np.unique(given, return_inverse=True)[1]
    table = np.zeros((n_groups, labels.max(initial=0) + 1))
    np.add.at(table, (groups, labels), 1)
    return table

"""Task sequences: one data set cut into segments that a learner meets one after the other.

A segment holds row numbers and a change of the inputs, never a copy of the data; `Segment.split` takes the rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.batching import Sampled, sampled
from etude.data.randomness import numpy_stream, stream
from etude.data.tasks import Split, Task, split

Sizes = int | Sequence[int] | Mapping[int, int] | None
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Segment:
    """One stretch of a stream.

    rows
        Part ("train", "val", "test") to row numbers in that part of `task`, in the order they are met.
    classes
        The class numbers that occur, in the task's numbering.
    change
        What is done to the inputs of every part, or None.
    relabel
        Classes are numbered 0, 1, ... within the segment (a head a segment) instead of as in the task.
    """

    number: int
    name: str
    task: Task
    rows: Mapping[str, Tensor]
    classes: tuple[int, ...]
    change: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    relabel: bool = False

    def split(self, part: str = "train") -> Split:
        """The rows of a part, changed as the segment says; their numbers in the task's part stand in `index`."""
        if part not in self.rows:
            raise ValueError(f"{self.task.name} has no part {part!r}, only {', '.join(self.rows)}")
        rows = self.rows[part]
        taken = getattr(self.task, part).take(rows)._replace(index=rows)
        if self.change is not None:
            taken = taken._replace(x=self.change(taken.x))
        if self.relabel:
            number = torch.full((self.task.num_classes,), -1)
            number[list(self.classes)] = torch.arange(len(self.classes))
            taken = taken._replace(y=number[taken.y])
        return taken

    @property
    def train(self) -> Split:
        return self.split("train")

    @property
    def test(self) -> Split:
        return self.split("test")


def class_stream(
    task: Task,
    classes_per_step: int | Sequence[int],
    *,
    seed: int,
    sizes: Sizes = None,
    order: Sequence[int] | None = None,
    relabel: bool = False,
) -> list[Segment]:
    """Classes that come a few at a time, each once (class-incremental).

    Parameters
    ----------
    classes_per_step
        Classes a segment: one number for all, or one a segment, e.g. ``(2, 2, 2, 2, 3)``; classes beyond
        their sum are left out.
    sizes
        Training rows: None for all, a number a segment, one number for each segment (an imbalanced stream), or
        a mapping from class to rows. Rows of a segment are shared out over its classes evenly.
    order
        The classes in their order; None: drawn by `seed`.
    relabel
        Number the classes within each segment, for nets with a head a segment.

    Raises
    ------
    ValueError
        If the numbers do not fit the classes, or a class has fewer rows than asked for (it is named).
    """
    if not isinstance(task.train.y, Tensor) or task.num_classes < 1:
        raise ValueError(f"{task.name} has no class labels to make a stream of")
    if order is None:
        order = numpy_stream(seed, "classes").permutation(task.num_classes).tolist()
    if len(set(order)) != len(order) or not set(order) <= set(range(task.num_classes)):
        raise ValueError(f"order must hold different classes in 0..{task.num_classes - 1}, got {list(order)}")
    counts = _per_step(classes_per_step, len(order))
    groups = [tuple(order[e - c : e]) for c, e in zip(counts, np.cumsum(counts), strict=True)]
    wanted = _rows_a_class(groups, sizes)
    return [
        Segment(t, "classes " + ", ".join(_name(task, c) for c in classes), task,
                _class_rows(task, classes, wanted, seed, t), classes, None, relabel)
        for t, classes in enumerate(groups)
    ]  # fmt: skip


def permuted_stream(
    task: Task,
    n: int,
    *,
    seed: int,
    sizes: int | None = None,
    test_size: int | None = None,
    disjoint: bool = False,
    identity_first: bool = False,
) -> list[Segment]:
    """The whole task `n` times, each time with the input features in another fixed order.

    Parameters
    ----------
    sizes, test_size
        Rows of each segment, drawn with the task's class proportions; None: all.
    disjoint
        No training row stands in two segments.
    identity_first
        The first segment leaves the inputs as they are.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    _check_sizes(sizes, test_size)
    width = math.prod(task.train.x.shape[1:])
    orders = [torch.randperm(width, generator=stream(seed, "permutation", t)) for t in range(n)]
    if identity_first:
        orders[0] = torch.arange(width)
    names = [f"permutation {t}" for t in range(n)]
    return _changed(task, names, [_Permute(o) for o in orders], seed, sizes, test_size, disjoint)


def rotated_stream(
    task: Task,
    degrees: Sequence[float],
    *,
    seed: int,
    sizes: int | None = None,
    test_size: int | None = None,
    disjoint: bool = False,
) -> list[Segment]:
    """The whole task once for every angle, its images turned counter-clockwise; see `permuted_stream`."""
    if len(degrees) == 0:
        raise ValueError("degrees is empty: give one angle a segment")
    if task.train.x.ndim != 4:
        raise ValueError(f"rotation needs images (n, C, H, W), got x of shape {tuple(task.train.x.shape)}")
    _check_sizes(sizes, test_size)
    names = [f"{d:g} degrees" for d in degrees]
    return _changed(task, names, [_Rotate(float(d)) for d in degrees], seed, sizes, test_size, disjoint)


def online(segments: Sequence[Segment], batch_size: int = 10) -> Iterator[tuple[int, Split]]:
    """One pass over the training rows in their order: (number of the segment, batch). No batch crosses a border."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    for segment in segments:
        data = segment.split("train")
        for rows in torch.arange(data.n).split(batch_size):
            yield segment.number, data.take(rows)


def in_turn(
    segments: Sequence[Segment], steps: int, *, batch_size: int | None = None, device: str | torch.device = "cpu"
) -> Sampled:
    """Training data for `train`: `steps` updates on each segment, one after the other.

    Rows of a batch are drawn from the segment with replacement; with `batch_size` None a batch is the whole segment.
    After the last segment its rows go on coming.
    """
    if steps < 1 or (batch_size is not None and batch_size < 1) or not segments:
        raise ValueError(f"need segments, and steps and batch_size of at least 1, got {steps} and {batch_size}")
    data = [s.split("train").to(device) for s in segments]

    def draw(generator: torch.Generator, step: int) -> Split:
        part = data[min(step // steps, len(data) - 1)]
        return part if batch_size is None else part.take(torch.randint(part.n, (batch_size,), generator=generator))

    return sampled(draw)


def joint(segments: Sequence[Segment], part: str = "train") -> Split:
    """All segments' rows of a part in one split: what a learner without a stream would see."""
    parts = [s.split(part) for s in segments]
    if not parts:
        raise ValueError("there are no segments")
    return Split(*(_cat(list(column)) for column in zip(*parts, strict=True)))


def drift(degrees: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A slow change of a system: ``drift(a)(A0, A1) = cos(a) A0 + sin(a) A1``, from A0 at 0 to A1 at 90 degrees."""
    angle = math.radians(degrees)

    def between(start: Tensor, end: Tensor) -> Tensor:
        if start.shape != end.shape:
            raise ValueError(f"both states need one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
        return math.cos(angle) * start + math.sin(angle) * end

    return between


@dataclass(frozen=True)
class _Permute:
    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.order.to(x.device)].view_as(x)


@dataclass(frozen=True)
class _Rotate:
    degrees: float

    def __call__(self, x: Tensor) -> Tensor:
        from etude.data.transforms import affine

        return affine(x, degrees=self.degrees) if self.degrees else x


def _per_step(classes_per_step: int | Sequence[int], total: int) -> list[int]:
    if isinstance(classes_per_step, int):
        if classes_per_step < 1 or total % classes_per_step:
            raise ValueError(
                f"{total} classes cannot be cut into steps of {classes_per_step}: give one number a step, e.g. "
                f"{(2,) * (total // 2 - 1) + (2 + total % 2,)}"
            )
        return [classes_per_step] * (total // classes_per_step)
    counts = list(classes_per_step)
    if not counts or min(counts) < 1 or sum(counts) > total:
        raise ValueError(f"classes_per_step must be at least 1 each and at most {total} in all, got {tuple(counts)}")
    return counts


def _check_sizes(*sizes: int | None) -> None:
    for size in sizes:
        if size is not None and size < 1:
            raise ValueError(f"a segment needs at least 1 row of a part, got {size}: None takes all")


def _rows_a_class(groups: Sequence[tuple[int, ...]], sizes: Sizes) -> dict[int, int | None]:
    every = [c for group in groups for c in group]
    if sizes is None:
        return dict.fromkeys(every)
    if isinstance(sizes, Mapping):
        if unknown := sorted(set(sizes) - set(every)):
            raise ValueError(f"sizes names classes {unknown}, which do not stand in the stream")
        if few := [c for c, rows in sizes.items() if rows < 1]:
            raise ValueError(
                f"sizes asks for {sizes[few[0]]} rows of class {few[0]}: a class in the stream has at least 1"
            )
        return {c: sizes.get(c) for c in every}
    per_segment = [sizes] * len(groups) if isinstance(sizes, int) else list(sizes)
    if len(per_segment) != len(groups):
        raise ValueError(f"sizes has {len(per_segment)} entries for {len(groups)} segments")
    wanted: dict[int, int | None] = {}
    for group, size in zip(groups, per_segment, strict=True):
        if size < len(group):
            raise ValueError(f"{size} rows cannot hold the {len(group)} classes of a segment")
        base, more = divmod(size, len(group))
        wanted |= {c: base + (i < more) for i, c in enumerate(group)}
    return wanted


def _class_rows(
    task: Task, classes: tuple[int, ...], wanted: Mapping[int, int | None], seed: int, number: int
) -> dict[str, Tensor]:
    rows = {}
    for part in PARTS:
        data = getattr(task, part)
        if data is None:
            continue
        rng = numpy_stream(seed, "rows", part, number)
        found = []
        for c in classes:
            mine = rng.permutation(np.flatnonzero(data.y.cpu().numpy() == c))
            if len(mine) == 0 and part == "train":
                raise ValueError(f"class {_name(task, c)} has no training row in {task.name}")
            count = wanted[c] if part == "train" else None
            if count is not None and len(mine) < count:
                raise ValueError(f"class {_name(task, c)} has {len(mine)} training rows, {count} are asked for")
            found.append(mine[:count])
        rows[part] = torch.from_numpy(rng.permutation(np.concatenate(found)))
    return rows


def _changed(
    task: Task,
    names: Sequence[str],
    changes: Sequence[Any],
    seed: int,
    size: int | None,
    test_size: int | None,
    disjoint: bool,
) -> list[Segment]:
    drawn = {}
    for part, count in (("train", size), ("val", None), ("test", test_size)):
        data = getattr(task, part)
        if data is not None:
            drawn[part] = _draw(data, len(names), count, seed, part, disjoint and part == "train")
    return [
        Segment(t, name, task, {p: rows[t] for p, rows in drawn.items()}, tuple(range(task.num_classes)), change)
        for t, (name, change) in enumerate(zip(names, changes, strict=True))
    ]


def _draw(data: Split, n: int, size: int | None, seed: int, part: str, disjoint: bool) -> list[Tensor]:
    number = Split(torch.arange(data.n), data.y)
    by: Any = "row" if data.y is None else "class"
    base = int(numpy_stream(seed, "rows", part).integers(2**31 - n))
    if disjoint:
        each = data.n // n if size is None else size
        if each < 1:
            raise ValueError(f"{data.n} rows cannot be shared out over {n} segments")
        return [p.x for p in split(number, (each,) * n, seed=base, by=by)]
    if size is None:
        return [torch.randperm(data.n, generator=stream(seed, "rows", part, t)) for t in range(n)]
    return [split(number, (size,), seed=base + t, by=by)[0].x for t in range(n)]


def _cat(column: list[Any]) -> Any:
    if column[0] is None:
        return None
    if isinstance(column[0], Tensor):
        return torch.cat(column)
    return np.concatenate(column) if isinstance(column[0], np.ndarray) else [v for part in column for v in part]


def _name(task: Task, c: int) -> str:
    names = task.meta.get("classes")
    return str(names[c]) if names else str(c)

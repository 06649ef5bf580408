"""Tables: mixed columns in, float32 rows out; every statistic comes from the training rows alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.tasks import Split, Task, split

MAX_CATEGORIES = 32


class TableEncoder:
    """Columns to features: numbers imputed by the median and standardised, words one-hot.

    A number column with holes in the training rows gets a second feature, 1 where a value was missing. A word
    column keeps its `MAX_CATEGORIES` commonest training values, rarer ones share a feature; a value never
    seen in training gives zeros; a missing word is a value of its own. Constant columns give zeros.
    """

    def __init__(self) -> None:
        self.feature_names: tuple[str, ...] = ()
        self._plans: list[tuple[str, Any]] = []

    def fit(self, columns: dict[str, np.ndarray], rows: np.ndarray) -> "TableEncoder":
        """Take medians, means, deviations and categories from `rows`."""
        names: list[str] = []
        for name, column in columns.items():
            values = column[rows]
            if column.dtype != object:
                holes = np.isnan(values)
                known = values[~holes]
                centre = float(np.median(known)) if len(known) else 0.0
                filled = np.where(holes, centre, values)
                deviation = float(filled.std())
                flag = bool(holes.any())
                self._plans.append((name, (centre, float(filled.mean()), deviation or 1.0, flag)))
                names += [name] + [f"{name} is missing"] * flag
            else:
                found, counts = np.unique(np.array([_word(v) for v in values]), return_counts=True)
                order = np.lexsort((found, -counts))
                kept = sorted(found[order[:MAX_CATEGORIES]].tolist())
                other = len(found) > MAX_CATEGORIES
                self._plans.append((name, (kept, set(found.tolist()), other)))
                names += [f"{name}={k or 'missing'}" for k in kept] + [f"{name}=other"] * other
        self.feature_names = tuple(names)
        return self

    def transform(self, columns: dict[str, np.ndarray], rows: np.ndarray | None = None) -> Tensor:
        """Features of `rows`, (n, d) float32."""
        blocks: list[np.ndarray] = []
        for name, plan in self._plans:
            values = columns[name] if rows is None else columns[name][rows]
            if len(plan) == 4:
                centre, mean, deviation, flag = plan
                holes = np.isnan(values)
                blocks.append(((np.where(holes, centre, values) - mean) / deviation)[:, None])
                if flag:
                    blocks.append(holes[:, None].astype(float))
            else:
                kept, seen, other = plan
                place = {k: i for i, k in enumerate(kept)}
                block = np.zeros((len(values), len(kept) + other))
                for i, value in enumerate(values):
                    word = _word(value)
                    if word in place:
                        block[i, place[word]] = 1.0
                    elif other and word in seen:
                        block[i, -1] = 1.0
                blocks.append(block)
        rows_out = np.concatenate(blocks, axis=1) if blocks else np.zeros((0, 0))
        return torch.from_numpy(rows_out.astype(np.float32))


def _word(value: Any) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class TableSet:
    """A table with one class a row.

    columns
        Name to array of N values: float64 with NaN for a hole, or object with None for a hole.
    y
        (N,) int64, numbers into `classes`.
    test
        Row numbers of the official test part where the set has one.
    """

    columns: dict[str, np.ndarray]
    y: Tensor
    classes: tuple[str, ...]
    name: str
    provenance: tuple[dict[str, Any], ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = field(default="table", init=False)

    def task(self, seed: int, sizes: Sequence[float | int] = (0.6, 0.2, 0.2)) -> Task:
        """Stratified train, validation and test parts; the encoder is fitted on the training rows."""
        if len(sizes) != 3:
            raise ValueError(f"sizes must be (train, val, test), got {tuple(sizes)}")
        rows = Split(torch.arange(len(self.y)), self.y)
        parts = split(rows, sizes, seed=seed, by="class", classes=self.classes)
        encoder = TableEncoder().fit(self.columns, parts[0].x.numpy())
        done = [p._replace(x=encoder.transform(self.columns, p.x.numpy())) for p in parts]
        meta = {**self.meta, "features": encoder.feature_names, "classes": self.classes}
        val = done[1] if done[1].n else None
        return Task(self.name, self.kind, done[0], val, done[2], len(self.classes), meta, self.provenance)

"""Tables: mixed columns in, float32 rows out; every statistic comes from the training rows alone."""

import csv
import gzip
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.data.sources import SourceFiles, fetch
from etude.data.suggest import nearest
from etude.data.tasks import Split, Task, numbered, split
from etude.errors import UsageError

MAX_CATEGORIES = 32


class Words(NamedTuple):
    """A column of words: `codes` are numbers into `names`, -1 where there is none."""

    codes: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Any]) -> "Words":
        """From values, None or NaN where there is none."""
        texts = ["" if v is None or v != v else str(v) for v in values]
        names, codes = np.unique(np.array(texts, dtype=str), return_inverse=True)
        if len(names) and names[0] == "":
            return cls(codes - 1, tuple(names[1:].tolist()))
        return cls(codes, tuple(names.tolist()))


Column = np.ndarray | Words


class _Numbers(NamedTuple):
    fill: float
    mean: float
    deviation: float
    flag: bool


class _Levels(NamedTuple):
    feature: np.ndarray  # of each code, -1: no feature; last entry is that of a hole
    width: int


class TableEncoder:
    """Columns to features: numbers imputed by the median and standardised, words one-hot.

    A column with holes in the training rows gets a further feature, 1 where a value is missing. A word column
    keeps its `MAX_CATEGORIES` commonest training values, rarer ones share a feature; a value that training never
    saw gives zeros. A constant column gives zeros.
    """

    def __init__(self) -> None:
        self.feature_names: tuple[str, ...] = ()
        self._plans: dict[str, _Numbers | _Levels] = {}

    def fit(self, columns: Mapping[str, Column], rows: np.ndarray) -> "TableEncoder":
        """Take medians, means, deviations and categories from `rows`."""
        names: list[str] = []
        self._plans = {}
        for name, column in columns.items():
            if isinstance(column, Words):
                plan, labels = _levels(column, rows)
                names += [f"{name}={label}" if label else f"{name} is missing" for label in labels]
                self._plans[name] = plan
            else:
                values = column[rows]
                holes = np.isnan(values)
                fill = float(np.median(values[~holes])) if not holes.all() else 0.0
                filled = np.where(holes, fill, values)
                flag = bool(holes.any())
                self._plans[name] = _Numbers(fill, *_location(filled), flag)
                names += [name] + [f"{name} is missing"] * flag
        self.feature_names = tuple(names)
        return self

    def transform(self, columns: Mapping[str, Column], rows: np.ndarray) -> Tensor:
        """Features of `rows`, (n, d) float32."""
        out = np.zeros((len(rows), len(self.feature_names)), dtype=np.float32)
        start = 0
        for name, plan in self._plans.items():
            column = columns[name]
            if isinstance(plan, _Levels):
                assert isinstance(column, Words)
                feature = plan.feature[column.codes[rows]]
                known = np.flatnonzero(feature >= 0)
                out[known, start + feature[known]] = 1.0
                start += plan.width
            else:
                assert isinstance(column, np.ndarray)
                values = column[rows]
                holes = np.isnan(values)
                out[:, start] = (np.where(holes, plan.fill, values) - plan.mean) / plan.deviation
                if plan.flag:
                    out[:, start + 1] = holes
                start += 1 + plan.flag
        return torch.from_numpy(out)


def _location(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation, which is 1 where all values are the same."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = float(values.mean()), float(values.std())
    if not np.isfinite(deviation):  # squares of such numbers are beyond float64
        size = float(np.abs(values).max())
        mean, deviation = float((values / size).mean()) * size, float((values / size).std()) * size
    return mean, deviation or 1.0


def _levels(column: Words, rows: np.ndarray) -> tuple[_Levels, list[str]]:
    codes = column.codes[rows]
    counts = np.bincount(codes[codes >= 0], minlength=len(column.names))
    found = np.flatnonzero(counts)
    kept = np.sort(found[np.argsort(-counts[found], kind="stable")][:MAX_CATEGORIES])
    rare = np.setdiff1d(found, kept)
    labels = [column.names[c] for c in kept]
    feature = np.full(len(column.names) + 1, -1)
    feature[kept] = np.arange(len(kept))
    if len(rare):
        feature[rare] = len(labels)
        labels.append("(rare)")
    if (codes < 0).any():
        feature[-1] = len(labels)
        labels.append("")
    return _Levels(feature, len(labels)), labels


@dataclass(frozen=True)
class TableSet:
    """A table with one class a row.

    columns
        Name to column of N values: float64 with NaN for a hole, or `Words`.
    y
        (N,) int64, numbers into `classes`.
    groups
        (N,) int64 where rows belong together; `task` then splits by group.
    """

    columns: dict[str, Column]
    y: Tensor
    classes: tuple[str, ...]
    name: str
    provenance: tuple[dict[str, Any], ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    groups: Tensor | None = None
    kind: str = field(default="table", init=False)

    def task(self, seed: int, sizes: Sequence[float | int] = (0.6, 0.2, 0.2)) -> Task:
        """Train, validation and test parts, stratified by class (or whole groups), drawn by `seed`.

        Imputation, one-hot coding and scaling are fitted on the training rows. A part of size 0 becomes None.
        """
        if len(sizes) != 3:
            raise ValueError(f"sizes must be (train, val, test), got {tuple(sizes)}")
        data = Split(torch.arange(len(self.y)), self.y, self.groups)
        if self.groups is None:
            parts = split(data, sizes, seed=seed, by="class", classes=self.classes)
        else:
            parts = split(data, sizes, seed=seed, by="group")
        if not parts[0].n:
            raise ValueError("the training part is empty: there is nothing to fit the columns' statistics on")
        encoder = TableEncoder().fit(self.columns, parts[0].x.numpy())
        train, val, test = (p._replace(x=encoder.transform(self.columns, p.x.numpy())) for p in parts)
        meta = {**self.meta, "features": encoder.feature_names, "classes": self.classes}
        return Task(
            self.name,
            self.kind,
            train,
            val if val.n else None,
            test if test.n else None,
            len(self.classes),
            meta,
            self.provenance,
        )


def load_table(name: str | None = None, *, path: str | Path | None = None, target: str | None = None) -> TableSet:
    """A table by its name, or the user's own file.

    ============= ======= ======== ======= =============================
    name          rows    columns  classes where it comes from
    ============= ======= ======== ======= =============================
    breast_cancer 569     30       2       scikit-learn
    wine          178     13       3       scikit-learn
    iris          150     4        3       scikit-learn
    mushroom      8,124   22       2       UCI, words with missing ones
    magic04       19,020  10       2       UCI
    shuttle       58,000  9        7       UCI, classes of 10 to 45,586
    covertype     581,012 54       7       UCI, by download
    letter        20,000  16       26      UCI
    satellite     6,435   36       6       UCI
    dna_splice    3,186   180      3       UCI
    spambase      4,601   57       2       UCI
    vowel         990     10       11      UCI
    ============= ======= ======== ======= =============================

    Parameters
    ----------
    name
        One of the table above; None for the user's file at `path`.
    path
        With a name: folder that holds the official file. Without: the user's CSV or Parquet file.
    target
        Column of the classes in the user's file.
    """
    if name is None:
        if path is None:
            raise ValueError("load_table needs a name or a path")
        from etude.data.table_files import read_table

        return read_table(Path(path), target=target)
    key = name.replace("-", "_").lower()
    if key not in _LOADERS:
        raise UsageError(f"no table named {name!r}{nearest(key, _LOADERS)}; there are {', '.join(_LOADERS)}")
    if target is not None:
        raise ValueError(f"the target of {key} is fixed; target= is for your own file: load_table(path=...)")
    return _LOADERS[key](key, path)


# --- one loader a set ------------------------------------------------------------------------------------------


def _build(
    name: str, columns: dict[str, Column], labels: Sequence[str], provenance: tuple[dict[str, Any], ...]
) -> TableSet:
    classes, y = numbered(labels)
    return TableSet(columns, torch.from_numpy(y), classes, name, provenance)


def _from_sklearn(name: str, path: str | Path | None) -> TableSet:
    import sklearn
    from sklearn import datasets

    if path is not None:
        raise ValueError(f"{name} comes with scikit-learn: it takes no path")
    bunch = getattr(datasets, f"load_{name}")()
    columns: dict[str, Column] = {str(c): bunch.data[:, i] for i, c in enumerate(bunch.feature_names)}
    digest = hashlib.sha256(np.ascontiguousarray(bunch.data).tobytes() + bunch.target.tobytes()).hexdigest()
    version = f"scikit-learn {sklearn.__version__}"
    record = {"name": name, "version": version, "sha256": digest, "license": "CC BY 4.0 (UCI)"}
    classes = tuple(str(c) for c in bunch.target_names)
    return TableSet(columns, torch.from_numpy(bunch.target).long(), classes, name, (record,))


def _rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.reader(stream, delimiter=delimiter) if row]


def _numeric(
    file: str, label: int, *, header: bool, names: Sequence[str] = (), skip: Sequence[int] = (), delimiter: str = ","
) -> Callable[[str, str | Path | None], TableSet]:
    """Loader of a file of numbers with the class in column `label`."""

    def load(name: str, path: str | Path | None) -> TableSet:
        files: SourceFiles = fetch(file, path=path)
        rows: list[list[str]] = []
        title: Sequence[str] = names
        for part in (p for p in sorted(files.paths) if not p.endswith(".traintest")):
            content = _rows(files.paths[part], delimiter)
            if header:
                title, content = content[0], content[1:]
            rows += content
        target = label % len(rows[0])
        used = [i for i in range(len(rows[0])) if i != target and i not in skip]
        title = title or [f"x{i + 1}" for i in range(len(rows[0]))]
        table = np.array([[row[i] for i in used] for row in rows], dtype=np.float64)
        columns: dict[str, Column] = {title[i]: table[:, j].copy() for j, i in enumerate(used)}
        return _build(name, columns, [row[target] for row in rows], files.provenance)

    return load


MUSHROOM = (
    "cap-shape",
    "cap-surface",
    "cap-color",
    "bruises",
    "odor",
    "gill-attachment",
    "gill-spacing",
    "gill-size",
    "gill-color",
    "stalk-shape",
    "stalk-root",
    "stalk-surface-above-ring",
    "stalk-surface-below-ring",
    "stalk-color-above-ring",
    "stalk-color-below-ring",
    "veil-type",
    "veil-color",
    "ring-number",
    "ring-type",
    "spore-print-color",
    "population",
    "habitat",
)
MAGIC = ("fLength", "fWidth", "fSize", "fConc", "fConc1", "fAsym", "fM3Long", "fM3Trans", "fAlpha", "fDist")


def _mushroom(name: str, path: str | Path | None) -> TableSet:
    files = fetch("uci/agaricus-lepiota.data", path=path)
    rows = _rows(files.path)
    columns: dict[str, Column] = {
        title: Words.of(None if row[i + 1] == "?" else row[i + 1] for row in rows) for i, title in enumerate(MUSHROOM)
    }
    labels = ["edible" if row[0] == "e" else "poisonous" for row in rows]
    return _build(name, columns, labels, files.provenance)


COVERS = (
    "spruce or fir",
    "lodgepole pine",
    "ponderosa pine",
    "cottonwood or willow",
    "aspen",
    "douglas fir",
    "krummholz",
)
TERRAIN = (
    "elevation",
    "aspect",
    "slope",
    "horizontal distance to hydrology",
    "vertical distance to hydrology",
    "horizontal distance to roadways",
    "hillshade at 9 am",
    "hillshade at noon",
    "hillshade at 3 pm",
    "horizontal distance to fire points",
    *(f"wilderness area {i + 1}" for i in range(4)),
    *(f"soil type {i + 1}" for i in range(40)),
)


def _covertype(name: str, path: str | Path | None) -> TableSet:
    files = fetch("covertype", path=path)
    with gzip.open(files.path, "rt", encoding="ascii") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.float64, ndmin=2)
    columns: dict[str, Column] = {title: table[:, i].copy() for i, title in enumerate(TERRAIN)}
    return _build(name, columns, [COVERS[int(label) - 1] for label in table[:, -1]], files.provenance)


_LOADERS: dict[str, Callable[[str, str | Path | None], TableSet]] = {
    **dict.fromkeys(("breast_cancer", "wine", "iris"), _from_sklearn),
    "mushroom": _mushroom,
    "magic04": _numeric("uci/magic04.data", -1, header=False, names=MAGIC),
    "shuttle": _numeric("uci/shuttle.csv", -1, header=True),
    "covertype": _covertype,
    "letter": _numeric("uci/letter_recognition.csv", 0, header=True),
    "satellite": _numeric("uci/satellite.csv", -1, header=True),
    "dna_splice": _numeric("uci/dna_splice.csv", -1, header=True),
    "spambase": _numeric("spambase", -1, header=False, delimiter=" "),
    "vowel": _numeric("vowel", 1, header=True, skip=(0,)),
}

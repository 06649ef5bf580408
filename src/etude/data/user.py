"""The user's own files: a table, a folder of images, a set of documents."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etude.data.images import ImageSet
from etude.data.tables import TableSet
from etude.errors import DataError, MissingExtra


def load_user(
    path: str | Path,
    *,
    target: str | None = None,
    kind: Literal["images", "table", "documents"] | None = None,
    text: str | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
) -> ImageSet | TableSet:
    """Load the user's data; the kind is found out from what lies at `path` unless it is given."""
    source = Path(path).expanduser()
    if not source.exists():
        raise DataError(f"{source} does not exist")
    return _table(source, target)


def _table(source: Path, target: str | None) -> TableSet:
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra("pandas", "tables", "reading a table") from error
    frame: Any = pd.read_parquet(source) if source.suffix == ".parquet" else pd.read_csv(source)
    if target is None or target not in frame.columns:
        raise DataError(f"{source.name} has no column {target!r}; its columns are {', '.join(frame.columns)}")
    columns = {}
    for name in frame.columns:
        series = frame[name]
        if name == target:
            continue
        if pd.api.types.is_numeric_dtype(series):
            columns[str(name)] = series.to_numpy(dtype=float)
        else:
            columns[str(name)] = np.array([None if pd.isna(v) else str(v) for v in series], dtype=object)
    labels = frame[target].astype(str)
    classes, codes = np.unique(labels.to_numpy(dtype=object).astype(str), return_inverse=True)
    record = {"name": source.name, "version": "user", "license": "the user's", "sha256": _sha256(source)}
    return TableSet(columns, torch.from_numpy(codes).long(), tuple(map(str, classes)), source.stem, (record,))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

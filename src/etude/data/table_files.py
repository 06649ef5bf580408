"""The user's table: a CSV or Parquet file with one column of classes."""

import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from etude.data.cache import file_sha256
from etude.data.suggest import nearest
from etude.data.tables import MAX_CATEGORIES, Column, TableSet, Words
from etude.data.user_checks import OnBad, keep_classes, listed
from etude.errors import DataError, MissingExtra

TARGETS = ("target", "label", "class", "y")
MAX_NUMERIC_CLASSES = 20
INDEX_NAMES = ("", "id", "idx", "index", "row", "rowid", "row_id", "row.names")
BINARY = (".parquet", ".arrow")
FREE_TEXT = "names the rows or holds free text"
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?")


def read_frame(path: Path, on_bad: Literal["raise", "skip"] = "raise") -> Any:
    """A CSV, TSV, Parquet or Arrow file, or a folder of Parquet or Arrow shards, as a pandas frame.

    Lines that were skipped are named in ``frame.attrs["left_out"]``.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtra("pandas", "tables", "reading a table") from error
    try:
        if path.is_dir():
            frame = pd.concat([_binary(p) for p in shards(path)], ignore_index=True)
        elif path.suffix.lower() in BINARY:
            frame = _binary(path)
        else:
            frame = _text(path, on_bad)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path} is empty") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not text: save the table as CSV in UTF-8, or give the file the suffix of what it holds "
            f"({', '.join(BINARY)})"
        ) from error
    except (pd.errors.ParserError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
    frame.columns = [str(c) for c in frame.columns]
    _no_twins(path, list(frame.columns))
    if not len(frame):
        raise DataError(f"{path} has no rows (columns: {', '.join(frame.columns)})")
    return frame


def read_table(path: Path, *, target: str | None = None, on_bad: OnBad = "raise") -> TableSet:
    """The user's table as a `TableSet`; see `etude.data.load_user`."""
    frame = read_frame(path, on_bad)
    target = _target(path, list(frame.columns), target)
    labels, rows = _classes(path, frame[target], on_bad)
    without = np.setdiff1d(np.arange(len(frame)), rows)
    left_out = [*frame.attrs.get("left_out", []), *(f"row {i + 1} has no {target}" for i in without)]
    rows, classes, y, notes = keep_classes(labels, rows, f"column {target!r} of {path.name}", "row", on_bad)
    frame = frame.iloc[rows]
    columns: dict[str, Column] = {}
    dropped: dict[str, str] = {}
    for name in frame.columns:
        if name != target:
            column, reason = _column(frame[name])
            if column is None:
                dropped[name] = reason
            else:
                columns[name] = column
    if not columns:
        reasons = "; ".join(f"{n}: {r}" for n, r in dropped.items()) or f"{target!r} is its only column"
        texts = '; texts go in as JSON lines with "text" and "label"' if FREE_TEXT in dropped.values() else ""
        raise DataError(f"{path} has no column to learn from ({reasons}){texts}")
    meta = {"target": target, "dropped": dropped, "left_out_rows": left_out, **notes}
    digest = file_sha256(path) if path.is_file() else ""
    record = {"name": path.name, "version": "user", "sha256": digest, "license": "the user's own"}
    return TableSet(columns, torch.from_numpy(y), classes, path.stem, (record,), meta)


def shards(folder: Path) -> list[Path]:
    """The Parquet and Arrow files of a folder at any depth (a saved data set of Hugging Face), caches left out."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in BINARY)
    return [p for p in found if not p.name.startswith((".", "cache-", "tmp"))]


def _binary(path: Path) -> Any:
    import pandas as pd

    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        from pyarrow import ArrowInvalid, ipc, memory_map

        with memory_map(str(path)) as source:
            try:
                return ipc.open_stream(source).read_all().to_pandas()
            except ArrowInvalid:
                return ipc.open_file(source).read_all().to_pandas()
    except ImportError as error:
        raise MissingExtra("pyarrow", "tables", f"reading {path.suffix} files") from error


def _text(path: Path, on_bad: OnBad) -> Any:
    """A delimited text file: the separator is the commonest of tab, semicolon and comma in the first line.

    Separators at the ends of the rows are harmless. Fields that have no name are not: pandas would take the first
    fields of such rows for an index, and every name would move along.
    """
    import pandas as pd

    encoding = "utf-8-sig"
    opened = pd.io.common.get_handle(path, "rb", compression="infer", is_text=False)
    with opened:
        head = opened.handle.read(1 << 16)
    if not head.strip():
        raise DataError(f"{path} is empty")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f'{path} is UTF-16 (Excel\'s "Unicode text"): save it as CSV in UTF-8')
    try:
        text = head.decode(encoding, errors="strict" if len(head) < 1 << 16 else "ignore")
    except UnicodeDecodeError:
        encoding = "cp1252"
        text = head.decode(encoding, errors="replace")
    first = text.splitlines()[0]
    separator = max("\t;,", key=lambda s: (first.count(s), s == ","))
    comma = separator == ";" and re.search(r"\d,\d", text) and not re.search(r"\d\.\d", text)
    named: dict[str, Any] = {}
    extra = 0
    if "\n" in text:  # the header is whole; pandas would call the second "a" "a.1"
        rows = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
        names, row = next(rows, []), next((r for r in rows if r), [])
        _no_twins(path, [n for n in names if n])
        extra = max(0, len(row) - len(names))
        if extra:
            all_names = [n or f"Unnamed: {i}" for i, n in enumerate([*names, *[""] * extra])]
            named = {"names": all_names, "header": 0, "index_col": False}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path,
            sep=separator,
            encoding=encoding,
            decimal="," if comma else ".",
            on_bad_lines="warn" if on_bad == "skip" else "error",
            skipinitialspace=True,
            low_memory=False,
            **named,
        )
    # Which lines pandas skipped stands in the text of its warning alone.
    skipped = [n for w in said for n in re.findall(r"Skipping line (\d+)", str(w.message))]
    frame.attrs["left_out"] = [f"line {n} has too many fields" for n in skipped]
    return _named_fields(path, frame, extra, on_bad) if extra else frame


def _named_fields(path: Path, frame: Any, extra: int, on_bad: OnBad) -> Any:
    """The frame without its last `extra` columns, which have no names: raises where they hold anything."""
    nameless = frame.iloc[:, -extra:].notna().any(axis=1).to_numpy()
    if nameless.any() and (on_bad == "raise" or nameless.all()):
        raise DataError(
            f"row {int(nameless.argmax()) + 1} of {path.name} has more fields than its header has names "
            f"({frame.shape[1] - extra}): name every column, and put a field that holds the separator into quotes"
        )
    kept = frame.iloc[~nameless, :-extra].reset_index(drop=True)
    kept.attrs["left_out"] += [f"row {i + 1} has too many fields" for i in nameless.nonzero()[0]]
    return kept


def _no_twins(path: Path, names: Sequence[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise DataError(f"{path} has two columns named {twins[0]!r}: rename one")


def _target(path: Path, columns: list[str], target: str | None) -> str:
    if target is None:
        found = [c for c in columns if c.lower() in TARGETS]
        if len(found) != 1:
            raise DataError(
                f"say which column of {path.name} holds the classes: target=... (--target COLUMN); "
                f"it has {listed(columns)}"
            )
        return found[0]
    if target not in columns:
        raise DataError(f"{path.name} has no column {target!r}{nearest(target, columns)}; it has {listed(columns)}")
    return target


def _classes(path: Path, series: Any, on_bad: OnBad) -> tuple[list[str], np.ndarray]:
    """Class names of the rows that have one, and these rows' numbers."""
    import pandas as pd

    holes = series.isna().to_numpy()
    if holes.any() and on_bad == "raise":
        missing = [str(i + 1) for i in np.flatnonzero(holes)]
        raise DataError(
            f"column {series.name!r} of {path.name} has no value in {len(missing)} of {len(series)} rows (row "
            f"{listed(missing)}, the first being 1); fill them in, or leave these rows out with "
            'on_bad="skip" (--skip-bad)'
        )
    known = series[~holes]
    numeric = pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known)
    if numeric:
        values = known.to_numpy(dtype=float)
        if not np.isfinite(values).all():  # a hole among the features, but no class
            raise DataError(
                f"column {series.name!r} of {path.name}, the classes, holds an infinite number: leave its rows out or "
                "name their class"
            )
        whole = bool((values == np.floor(values)).all())
        distinct = len(np.unique(values))
        if distinct > MAX_NUMERIC_CLASSES and (not whole or distinct > len(values) / 2):
            raise DataError(
                f"column {series.name!r} of {path.name} looks like a measurement ({distinct} different numbers), "
                "not like classes: give another target, or cut it into classes first"
            )
        names = [str(int(v)) if whole else str(v) for v in values]
    else:
        names = [str(v).strip() for v in known]
    return names, np.flatnonzero(~holes)


def _column(series: Any) -> tuple[Column | None, str]:
    """A column as numbers or words, or the reason why it is left out."""
    import pandas as pd

    if series.isna().all():
        return None, "empty"
    if isinstance(series.dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(series):
        return _days(series), ""
    if pd.api.types.is_timedelta64_dtype(series):
        return (series / pd.Timedelta(days=1)).to_numpy(dtype=float, na_value=np.nan), ""
    if pd.api.types.is_complex_dtype(series):
        return None, "complex numbers"
    if pd.api.types.is_numeric_dtype(series) and not isinstance(series.dtype, pd.CategoricalDtype):
        values = series.to_numpy(dtype=float, na_value=np.nan)
        name = str(series.name).strip().lower()
        indexes = name in INDEX_NAMES or name.startswith("unnamed:")
        if indexes and np.array_equal(values - values[0], series.index.to_numpy() - series.index[0]):
            return None, "numbers the rows"
        return np.where(np.isfinite(values), values, np.nan), ""
    holes = series.isna().to_numpy()
    if all(isinstance(v, str) and DATE.fullmatch(v) for v in series[~holes]):
        return _days(series), ""
    words = Words.of(None if hole else str(v).strip() for v, hole in zip(series, holes, strict=True))
    if len(words.names) > max(MAX_CATEGORIES, (~holes).sum() / 2):
        return None, FREE_TEXT
    return words, ""


def _days(series: Any) -> np.ndarray:
    """Dates as days since 1970, NaN where there is none."""
    import pandas as pd

    stamps = pd.to_datetime(series.astype(str), utc=True, errors="coerce", format="ISO8601")
    return ((stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)).to_numpy(dtype=float, na_value=np.nan)

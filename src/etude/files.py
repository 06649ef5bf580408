"""Where Etude keeps what it can make again, and files that are written whole or not at all. Imports nothing heavy."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """The folder named by `ETUDE_CACHE`, otherwise the user's cache folder of the platform."""
    if named := os.environ.get("ETUDE_CACHE"):
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("etude"))


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, with its folder."""
    with written(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

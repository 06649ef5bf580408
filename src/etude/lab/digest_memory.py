"""Digests of the present code, kept in the cache: reading the syntax behind every study takes seconds.

The file holds them together with a digest of all of Etude's sources, so that not one letter may move unnoticed.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from etude.files import cache_root, write_text
from etude.lab import digest

Stamps = tuple[tuple[str, int, int], ...]  # path, time of the last change, size


def remembered_digest(slug: str, tier: str | None = None) -> str:
    """`code_digest`, worked out once for the sources as they are; a cache that cannot be used changes nothing."""
    root = digest._root()
    study = digest._path(f"etude.studies.{slug.replace('-', '_')}")
    sources = _sources(_stamps({*root.rglob("*.py"), *([study] if study else [])}))
    path = cache_root() / "digests" / f"{hashlib.sha256(str(root).encode()).hexdigest()[:12]}.json"
    known = _read(path, sources)
    name = f"{slug}/{tier}"
    if name not in known:
        known[name] = digest.code_digest(slug, tier)
        with suppress(OSError):  # full, or read-only
            write_text(path, json.dumps({"sources": sources, "digests": known}))
    return known[name]


def _stamps(paths: Iterable[Path]) -> Stamps:
    stats = ((path, path.stat()) for path in sorted(paths))
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)


@lru_cache(maxsize=1)
def _sources(stamps: Stamps) -> str:
    total = hashlib.sha256()
    for path, _, _ in stamps:
        total.update(f"{path}\n".encode() + Path(path).read_bytes() + b"\0")
    return total.hexdigest()


def _read(path: Path, sources: str) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return dict(kept["digests"]) if kept["sources"] == sources else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}

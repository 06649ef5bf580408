"""The table of data sets, `sources.toml`, as typed records."""

import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any

from etude.data.suggest import nearest
from etude.errors import UsageError


@dataclass(frozen=True)
class SourceFile:
    """One file: what it must hash to, and where it can come from."""

    name: str
    sha256: str
    bytes: int = 0
    urls: tuple[str, ...] = ()
    package: str = ""
    member: str = ""
    installed: str = ""


@dataclass(frozen=True)
class Source:
    """One data set."""

    name: str
    title: str
    kind: str
    version: str
    license: str
    files: tuple[SourceFile, ...]
    cite: str = ""
    page: str = ""
    fallback: str = ""
    part: str = ""

    @property
    def label(self) -> str:
        """The set's name, with the pattern where only some files are meant."""
        return f"{self.name}/{self.part}" if self.part else self.name

    def only(self, pattern: str) -> "Source":
        """The source with the files whose name fits `pattern`, a name or a glob."""
        chosen = tuple(f for f in self.files if fnmatchcase(f.name, pattern))
        if not chosen:
            names = ", ".join(f.name for f in self.files)
            raise UsageError(f"{self.name} has no file {pattern!r}; it has {names}")
        return Source(**{**self.__dict__, "files": chosen, "part": pattern})


@dataclass(frozen=True)
class Package:
    """A pinned package: the one file that the package client must hand over."""

    spec: str
    sha256: str
    file: str = field(default="")


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files("etude.data").joinpath("sources.toml").read_text(encoding="utf-8"))


@cache
def sources() -> dict[str, Source]:
    """Every data set of the registry by name."""
    found = {}
    for name, entry in _table().items():
        if name in ("packages", "aliases"):
            continue
        entry = dict(entry)
        common = entry.pop("urls", [])
        listed = []
        for item in entry.pop("files"):
            item = dict(item)
            urls = item.pop("urls", None) or [u.format(file=item["name"]) for u in common]
            listed.append(SourceFile(urls=tuple(urls), **item))
        found[name] = Source(name=name, files=tuple(listed), **entry)
    return found


def packages() -> dict[str, Package]:
    """Pinned packages by their requirement, e.g. ``mlxtend==0.25.0``."""
    return {spec: Package(spec, **entry) for spec, entry in _table()["packages"].items()}


def lookup(name: str) -> Source:
    """The source called `name`: a set, an alias, or ``set/file`` with a glob for the file.

    Hyphens and underscores are the same, upper and lower case too.
    """
    wanted, _, pattern = name.partition("/")
    canon = {_canon(n): n for n in sources()}
    aliases = {_canon(n): target for n, target in _table()["aliases"].items()}
    if _canon(wanted) in canon:
        source = sources()[canon[_canon(wanted)]]
        return source.only(pattern) if pattern else source
    if not pattern and _canon(wanted) in aliases:
        return lookup(aliases[_canon(wanted)])
    known = [*sources(), *_table()["aliases"]]
    raise UsageError(f"no data set named {name!r}{nearest(wanted, known)}; there are {', '.join(sorted(known))}")


def _canon(name: str) -> str:
    return name.replace("-", "_").lower()

"""Which papers of the catalogue are built from the same parts of the library."""

import ast
from collections import Counter
from functools import cache
from importlib import resources

from etude.lab.registry import runnable

# What every study uses says nothing about a paper.
_EVERYBODYS = ("etude.data", "etude.errors", "etude.lab", "etude.training", "etude.catalogue")
_PLAIN = ("mlp", "convnet", "layers")
_STUDIES = "etude.studies"


def imports_of(source: str) -> set[tuple[str, str]]:
    """Modules of the library that a file imports from, each with a name: ``("etude.layers.masks", "apply_masks")``."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    return {(n.module, a.name) for n in nodes if n.module and n.module.startswith("etude") for a in n.names}


@cache  # of files that several studies share
def _parts(name: str) -> frozenset[str]:
    """Methods and layers behind a study's file, and behind the files beside it: ``layers.apply_masks``."""
    source = resources.files(_STUDIES).joinpath(f"{name}.py").read_text(encoding="utf-8")
    found: set[str] = set()
    for module, word in imports_of(source):
        if module.startswith(f"{_STUDIES}._"):
            found |= _parts(module.removeprefix(f"{_STUDIES}."))
        elif not module.startswith((*_EVERYBODYS, _STUDIES)) and word not in _PLAIN and module.count("."):
            found.add(f"{module.split('.')[1]}.{word}")
    return frozenset(found)


@cache
def components() -> dict[str, frozenset[str]]:
    """The parts of every paper that runs."""
    return {slug: _parts(slug.replace("-", "_")) for slug in runnable()}


def sharing(slug: str, most: int = 8) -> list[tuple[str, tuple[str, ...]]]:
    """Papers that share parts with one, and which; rare parts count more, ties by name."""
    known = components()
    mine = known.get(slug, frozenset())
    often = Counter(part for parts in known.values() for part in parts)
    shared = {other: mine & parts for other, parts in known.items() if other != slug and mine & parts}
    order = sorted(shared, key=lambda other: (-sum(1 / often[p] for p in shared[other]), other))
    return [(other, tuple(sorted(shared[other]))) for other in order[:most]]

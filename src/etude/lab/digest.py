"""Digest of the code behind a study: when it moves, a recorded run is stale.

Walks the imports of the study's file through Etude's own modules (data, layers, training, the method
rooms) and hashes their syntax trees without docstrings and comments, so that prose may change freely.
A name imported from a room's `__init__` leads to the file that defines it, not to the whole room.
"""

import ast
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

# The lab judges and stores; it does not produce numbers. Its study contract, the card and progress bars neither.
_OUTSIDE = ("etude.lab", "etude.catalogue", "etude.page", "etude.cli", "etude.errors", "etude.data.progress")


def _root() -> Path:
    return Path(str(resources.files("etude")))


def _path(module: str) -> Path | None:
    base = _root().joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _tree(path: Path, stamp: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _parse(path: Path) -> ast.Module:
    return _tree(path, path.stat().st_mtime_ns)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _strip(tree: ast.Module) -> str:
    tree = ast.parse(ast.unparse(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = [n for n in node.body if not _is_docstring(n)]
            node.body = body or [ast.Pass()]
    return ast.dump(tree)


def _resolve(module: str, name: str, depth: int = 0) -> str | None:
    """The module that `from module import name` gets `name` from."""
    if _path(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    path = _path(module)
    if path is None or path.name != "__init__.py" or depth > 5:
        return module
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("etude"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _resolve(str(node.module), alias.name, depth + 1)
    return module


def _imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("etude"):
            for alias in node.names:
                target = _resolve(str(node.module), alias.name)
                if target:
                    found.add(target)
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("etude.")}
    return {m for m in found if m != "etude" and not any(m == o or m.startswith(o + ".") for o in _OUTSIDE)}


def modules_behind(slug: str) -> tuple[str, ...]:
    """Etude's own modules that the study reaches, sorted."""
    start = f"etude.studies.{slug.replace('-', '_')}"
    todo, seen = [start], set()
    while todo:
        module = todo.pop()
        path = _path(module)
        if module in seen or path is None:
            continue
        seen.add(module)
        todo += _imports(_parse(path))
    return tuple(sorted(seen))


def code_digest(slug: str) -> str:
    """Twelve hex digits over the study's code and all that it reaches."""
    total = hashlib.sha256()
    for module in modules_behind(slug):
        path = _path(module)
        assert path is not None
        total.update(f"{module}\n".encode())
        total.update(_strip(_parse(path)).encode())
    return total.hexdigest()[:12]

"""Digest of the code behind a study: when it moves, a recorded run is stale.

Follows the names that the study's file uses, definition by definition, through Etude's own modules (data, layers,
training, the method rooms), and hashes the syntax trees of what it reaches without docstrings and comments: prose may
change freely, and so may code beside it in the same file that the study never names. A class counts as one piece. A
module that is handed about as an object counts as a whole, and so does the study's own file, but for what measures
nothing: a study's `plots`, and the configurations of other tiers than the run's.
"""

import ast
import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

# The lab judges and stores; it does not produce numbers. Its study contract, the card and progress bars neither.
_OUTSIDE = ("etude.lab", "etude.catalogue", "etude.page", "etude.cli", "etude.errors", "etude.data.progress")

# Which way the seeds go, by what is quickest on the machine: the numbers are the same, and a run records it.
_SCHEDULING = tuple(f"etude.training.{name}" for name in ("plan", "relay", "workers", "wire", "tally"))

Target = tuple[str, str | None]  # a module and a name in it; no name: the module itself


@dataclass
class _Module:
    """The top level of a file: what each name stands for, and the statements that run on import."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Target] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    names: dict[ast.stmt, "_Names"] = field(default_factory=dict)  # what its statements refer to, as it is asked for


@cache
def _root() -> Path:
    return Path(str(resources.files("etude")))


def _path(module: str) -> Path | None:
    base = _root().joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _module(name: str) -> _Module | None:
    path = _path(name) if name.split(".")[0] == "etude" else None
    return None if path is None else _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, stamp: int) -> _Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.parent.name == "studies":
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                node.body = [n for n in node.body if not (isinstance(n, ast.FunctionDef) and n.name == "plots")]
    return _top_level(tree)


def _of_tier(node: ast.stmt, tier: str | None) -> ast.stmt:
    """The statement with the configuration of this tier alone, where it is a class that declares `configs`."""
    if tier is None or not isinstance(node, ast.ClassDef):
        return node
    node = copy.deepcopy(node)
    for inner in node.body:
        if not isinstance(inner, ast.Assign | ast.AnnAssign) or _assigned(inner) != ["configs"]:
            continue
        if isinstance(inner.value, ast.Dict):
            pairs = zip(inner.value.keys, inner.value.values, strict=True)
            kept = [(k, v) for k, v in pairs if not isinstance(k, ast.Constant) or k.value == tier]
            inner.value = ast.Dict([k for k, _ in kept], [v for _, v in kept])
    return node


def _top_level(tree: ast.Module) -> _Module:
    module = _Module()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module.imports |= _imported(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            module.definitions.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for inner in node.body:
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    module.imports |= _imported(inner)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and (names := _assigned(node)):
            for name in names:
                module.definitions.setdefault(name, []).append(node)
        elif not _is_docstring(node):
            module.effects.append(node)
    return module


def _assigned(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> list[str]:
    """The names that the statement binds; empty where it writes into an object, which is an effect."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
    return [e.id for e in flat if isinstance(e, ast.Name)] if all(isinstance(e, ast.Name) for e in flat) else []


def _imported(node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
    if isinstance(node, ast.ImportFrom):
        return {a.asname or a.name: (str(node.module), a.name) for a in node.names if node.level == 0}
    return {a.asname or a.name.split(".")[0]: (a.name if a.asname else a.name.split(".")[0], None) for a in node.names}


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _written(value: Any) -> str:
    """The syntax tree as text, without docstrings and the same under every Python.

    `ast.dump` is not: 3.12 added fields for type parameters, 3.13 leaves empty lists out. Here whatever is empty is
    left out, and so is whether a name is read or bound, which its place says.
    """
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, ast.Constant):
        return repr(value.value)
    if not isinstance(value, ast.AST):
        return repr(value)
    parts = [type(value).__name__]
    documented = isinstance(value, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    for name in value._fields:
        inner = getattr(value, name, None)
        if documented and name == "body":
            inner = [n for n in inner or () if not _is_docstring(n)]
        if inner is not None and inner != [] and name != "ctx":
            parts.append(f"{name}={_written(inner)}")
    return f"({' '.join(parts)})"


def _resolve(module: str, name: str | None, depth: int = 0) -> Target:
    """Where a name is defined: through the imports of a room's `__init__`, to a definition or to a module."""
    if name is None or depth > 8:
        return module, name
    found = _module(module)
    if found is not None and found.imports.get(name, (module, name)) != (module, name):
        return _resolve(*found.imports[name], depth + 1)
    if found is not None and name in found.definitions:
        return module, name
    if _path(f"{module}.{name}") is not None and module.split(".")[0] == "etude":
        return f"{module}.{name}", None
    return module, name


class _Names(ast.NodeVisitor):
    """Collects what a statement refers to: dotted chains, longest first, and imports of its own."""

    def __init__(self) -> None:
        self.chains: set[tuple[str, ...]] = set()
        self.imports: dict[str, Target] = {}

    def visit_Name(self, node: ast.Name) -> None:
        self.chains.add((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        parts: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            self.chains.add((inner.id, *reversed(parts)))
        else:
            self.visit(inner)

    def visit_Import(self, node: ast.Import) -> None:
        self.imports |= _imported(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.imports |= _imported(node)


class _Reading:
    """What the files hold at one moment: no file is looked up twice for one digest."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module | None] = {}
        self.resolved: dict[Target, Target] = {}

    def module(self, name: str) -> _Module | None:
        if name not in self.modules:
            self.modules[name] = _module(name)
        return self.modules[name]

    def resolve(self, target: Target) -> Target:
        if target not in self.resolved:
            self.resolved[target] = _resolve(*target)
        return self.resolved[target]

    def references(self, module: str, node: ast.stmt) -> Iterator[Target]:
        """What the statement of `module` names, inside or outside the module."""
        top = self.module(module)
        assert top is not None
        if node not in top.names:
            top.names[node] = _Names()
            top.names[node].visit(node)
        names = top.names[node]
        for base, *attributes in names.chains:
            imported = names.imports.get(base) or top.imports.get(base)
            if imported is not None:
                target = self.resolve(imported)
                while target[1] is None and attributes:
                    target = self.resolve((target[0], attributes.pop(0)))
                yield target
            elif base in top.definitions:
                yield module, base


@cache
def _statement(path: Path, stamp: int, name: str | None, tier: str | None) -> str:
    """Digest of a name's statements, or of those that run on import."""
    module = _parsed(path, stamp)
    nodes = module.effects if name is None else module.definitions[name]
    if path.parent.name == "studies":
        nodes = [_of_tier(node, tier) for node in nodes]
    return hashlib.sha256("\n".join(map(_written, nodes)).encode()).hexdigest()


def reached(slug: str) -> tuple[Target, ...]:
    """Every definition of Etude that the study reaches, sorted; `(module, None)` is what runs on its import."""
    todo: list[Target] = [(f"etude.studies.{slug.replace('-', '_')}", None)]
    seen: set[Target] = set()
    pieces: set[Target] = set()
    files = _Reading()

    def add(module: str, name: str | None, nodes: list[ast.stmt]) -> None:
        if (module, name) not in pieces:
            pieces.add((module, name))
            for node in nodes:
                todo.extend(files.references(module, node))

    while todo:
        module, name = target = todo.pop()
        if target in seen:
            continue
        seen.add(target)
        found = files.module(module)
        outside = any(module == o or module.startswith(o + ".") for o in _OUTSIDE)
        if found is None or outside or module == "etude":
            continue
        add(module, None, found.effects)
        if name in found.definitions:
            add(module, name, found.definitions[name])
            continue
        for each, nodes in found.definitions.items():  # the module as an object, or a name made on the fly
            add(module, each, nodes)
        if _is_package(module):
            todo.extend(files.resolve(t) for t in found.imports.values())
    return tuple(sorted(pieces, key=lambda t: (t[0], t[1] or "")))


def _is_package(module: str) -> bool:
    path = _path(module)
    return path is not None and path.name == "__init__.py"


def modules_behind(slug: str) -> tuple[str, ...]:
    """Etude's own modules that the study reaches, sorted."""
    return tuple(sorted({module for module, _ in reached(slug)}))


def code_digest(slug: str, tier: str | None = None) -> str:
    """Twelve hex digits over the study's code and all that it reaches; without `tier`, with all configurations."""
    total = hashlib.sha256()
    for module, name in reached(slug):
        if module in _SCHEDULING:
            continue
        path = _path(module)
        assert path is not None
        total.update(f"{module}:{name}\n{_statement(path, path.stat().st_mtime_ns, name, tier)}\n".encode())
    return total.hexdigest()[:12]


def is_stale(record: Mapping[str, Any], code: str | None) -> bool:
    """Whether a run's code is not the present one, and no confirmation in its record says that this changes nothing.

    `code` is the present digest, None where the study is gone; confirmations are `etude.lab.confirm`'s.
    """
    known = [record.get("code_digest"), *(c["code_digest"] for c in record.get("confirmed") or ())]
    return code is None or code not in known

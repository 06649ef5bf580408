"""`etude new SLUG`: the files of a new paper, ready to be filled in."""

import ast
import keyword
import re
from importlib import resources
from pathlib import Path

from etude.errors import UsageError
from etude.files import write_text

LONGEST_SLUG = 40
LINE = 120  # as ruff is set in pyproject.toml

CARD = '''slug = "{slug}"
title = "{title}"
authors = "First Author et al."
year = 2026
kind = "method"
room = "{room}"
tags = ["to be tagged"]
summary = """
Write 60 to 120 words of your own for a practitioner: what the method is, when to reach for it, what its authors
claim, what it costs. Say which data it needs, what it replaces, and where it is known not to help. Keep to what the
paper says; our own findings belong into the notes of the claims. Replace this text, which only shows how long a
summary is: about as long as this one, in plain words, without the abstract's phrases.
"""
entry = ["{room}.{name}"]

[[claims]]
id = "C1"
statement = "the method is more accurate than its baseline"
metric = {{ name = "accuracy", unit = "points", better = "higher" }}
arms = {{ method = "method", baseline = "baseline", control = {{ arm = "untrained" }} }}
relation = "greater"
margin = 1.0
paper = {{ text = "no figure copied yet", source = "abstract" }}
expects = "open"
'''

METHOD = '''"""{title}: one sentence that says what it does.

Source: authors, year, identifier, section or equation.
"""

from torch import Tensor, nn


def {function}(x: Tensor) -> Tensor:
    """The method's formula as a pure function, (batch, features) -> (batch, features).

    Raises
    ------
    ValueError
        If `x` is not two-dimensional.
    """
    if x.ndim != 2:
        raise ValueError(f"x must be (batch, features), got shape {{tuple(x.shape)}}")
    return x.relu()


class {name}(nn.Module):
    """A thin class over `{function}`."""

    def forward(self, x: Tensor) -> Tensor:
        return {function}(x)
'''

STUDY = '''"""{title}: does it work?"""

from collections.abc import Iterator
from typing import Any

from torch import nn

{imports}


class {name}Config(StudyConfig):
    protocols: tuple[str, ...] = ("digits",)
    steps: int = 200
    """Updates of every trained arm."""


class {name}Study(Study):
    configs = {{
        "quick": {name}Config(n_seeds=3, steps=60),
        "laptop": {name}Config(),
        "gpu": {name}Config(steps=2000),
    }}
    arms = {{
        "method": Arm("the method's layer between two linear layers"),
        "baseline": Arm("a plain network of the same size", role="baseline"),
        "untrained": Arm("the method's network before training", role="control"),
    }}
    kinds = ("images",)

    def task(self, protocol: str, config: {name}Config) -> Any:
        return load_images(protocol)

    def measure(self, job: Job) -> Iterator[Measurement]:
        middle = {name} if job.arm != "baseline" else nn.Tanh
        tasks = {{s: job.task.task(s, sizes=(0.7, 0.0, 0.3)) for s in job.seeds}}
        size = next(iter(tasks.values())).train.x[0].numel()

        def build(seed: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(size, 32), middle(), mlp([32, len(job.task.classes)]))

        steps = 1 if job.arm == "untrained" else job.config.steps
        lr = 0.0 if job.arm == "untrained" else 1e-2
        nets = train(
            build, lambda s: tasks[s].train, loss=lambda net, b: nn.functional.cross_entropy(net(b.x), b.y),
            config=TrainConfig(steps=steps, lr=lr), seeds=job.seeds, device=job.device,
        )  # fmt: skip
        for seed, net in zip(job.seeds, nets):
            test = tasks[seed].test.to(job.device)
            yield Measurement(job.arm, seed, "accuracy", 100 * float(accuracy(net.module(test.x), test.y)), "points")
'''

TEST = """import pytest
import torch

from etude.{room} import {name}


def test_closed_form() -> None:
    assert {name}()(torch.tensor([[-1.0, 2.0]])).tolist() == [[0.0, 2.0]]


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match="shape"):
        {name}()(torch.zeros(3))
"""

STUDY_TEST = '''"""The study at the quick tier shows what it must, and its control loses."""

from pathlib import Path

from etude.lab.runner import run_study


def test_the_quick_tier_shows_what_it_must(tmp_path: Path) -> None:
    result = run_study("{slug}", ledger=tmp_path / "ledger.sqlite", jobs=1)
    assert result.errors == []
    assert {{verdict.claim for verdict in result.verdicts}} == {{"C1"}}
    accuracy: dict[str, list[float]] = {{}}
    for row in result.rows:
        accuracy.setdefault(row["arm"], []).append(row["value"])
    assert min(accuracy["method"]) > max(accuracy["untrained"]) + 30  # replace by what this study must show
'''

STUDY_IMPORTS = (
    ("etude.data.images", "load_images"),
    ("etude.lab.study", "Arm, Job, Measurement, Study, StudyConfig"),
    ("etude.layers", "mlp"),
    ("etude.training", "TrainConfig, train"),
    ("etude.training.metrics", "accuracy"),
)
TAKEN = frozenset(["Any", "Arm", "Iterator", "Job", "Measurement", "Study", "StudyConfig", "Tensor", "TrainConfig"])
"""Classes that the templates import."""


def scaffold(slug: str, room: str, folder: str | Path | None = None) -> list[Path]:
    """Write card, method, study and tests of a new paper; the room's `__init__` gets the export line.

    Raises
    ------
    UsageError
        For a slug that is not lower-case words joined by hyphens or is too long, an unknown room, a folder that is
        no checkout, a file or a name of the room that exists, or a file that cannot be written: then none is left.
    """
    from etude import ROOMS

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        raise UsageError(f"{slug!r} is no slug: lower-case words joined by hyphens, e.g. pointer-networks")
    if len(slug) > LONGEST_SLUG:
        raise UsageError(f"the slug {slug!r} has {len(slug)} characters: shorten it to {LONGEST_SLUG}")
    module = slug.replace("-", "_")
    name = "".join(w.capitalize() for w in slug.split("-"))
    if keyword.iskeyword(slug) or keyword.iskeyword(name):
        raise UsageError(f"{slug!r} is a word of Python itself and cannot name a module: add a word to it")
    if room not in ROOMS:
        raise UsageError(f"unknown room {room!r}: choose one of {', '.join(ROOMS)}")
    checkout = Path(folder) if folder else Path(str(resources.files("etude"))).parent.parent
    package = checkout / "src" / "etude"
    init = package / room / "__init__.py"
    if not (package / "__init__.py").is_file() or not init.is_file():
        raise UsageError(f"{checkout} is no checkout of etude (it has no {init.relative_to(checkout)}): give --folder")
    words = dict(
        slug=slug, room=room, name=name, function=module + "_forward", title=slug.replace("-", " ").capitalize()
    )
    words["imports"] = _study_imports(room, name)
    files = {
        package / "catalogue" / "papers" / f"{slug}.toml": CARD,
        package / room / f"{module}.py": METHOD,
        package / "studies" / f"{module}.py": STUDY,
        checkout / "tests" / room / f"test_{module}.py": TEST,
        checkout / "tests" / "studies" / f"test_{module}.py": STUDY_TEST,
    }
    existing = [p for p in (*files, package / room / module) if p.exists()]
    if existing:
        raise UsageError(f"{existing[0]} exists already; choose another slug")
    try:
        exports = _with_export(init.read_text(encoding="utf-8"), room, module, name)
        for path, text in files.items():
            write_text(path, text.format(**words))
        write_text(init, exports)  # whole or not at all: a full disk must not cut the exports short
    except OSError as error:
        for path in files:  # none was there before
            path.unlink(missing_ok=True)
        raise UsageError(f"the files of {slug} cannot be written: {error}") from error
    return [*files, init]


def _study_imports(room: str, name: str) -> str:
    """The study's imports in the order that the linter asks for."""
    names = {module: text.split(", ") for module, text in STUDY_IMPORTS}
    own = names.setdefault(f"etude.{room}", [])
    own.append(name)
    own.sort(key=lambda n: (len(n) == 1 or not n.isupper(), n[0].islower(), n.lower()))  # constants, classes, functions
    return "\n".join(f"from {module} import {', '.join(names[module])}" for module in sorted(names))


def _with_export(source: str, room: str, module: str, name: str) -> str:
    """The room's `__init__` with the new name among its sorted exports.

    Raises
    ------
    UsageError
        If the class or its module would replace a name that the room has, or that the study imports.
    """
    tree = ast.parse(source)
    bound = set(TAKEN)
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {a.asname or a.name for a in node.names}
    twins = sorted(bound & {name, module, f"{name}Config", f"{name}Study"})
    if twins:
        raise UsageError(f"etude.{room} or the new study has the name {twins[0]!r} already; choose another slug")
    own = f"etude.{room}.{module}"
    line = f"from {own} import {name} as {name}\n"
    if len(line) > LINE + 1:
        line = f"from {own} import (\n    {name} as {name},\n)\n"
    lines = source.splitlines(keepends=True)
    imports = [n for n in tree.body if isinstance(n, ast.ImportFrom) and str(n.module).startswith("etude.")]
    later = [n for n in imports if _natural(str(n.module)) > _natural(own)]
    if later:
        lines.insert(later[0].lineno - 1, line)
    elif imports:
        lines.insert(int(imports[-1].end_lineno or 0), line)
    else:
        lines += ["\n", line]
    return "".join(lines)


def _natural(module: str) -> list[str | int]:
    """Sorts numbers in names by their size, as the linter does."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", module)]

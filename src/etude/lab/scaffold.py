"""`etude new SLUG`: the files of a new paper, ready to be filled in."""

import keyword
import re
from importlib import resources
from pathlib import Path

from etude.errors import UsageError

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

from etude.data.images import load_images
from etude.layers import mlp
from etude.lab.study import Arm, Job, Measurement, Study, StudyConfig
from etude.training import TrainConfig, train
from etude.training.metrics import accuracy
from etude.{room} import {name}


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


def scaffold(slug: str, room: str, folder: str | Path | None = None) -> list[Path]:
    """Write card, method, study and test of a new paper; the room's `__init__` gets the export line.

    Raises
    ------
    UsageError
        For a slug that is not lower-case words joined by hyphens, an unknown room, or a file that exists.
    """
    from etude import ROOMS

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        raise UsageError(f"{slug!r} is no slug: lower-case words joined by hyphens, e.g. pointer-networks")
    if keyword.iskeyword(slug):
        raise UsageError(f"{slug!r} is a word of Python itself and cannot name a module: add a word to it")
    if room not in ROOMS:
        raise UsageError(f"unknown room {room!r}: choose one of {', '.join(ROOMS)}")
    package = Path(folder) / "src" / "etude" if folder else Path(str(resources.files("etude")))
    tests = package.parent.parent / "tests"
    module = slug.replace("-", "_")
    name = "".join(w.capitalize() for w in slug.split("-"))
    words = dict(
        slug=slug, room=room, name=name, function=module + "_forward", title=slug.replace("-", " ").capitalize()
    )
    files = {
        package / "catalogue" / "papers" / f"{slug}.toml": CARD,
        package / room / f"{module}.py": METHOD,
        package / "studies" / f"{module}.py": STUDY,
        tests / room / f"test_{module}.py": TEST,
    }
    existing = [p for p in files if p.exists()]
    if existing:
        raise UsageError(f"{existing[0]} exists already; choose another slug")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**words), encoding="utf-8")
    init = package / room / "__init__.py"
    line = f"from etude.{room}.{module} import {name} as {name}\n"
    init.write_text((init.read_text(encoding="utf-8") if init.exists() else "") + line, encoding="utf-8")
    return [*files, init]

"""A small exact study that every lab test may run in this process or in workers."""

import sys
import textwrap

import pytest

CARD = '''
slug = "toy-study"
title = "A toy"
authors = "Nobody"
year = 2020
kind = "method"
room = "layers"
tags = ["toy"]
summary = """{words}"""
[[claims]]
id = "C1"
statement = "ours is better than plain"
metric = {{ name = "score", unit = "points", better = "higher" }}
arms = {{ method = "ours", baseline = "plain", control = {{ arm = "shuffled" }} }}
relation = "greater"
margin = 1.0
tier = "quick"
paper = {{ value = 3.0, source = "table" }}
expects = "holds"
'''

STUDY = '''
import os
import signal
import torch
from etude.data.randomness import numpy_stream
from etude.errors import SourceUnavailable
from etude.lab.study import Arm, Artifact, Measurement, Plot, Study, StudyConfig
from etude.training import TrainConfig, train

ROWS = torch.zeros(4, 1)


class Config(StudyConfig):
    level: float = 3.0
    """How much better ours is."""
    kill_after: int = 0
    crash: str = ""
    trains: bool = False
    protocols: tuple[str, ...] = ("default",)


class ToyStudy(Study):
    configs = {"quick": Config(n_seeds=4), "laptop": Config(), "gpu": Config(protocols=("default", "absent"))}
    arms = {"ours": Arm("ours"), "plain": Arm("plain", role="baseline"), "shuffled": Arm("none", role="control")}
    kinds = ("table",)

    def task(self, protocol, config):
        if protocol == "absent":
            raise SourceUnavailable("the set absent cannot be had: set ETUDE_DATA")
        return protocol

    def measure(self, job):
        for seed in job.seeds:
            marks = os.environ.get("TOY_MARKS")
            if marks:
                with open(marks, "a") as f:
                    f.write(f"{job.arm} {seed}\\n")
                if job.config.kill_after and sum(1 for _ in open(marks)) > job.config.kill_after:
                    os.kill(os.getpid(), signal.SIGKILL)
            if job.config.crash == job.arm:
                raise RuntimeError("boom")
            if job.config.trains:
                nothing = torch.nn.Linear(1, 1)
                train(nothing, (ROWS, ROWS), loss=lambda m, b: m(b.x).mean(), config=TrainConfig(steps=1))
            noise = numpy_stream(seed, "noise").normal()
            base = {"ours": job.config.level, "plain": 0.0, "shuffled": -9.0}[job.arm]
            yield Measurement(job.arm, seed, "score", 50 + base + noise, "points")
            yield Artifact(job.arm, seed, "picture", [[0.0, 1.0]])

    def plots(self, results):
        return [Plot("score", {"mark": "bar", "data": {"values": results.select("score")}}, "Scores by arm.")]
'''


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The toy study, found as if it stood in `etude.studies`; returns its slug."""
    import etude.studies
    from etude import catalogue
    from etude.lab import digest, registry

    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "toy_study.py").write_text(textwrap.dedent(STUDY))
    monkeypatch.setattr(etude.studies, "__path__", [*etude.studies.__path__, str(folder)])
    text = CARD.format(words="word " * 80)
    (tmp_path / "toy-study.toml").write_text(text)
    paper = catalogue.parse_card(text, name="toy-study.toml")
    real = catalogue.load
    monkeypatch.setattr(catalogue, "load", lambda slug: paper if slug == "toy-study" else real(slug))
    registry.study.cache_clear()
    registry.runnable.cache_clear()
    monkeypatch.setattr(registry, "runnable", lambda: ("toy-study",))
    old = digest._path
    monkeypatch.setattr(
        digest, "_path", lambda m: folder / "toy_study.py" if m == "etude.studies.toy_study" else old(m)
    )
    yield "toy-study"
    sys.modules.pop("etude.studies.toy_study", None)
    registry.study.cache_clear()

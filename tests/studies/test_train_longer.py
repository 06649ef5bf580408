"""The study at the quick tier: the direction shows, and the controls lose."""

import numpy as np
import pytest
import torch

from etude import training
from etude.data.tasks import Split, Task
from etude.errors import SourceUnavailable
from etude.lab.jobs import UserData
from etude.lab.registry import study
from etude.lab.runner import run_study
from etude.lab.study import Artifact, Job, Measurement, Results
from etude.studies._longer_training import train_recipe
from etude.studies.train_longer import LongerConfig


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("train-longer", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def final(result, arm, metric):
    return np.array([r["value"] for r in result.rows if (r["arm"], r["metric"]) == (arm, metric) and r["step"] is None])


def test_every_claim_is_measured_and_no_control_wins(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"T1a", "T1b", "T1c", "T2a", "T2b", "T3", "T4", "T5"}
    assert all(v.verdict is not None and v.n == 3 for v in result.verdicts)


def test_the_direction_shows_at_this_size(result):
    effect = {v.claim: v.effect for v in result.verdicts}
    assert effect["T1a"] > 0.5
    assert effect["T1b"] > 0
    assert effect["T1c"] > 0.3
    assert effect["T2b"] < -0.3
    assert effect["T4"] > -0.3
    assert {v.claim: v.verdict for v in result.verdicts}["T5"] == "holds"


def test_training_curves_are_drawn_and_a_missing_gap_is_said():
    the_study = study("train-longer")
    config = LongerConfig(protocols=("digits",), pool=1, batch_large=128, epochs=1, hidden_size=8, num_hidden=1)
    found = list(the_study.measure(Job("digits", "small", (1000,), config, the_study.task("digits", config))))
    (kept,) = [a for a in found if isinstance(a, Artifact)]
    assert kept.value[-1]["step"] == max(m.step for m in found if isinstance(m, Measurement) and m.step)
    assert kept.value[-1]["value"] < kept.value[0]["value"]
    artifacts = [{"protocol": "digits", "arm": "small", "seed": 1000, "name": kept.name, "value": kept.value}]

    def captions(small, large):
        rows = [
            {"protocol": "digits", "arm": arm, "seed": 1000, "metric": "accuracy", "value": v, "step": None}
            for arm, v in (("small", small), ("large", large))
        ]
        return {p.name: p.caption for p in the_study.plots(Results(rows, artifacts))}

    assert "training-digits" in captions(95.0, 94.0)
    assert "no gap to close" not in captions(95.0, 94.0)["regimes-digits"]
    assert "ahead by 0.30 points, less than 0.5" in captions(95.0, 94.7)["regimes-digits"]


def test_one_ghost_as_large_as_the_batch_changes_nothing(result):
    assert np.array_equal(final(result, "ghost_noop", "accuracy"), final(result, "large_lr", "accuracy"))
    assert not np.array_equal(final(result, "large_lr_ghost", "accuracy"), final(result, "large_lr", "accuracy"))


def test_controls_are_at_chance_and_the_linear_rule_at_the_ratio(result):
    assert final(result, "shuffled", "accuracy").max() < 25
    assert final(result, "noise", "linear_noise_ratio").mean() == pytest.approx(8, rel=0.15)


def test_arms_make_the_updates_that_they_claim(result):
    last = {r["arm"]: r["step"] for r in result.rows if r["metric"] == "error"}
    assert last["adapted"] == last["small"] == pytest.approx(8 * last["large"], abs=8)


def test_a_table_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    rows = rng.normal(size=(120, 3)) + 3 * y[:, None]
    lines = ["a,b,c,kind"] + [",".join(f"{v:.3f}" for v in r) + f",k{k}" for r, k in zip(rows, y)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    result = run_study(
        "train-longer", ledger=tmp_path / "l.sqlite", jobs=1,
        settings={"walk_steps": 20, "noise_batches": 20, "batch_small": 8, "batch_large": 32},
        user=UserData(str(tmp_path / "t.csv"), target="kind"),
    )  # fmt: skip
    assert result.errors == []
    assert final(result, "small", "accuracy").mean() > 90


def test_the_stand_in_for_mnist_is_used_only_where_mnist_is_not(monkeypatch):
    longer = study("train-longer")
    module = __import__(type(longer).__module__, fromlist=["load_images"])
    asked = []

    def images(name, pool=None):
        asked.append(name)
        if name == "mnist" and absent:
            raise SourceUnavailable("absent")
        return name

    monkeypatch.setattr(module, "load_images", images)
    absent = True
    assert longer.task("mnist_5k", longer.configs["laptop"]) == "mnist_5k"
    absent = False
    with pytest.raises(SourceUnavailable, match="not needed"):
        longer.task("mnist_5k", longer.configs["laptop"])


@pytest.mark.parametrize(("epochs", "factors"), [(1, {0: 1}), (2, {0: 1, 1: 0.1}), (4, {0: 1, 2: 0.1, 3: 0.01})])
def test_a_short_run_starts_at_the_full_rate(monkeypatch, epochs, factors):
    found = []
    monkeypatch.setattr(training, "train", lambda *_, config, **__: found.append(config) or [])
    config = LongerConfig(n_seeds=3, epochs=epochs)
    rows = Split(torch.zeros(64, 4), torch.zeros(64, dtype=torch.long))
    tasks = {s: Task("t", "images", rows, test=rows, num_classes=2) for s in config.seeds}
    train_recipe(Job("digits", "small", config.seeds, config, None), tasks, "small")
    assert found[0].lr == config.lr
    assert found[0].boundaries == pytest.approx({e * 64 // config.batch_small: f for e, f in factors.items()})

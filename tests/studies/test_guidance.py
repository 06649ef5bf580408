"""The study at the quick tier shows what it must, its control loses, and it takes the user's table."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from etude.data.randomness import seeded_build, stream
from etude.lab.jobs import UserData
from etude.lab.runner import run_study
from etude.lab.study import Artifact, Job, Measurement, Results
from etude.studies._guidance_guides import trained_guide
from etude.studies._guidance_problems import problem
from etude.studies.guidance import GuidanceConfig, GuidanceStudy


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("guidance", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric="accuracy_plain_cnn"):
    return np.mean([r["value"] for r in result.rows if r["arm"] == arm and r["metric"] == metric])


def test_claims_of_this_size_are_measured(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"G2", "G2u", "G6t", "G7", "G7k"}
    assert all(v.n == 3 for v in result.verdicts)


def test_a_trained_guide_helps_and_its_content_does(result):
    (g2,) = [v for v in result.verdicts if v.claim == "G2"]
    assert g2.effect > 0
    assert mean(result, "trained_guide") > mean(result, "shuffled_guide") + 5
    assert mean(result, "unguided", "guide_accuracy") > mean(result, "unguided")
    assert mean(result, "trained_guide", "final_similarity") > mean(result, "shuffled_guide", "final_similarity")


def test_the_gap_to_the_training_rows_and_every_pair_are_reported():
    config = GuidanceConfig(train_rows=300, cnn_depth=3, cnn_steps=30, cnn_guide_steps=60)
    study, arm = GuidanceStudy(), "trained_guide"
    found = list(study.measure(Job("plain_cnn", arm, (1000,), config, None)))
    values = {m.metric: m.value for m in found if isinstance(m, Measurement) and m.step is None}
    kept = {a.name: a.value for a in found if isinstance(a, Artifact)}
    fit = {row["rows"]: row["value"] for row in kept["fit"]}
    assert fit["test"] == pytest.approx(values["accuracy_plain_cnn"], abs=0.006)
    assert fit["train"] > fit["test"]
    assert [row["pair"] for row in kept["pairs"]] == [f"convs.{i} - convs.{i}" for i in range(3)]
    assert np.mean([row["value"] for row in kept["pairs"]]) == pytest.approx(values["final_similarity"], abs=1e-3)
    rows = [m._asdict() | {"protocol": "plain_cnn"} for m in found if isinstance(m, Measurement)]
    artifacts = [{"protocol": "plain_cnn", "arm": arm, "seed": 1000, "name": n, "value": v} for n, v in kept.items()]
    plots = {p.name for p in study.plots(Results(rows, artifacts))}
    assert plots == {f"{n}-plain_cnn" for n in ("accuracy", "fit", "pairs", "curves", "layers")}


def test_the_gpu_tier_has_the_nets_and_lengths_of_the_card_and_runs():
    gpu = GuidanceStudy.configs["gpu"]
    fcn = problem("deep_fcn", gpu)
    widths = [m.out_features for m in fcn.target() if isinstance(m, torch.nn.Linear)]
    assert widths == [1024] * 20 + [10]
    assert sum(isinstance(m, torch.nn.Conv2d) for m in fcn.guide().modules()) >= 19
    assert fcn.guide()(torch.randn(4, 40)).shape == (4, 10)
    copy = problem("copy", gpu)
    lengths = {copy.data(0).draw(stream(0, "d", i), i).x.shape[1] for i in range(40)}
    assert len(lengths) > 5
    assert min(lengths) >= 40
    assert max(lengths) <= 80
    assert copy.test(0).x.shape == (1000, 80)
    assert int(copy.test(0).x.max()) == 10
    tiny = gpu.model_copy(
        update=dict(train_rows=200, fcn_depth=3, fcn_width=16, fcn_steps=4, fcn_guide_steps=60, copy_length=3, copy_longest=5,
                    copy_layers=1, copy_width=16, copy_steps=2, copy_guide_steps=3, batch_size=16)
    )  # fmt: skip
    for protocol in ("deep_fcn", "copy"):
        found = list(GuidanceStudy().measure(Job(protocol, "trained_guide", (1000,), tiny, None)))
        assert any("accuracy_" in getattr(m, "metric", "") for m in found)


def test_every_protocol_runs_and_its_guide_is_asked_for():
    tiny = dict(
        train_rows=300, cnn_depth=3, cnn_steps=3, cnn_guide_steps=60, copy_length=3, copy_layers=1, copy_width=16,
        copy_steps=2, copy_guide_steps=60, parity_length=4, parity_steps=60, fcn_steps=3, fcn_guide_steps=60,
    )  # fmt: skip
    config, study = GuidanceConfig(n_seeds=3, **tiny), GuidanceStudy()
    for protocol in ("wide_fcn", "plain_cnn", "copy", "parity"):
        for arm in GuidanceStudy.arms:
            if arm == "unguided" or protocol not in (study.arms[arm].protocols or (protocol,)):
                continue  # unguided: where a guide of so few updates is not better, it says so
            found = list(study.measure(Job(protocol, arm, (1000,), config, None)))
            assert any("accuracy_" in getattr(m, "metric", "") for m in found), (protocol, arm)


def test_a_trained_guide_has_a_start_of_its_own():
    p = problem("plain_cnn", GuidanceConfig(train_rows=100, cnn_depth=3))
    still = replace(p, guide_config=replace(p.guide_config, steps=1, lr=0.0))
    guide = trained_guide(still, 7, "a start of its own", "cpu").convs[0].weight
    target = seeded_build(p.target, stream(7, "init")).convs[0].weight
    assert guide.shape == target.shape
    assert abs(torch.corrcoef(torch.stack([guide.flatten(), target.flatten()]))[0, 1]) < 0.5
    again = trained_guide(still, 7, "the same seed again", "cpu").convs[0].weight
    assert torch.equal(again, guide)


def test_a_table_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    rows = rng.normal(size=(150, 4)) + y[:, None]
    lines = ["a,b,c,d,kind"] + [",".join(f"{v:.3f}" for v in r) + f",k{k}" for r, k in zip(rows, y)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    result = run_study(
        "guidance", ledger=tmp_path / "l.sqlite", jobs=1, settings={"fcn_steps": 20, "fcn_depth": 2},
        user=UserData(str(tmp_path / "t.csv"), target="kind"),
    )  # fmt: skip
    assert result.errors == []
    assert mean(result, "trained_guide", "accuracy_deep_fcn") > 40


def test_the_weight_of_the_alignment_is_a_setting():
    names = ("deep_fcn", "wide_fcn", "plain_cnn", "copy", "parity")
    assert [problem(n, GuidanceConfig()).alpha for n in names] == [1.0, 1.0, 0.1, 1.0, 1.0]
    assert [problem(n, GuidanceConfig(alpha=2, cnn_alpha=3)).alpha for n in names] == [2, 2, 3, 2, 2]


@pytest.mark.parametrize("change", [{"alpha": 0}, {"early_share": 2}, {"early_share": 0}, {"temperature": 0}])
def test_settings_out_of_bounds_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        GuidanceConfig(**change)

"""The quick study shows what must show at its size, and its controls lose."""

import pytest

from etude.lab.runner import run_study
from etude.lab.study import Job, Results
from etude.studies import wide_deep_optimal_classification as module
from etude.studies._wide_finite import trained_accuracies
from etude.studies._wide_spheres import PAIRS
from etude.studies.wide_deep_optimal_classification import WideDeepStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    return run_study("wide-deep-optimal-classification", tier="quick", ledger=ledger, jobs=1)


@pytest.mark.parametrize("tier", ["quick", "laptop", "gpu"])
def test_there_are_as_many_digits_as_every_tier_asks_for(tier, monkeypatch):
    asked = []
    monkeypatch.setattr(module.comparison, "compare_on_rows", lambda task, **_: asked.append(task) or {})
    config = WideDeepStudy.configs[tier]
    digits = WideDeepStudy().task("digits", config)
    assert list(WideDeepStudy().measure(Job("digits", "optimal", (1000,), config, digits))) == []
    assert (len(asked[0].train.x), len(asked[0].test.x)) == (1000, 700)


def test_breast_cancer_is_a_protocol():
    study, config = WideDeepStudy(), WideDeepStudy.configs["quick"]
    found = list(study.measure(Job("breast_cancer", "optimal", (1000,), config, study.task("breast_cancer", config))))
    accuracy = {m.arm: m.value for m in found if m.metric == "depth_accuracy"}
    assert {"optimal", "one_layer", "five_layers"} <= set(accuracy)
    assert accuracy["optimal"] > 0.9 > accuracy["majority"]
    assert "breast_cancer" in WideDeepStudy.configs["gpu"].protocols


def test_trained_finite_nets_learn():
    study = WideDeepStudy()
    change = {"trained_depths": (2,), "trained_width": 64, "trained_steps": 100, "n_test": 300, "n_depth": 300}
    config = study.configs["quick"].model_copy(update=change)
    job = Job("d2", "optimal", (1000,), config, study.task("d2", config))
    (found,) = trained_accuracies(job, 1000, PAIRS["d2"])
    assert (found.arm, found.step) == ("trained", 2)
    assert found.value > 0.8  # the commoner class has 0.6


def test_finite_nets_are_near_their_kernel_where_rows_are_scaled_back(run):
    for protocol in ("d2", "d4"):
        errors = {
            arm: [r["value"] for r in run.rows if (r["arm"], r["protocol"]) == (arm, protocol)]
            for arm in ("finite", "finite_unit")
        }
        assert len(errors["finite"]) == len(errors["finite_unit"]) == 9
        assert max(errors["finite_unit"]) < 0.2 < max(errors["finite"])
    assert {p.name for p in WideDeepStudy().plots(Results(run.rows))} >= {"depth", "finite"}


def test_it_runs_whole(run):
    assert run.state == "done"
    assert not run.errors


def test_no_control_wins(run):
    assert [v for v in run.verdicts if v.verdict is None] == []


def test_the_taxonomy_holds(run):
    words = {(v.claim, v.protocol): v.verdict for v in run.verdicts}
    for claim in ("W2b", "W3"):
        assert words[claim, "d2"] == words[claim, "d4"] == "holds"
    effect = {(v.claim, v.protocol): v.effect for v in run.verdicts}
    assert effect["W2c", "d4"] > 0.1
    assert words["W5", "d4"] == "holds"


def test_the_optimal_net_follows_the_hilbert_estimate_and_learns(run):
    effect = {(v.claim, v.protocol): v.effect for v in run.verdicts}
    for protocol in ("d2", "d4"):
        assert effect["W2a", protocol] < 0.02
        assert abs(effect["W1c", protocol]) < 0.01
        assert effect["W1a", protocol] < 0
        assert effect["W1b", protocol] > 0

"""The quick study shows what must show at its size, and its controls lose."""

import pytest

from etude.lab.runner import run_study
from etude.lab.study import Job
from etude.studies import wide_deep_optimal_classification as module
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

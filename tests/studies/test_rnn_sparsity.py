"""The quick tier shows the direction, its controls lose, and it takes the user's documents."""

import json

import numpy as np
import pytest

from etude.errors import UsageError
from etude.lab.jobs import UserData
from etude.lab.runner import run_study
from etude.lab.study import Results
from etude.studies.rnn_sparsity import SparsityConfig, SparsityStudy


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("rnn-sparsity", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric):
    return np.mean([r["value"] for r in result.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)])


@pytest.mark.slow
def test_every_claim_is_measured_and_no_control_wins(result):
    assert result.errors == []
    measured = {v.claim: v for v in result.verdicts if v.n}
    assert set(measured) >= {"S1", "S1b", "S3", "S3b", "S4", "S5", "S6"}
    assert not [v.claim for v in measured.values() if any("broken" in note for note in v.notes)]


@pytest.mark.slow
def test_the_direction_shows_at_this_size(result):
    effect = {v.claim: v.effect for v in result.verdicts}
    assert effect["S5"] > 20  # gated cells come back without recurrent weights, plain ones do not
    assert effect["S4"] > -15 and effect["S1"] < -10  # what 60 % pruning breaks, retraining repairs even at 90 %
    assert (
        mean(result, "pruned_both_90_retrained", "mean_accuracy") > mean(result, "pruned_both_90", "mean_accuracy") + 20
    )
    assert mean(result, "dense", "mean_accuracy") > 80 > 60 > mean(result, "untrained", "mean_accuracy")
    assert abs(mean(result, "no_input", "mean_accuracy") - 50) < 6  # one answer for all: the share of its class
    assert mean(result, "letter_pairs", "mean_accuracy") == pytest.approx(93.9, abs=1.5)


@pytest.mark.slow
def test_plots_are_drawn(result):
    plots = SparsityStudy().plots(Results(result.rows, []))
    assert [p.name for p in plots] == ["pruning-reber", "recovery-reber"]
    graphs = [{"protocol": "reber", "arm": "graph_rnn", "seed": 0, "name": "graphs",
               "value": [{"sources": 3, "accuracy": 70, "family": "watts_strogatz"}]}]  # fmt: skip
    assert {p.name for p in SparsityStudy().plots(Results(result.rows, graphs))} >= {"graphs", "correlations"}


def test_graphs_of_too_few_nodes_are_refused_by_name():
    with pytest.raises(ValueError, match="graph_nodes"):
        SparsityConfig(graph_nodes=(5, 12))


def test_retraining_is_an_epoch_of_the_thesis_at_most():
    assert all(config.retrain_steps <= 586 for config in SparsityStudy.configs.values())


def test_documents_without_labels_are_refused(tmp_path):
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"text": t * 3}) for t in "abcdefgh"))
    with pytest.raises(UsageError, match=r"rnn-sparsity cannot use .*d\.jsonl: accuracy is scored by labels"):
        run_study("rnn-sparsity", ledger=tmp_path / "l.sqlite", jobs=1, user=UserData(str(tmp_path / "d.jsonl")))


@pytest.mark.slow
def test_documents_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"text": "".join(rng.choice(list(("abc", "xyz", "ijk")[y]), 8)), "label": "nyz"[y]} for y in [0, 1, 2] * 24]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = {"epochs": 12, "retrain_steps": 4, "batch_size": 16, "hidden_size": 8}
    result = run_study(
        "rnn-sparsity", ledger=tmp_path / "l.sqlite", jobs=1, settings=small, user=UserData(str(tmp_path / "d.jsonl"))
    )
    assert result.errors == []
    assert mean(result, "dense", "mean_accuracy") > 80
    assert not [r for r in result.rows if r["arm"] == "letter_pairs"]

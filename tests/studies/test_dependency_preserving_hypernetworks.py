"""The quick tier shows the direction and its controls lose."""

import numpy as np
import pytest

from etude.lab.runner import run_study
from etude.lab.study import Results
from etude.studies import _dependency_problems as problems
from etude.studies.dependency_preserving_hypernetworks import DependencyConfig, DependencyStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ledger = tmp_path_factory.mktemp("l") / "l.sqlite"
    return run_study("dependency-preserving-hypernetworks", "quick", ledger=ledger, jobs=1)


def mean(run, arm: str, metric: str) -> float:
    found = [r["value"] for r in run.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)]
    assert found, (arm, metric)
    return float(np.mean(found))


@pytest.mark.slow
def test_every_laptop_claim_is_measured(run):
    assert run.state in ("done", "broken") and run.errors == []
    assert {v.claim for v in run.verdicts if v.n == 3} >= {"D1", "D1s", "D1b", "D2", "D3", "D3b", "D4"}
    assert {v.claim: v for v in run.verdicts}["D4"].effect < 0


@pytest.mark.slow
def test_the_regulariser_keeps_old_tasks(run):
    for arm in ("rnn", "chunked", "rnn_importance"):
        assert mean(run, arm, "final_accuracy_permuted") > mean(run, "fine_tune", "final_accuracy_permuted") + 5
        assert mean(run, arm, "backward_transfer_permuted") > mean(run, "fine_tune", "backward_transfer_permuted") + 5
    assert mean(run, "joint", "final_accuracy_permuted") > mean(run, "fine_tune", "final_accuracy_permuted")


@pytest.mark.slow
def test_plots_are_drawn(run):
    extra = [{"protocol": "digits", "arm": "rnn", "seed": 1000, "name": "matrix", "value": [[0.9, None], [0.5, 0.8]]}]
    names = {p.name for p in DependencyStudy().plots(Results(run.rows, extra))}
    assert names == {"matrix-digits", "size-digits"}


def test_generators_of_one_size_at_the_laptop_tier():
    ratio = {arm: problems.parameter_ratio(problems.generator(arm, (196, 64, 64, 10), 0), 8)
             for arm in ("rnn", "chunked", "all_at_once", "rnn_small")}  # fmt: skip
    assert ratio["rnn"] == pytest.approx(ratio["chunked"], rel=0.03)
    assert ratio["rnn_small"] < ratio["rnn"] < 0.65 and ratio["all_at_once"] > 1


@pytest.mark.parametrize("bad", [{"lr": -1}, {"scale": 0}, {"beta": -1}])
def test_settings_have_bounds(bad) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DependencyConfig(**bad)


def test_embeddings_of_ended_tasks_are_counted() -> None:
    made = problems.generator("rnn", (196, 64, 64, 10), 0)
    alone = problems.parameter_ratio(made, 8)
    made.add_condition(7)
    for task in range(8):
        made.condition.freeze(task)
    whole = sum(p.numel() for p in made.parameters()) / made.layout.size
    assert problems.parameter_ratio(made, 8) == alone == whole

"""The quick tier shows the direction, its controls lose, and it takes the user's images."""

import numpy as np
import pytest

from etude.lab.runner import run_study
from etude.lab.study import Results
from etude.studies.continual_learning_thesis import TASKS, ContinualConfig, ContinualStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_study("continual-learning-thesis", "quick", ledger=tmp_path_factory.mktemp("l") / "l.sqlite", jobs=1)


def mean(run, arm: str, metric: str) -> float:
    found = [r["value"] for r in run.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)]
    assert found, (arm, metric)
    return float(np.mean(found))


@pytest.mark.slow
def test_every_claim_is_measured_and_no_seed_is_lost(run):
    assert run.state in ("done", "broken") and run.errors == []
    assert {v.claim for v in run.verdicts if v.n == 3} == {
        "C1", "C1b", "C1c", "C2", "C3", "C4", "C5", "C6", "C6b", "C6c", "C7", "C7b",
    }  # fmt: skip


@pytest.mark.slow
def test_importance_protects_and_its_place_matters(run):
    forgetting = {arm: mean(run, arm, "average_forgetting") for arm in ("mas", "mas_shuffled", "fine_tune")}
    assert forgetting["mas"] < forgetting["fine_tune"] - 5
    assert forgetting["mas"] < forgetting["mas_shuffled"]
    assert mean(run, "mas", "average_accuracy") > mean(run, "fine_tune", "average_accuracy")


@pytest.mark.slow
def test_memories_and_gates_beat_their_controls(run):
    for arm in ("reservoir", "mir", "gss_greedy"):
        for stream in ("first_task_large", "third_task_large", "balanced_100", "balanced_300"):
            assert mean(run, arm, f"accuracy_{stream}") > mean(run, "single", f"accuracy_{stream}") + 5, (arm, stream)
    chance = 100 / 6
    assert mean(run, "autoencoder_gate", "gate_accuracy") > chance + 30
    assert mean(run, "gate_shuffled_tasks", "gate_accuracy") < chance + 20
    assert mean(run, "classifier_gate", "gate_accuracy") > chance + 30


@pytest.mark.slow
def test_plots_are_drawn(run):
    matrix = [[0.9, None], [0.5, 0.8]]
    extra = [
        {"protocol": "digits", "arm": "mas", "seed": 1000, "name": "matrix", "value": matrix},
        {"protocol": "digits", "arm": "mir", "seed": 1000, "name": "memory", "value": {"balanced_100": [3, 4]}},
        {"protocol": "digits", "arm": "task_free_mas", "seed": 1000, "name": "plateaus",
         "value": {"plateaus": [4], "borders": [14]}},
    ]  # fmt: skip
    names = {p.name for p in ContinualStudy().plots(Results(run.rows, extra))}
    assert names == {"over-time-digits", "accuracy-digits", "memory-digits", "plateaus-digits"}


def test_weights_are_settings() -> None:
    names = {name for settings in TASKS.values() for name in settings} | {"subset_weight", "free_weight"}
    assert names == {n for n in ContinualConfig.model_fields if n.endswith("_weight")}
    for name in names:
        with pytest.raises(ValueError, match=name):
            ContinualConfig(**{name: -1})

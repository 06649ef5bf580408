"""The study at the quick tier: what must show at that size, controls that lose, the user's own documents."""

import json

import numpy as np
import pytest

from etude.data import topic_documents
from etude.lab.jobs import UserData
from etude.lab.registry import study
from etude.lab.runner import run_study
from etude.lab.study import Results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("binary-paragraph-vector", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def mean(result, arm, metric):
    return np.mean([r["value"] for r in result.rows if (r["arm"], r["metric"]) == (arm, metric) and r["step"] is None])


def test_every_claim_is_judged_and_no_control_wins(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"B1m", "B1n", "B2h", "B2i", "B2s", "B4", "B5", "D1", "D2"}
    assert all(v.verdict is not None and v.n == 3 for v in result.verdicts)


def test_controls_are_at_chance(result):
    assert mean(result, "random", "map") < 0.13
    assert abs(mean(result, "random_senses", "ari")) < 0.05
    assert mean(result, "no_choice", "max_relative_error") == 1


def test_directions_show_at_this_size(result):
    effect = {v.claim: v.effect for v in result.verdicts}
    assert effect["B2h"] > 0.1
    assert effect["B5"] > 0
    assert effect["B4"] > 0
    assert effect["B2s"] < 0  # well-tuned real vectors, hashed by signs, are better: the reverse of the claim
    assert mean(result, "binary128", "map") > 0.5
    assert mean(result, "dsg", "ari") > 0.2
    (gradients,) = [v for v in result.verdicts if v.claim == "D2"]
    assert gradients.verdict == "holds"


@pytest.mark.slow
def test_the_transfer_protocol_and_the_users_documents(tmp_path):
    drawn = topic_documents(300, 5, n_topics=4, n_words=300, focus=0.6, mean_length=40)
    lines = [json.dumps({"text": t, "label": f"t{k}"}) for t, k in zip(drawn.texts, drawn.labels.tolist(), strict=True)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    result = run_study(
        "binary-paragraph-vector", ledger=tmp_path / "l.sqlite", jobs=1, user=UserData(str(tmp_path / "d.jsonl")),
        settings={"n_documents": 250, "n_pairs": 3, "min_count": 20, "sense_epochs": 1},
    )  # fmt: skip
    assert result.errors == []
    assert {"B3", "B1m", "D1"} <= {v.claim for v in result.verdicts}
    assert mean(result, "transferred", "map") > mean(result, "random", "map") + 0.1


def test_plots(result):
    the_study = study("binary-paragraph-vector")
    histogram = [{"distance": 1, "what": "same label", "share": 1.0}]
    points = [{"x": 0.0, "y": 0.0, "label": "bank", "sense": 1, "own": True}]
    artifacts = [
        {"protocol": p, "arm": a, "seed": 1000, "name": n, "value": v}
        for p, a, n, v in (("topics", "binary128", "histogram", histogram), ("topic_words", "dsg", "map", points))
    ]
    plots = the_study.plots(Results(result.rows, artifacts))
    assert {p.name for p in plots} == {
        "precision-recall-topics", "map-bits-topics", "histogram-topics", "senses-topic_words",
    }  # fmt: skip
    assert all(p.caption and "$schema" in p.spec for p in plots)

"""The study at the quick tier shows what it must, its controls lose, and it takes the user's table."""

import numpy as np
import pytest

from etude.lab.jobs import UserData
from etude.lab.runner import run_study


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("prototype-network", ledger=tmp_path_factory.mktemp("ledger") / "l.sqlite", jobs=1)


def test_every_claim_is_measured_and_no_control_wins(result):
    assert result.errors == []
    assert {v.claim for v in result.verdicts} == {"D1", "D4a", "D4b", "D4c", "D5", "D6"}
    assert all(v.verdict is not None and v.n == 3 for v in result.verdicts)


def test_the_direction_shows_at_this_size(result):
    effect = {v.claim: v.effect for v in result.verdicts}
    assert effect["D1"] > -4
    assert effect["D4a"] > 0.8
    assert effect["D4b"] > 0.3
    assert effect["D4c"] < -2
    (faithful,) = [v for v in result.verdicts if v.claim == "D5"]
    assert faithful.verdict == "holds"
    assert faithful.control_mean > 1


def test_accuracy_is_that_of_a_trained_net_and_of_chance(result):
    def mean(arm):
        return np.mean([r["value"] for r in result.rows if r["arm"] == arm and r["metric"] == "accuracy"])

    assert mean("full") > 85
    assert mean("plain") > 85
    assert mean("shuffled") < 25
    assert mean("untrained") < 30


def test_a_table_of_the_user(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 90)
    rows = rng.normal(size=(90, 4)) * 5 + 30 * y[:, None]
    lines = ["a,b,c,d,kind"] + [",".join(f"{v:.3f}" for v in r) + f",k{k}" for r, k in zip(rows, y)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    result = run_study(
        "prototype-network", ledger=tmp_path / "l.sqlite", jobs=1, settings={"epochs": 60, "lr": 0.02},
        user=UserData(str(tmp_path / "t.csv"), target="kind"),
    )  # fmt: skip
    assert result.errors == []
    full = [r["value"] for r in result.rows if r["arm"] == "full" and r["metric"] == "accuracy"]
    assert np.mean(full) > 80

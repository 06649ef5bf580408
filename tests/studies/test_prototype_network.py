"""The study at the quick tier shows what it must, its controls lose, and it takes the user's table."""

import numpy as np
import pytest

from etude.lab.jobs import UserData
from etude.lab.runner import run_study
from etude.lab.study import Artifact, Job, Results
from etude.lab.vega import to_svg
from etude.studies.prototype_network import PrototypeConfig, PrototypeStudy


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


def first_seed(arm, config):
    the_study = PrototypeStudy()
    task = the_study.task("digits", config)
    made = list(the_study.measure(Job("digits", arm, config.seeds[:1], config, task)))
    return [{"protocol": "digits", **item._asdict()} for item in made if isinstance(item, Artifact)], the_study


def test_the_gallery_is_coloured_by_class_with_the_nearest_rows_beneath():
    artifacts, the_study = first_seed("full", PrototypeConfig(protocols=("digits",), epochs=2))
    (gallery,) = [a["value"] for a in artifacts if a["name"] == "gallery"]
    assert {r["what"] for r in gallery} == {"prototype", "nearest row"}
    by_image = {(r["what"], r["j"]): set() for r in gallery}
    for r in gallery:
        by_image[r["what"], r["j"]].add(r["class"])
    assert len(by_image) == 30
    assert all(len(classes) == 1 and classes <= set("0123456789") for classes in by_image.values())
    plots = {p.name: p for p in the_study.plots(Results([], artifacts))}
    assert set(plots) == {"gallery-digits", "explanation-digits"}
    drawn = to_svg(plots["gallery-digits"].spec)
    assert len({color for color in ("#2f7fb8", "#d9662b", "#2a9d76", "#b5529b") if color in drawn}) > 1
    for a in artifacts:  # a run of an earlier version
        a["value"] = [{k: v for k, v in r.items() if k != "class"} for r in a["value"]]
    plots = {p.name: p for p in the_study.plots(Results([], artifacts))}
    assert "class" not in str(plots["gallery-digits"].spec["encoding"])


@pytest.mark.parametrize(("settings", "pictures"), [({}, 8), ({"more": 1 / 15}, 1)])
def test_the_arm_with_more_prototypes_has_so_many(settings, pictures):
    artifacts, _ = first_seed("more", PrototypeConfig(protocols=("digits",), epochs=1, **settings))
    (drawn,) = artifacts
    assert len({r["j"] for r in drawn["value"]}) == pictures


def test_at_the_largest_size_there_are_nets_of_fifteen_and_fifty_prototypes():
    config = PrototypeStudy().configs["gpu"]
    assert (config.n_prototypes, round(config.more * config.n_prototypes)) == (15, 50)

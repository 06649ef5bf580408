import json
from types import SimpleNamespace

import pytest

from etude.errors import UsageError
from etude.lab.registry import study
from etude.lab.runner import configure, run_study
from etude.lab.study import Job, Results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("calibrated-hallucination", tier="quick", ledger=tmp_path_factory.mktemp("l") / "l.sqlite", jobs=1)


def test_the_exact_claims_hold_and_the_directions_show(result):
    verdicts = {v.claim: v for v in result.verdicts}
    for claim in ("H1", "H2", "H3", "H4a"):
        assert verdicts[claim].verdict == "holds"
    assert verdicts["H1lm"].effect < 0 and verdicts["H4b"].effect < 0
    assert verdicts["H5a"].effect < 0 < verdicts["H5b"].effect


def test_the_controls_lose(result):
    assert not any("broken" in note for v in result.verdicts for note in v.notes)
    value = {(r["arm"], r["metric"], r["seed"]): r["value"] for r in result.rows if r["step"] is None}
    for seed in {s for _, _, s in value}:
        assert value["worlds", "gap_memoriser", seed] > 0.2 and value["worlds", "wrong_formula_error", seed] > 0.2
        assert value["worlds", "violations_without_mis", seed] > 0.1 and value["worlds", "zipf_sum", seed] > 0.1
        assert value["uniform", "hallucination_random", seed] > 0.9 and abs(value["uniform", "mis_random", seed]) < 1e-9
        assert value["lm_random", "hallucination_t1", seed] < 0.5 * value["bigram", "hallucination_random", seed]


def test_upweighting_gives_a_point_for_each_share(result):
    value = {(r["arm"], r["metric"], r["seed"]): r["value"] for r in result.rows if r["step"] is None}
    for seed in {s for _, _, s in value}:
        upweighted = [value[f"lm_{arm}", "hallucination_t1", seed] for arm in ("random", "upweighted5", "upweighted")]
        assert len(set(upweighted)) == 3
        assert value["lm_upweighted5", "monofact", seed] == value["lm_random", "monofact", seed]
        assert value["lm_upweighted5", "worst_excess", seed] < 0.02


def test_every_share_has_its_points_in_the_plot():
    the_study = study("calibrated-hallucination")
    config = configure(the_study, "quick", settings={"words": 4, "true_sentences": 9, "steps": 2, "eval_every": 2})
    artifacts = []
    for arm in ("lm_random", "lm_upweighted5", "lm_upweighted"):
        for item in the_study.measure(Job("default", arm, config.seeds[:1], config, None)):
            artifacts += [] if hasattr(item, "metric") else [{"protocol": "default", **item._asdict()}]
    (plot,) = the_study.plots(Results([], artifacts))
    shown = json.dumps(plot.spec)
    assert all(f'"name": "{share}, t1"' in shown for share in ("random", "upweighted5", "upweighted"))


def test_user_texts_and_plots():
    the_study = study("calibrated-hallucination")
    config = the_study.configs["quick"]
    texts = SimpleNamespace(texts=["a", "b", "B ", "c", "c", "c", *(f"line {i}" for i in range(30))])
    task = the_study.user_task(texts, config)
    assert sorted(task.tolist())[-2:] == [2, 3] and task.sum() == 36
    items = list(the_study.measure(Job("user", "worlds", (config.seeds[0],), config, task)))
    found = {i.metric: i.value for i in items if hasattr(i, "metric")}
    assert found["gap_good_turing"] < 0.05 and found["violations"] == 0.0
    (only,) = the_study.measure(Job("user", "lm_random", (3,), config, task))
    assert only.metric == "monofact" and 0 < only.value < 1
    artifacts = [{"protocol": "user", **i._asdict()} for i in items if not hasattr(i, "metric")]
    plots = the_study.plots(Results([], artifacts))
    assert [p.name for p in plots] == ["worlds", "monofact", "audit"] and all(json.dumps(p.spec) for p in plots)


@pytest.mark.parametrize("value", [(), (0.6, 1.4), (1.0, -0.5)])
def test_exponents_must_hold_one(value):
    with pytest.raises(UsageError, match=r"setting exponents = .*at least 0 and hold 1 .*got \["):
        configure(study("calibrated-hallucination"), "quick", settings={"exponents": value})


def test_no_ratio_where_no_fact_stands_once():
    the_study = study("calibrated-hallucination")
    changes = {"words": 3, "n_sentences": 400, "steps": 2, "eval_every": 2}
    config = configure(the_study, "quick", settings=changes)
    items = list(the_study.measure(Job("default", "lm_copy", config.seeds[:1], config, None)))
    found = {(i.arm, i.metric): i.value for i in items if hasattr(i, "metric")}
    assert found["lm_copy", "monofact"] == 0
    assert ("uniform", "hallucination_copy") in found
    assert not any(metric.startswith("ratio") for _, metric in found)

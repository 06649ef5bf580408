import json

import pytest
from pydantic import ValidationError

from etude.lab.registry import study
from etude.lab.runner import run_study
from etude.lab.study import Job, Results


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_study("icl-linear-models", tier="quick", ledger=tmp_path_factory.mktemp("l") / "l.sqlite", jobs=1)


def test_the_construction_holds_and_the_directions_show(result):
    verdicts = {v.claim: v for v in result.verdicts}
    assert verdicts["L1"].verdict == "holds" and verdicts["L1b"].verdict == "holds"
    for claim in ("L2", "L4b", "L4a"):
        assert verdicts[claim].effect < 0
    assert verdicts["L3"].effect > 0
    assert {"L3d", "L5"}.isdisjoint(verdicts)  # of the gpu tier's second protocol


def test_the_controls_lose(result):
    value = {(r["arm"], r["metric"], r["seed"]): r["value"] for r in result.rows if r["step"] is None}
    for seed in {s for _, _, s in value}:
        assert value["one_step_short", "max_difference", seed] > 0.01
        assert value["fixed_w", "spd_ols", seed] > 2 * value["deep", "spd_ols", seed]
        assert value["deep", "spd_ols", seed] < value["deep", "spd_zero", seed]
    assert not any("broken" in note for v in result.verdicts for note in v.notes)


def test_extended_arms_and_plots():
    the_study = study("icl-linear-models")
    config = the_study.configs["quick"].model_copy(
        update={"steps_deep": 3, "steps_fixed": 3, "num_tasks": 8, "probe_dim": 1, "num_points": 2, "depths": (1, 3)}
    )
    arms = ("noise_grid", "probed", "depths")
    items = [i for arm in arms for i in the_study.measure(Job("extended", arm, (1,), config, None))]
    measured = {(i.metric, i.step) for i in items if hasattr(i, "metric")}
    assert {(f"spd_by_depth {name}", n) for name in ("ols", "gd:1", "zero", "best ridge") for n in (1, 3)} <= measured
    assert {(f"net_probe_{t}_by_layer", layer) for t in ("weights", "moment") for layer in (0, 2)} <= measured
    found = {i.metric: i.value for i in items if hasattr(i, "metric") and i.step is None}
    assert found.keys() >= {"index_gap", "noiseless_gap", "probe_weights", "half_probe_weights", "tokens_moment"}
    rows = [{"protocol": "extended", **i._asdict()} for i in items if hasattr(i, "metric")]
    artifacts = [{"protocol": "extended", **i._asdict()} for i in items if not hasattr(i, "metric")]
    plots = the_study.plots(Results(rows, artifacts))
    assert [p.name for p in plots] == ["distance", "depth", "penalty", "probes"]
    assert all(json.dumps(p.spec) for p in plots)


@pytest.mark.parametrize("tier", ["quick", "laptop"])
def test_probes_run_at_every_tier(tier):
    the_study = study("icl-linear-models")
    few = {"steps_deep": 2, "steps_fixed": 2, "batch_size": 4}
    config = type(the_study.configs[tier])(**(the_study.configs[tier].model_dump() | few))
    for arm in ("probed", "probed_fixed"):
        found = {i.metric for i in the_study.measure(Job("extended", arm, (1,), config, None))}
        assert found >= {"probe_weights", "half_probe_moment", "tokens_weights"}


def test_prompts_shorter_than_the_dimension_are_refused():
    config = type(study("icl-linear-models").configs["laptop"])
    for sizes, dim in (({"num_points": 1}, 2), ({"dim": 8}, 8)):
        with pytest.raises(ValidationError, match=f"must be at least dim = {dim}"):
            config(**sizes)


@pytest.mark.parametrize("sizes", [{"num_heads": 3}, {"hidden_dim": 30}])
def test_heads_that_do_not_divide_the_width_are_refused(sizes):
    with pytest.raises(ValidationError, match="must divide hidden_dim"):
        type(study("icl-linear-models").configs["laptop"])(**sizes)

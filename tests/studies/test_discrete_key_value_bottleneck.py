import pytest

from etude.lab.registry import study
from etude.lab.runner import run_study
from etude.lab.study import Job


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run_study("discrete-key-value-bottleneck", "quick", ledger=folder / "ledger.sqlite", jobs=1)


def value(run, arm: str, metric: str, protocol: str) -> list[float]:
    return [
        r["value"] for r in run.rows
        if (r["arm"], r["metric"], r["protocol"]) == (arm, metric, protocol) and r["step"] is None
    ]  # fmt: skip


def test_what_must_show_at_this_size(run) -> None:
    assert run.state == "done" and not run.errors
    verdicts = {(v.claim, v.protocol): v for v in run.verdicts}
    assert verdicts["K3", "toy"].verdict == "holds"
    assert verdicts["K6", "digits"].verdict == "holds" and verdicts["K6", "digits"].effect == 0
    assert verdicts["K1b", "digits"].effect > 10
    assert min(value(run, "bottleneck", "class_accuracy", "digits")) > 85


def test_the_controls_lose(run) -> None:
    assert all(v.verdict is not None for v in run.verdicts), [v.notes for v in run.verdicts]
    for arm in ("shuffled", "one_pair", "far_keys"):
        assert max(value(run, arm, "class_accuracy", "digits")) < 60
    assert min(value(run, "linear", "untouched_change", "digits")) > 1e-3


def test_a_quarter_of_two_is_one() -> None:
    the_study = study("discrete-key-value-bottleneck")
    config = the_study.configs["quick"].model_copy(update={"steps": 2, "num_codebooks": 2, "num_pairs": 2})
    job = Job("digits", "small", (1,), config, the_study.task("digits", config))
    assert "class_accuracy" in {i.metric for i in the_study.measure(job) if hasattr(i, "metric")}


@pytest.mark.slow
def test_a_conv_encoder_and_ewc() -> None:
    """EWC keeps more of the first segment's classes than the same head without it."""
    the_study = study("discrete-key-value-bottleneck")
    config = the_study.configs["quick"].model_copy(update={"steps": 60})
    data = the_study.task("digits_conv", config)
    assert data.x.shape == (1347, 64) and data.y.bincount()[5:].tolist() == [182, 181, 179, 174, 180]
    kept = {}
    for arm in ("linear", "linear_ewc"):
        found = list(the_study.measure(Job("digits_conv", arm, (1, 2), config, data)))
        kept[arm] = [i.value for i in found if getattr(i, "metric", "") == "class_accuracy"]
    assert len(kept["linear_ewc"]) == 2 and sum(kept["linear_ewc"]) > sum(kept["linear"])
    assert "linear_ewc" in the_study.arms and the_study.arms["linear_ewc"].protocols == ("digits_conv",)

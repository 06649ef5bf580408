"""The quick tier: local learning is near back-propagation, recovers from drift, and shuffled labels lose."""

import pytest

from etude.lab.runner import run_study
from etude.lab.study import Job, Results
from etude.studies.phyll import PhysicalConfig, PhysicalStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    return run_study("phyll", tier="quick", ledger=ledger, jobs=1)


def mean(run, arm, metric):
    values = [r["value"] for r in run.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)]
    assert len(values) == 3, (arm, metric)
    return sum(values) / 3


@pytest.mark.slow
def test_what_must_show_at_this_size(run):
    assert run.state == "done", run.errors
    assert mean(run, "phyll", "accuracy") > 90
    assert mean(run, "shuffled_labels", "accuracy") < 45
    assert mean(run, "phyll", "accuracy_after_drift") > mean(run, "in_silico_stale", "accuracy_after_drift") + 10
    assert mean(run, "phyll", "ln_digital_macs") < mean(run, "pat", "ln_digital_macs")
    assert mean(run, "ridge", "accuracy") < mean(run, "phyll", "accuracy_worst_box")


@pytest.mark.slow
def test_no_control_wins(run):
    said = {v.claim: v for v in run.verdicts}
    assert set(said) == {"P1", "P1e", "P2", "P2b", "P3", "P3b", "P4"}
    assert all(v.verdict is not None for v in said.values()), [v.notes for v in said.values()]


@pytest.mark.slow
def test_plots_are_drawn(run):
    plots = {p.name for p in PhysicalStudy().plots(Results(run.rows))}
    assert plots == {"accuracy-vowels", "runs-vowels", "work-vowels", "drift-vowels"}


def test_digits_and_users_tables_have_what_their_claims_need():
    config = PhysicalConfig(digits_hidden=(6, 6), digits_epochs=1, digits_inner_steps=1)
    study = PhysicalStudy()
    task = study.task("digits", config)
    for protocol in ("digits", "user"):
        for arm in ("phyll", "ideal_bp", "no_physics", "read_out_only"):
            names = {m.metric for m in study.measure(Job(protocol, arm, (1,), config, task))}
            assert {"accuracy", "accuracy_optics", "accuracy_optics_microwave"} <= names

"""The quick tier: local learning is near back-propagation, recovers from drift, and shuffled labels lose."""

import pytest
from pydantic import ValidationError

from etude.data.vowels import vowels
from etude.lab.runner import run_study
from etude.lab.study import Job, Results
from etude.studies import _physical_arms as arms_of
from etude.studies import _physical_rivals as rivals
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
    config = PhysicalConfig(
        digits_hidden=(6, 6), digits_epochs=1, digits_inner_steps=1, recovery_epochs=1, twin_steps=1, twin_pairs=50
    )
    study = PhysicalStudy()
    task = study.task("digits", config)
    for protocol in ("digits", "user"):
        for arm in ("phyll", "ideal_bp", "no_physics", "read_out_only"):
            names = {m.metric for m in study.measure(Job(protocol, arm, (1,), config, task))}
            assert {"accuracy", "accuracy_optics", "accuracy_optics_microwave"} <= names
    config = config.model_copy(update={"boxes": ("optics",)})
    jobs = [Job("user", arm, (1,), config, task) for arm in ("phyll", "shuffled_labels", "pat")]
    drifted = {m.arm for job in jobs for m in study.measure(job) if m.metric == "accuracy_after_drift"}
    assert drifted >= {"phyll", "shuffled_labels", "in_silico_stale"}  # for P3 and P3b


TINY = PhysicalConfig(epochs=5, inner_steps=2, twin_steps=2, twin_pairs=50, hidden=(6, 5), box_width=9, curve_every=1)


@pytest.mark.parametrize(("how", "fitted", "runs"), [("pat", 1, 28), ("in_silico", 2, 0), ("spsa", 0, 84)])
def test_a_rival_pays_for_the_twins_that_it_needs(how, fitted, runs):
    task, seen, make = arms_of.scaled(vowels(2, 2, seed=0)), [], rivals.twin_maker()  # 14 rows of 12 features

    def twin(box, seed, config):
        seen.append((box.in_features, box.out_features))
        return make(box, seed, config)

    assert task.train.x.shape == (14, 12)
    curve = rivals.back_propagation(task, "optics", TINY, 0, how=how, drift=False, twin=twin).curve
    assert seen == [(12, 9), (6, 9)][2 - fitted :]
    assert [curve[0][0], curve[1][0] - curve[0][0]] == [50 * fitted + runs, runs]
    first, second = ([m * 100, 20_000, 20_000, 900] for m in (12, 6))
    twins = {"pat": [second], "in_silico": [first, second], "spsa": []}[how]
    linear = [6 * 21, 5 * 15, 7 * 5]
    update = 3 * sum(linear) - (0 if how == "spsa" else linear[0]) + (2 * sum(second) if twins else 0)
    update += sum(first) if how == "in_silico" else 0
    fitting = sum(2 * 50 * (3 * sum(sizes) - sizes[0]) for sizes in twins)
    assert curve[0][1] == fitting + 14 * update
    assert curve[1][1] - curve[0][1] == 14 * update


@pytest.mark.parametrize("how", ["ideal", "pat", "spsa"])
def test_rivals_are_read_as_finely_in_runs_as_local_learning(how):
    task = arms_of.scaled(vowels(2, 2, seed=0))
    config = TINY.model_copy(update={"epochs": 60, "inner_steps": 10, "curve_every": 3})
    curve = rivals.back_propagation(task, "optics", config, 0, how=how, drift=False, twin=rivals.twin_maker()).curve
    local = arms_of.local_learning(task, "optics", config, 0, drift=False).curve
    assert curve[1][0] - curve[0][0] == local[1][0] - local[0][0] == 168


def test_local_learning_by_number_of_layers():
    config = PhysicalConfig(
        epochs=2, inner_steps=1, layers=(1, 2), recovery_epochs=1, boxes=("optics",), test_speakers=5
    )  # fmt: skip
    found = list(PhysicalStudy().measure(Job("vowels", "phyll", (3,), config, None)))
    deeper = {m.step: m.value for m in found if m.metric == "accuracy_by_layers"}
    (two,) = [m.value for m in found if (m.arm, m.metric) == ("phyll", "accuracy")]
    assert set(deeper) == {1, 2}
    assert deeper[2] == two  # the study's own net has two layers of 20
    rows = [m._asdict() | {"protocol": "vowels"} for m in found]
    assert "layers-vowels" in {p.name for p in PhysicalStudy().plots(Results(rows))}
    assert PhysicalStudy.configs["laptop"].layers == ()  # the published study has no such arm


def test_both_arms_of_a_seed_share_a_twin():
    make, (box, again) = rivals.twin_maker(), (
        arms_of.boxes_of("optics", vowels(2, 2, seed=0), TINY, 3, label_slots=0)[1] for _ in range(2)
    )  # fmt: skip
    assert make(box, 3, TINY) is make(again, 3, TINY)
    assert make(box, 3, TINY) is not make(box, 4, TINY)


@pytest.mark.parametrize(("epochs", "points"), [(1, 1), (4, 2), (5, 3)])
def test_a_curve_ends_with_the_last_epoch(epochs, points):
    config = TINY.model_copy(update={"curve_every": 2, "epochs": epochs})
    curve = arms_of.local_learning(arms_of.scaled(vowels(2, 2, seed=0)), "optics", config, 0, drift=False).curve
    assert len(curve) == points


@pytest.mark.parametrize("change", [{"theta": 0}, {"twin_pairs": 0}, {"boxes": ()}, {"hidden": ()}, {"lr": -1}])
def test_settings_out_of_bounds_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        PhysicalConfig(**change)

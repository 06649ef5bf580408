"""The quick tier through the lab, the survey's checklist, and the user's own documents."""

import importlib

import pytest

from etude import catalogue
from etude.data.text import TextDataset
from etude.lab.jobs import USER
from etude.lab.ledger import Ledger
from etude.lab.runner import run_study
from etude.lab.study import Job, Measurement, Results
from etude.studies._recurrent_runs import CUTS
from etude.studies.rnn_review import ReviewConfig, ReviewStudy

PAPER = catalogue.load("rnn-review")
TINY = dict(n_seeds=3, hidden_size=6, batch_size=4, steps=6, longest=12, window=3, test_rows=5)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}")
    return run_study("rnn-review", tier="quick", ledger=ledger, jobs=1)


def mean(result, protocol, arm, metric):
    key = (protocol, arm, metric, None)
    values = [r["value"] for r in result.rows if (r["protocol"], r["arm"], r["metric"], r["step"]) == key]
    assert len(values) == 3, key
    return sum(values) / 3


@pytest.mark.slow
def test_quick_run_shows_the_direction(result):
    assert result.state == "done" and not result.errors
    assert mean(result, "recall", "lstm", "accuracy") > mean(result, "recall", "elman", "accuracy") + 20
    assert mean(result, "recall", "gru", "accuracy") > mean(result, "recall", "elman", "accuracy") + 20
    assert mean(result, "recall", "lstm", "accuracy_half") > mean(result, "recall", "window", "accuracy_half") + 50
    assert mean(result, "two_sided", "bidirectional", "accuracy") > mean(result, "two_sided", "lstm", "accuracy") + 30
    assert 45 < mean(result, "two_sided", "lstm", "accuracy") < 55
    assert mean(result, "gradients", "linear", "slope_error") < 0.1


@pytest.mark.slow
def test_controls_lose(result):
    assert mean(result, "recall", "shuffled", "accuracy") < 20
    assert mean(result, "two_sided", "shuffled", "accuracy") < 35
    assert mean(result, "gradients", "shuffled_lags", "slope_error") > 0.3
    said = {v.claim: v for v in result.verdicts}
    assert {"V1", "V1g", "V2", "V3", "V6"} == set(said)
    assert all(v.verdict is not None for v in said.values()), [v.notes for v in said.values()]
    assert said["V2"].verdict == said["V3"].verdict == said["V6"].verdict == "holds"


@pytest.mark.slow
def test_plots(result):
    plots = {p.name: p.spec for p in ReviewStudy().plots(Results(result.rows))}
    assert set(plots) == {"accuracy_by_delay", "log_gradient_norm", "ms_per_update", "parameters"}
    assert all("$schema" in spec for spec in plots.values())


@pytest.mark.parametrize("protocol", ["recall", "truncation", "two_sided", "copy", "gradients", "digits", USER])
def test_every_arm_yields_the_metrics_of_its_claims(protocol):
    study, config = ReviewStudy(), ReviewConfig(**TINY)
    texts = TextDataset(["to be or not to be, that is the question; " * 30])
    task = study.user_task(texts, config) if protocol == USER else study.task(protocol, config)
    measured = {}
    for name, arm in study.arms.items():
        if arm.derived or (arm.protocols and protocol not in (*arm.protocols, USER)):
            continue
        if protocol == USER and not arm.own_data:  # those would double the time on documents, and have no claim there
            continue
        items = list(study.measure(Job(protocol, name, config.seeds[:2], config, task)))
        assert {i.seed for i in items} == set(config.seeds[:2]), name
        for i in items:
            measured.setdefault(i.arm, set()).add(i.metric)
    asked = {USER: "characters"}.get(protocol, protocol)
    claims = [c for c in PAPER.claims if asked in c.protocols]
    assert claims
    for claim in claims:
        control = claim.arms.control
        for side in (claim.arms.method, claim.arms.baseline, control.arm, control.loses_to):
            if isinstance(side, str):
                assert claim.metric.name in measured[side], (claim.id, side)


@pytest.mark.parametrize("protocol", ["adding_50", "temporal_order", "two_sided_xor"])
def test_what_the_gpu_tier_adds_is_measured_by_every_arm(protocol):
    study, config = ReviewStudy(), ReviewConfig(**TINY)
    task, measured = study.task(protocol, config), {}
    for name, arm in study.arms.items():
        if not arm.derived and (not arm.protocols or protocol in arm.protocols):
            for i in study.measure(Job(protocol, name, config.seeds[:1], config, task)):
                measured.setdefault(i.arm, set()).add(i.metric)
    assert set(measured) >= {"lstm", "shuffled"} and all("accuracy" in metrics for metrics in measured.values())
    assert ("squared_error" in measured["lstm"]) == (protocol == "adding_50")
    assert ("bidirectional" in measured) == (protocol == "two_sided_xor")
    assert set(study.configs["gpu"].protocols) >= {protocol, "adding_200", "pixels"}


def test_gradients_of_every_reach_of_the_card():
    study, config = ReviewStudy(), ReviewConfig(**TINY)
    task = study.user_task(TextDataset(["to be or not to be, that is the question; " * 30]), config)
    reach = {"k1": 1, "k5": 5, "k10": 10, "k20": 20}
    assert {n for n in study.arms if n.startswith("k")} == set(reach) == set(CUTS) and reach == CUTS
    bits = {}
    for name in ("k1", "k20"):
        job = Job("characters", name, (1000,), config, task)
        (bits[name],) = (m.value for m in study.measure(job) if m.metric == "bits")
    assert bits["k1"] != bits["k20"]


def test_delays_too_short_for_truncation_are_refused_by_name():
    ReviewConfig(longest=12), ReviewConfig(longest=5, protocols=("recall",))
    with pytest.raises(ValueError, match="longest must be at least 12"):
        ReviewConfig(longest=11)


def test_a_seed_does_not_depend_on_the_others_in_its_job():
    study, config = ReviewStudy(), ReviewConfig(**TINY)
    task = study.task("recall", config)

    def scores(seeds):
        items = [i for i in study.measure(Job("recall", "lstm", seeds, config, task)) if isinstance(i, Measurement)]
        return {(i.metric, i.step): i.value for i in items if i.seed == 1001 and i.metric != "ms_per_update"}

    assert scores((1001,)) == pytest.approx(scores((1000, 1001)))


def resolve(path):
    """The object at a dotted path below `etude`: the longest part that imports, then attributes."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["etude", *parts[:cut]]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(f"nothing at etude.{path}")


@pytest.mark.parametrize("item", PAPER.checklist, ids=lambda item: item.box)
def test_checklist(item):
    if item.status == "implemented":
        assert callable(resolve(item.where)) and resolve(item.where).__doc__
    elif item.status == "integrated":
        assert item.where
    else:
        assert item.reason


def test_resolving_notices_a_missing_name():
    with pytest.raises((AttributeError, AssertionError)):
        resolve("layers.no_such_cell")

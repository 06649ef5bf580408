"""The quick tier through the lab: the direction of the claims shows and the controls lose."""

import pytest

from etude import catalogue
from etude.lab.ledger import Ledger
from etude.lab.runner import run_study
from etude.lab.study import Artifact, Job, Measurement, Results
from etude.studies.pointer_networks import PointerConfig, PointerStudy


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ledger.db'}")
    return run_study("pointer-networks", tier="quick", ledger=ledger, jobs=1)


def mean(result, arm, metric):
    values = [r["value"] for r in result.rows if (r["arm"], r["metric"], r["step"]) == (arm, metric, None)]
    assert len(values) == 3, (arm, metric)
    return sum(values) / 3


@pytest.mark.slow
def test_quick_run_shows_the_direction(result):
    assert result.state == "done" and not result.errors
    assert mean(result, "ptr", "exact") > mean(result, "attention", "exact") + 10
    assert mean(result, "ptr_range", "exact") > mean(result, "lstm", "exact") + 10
    assert mean(result, "ptr_range", "exact") > mean(result, "ptr_range", "exact_far") + 5
    assert mean(result, "ptr", "tour_ratio") < 1.05 < mean(result, "random", "tour_ratio")


@pytest.mark.slow
def test_controls_lose(result):
    assert mean(result, "untrained", "exact") < 5
    said = {v.claim: v for v in result.verdicts}
    assert set(said) == {"P1", "P2", "P3a", "P3b", "P5"}
    assert all(v.verdict is not None for v in said.values()), [v.notes for v in said.values()]
    assert said["P1"].verdict == said["P2"].verdict == "holds"


@pytest.mark.slow
def test_plots_come_with_data(result):
    rows = [r | {"protocol": r.get("protocol", "hull")} for r in result.rows]
    study = PointerStudy()
    config = PointerConfig(n_seeds=3, n=4, n_low=3, hidden_size=8, batch_size=8, steps=2, test_rows=6)
    items = list(study.measure(Job("hull", "ptr", config.seeds[:1], config, None)))
    found = [i._asdict() | {"protocol": "hull"} for i in items if isinstance(i, Artifact)]
    plots = {p.name: p.spec for p in study.plots(Results(rows, found))}
    assert set(plots) == {"by-size", "answers-hull", "weights"}
    assert all("$schema" in spec for spec in plots.values())


@pytest.mark.parametrize("tier", ["quick", "laptop", "gpu"])
def test_trained_sizes_are_shaded(tier):
    c = PointerStudy.configs[tier]
    sizes = {c.n_low, (c.n_low + c.n) // 2, c.n, 3 * c.n // 2, 2 * c.n}
    one = {"arm": "ptr_range", "seed": 1000, "metric": "exact_by_n", "value": 1.0, "unit": "points", "protocol": "hull"}
    (plot,) = PointerStudy().plots(Results([one | {"step": n} for n in sizes], []))
    (shade,) = [layer["data"]["values"] for layer in plot.spec["layer"] if layer["mark"]["type"] == "rect"]
    assert shade == [{"low": c.n_low, "high": c.n}]


@pytest.mark.parametrize("protocol", ["hull", "hull_long", "delaunay", "tsp", "tsp_range", "tsp_teacher"])
def test_every_arm_yields_the_metrics_of_its_claims(protocol):
    """Two updates of tiny nets: what the gpu tier measures exists, for several seeds in one job."""
    study = PointerStudy()
    config = PointerConfig(n_seeds=3, n=4, n_low=3, hidden_size=8, batch_size=8, steps=2, test_rows=6)
    small = {"tsp_range": (5, 6), "tsp_teacher": (7, 7)}
    task = None
    if protocol in small:
        from etude.data.planar import labelled_pool

        task = labelled_pool("tsp", 4, small[protocol], seed=0, method="insertion")
    measured = {}
    for name, arm in study.arms.items():
        if arm.protocols and protocol not in arm.protocols:
            continue
        job = Job(protocol, name, config.seeds[:2], config, task)
        items = [i for i in study.measure(job) if isinstance(i, Measurement)]
        assert {i.seed for i in items} == set(config.seeds[:2])
        measured[name] = {i.metric for i in items}
    for claim in catalogue.load("pointer-networks").claims:
        if protocol not in claim.protocols:
            continue
        sides = [claim.arms.method, claim.arms.baseline, claim.arms.control.arm, claim.arms.control.loses_to]
        for side in sides:
            if isinstance(side, str):
                arm, _, metric = side.partition("@")
                assert (metric or claim.metric.name) in measured[arm], (claim.id, side)


@pytest.mark.parametrize("options", [{"n_small": 1}, {"n_small": 2, "protocols": ("delaunay",)}])
def test_too_few_points_are_refused_by_name(options):
    with pytest.raises(ValueError, match="n_small"):
        PointerConfig(**options)


def test_a_seed_does_not_depend_on_the_others_in_its_job():
    study = PointerStudy()
    config = PointerConfig(n_seeds=3, n=4, n_low=3, hidden_size=8, batch_size=8, steps=3, test_rows=20)

    def scores(seeds):
        items = study.measure(Job("hull", "ptr", seeds, config, None))
        return {(i.metric, i.step): i.value for i in items if isinstance(i, Measurement) and i.seed == 1001}

    assert scores((1001,)) == pytest.approx(scores((1000, 1001)))

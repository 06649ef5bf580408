"""The judge: closed forms, its error rates by simulation, controls, bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from etude.catalogue.card import Claim
from etude.lab.judge import judge, verdict_for
from etude.lab.statistics import cluster_bootstrap, log_slope, mcnemar, sign_flip, t_interval, wilson


def claim(**changes):
    base = {
        "id": "C1", "statement": "better", "metric": {"name": "acc", "unit": "points", "better": "higher"},
        "arms": {"method": "ours", "baseline": "plain", "control": {"arm": "shuffled"}},
        "relation": "greater", "margin": 1.0, "tier": "laptop", "paper": {"value": 3.0, "source": "table"},
    }  # fmt: skip
    return Claim.model_validate(base | changes)


def rows(metric="acc", **arms):
    return [
        {"arm": arm, "seed": 1000 + i, "metric": metric, "value": v, "step": None}
        for arm, values in arms.items()
        for i, v in enumerate(values)
    ]


def test_t_interval_equals_scipy():
    x = np.array([0.3, 1.2, -0.4, 0.9, 2.0])
    low, high = stats.t.interval(0.95, 4, loc=x.mean(), scale=stats.sem(x))
    got = t_interval(x)
    assert got.low == pytest.approx(low)
    assert got.high == pytest.approx(high)


@pytest.mark.parametrize("n", [3, 5, 20])
@pytest.mark.parametrize(("relation", "at"), [("greater", 0.5), ("less", -0.5), ("within", 0.5)])
def test_a_true_effect_on_the_margin_seldom_holds(n, relation, at):
    """Simulation: when the truth lies on the margin, "holds" comes at most 5 % of the time."""
    draws = np.random.default_rng(n).normal(at, 1.0, size=(3000, n))
    margin = abs(at) if relation == "within" else at
    share = np.mean([judge(d, relation, margin).word == "holds" for d in draws])
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)
    wrong = {"greater": "fails", "less": "fails", "within": "fails"}[relation]
    assert np.mean([judge(d, relation, margin).word == wrong for d in draws]) <= 0.065


def test_power_and_all_three_words():
    d = np.array([2.0, 2.1, 1.9, 2.05, 1.95])
    assert judge(d, "greater", 1.0).word == "holds"
    assert judge(d, "greater", 3.0).word == "fails"
    assert judge(d, "greater", 2.0).word == "inconclusive"
    assert judge(-d, "less", -1.0).word == "holds"
    assert judge(d, "less", 1.0).word == "fails"
    assert judge(d - 2, "within", 0.5).word == "holds"
    assert judge(d, "within", 0.5).word == "fails"
    assert judge(np.zeros(3), "within", 0.0).word == "holds"


def test_notes_smaller_and_reversed():
    d = np.array([0.5, 0.52, 0.48])
    assert judge(d, "greater", 1.0).notes == ("smaller than claimed",)
    assert judge(-d, "greater", 0.0).notes == ("reversed",)
    assert judge(-d, "less", -1.0).notes == ("smaller than claimed",)
    assert judge(d, "less", 0.0).notes == ("reversed",)


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=12),
    st.floats(-10, 10),
    st.sampled_from(["greater", "less"]),
)
def test_mirror_symmetry(values, margin, relation):
    other = {"greater": "less", "less": "greater"}[relation]
    assert judge(values, relation, margin).word == judge([-v for v in values], other, -margin).word


@pytest.mark.parametrize(
    ("d", "relation", "margin", "text"),
    [
        ([1.0, 2.0], "greater", 0.0, "at least 3 seeds"),
        ([1.0, float("nan"), 2.0], "greater", 0.0, "NaN"),
        ([1.0, 2.0, 3.0], "better", 0.0, "better"),
        ([1.0, 2.0, 3.0], "within", -1.0, "-1"),
        ([1.0, 2.0, 3.0], "greater", float("nan"), "margin"),
        ([[1.0, 2.0, 3.0]], "greater", 0.0, "shape"),
    ],
)
def test_bad_input_of_the_judge(d, relation, margin, text):
    with pytest.raises(ValueError, match=text):
        judge(d, relation, margin)


def test_verdict_pairs_by_seed_and_keeps_the_papers_figure():
    table = rows(ours=[90, 91, 92], plain=[87, 88, 89], shuffled=[10, 11, 9])
    table = [table[i] for i in np.random.default_rng(0).permutation(len(table))]
    v = verdict_for(claim(), table, slug="x", protocol="default", tier="laptop")
    assert (v.verdict, v.effect, v.n, v.paper_value) == ("holds", 3.0, 3, 3.0)
    assert (v.method_mean, v.baseline_mean, v.control_mean) == (91.0, 88.0, 10.0)


def test_control_that_does_not_lose_shows_no_verdict():
    table = rows(ours=[90, 91, 92], plain=[87, 88, 89], shuffled=[90, 91, 92])
    v = verdict_for(claim(), table, slug="x", protocol="default", tier="laptop")
    assert v.verdict is None
    assert "study broken: the control arm shuffled did not lose" in v.notes
    missing = [r for r in table if r["arm"] != "shuffled"]
    v = verdict_for(claim(), missing, slug="x", protocol="default", tier="laptop")
    assert v.verdict is None
    assert "was not measured" in v.notes[0]


def test_control_by_loses_to():
    arms = {"method": "ablated", "baseline": "ours", "control": {"arm": "untrained", "loses_to": "ours"}}
    it = claim(arms=arms, relation="less", margin=-2.0)
    table = rows(ours=[90, 91, 92], ablated=[80, 81, 82], untrained=[10, 11, 9])
    assert verdict_for(it, table, slug="x", protocol="p", tier="laptop").verdict == "holds"
    table = rows(ours=[90, 91, 92], ablated=[80, 81, 82], untrained=[90, 91, 93])
    assert verdict_for(it, table, slug="x", protocol="p", tier="laptop").verdict is None


def test_a_control_loses_by_diverging_but_not_to_one_that_diverges():
    arms = {"method": "ablated", "baseline": "ours", "control": {"arm": "untrained", "loses_to": "rival"}}
    it = claim(arms=arms, relation="less", margin=-2.0)
    known = dict(ours=[90, 91, 92], ablated=[80, 81, 82])
    for rival, untrained, word in (
        ([90, 91, 93], [10, float("nan"), 9], "holds"),
        ([90, float("inf"), 93], [10, 11, 9], None),
        ([float("nan"), 91, 93], [10, float("nan"), 9], None),
    ):
        v = verdict_for(it, rows(**known, rival=rival, untrained=untrained), slug="x", protocol="p", tier="laptop")
        assert v.verdict == word


def test_seeds_of_one_arm_only_are_named():
    table = rows(ours=[90, 91, 92, 93], plain=[87, 88, 89], shuffled=[1, 2, 3, 4])
    v = verdict_for(claim(), table, slug="x", protocol="p", tier="laptop")
    assert (v.verdict, v.n) == ("holds", 3)
    assert "without seeds [1003]: not measured in both arms" in v.notes


def test_a_diverged_seed_is_reported_not_dropped():
    table = rows(ours=[90, float("nan"), 92, 93], plain=[87, 88, 89, 90], shuffled=[1, 2, 3, 4])
    v = verdict_for(claim(), table, slug="x", protocol="p", tier="laptop")
    assert v.verdict == "inconclusive"
    assert v.n == 4
    assert "diverged: seeds [1001]" in v.notes


def test_a_tie_that_is_rounded_in_two_ways_is_a_tie():
    sums, same = [0.1 + 0.2 + i for i in range(3)], [0.3 + i for i in range(3)]
    assert sums[0] > same[0]
    v = verdict_for(
        claim(margin=0.0), rows(ours=sums, plain=same, shuffled=same), slug="x", protocol="p", tier="laptop"
    )
    assert (v.verdict, v.effect, v.low, v.high) == ("inconclusive", 0.0, 0.0, 0.0)


def test_own_metrics_constants_curves_and_small_tiers():
    arms = {"method": "a@x", "baseline": 5.0}
    it = claim(arms=arms, relation="less", margin=0.0)
    table = rows(metric="x", a=[1, 2, 3]) + [{"arm": "a", "seed": 1000, "metric": "x", "value": 99, "step": 1.0}]
    v = verdict_for(it, table, slug="x", protocol="p", tier="quick")
    assert v.verdict == "holds"
    assert v.effect == pytest.approx(-3.0)
    assert v.notes == ("smaller than the claim's tier (laptop)",)


def test_too_few_seeds_and_unmeasured_arms():
    v = verdict_for(claim(), rows(ours=[1, 2], plain=[0, 0], shuffled=[0, 0]), slug="x", protocol="p", tier="laptop")
    assert v.verdict is None
    assert "too few seeds (2" in v.notes[0]
    assert verdict_for(claim(), rows(ours=[1, 2, 3]), slug="x", protocol="p", tier="laptop") is None
    it = claim(protocols=["digits"])
    full = rows(ours=[90, 91, 92], plain=[87, 88, 89], shuffled=[10, 11, 9])
    assert verdict_for(it, full, slug="x", protocol="mnist", tier="laptop") is None
    assert verdict_for(it, full, slug="x", protocol="user", tier="laptop") is None  # it speaks of digits
    for it in (claim(protocols=["digits", "user"]), claim()):
        assert verdict_for(it, full, slug="x", protocol="user", tier="laptop").verdict == "holds"


def test_other_statistics():
    x = np.array([1.0, 10.0, 100.0])
    slope = log_slope(x, [x**0.5 * k for k in (1, 2, 3)])
    assert slope.mean == pytest.approx(0.5)
    assert slope.high - slope.low == pytest.approx(0.0, abs=1e-9)
    assert sign_flip([1.0, 1.0, 1.0, 1.0, 1.0]) == pytest.approx(2 / 32)
    assert mcnemar([1] * 10, [1] * 10) == 1.0
    assert mcnemar([1] * 12, [0] * 12) == pytest.approx(2 * 0.5**12)
    assert wilson(0, 10).low == pytest.approx(0.0)
    assert 0.2 < wilson(0, 10).high < 0.35
    got = cluster_bootstrap(np.arange(100.0), np.arange(100) // 10, np.random.default_rng(0))
    assert got.low < 49.5 < got.high
    assert got.n == 10
    with pytest.raises(ValueError, match="k=11"):
        wilson(11, 10)
    with pytest.raises(ValueError, match="at least 2"):
        t_interval([1.0])


def test_sign_flip_does_not_depend_on_the_unit():
    assert sign_flip([1e-30] * 5) == sign_flip([1.0] * 5) == 0.0625

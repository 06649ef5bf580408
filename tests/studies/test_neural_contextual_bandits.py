"""The quick study shows what must show at its size, and its controls lose."""

import pytest

from etude.errors import UsageError
from etude.lab.runner import configure, run_study
from etude.lab.study import Job, Results
from etude.studies._bandit_plots import noise_rows
from etude.studies._bandit_settings import BEST, REWARD, TUNED, settings_of
from etude.studies.neural_contextual_bandits import BanditStudy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    return run_study("neural-contextual-bandits", tier="quick", ledger=ledger, jobs=1)


def _mean(run, arm, metric, protocol="digits"):
    values = [
        r["value"]
        for r in run.rows
        if (r["arm"], r["metric"], r["protocol"], r["step"]) == (arm, metric, protocol, None)
    ]
    assert len(values) == 3
    return sum(values) / 3


def test_it_runs_whole(run):
    assert run.state == "done"
    assert not run.errors


def test_no_control_wins(run):
    broken = [v for v in run.verdicts if v.verdict is None]
    assert broken == []


@pytest.mark.parametrize("protocol", ["digits", "square"])
@pytest.mark.parametrize("arm", ["fastcb", "squarecb", "ucb", "ts", "epsilon", "greedy"])
def test_every_policy_beats_chance(run, arm, protocol):
    assert _mean(run, arm, "log_regret", protocol) < _mean(run, "random", "log_regret", protocol) - 0.1


def test_noise_makes_regret_grow_faster_and_chance_grows_fastest(run):
    clean, noisy, chance = (_mean(run, a, "regret_slope") for a in ("clean_long", "noisy_long", "random_long"))
    assert clean < noisy < chance
    assert chance == pytest.approx(1, abs=0.1)


def test_the_frozen_network_never_learns(run):
    frozen = _mean(run, "regression_frozen", "regression_slope")
    assert frozen > 0.9
    assert _mean(run, "regression_plain", "regression_slope") < frozen


def test_the_best_explorer_is_one_of_the_three(run):
    best = _mean(run, "best_explorer", "log_regret")
    assert best == _mean(run, BEST["digits"][0], "log_regret")


@pytest.mark.parametrize("policy", ["ucb", "epsilon"])
def test_a_net_that_predicts_rewards_learns_too_and_is_another(run, policy):
    coded = _mean(run, f"{policy}_reward", "log_regret")
    assert coded < _mean(run, "random", "log_regret") - 0.1
    assert coded != _mean(run, policy, "log_regret")


def test_wrong_arms_rise_with_label_noise(run):
    arms = ("fastcb", "squarecb", "noise_fastcb", "noise_squarecb", "noisy_long")
    rows = noise_rows(Results([r for r in run.rows if r["arm"] in arms and r["protocol"] == "digits"]))
    for policy in ("fastcb", "squarecb"):
        levels = {}
        for r in rows:
            if r["arm"] == policy:
                cost = 1 - r["step"] * 10 / 9  # of a wrong arm: less where the right one may err, too
                levels.setdefault(r["step"], []).append(r["value"] / cost)
        assert sorted(levels) == [0, 0.1, 0.2, 0.3]
        assert all(len(v) == 3 for v in levels.values())
        assert sum(levels[0]) < sum(levels[0.3])


def test_the_bounds_are_worked_out_beside_the_regrets(run):
    plots = {p.name: p for p in BanditStudy().plots(Results(run.rows))}
    rows = plots["bounds"].spec["data"]["values"]
    by_name = {r["arm"]: r["value"] for r in rows if r["step"] == 1000}
    assert by_name["NeuralUCB, NeuralTS"] > by_name["all rounds"] == 1000 > by_name["NeuSquareCB"]


def test_the_third_reward_is_a_protocol_of_its_own_settings():
    study = BanditStudy()
    assert configure(study, "laptop", settings={"protocols": ("form",)}).protocols == ("form",)
    config = configure(study, "quick", settings={"horizon": 10})
    found = study.measure(Job("form", "ucb", config.seeds[:1], config, study.task("form", config)))
    assert {m.arm for m in found} == {"ucb", "best_explorer", "best_confidence"}
    assert settings_of("form", "ts", 4).nu == 0.01
    with pytest.raises(UsageError, match="no protocol 'forms'; did you mean form"):
        configure(study, "quick", settings={"protocols": ("forms",)})


def test_every_data_set_has_settings_for_every_policy():
    protocols = {*BanditStudy.configs["laptop"].protocols, "form"}
    assert protocols == set(TUNED) == set(BEST)
    for chosen in TUNED.values():
        assert set(chosen) == {"fastcb", "squarecb", "ucb", "ts", "epsilon", "greedy"}
    for arm in ("ucb_reward", "epsilon_reward"):
        assert set(BanditStudy.arms[arm].protocols) == set(REWARD)
        assert settings_of("shuttle", arm, 7).predicts == "reward"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("horizon", 4, "greater than or equal to 8"),
        ("label_noise", 2, "less than 1"),
        ("long_horizons", (), "at least two numbers of rounds"),
        ("long_horizons", (40,), "at least two numbers of rounds"),
        ("long_horizons", (60, 20), r"from the least to the largest, got \[60, 20\]"),
    ],
)
def test_settings_that_no_slope_can_be_taken_of_are_refused(name, value, text):
    with pytest.raises(UsageError, match=f"setting {name} = .*{text}"):
        configure(BanditStudy(), "quick", settings={name: value})


def test_a_short_run_has_a_curve():
    study = BanditStudy()
    config = configure(study, "quick", settings={"horizon": 10})
    job = Job("square", "random", config.seeds[:1], config, study.task("square", config))
    assert [m.step for m in study.measure(job)] == [None, *range(1, 11)]

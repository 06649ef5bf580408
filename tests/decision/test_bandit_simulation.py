"""Environments whose best arm is known, and runs of many seeds."""

import pytest
import torch

from etude.data import stream
from etude.decision import BanditSettings, ClassificationBandit, SyntheticBandit, simulate


def _classes(label_noise=0.0, n=120, k=3):
    g = stream(0, "classes")
    y = torch.randint(k, (n,), generator=g)
    centres = torch.randn(k, 6, generator=g) * 2
    return ClassificationBandit(centres[y] + 0.3 * torch.randn(n, 6, generator=g), y, label_noise=label_noise)


def test_classes_as_rounds():
    env = _classes()
    rounds = env.rounds(3, 200)
    assert rounds.contexts.shape == (200, 6)
    assert (rounds.losses.sum(1) == 2).all()
    assert torch.equal(rounds.losses, rounds.means)
    torch.testing.assert_close(rounds.contexts.norm(dim=1), torch.ones(200))
    first = rounds.contexts[:120]
    assert len(first.unique(dim=0)) == len(env.x.unique(dim=0))
    again = env.rounds(3, 50)
    assert torch.equal(again.contexts, rounds.contexts[:50])
    assert not torch.equal(env.rounds(4, 50).contexts, again.contexts)


def test_label_noise_costs_what_it_says():
    env = _classes(0.3)
    rounds = env.rounds(0, 60_000)
    right = rounds.means.argmin(1, keepdim=True)
    assert float(rounds.losses.gather(1, right).mean()) == pytest.approx(0.3, abs=0.01)
    assert rounds.means.gather(1, right).unique().tolist() == pytest.approx([0.3])
    assert float(rounds.losses.sum(1).mean()) == pytest.approx(2)
    assert float(rounds.means.max()) == pytest.approx(1 - 0.15)
    clean = env.with_noise(0.0).rounds(0, 100)
    assert torch.equal(clean.losses, _classes().rounds(0, 100).losses)
    assert torch.equal(clean.contexts, env.rounds(0, 100).contexts)


@pytest.mark.parametrize("reward", ["square", "form", "cosine"])
def test_synthetic_means_are_the_means(reward):
    env = SyntheticBandit(reward, noise=0.3)
    rounds = env.rounds(1, 40_000)
    assert rounds.contexts.shape == (40_000, 4, 20)
    assert 0 <= float(rounds.losses.min()) <= float(rounds.losses.max()) <= 1
    assert float((rounds.losses - rounds.means).mean()) == pytest.approx(0, abs=0.005)
    low = rounds.means < rounds.means.median()
    assert float((rounds.losses - rounds.means)[low].mean()) == pytest.approx(0, abs=0.005)
    assert float(rounds.means.std()) > 0.05


def test_without_noise_the_loss_is_its_mean():
    rounds = SyntheticBandit("cosine", noise=0.0).rounds(0, 50)
    torch.testing.assert_close(rounds.losses, rounds.means)


def test_random_arms_cost_what_chance_costs():
    run = simulate(_classes(), "random", range(6), 1000)
    assert float(run.regret.sum(1).mean()) == pytest.approx(1000 * 2 / 3, rel=0.05)
    assert run.probabilities.unique().tolist() == pytest.approx([1 / 3])
    assert torch.equal(run.cumulative()[:, -1], run.regret.double().sum(1))


SETTINGS = {
    "squarecb": BanditSettings("squarecb", 1000.0, lr=0.3, c_p=0.2),
    "fastcb": BanditSettings("fastcb", 200.0, lr=0.3),
    "epsilon": BanditSettings("epsilon", lr=0.3),
    "ucb": BanditSettings("ucb", nu=0.001, lr=0.3),
    "ts": BanditSettings("ts", nu=0.01, lr=0.3),
    "greedy": BanditSettings("greedy", lr=0.3),
    "rewards": BanditSettings("ucb", nu=0.1, lr=0.3, predicts="reward"),
}


@pytest.mark.parametrize("policy", SETTINGS)
def test_every_policy_learns_the_classes(policy):
    run = simulate(_classes(), SETTINGS[policy], range(3), 200, hidden_dim=16)
    assert run.arms.shape == run.regret.shape == (3, 200)
    early, late = run.regret[:, :30].mean(), run.regret[:, -60:].mean()
    assert late < 0.5 * early
    assert ((run.probabilities > 0) & (run.probabilities <= 1)).all()


@pytest.mark.parametrize("env", [_classes(), SyntheticBandit()], ids=["disjoint", "joint"])
def test_a_seeds_run_does_not_depend_on_the_others(env):
    for policy in ("squarecb", "ts"):
        together = simulate(env, SETTINGS[policy], (5, 6, 7), 40, hidden_dim=8)
        alone = simulate(env, SETTINGS[policy], (6,), 40, hidden_dim=8)
        assert torch.equal(together.arms[1], alone.arms[0])
        torch.testing.assert_close(together.losses[1], alone.losses[0])


def test_same_seed_same_run():
    a, b = (simulate(_classes(), SETTINGS["fastcb"], (1, 2), 50, hidden_dim=8) for _ in range(2))
    assert torch.equal(a.arms, b.arms)
    assert torch.equal(a.probabilities, b.probabilities)


def test_every_policy_meets_the_same_rounds():
    a, b = (simulate(_classes(), SETTINGS[p], (1,), 40, hidden_dim=8) for p in ("greedy", "ucb"))
    same = a.arms == b.arms
    assert same.any()
    assert torch.equal(a.losses[same], b.losses[same])


def test_rounds_are_counted():
    seen = []
    simulate(_classes(), SETTINGS["greedy"], (0,), 5, hidden_dim=4, on_round=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_a_step_of_one_row_is_the_newest_alone():
    run = simulate(_classes(), SETTINGS["greedy"], (0,), 20, hidden_dim=4, batch_size=1)
    assert run.arms.shape == (1, 20)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ClassificationBandit(torch.zeros(3, 2), torch.zeros(3)), "at least two classes"),
        (lambda: ClassificationBandit(torch.eye(2), torch.tensor([-1, 1])), "classes 0 to 1, got -1 to 1"),
        (lambda: ClassificationBandit(torch.eye(2), torch.tensor([0, 2]), num_classes=2), "classes 0 to 1, got 0 to 2"),
        (lambda: ClassificationBandit(torch.eye(2) / 0, torch.tensor([0, 1])), "row 0 of x holds NaN or infinity"),
        (lambda: ClassificationBandit(torch.ones(1, 2), torch.tensor([0]), num_classes=2), "at least two rows"),
        (lambda: ClassificationBandit(torch.eye(3), torch.tensor([0, 1])), r"one class a row, got \(3, 3\) and \(2,\)"),
        (lambda: ClassificationBandit(torch.eye(2), torch.tensor([0.0, 1.0])), r"integers, got .*: use y.long\(\)"),
        (lambda: _classes(1.0), r"label_noise must lie in \[0, 1\)"),
        (lambda: SyntheticBandit("linear"), "reward must be"),
        (lambda: SyntheticBandit(noise=-1.0), "noise at least 0"),
        (lambda: simulate(_classes(), "random", (0,), 0), "horizon and batch_size must be at least 1"),
        (lambda: simulate(_classes(), "greedy", (0,), 5), r"BanditSettings\(policy, ...\) or \"random\", got 'greedy'"),
        (lambda: simulate(_classes(), "random", (), 5), "at least one seed, got none"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()

"""The perturbed losses, the gradient steps and the policies of a learner."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data import Split, stream
from etude.decision import ArmNetwork, BanditLearner, BanditSettings, draw_arms, squarecb_probabilities
from etude.decision.bandit_learner import _SquaredLength

K, D, M = 3, 4, 16


def _learner(policy="squarecb", seeds=(0,), disjoint=True, moved=True, **settings):
    settings = {"gamma": 50.0, "lr": 0.1, **settings}
    network = ArmNetwork(list(seeds), D, n_arms=K if disjoint else None, hidden_dim=M)
    signs = [stream(s, "signs") for s in seeds]
    learner = BanditLearner(network, BanditSettings(policy, **settings), K, sign_generators=signs)
    if moved:
        g = stream(9, "move")
        with torch.no_grad():
            for p in network.parameters():
                p += 0.1 * torch.randn(p.shape, generator=g)
    return learner


def _rows(learner, n=6):
    g, s = stream(1, "rows"), learner.network.num_seeds
    return torch.randn(s, n, D, generator=g), torch.randint(K, (s, n), generator=g), torch.rand(s, n, generator=g)


def _batch(learner):
    x, arms, y = _rows(learner)
    return Split(x, y, arms)


def test_the_expected_perturbation_of_the_square_loss_is_a_ridge_to_the_start():
    learner = _learner(c_p=0.7)
    batch = _batch(learner)
    plain = 0.5 * (batch.y - learner.network.chosen(batch.x, batch.groups)).square().mean()
    length = learner.anchor.distance() ** 2
    expected = plain + 0.7**2 / (2 * math.sqrt(M)) * length
    torch.testing.assert_close(learner._loss(learner.network, batch), expected)


@pytest.mark.parametrize("policy", ["squarecb", "fastcb", "greedy"])
def test_a_net_that_predicts_rewards_is_fitted_to_one_minus_the_loss(policy):
    losses, rewards = (_learner(policy, predicts=what, c_p=0.5) for what in ("loss", "reward"))
    batch = _batch(losses)
    torch.testing.assert_close(rewards.predict(batch.x), 1 - losses.predict(batch.x))
    turned = batch._replace(y=1 - batch.y)
    torch.testing.assert_close(rewards._loss(rewards.network, batch), losses._loss(losses.network, turned))
    with pytest.raises(ValueError, match='predicts must be "loss" or "reward"'):
        BanditSettings(policy, horizon=10, predicts="gain")


@pytest.mark.parametrize("policy", ["squarecb", "fastcb"])
def test_many_sampled_perturbations_tend_to_the_expected_one(policy):
    exact = _learner(policy, c_p=0.5)
    drawn = _learner(policy, c_p=0.5, perturb="sampled", n_draws=20_000)
    batch = _batch(exact)
    torch.testing.assert_close(
        drawn._loss(drawn.network, batch), exact._loss(exact.network, batch), rtol=0.02, atol=0.0
    )
    torch.testing.assert_close(drawn.predict(batch.x), exact.predict(batch.x), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("policy", ["squarecb", "fastcb"])
@pytest.mark.parametrize("perturb", ["expected", "sampled"])
def test_gradients_are_those_of_the_loss_written_out(policy, perturb):
    learner = _learner(policy, c_p=0.5, perturb=perturb, n_draws=3)
    batch, state = _batch(learner), learner.signs[0].get_state()
    got = torch.autograd.grad(learner._loss(learner.network, batch), list(learner.network.parameters()))
    learner.signs[0].set_state(state)
    raw = learner.network.chosen(batch.x, batch.groups)[0]
    moves = [p - learner.anchor.start[n] for n, p in learner.network.named_parameters()]
    scale = 0.5 * M**-0.25
    if perturb == "sampled":
        parts = [
            (torch.randint(2, (3, m.numel()), generator=learner.signs[0]) * 2 - 1).float() @ m.reshape(-1)
            for m in moves
        ]
        shifts, weights = scale * torch.stack(parts).sum(0), torch.full((3,), 1 / 3)
    else:
        spread = scale * torch.sqrt(sum(m.square().sum() for m in moves) + 1e-12)
        shifts, weights = spread * learner._nodes, learner._weights
    f = raw[:, None] + shifts
    y = batch.y[0][:, None].expand_as(f)
    one = F.binary_cross_entropy_with_logits(f, y, reduction="none") if policy == "fastcb" else 0.5 * (y - f).square()
    expected = torch.autograd.grad((one @ weights).mean(), list(learner.network.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_logistic_losss_slope_is_the_error():
    learner = _learner("fastcb", c_p=0.0)
    batch = _batch(learner)
    f = learner.network.chosen(batch.x, batch.groups)
    leaf = f.detach().requires_grad_()
    value = F.binary_cross_entropy_with_logits(leaf, batch.y)
    torch.testing.assert_close(learner._loss(learner.network, batch), value.detach() * 1.0)
    slope = torch.autograd.grad(value, leaf)[0] * batch.y.numel()
    torch.testing.assert_close(slope, torch.sigmoid(leaf.detach()) - batch.y)


def test_squared_length_has_the_right_gradient():
    p = torch.randn(2, 3, generator=stream(0, "p"), dtype=torch.float64, requires_grad=True)
    found = _SquaredLength.apply(p.detach().square().sum(1), [p.detach()], p)
    weights = torch.tensor([2.0, -3.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad((found * weights).sum(), p)
    torch.testing.assert_close(grad, 2 * weights[:, None] * p.detach())


def test_the_first_step_is_plain_gradient_descent():
    learner = _learner("greedy", moved=False, lr=0.2)
    x, arms, y = _rows(learner)
    start = {n: p.detach().clone() for n, p in learner.network.named_parameters()}
    loss = 0.5 * (learner.network.chosen(x, arms) - y).square().mean()
    grads = torch.autograd.grad(loss, list(learner.network.parameters()))
    assert learner.update(x, arms, y) == pytest.approx(loss.item())
    for (name, p), g in zip(learner.network.named_parameters(), grads, strict=True):
        torch.testing.assert_close(p.detach(), start[name] - 0.2 * g)


@pytest.mark.parametrize("policy", ["squarecb", "fastcb", "ucb", "ts", "epsilon", "greedy"])
def test_a_seeds_learning_does_not_depend_on_the_others(policy):
    both, alone = _learner(policy, seeds=(4, 7), moved=False), _learner(policy, seeds=(7,), moved=False)
    x, arms, y = _rows(both)
    for _ in range(3):
        both.observe(x, arms)
        both.update(x, arms, y)
        alone.observe(x[1:], arms[1:])
        alone.update(x[1:], arms[1:], y[1:])
    torch.testing.assert_close(both.probabilities(x)[1:], alone.probabilities(x[1:]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("policy", ["squarecb", "fastcb", "epsilon", "greedy"])
def test_learning_tells_a_dear_arm_from_a_cheap_one(policy):
    learner = _learner(policy, moved=False, lr=0.5, gamma=100.0, c_p=0.2)
    x = torch.randn(1, 32, D, generator=stream(2, "x"))
    arms = torch.arange(32)[None] % 2
    losses = [learner.update(x, arms, 1.0 - arms) for _ in range(80)]
    assert losses[-1] < losses[0]
    predicted = learner.predict(x).mean(1)[0]
    assert predicted[0] > predicted[1] + 0.1


def test_a_shift_of_the_perturbation_leaves_squarecbs_probabilities():
    learner = _learner(c_p=2.0, perturb="sampled")
    x = torch.rand(1, 5, D, generator=stream(0, "x"))
    expected = squarecb_probabilities(learner.network.predict(x).detach(), 50.0)
    torch.testing.assert_close(learner.probabilities(x), expected)


def test_ucb_and_thompson_explore_less_where_they_have_looked():
    learner = _learner("ts", nu=0.5)
    x = torch.randn(1, 1, D, generator=stream(0, "x"))
    before = learner.network.squared_gradients(x, learner.precision)[0, 0, 1]
    learner.observe(x.expand(1, 50, D), torch.full((1, 50), 1))
    after = learner.network.squared_gradients(x, learner.precision)[0, 0]
    assert after[1] < 0.05 * before
    assert learner.rounds == 50
    assert after[0] > after[1]


def test_the_ball_is_not_left():
    learner = _learner("greedy", radius=0.05, seeds=(0, 1), moved=False, lr=1.0)
    x, arms, y = _rows(learner)
    for _ in range(5):
        learner.update(x, arms, y)
    length = torch.stack([m.flatten(1).square().sum(1) for m in learner._gone()[1]]).sum(0).sqrt()
    assert (length <= 0.05 + 1e-6).all()
    assert (length > 0.01).all()


def test_gamma_by_the_theory():
    square = BanditSettings("squarecb", "theory", horizon=1000)
    assert square.gamma_at(1, 5) == pytest.approx(math.sqrt(5 * 1000 / math.log(1000)))
    fast = BanditSettings("fastcb", "theory", horizon=1000, best_loss=1e6)
    assert fast.gamma_at(1, 5) == pytest.approx(math.sqrt(5 * 1e6 / (3 * math.log(1000))))
    assert BanditSettings("fastcb", "theory").gamma_at(9, 5) == 50
    assert BanditSettings("squarecb", "sqrt", gamma_scale=10.0).gamma_at(16, 4) == 80
    assert BanditSettings("squarecb", 7.0, gamma_scale=2.0).gamma_at(3, 4) == 14


def test_arms_are_drawn_by_the_distribution():
    p = torch.tensor([0.2, 0.0, 0.5, 0.3])
    u = torch.rand(20_000, generator=stream(0, "u"))
    shares = torch.bincount(draw_arms(p.expand(20_000, 4), u), minlength=4) / 20_000
    torch.testing.assert_close(shares, p, atol=0.015, rtol=0)
    assert draw_arms(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0.0, 0.99999])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"policy": "linucb"}, "unknown policy 'linucb': choose one of squarecb"),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0"),
        ({"gamma": -3.0}, "gamma must be positive"),
        ({"gamma": math.inf}, "gamma must be positive and finite, got inf"),
        ({"gamma": "auto"}, 'gamma must be a number, "theory" or "sqrt"'),
        ({"policy": "squarecb"}, "give horizon"),
        ({"perturb": "none"}, 'perturb must be "expected" or "sampled"'),
        ({"epsilon": 2.0}, r"epsilon must lie in \[0, 1\]"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"radius": -1.0}, "radius must be positive"),
        ({"radius": math.inf}, "radius must be positive and finite, got inf; None: no projection"),
        ({"nu": -0.1}, "nu must be at least 0"),
        ({"nu": math.inf}, "nu must be at least 0 and finite"),
        ({"c_p": math.inf}, "c_p must be at least 0 and finite"),
        ({"gamma": None}, "gamma must be positive and finite, got None"),
        ({"n_draws": 1.5}, "n_draws must be a whole number, got 1.5"),
        ({"n_draws": 0}, "n_draws must be positive"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        BanditSettings(**settings)


def test_sampling_needs_a_generator_a_seed():
    network = ArmNetwork([0, 1], D)
    with pytest.raises(ValueError, match="need 2 sign generators, got 0"):
        BanditLearner(network, BanditSettings("squarecb", 1.0, perturb="sampled"), K)


def test_a_diverged_network_says_so():
    learner = _learner("greedy")
    with torch.no_grad():
        next(learner.network.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        learner.probabilities(torch.zeros(1, 1, D))


def test_nothing_warns_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = _learner("fastcb")
        x, arms, y = _rows(learner)
        learner.update(x, arms, y)
        nn.Module.eval(learner.network)

"""The user's bandit: shapes, learning, delayed feedback, state, off-policy values, bad input."""

import contextlib
import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from etude.data import stream
from etude.decision import LoggedDecisions, NeuralBandit
from etude.decision.decisions import WaitingDecisions

K, D = 4, 5
POLICIES = ["squarecb", "fastcb", "epsilon", "ucb", "ts", "greedy"]


def _bandit(policy="fastcb", **kwargs):
    kwargs = {"hidden_dim": 16, "horizon": 1000, "random_state": 0, "lr": 0.3, **kwargs}
    return NeuralBandit(K, D, policy=policy, **kwargs)


def _contexts(*shape, seed=0):
    return torch.randn(*shape, generator=stream(seed, "x"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("disjoint", [True, False])
def test_shapes_and_probabilities(policy, disjoint):
    bandit = _bandit(policy, disjoint=disjoint)
    one = _contexts(D) if disjoint else _contexts(K, D)
    many = _contexts(7, D) if disjoint else _contexts(7, K, D)
    action, prob = bandit.choose(one)
    assert isinstance(action, int)
    assert isinstance(prob, float)
    assert prob == pytest.approx(float(bandit.probabilities(one)[action]))
    actions, probs = bandit.choose(many)
    assert actions.shape == probs.shape == (7,)
    torch.testing.assert_close(bandit.probabilities(many).sum(1), torch.ones(7))
    predicted = bandit.predict_loss(many)
    assert predicted.shape == (7, K)
    assert ((predicted >= 0) & (predicted <= 1)).all()
    assert bandit.predict_loss(one).shape == (K,)
    bandit.partial_fit(many, actions, loss=torch.rand(7, generator=stream(0, "y")), prob=probs)
    bandit.partial_fit(one, action, loss=1, prob=prob)
    assert bandit.rounds == 8


@pytest.mark.parametrize("policy", POLICIES)
def test_learns_which_arm_is_good(policy):
    bandit = _bandit(policy, disjoint=True, gamma=500.0, c_p=0.2)
    x = _contexts(300, D, seed=1)
    best = x[:, :2].argmax(1) + 2 * (x[:, 2] > 0).long()
    wrong = []
    for i in range(300):
        action, prob = bandit.choose(x[i])
        loss = float(action != best[i])
        wrong.append(loss)
        bandit.partial_fit(x[i], action, loss=loss, prob=prob)
    assert sum(wrong[-60:]) < 0.75 * sum(wrong[:60])


def test_contexts_as_arrays_and_lists():
    bandit = _bandit()
    x = _contexts(K, D)
    expected = bandit.predict_loss(x)
    torch.testing.assert_close(bandit.predict_loss(x.numpy()), expected)
    torch.testing.assert_close(bandit.predict_loss(x.double().tolist()), expected)


def test_contexts_as_a_data_frame():
    pd, bandit, x = pytest.importorskip("pandas"), _bandit(), _contexts(K, D)
    torch.testing.assert_close(bandit.predict_loss(pd.DataFrame(x.numpy())), bandit.predict_loss(x))


def test_no_gradient_goes_into_what_made_the_contexts():
    encoder, bandit, loss = nn.Linear(3, D), _bandit(), torch.tensor(0.5, requires_grad=True)
    for _ in range(3):
        decision = bandit.choose(encoder(torch.ones(K, 3)))
        bandit.partial_fit(decision=decision, loss=0.5)
        bandit.partial_fit(encoder(torch.ones(K, 3)), 0, loss=loss)
    assert encoder.weight.grad is None
    assert loss.grad is None


def test_draws_follow_the_probabilities():
    bandit = _bandit("squarecb", gamma=3.0)
    x = _contexts(K, D)
    actions, probs = bandit.choose(x.expand(8000, K, D))
    shares = torch.bincount(actions, minlength=K) / 8000
    torch.testing.assert_close(shares, bandit.probabilities(x), atol=0.03, rtol=0)
    torch.testing.assert_close(probs, bandit.probabilities(x)[actions])


def test_rewards_are_losses_turned_round():
    a, b = _bandit(), _bandit()
    x = _contexts(3, K, D)
    a.partial_fit(x, [0, 1, 2], loss=[0.25, 1.0, 0.0])
    b.partial_fit(x, [0, 1, 2], reward=[0.75, 0.0, 1.0])
    torch.testing.assert_close(a.predict_loss(x), b.predict_loss(x))


def test_feedback_that_comes_later():
    a, b = _bandit(), _bandit()
    x = [_contexts(K, D, seed=i) for i in range(3)]
    made = [a.choose(c) for c in x]
    for i in (2, 0):
        a.partial_fit(decision=made[i] if i else made[i].id, loss=0.5)
    for c in x:
        b.choose(c)
    for i in (2, 0):
        b.partial_fit(x[i], made[i].action, loss=0.5)
    torch.testing.assert_close(a.predict_loss(x[0]), b.predict_loss(x[0]))
    with pytest.raises(ValueError, match=f"decision {made[0].id} is not waiting"):
        a.partial_fit(decision=made[0], loss=0.5)
    with pytest.raises(ValueError, match="decision 99 is not waiting"):
        a.partial_fit(decision=99, loss=0.5)
    with pytest.raises(ValueError, match="not both"):
        a.partial_fit(x[1], 0, decision=made[1], loss=0.5)


def test_a_batch_is_one_decision():
    bandit = _bandit()
    made = bandit.choose(_contexts(5, K, D))
    bandit.partial_fit(decision=made, loss=torch.zeros(5))
    assert bandit.rounds == 5


@pytest.mark.parametrize("policy", POLICIES)
def test_a_single_arm_is_certain(policy):
    bandit = NeuralBandit(1, D, policy=policy, horizon=10, random_state=0)
    assert bandit.choose(_contexts(1, D)) == (0, 1.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_state_goes_on_where_it_stopped(policy, tmp_path):
    bandit = _bandit(policy, disjoint=True, perturb="sampled" if policy == "fastcb" else "expected")
    x = _contexts(30, D)
    for i in range(10):
        bandit.partial_fit(x[i], bandit.choose(x[i])[0], loss=0.5 * (i % 2))
    path = tmp_path / "bandit.safetensors"
    bandit.save(path)
    again = NeuralBandit.load(path)
    assert again.rounds == 10
    for i in range(10, 30):
        first, second = bandit.choose(x[i]), again.choose(x[i])
        assert first == second
        bandit.partial_fit(x[i], first.action, loss=0.25)
        again.partial_fit(x[i], second.action, loss=0.25)
    torch.testing.assert_close(bandit.predict_loss(x), again.predict_loss(x))


def test_theta_0_is_kept(tmp_path):
    bandit = _bandit("squarecb")
    x = _contexts(20, K, D)
    bandit.partial_fit(x, bandit.choose(x).action, loss=torch.ones(20))
    far = float(bandit._learner.anchor.distance())
    assert far > 0
    bandit.save(tmp_path / "b")
    assert float(NeuralBandit.load(tmp_path / "b")._learner.anchor.distance()) == pytest.approx(far)


def _module():
    return nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_any_module_will_do(policy, tmp_path):
    module = _module()
    bandit = _bandit(policy, module=module)
    x = _contexts(6, K, D)
    before = module[0].weight.clone()
    bandit.partial_fit(x, bandit.choose(x).action, loss=torch.ones(6))
    assert not torch.equal(module[0].weight, before)
    torch.testing.assert_close(bandit.predict_loss(x), bandit.predict_loss(x))
    bandit.save(tmp_path / "b")
    with pytest.raises(ValueError, match="saved with a module of its own"):
        NeuralBandit.load(tmp_path / "b")
    again = NeuralBandit.load(tmp_path / "b", module=_module())
    torch.testing.assert_close(again.predict_loss(x), bandit.predict_loss(x))


def test_a_module_tells_the_length_of_contexts():
    assert NeuralBandit(K, module=_module()).n_features == D
    assert NeuralBandit(K, module=nn.Linear(K * 3, 1), disjoint=True).n_features == 3
    with pytest.raises(ValueError, match="give n_features"):
        NeuralBandit(K)
    with pytest.raises(ValueError, match="give n_features"):
        NeuralBandit(K, module=nn.Sequential(nn.Conv1d(1, 1, 1)))


def test_disjoint_module_sees_block_vectors():
    module = nn.Linear(K * D, 1, bias=False)
    bandit = _bandit("greedy", module=module, disjoint=True)
    x = _contexts(D)
    expected = (module.weight.view(K, D) @ x).detach().clamp(0, 1)
    torch.testing.assert_close(bandit.predict_loss(x), expected)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_evaluate_finds_the_value_of_the_policy(estimator):
    bandit = _bandit("squarecb", disjoint=True, gamma=20.0)
    x = _contexts(4000, D)
    means = torch.sigmoid(x[:, :K])
    actions = torch.randint(K, (4000,), generator=stream(0, "a"))
    losses = (torch.rand(4000, generator=stream(0, "u")) < means.gather(1, actions[:, None])[:, 0]).float()
    bandit.partial_fit(x[:500], actions[:500], loss=losses[:500])
    truth = float((bandit.probabilities(x) * means).sum(1).mean())
    found = bandit.evaluate(LoggedDecisions(x, actions, losses, torch.full((4000,), 1 / K)), estimator)
    assert found.low < truth < found.high
    assert found.high - found.low < 0.15
    as_rewards = {"contexts": x, "action": actions, "reward": 1 - losses, "prob": torch.full((4000,), 1 / K)}
    assert bandit.evaluate(as_rewards, estimator).value == pytest.approx(found.value, abs=1e-5)


# bad input and pitfalls


def test_losses_outside_of_the_unit_interval_are_refused_with_a_hint():
    bandit, x = _bandit(), _contexts(K, D)
    for loss in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"loss must lie in \[0, 1\].*reward="):
            bandit.partial_fit(x, 0, loss=loss)
    with pytest.raises(ValueError, match=r"reward must lie in \[0, 1\]"):
        bandit.partial_fit(x, 0, reward=2.0)
    with pytest.raises(ValueError, match="one of the two"):
        bandit.partial_fit(x, 0)
    with pytest.raises(ValueError, match="one of the two"):
        bandit.partial_fit(x, 0, loss=1.0, reward=0.0)
    assert bandit.rounds == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_contexts_must_be_finite(bad):
    x = _contexts(K, D)
    x[1, 2] = bad
    for call in (_bandit().choose, _bandit().predict_loss, lambda c: _bandit().partial_fit(c, 0, loss=0.0)):
        with pytest.raises(ValueError, match="contexts must be finite"):
            call(x)


def test_wrong_numbers_of_arms_and_features_are_named():
    with pytest.raises(ValueError, match=r"shape \(4, 5\) or \(B, 4, 5\), got \(3, 5\): K = 4 arms with 5 features"):
        _bandit().choose(_contexts(3, D))
    with pytest.raises(ValueError, match=r"shape \(5\) or \(B, 5\), got \(6,\)"):
        _bandit(disjoint=True).choose(_contexts(6))
    with pytest.raises(ValueError, match="action must be 0 to 3"):
        _bandit().partial_fit(_contexts(K, D), 4, loss=0.0)
    with pytest.raises(ValueError, match="action must hold 2 integers"):
        _bandit().partial_fit(_contexts(2, K, D), [0.0, 1.0], loss=[0.0, 0.0])
    with pytest.raises(ValueError, match="loss must hold 2 numbers, got 3"):
        _bandit().partial_fit(_contexts(2, K, D), [0, 1], loss=[0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"prob must lie in \(0, 1\]"):
        _bandit().partial_fit(_contexts(K, D), 0, loss=0.0, prob=0.0)
    with pytest.raises(ValueError, match="needs contexts and action"):
        _bandit().partial_fit(loss=0.0)
    with pytest.raises(ValueError, match="must be at least 1"):
        NeuralBandit(0, D)


def test_missing_propensities_are_explained():
    with pytest.raises(ValueError, match="propensities"):
        _bandit().evaluate(LoggedDecisions(_contexts(2, K, D), [0, 1], [0.0, 1.0]))
    with pytest.raises(ValueError, match="propensities"):
        _bandit().evaluate({"contexts": _contexts(2, K, D), "action": [0, 1], "loss": [0.0, 1.0]})


def test_gamma_must_be_positive_and_large_enough_for_fastcb():
    with pytest.raises(ValueError, match="gamma must be positive"):
        _bandit(gamma=0.0)
    with pytest.warns(UserWarning, match="below 10 K = 40: fastcb's guarantee is lost"):
        _bandit(gamma=39.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _bandit(gamma=40.0)
        _bandit()
        _bandit("squarecb", gamma=1.0)


def test_ucb_on_a_large_module_warns_of_memory():
    with pytest.warns(UserWarning, match="diagonal covariance of 5,00"):
        NeuralBandit(2, 2000, policy="ucb", module=nn.Sequential(nn.Linear(2000, 2500), nn.ReLU(), nn.Linear(2500, 1)))


def test_numbers_of_numpy_and_tensors_are_saved_as_plain_ones(tmp_path):
    bandit = NeuralBandit(np.array([0, 2]).max() + 1, np.int64(4), gamma=torch.tensor(100.0), random_state=0)
    bandit.save(tmp_path / "b")
    again = NeuralBandit.load(tmp_path / "b")
    assert (again.n_arms, again.n_features, again.settings.gamma) == (3, 4, 100.0)


@pytest.mark.parametrize("policy", ["squarecb", "ucb"])
def test_a_bandit_made_in_inference_mode_learns_outside(policy, tmp_path):
    with torch.inference_mode():
        bandit = _bandit(policy)
        bandit.save(tmp_path / "b")
        again = NeuralBandit.load(tmp_path / "b")
    for each in (bandit, again):
        assert each.partial_fit(_contexts(K, D), 0, loss=0.5).rounds == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, str(tmp_path / "x"))
    with pytest.raises(ValueError, match="does not hold a NeuralBandit"):
        NeuralBandit.load(tmp_path / "x")


@pytest.mark.parametrize("policy", ["fastcb", "squarecb", "ucb"])
@pytest.mark.parametrize("perturb", ["expected", "sampled"])
def test_a_module_in_double_precision_learns(policy, perturb):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()  # no unit is dead
    bandit = NeuralBandit(3, policy=policy, perturb=perturb, module=net, gamma=100.0, random_state=0)
    x = torch.randn(3, 4, generator=stream(0, "x"), dtype=torch.float64)
    before = net[0].weight.detach().clone()
    bandit.partial_fit(x, 1, loss=0.5)
    assert not torch.equal(before, net[0].weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", ["fastcb", "squarecb", "ts"])
def test_a_module_in_half_precision_learns(policy, dtype):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    bandit = NeuralBandit(3, policy=policy, module=net, gamma=100.0, random_state=0)
    x = torch.randn(3, 4, generator=stream(0, "x"))
    before = bandit.predict_loss(x)
    for _ in range(20):
        arm, prob = bandit.choose(x)
        assert 0 < prob <= 1
        bandit.partial_fit(x, arm, loss=1.0)
    assert bandit.predict_loss(x).sum() > before.sum()


@pytest.mark.parametrize("policy", ["squarecb", "epsilon"])
def test_many_arms_of_a_module_in_half_precision_are_all_drawn(policy):
    net = nn.Linear(1, 1).bfloat16()
    bandit = NeuralBandit(1000, module=net, policy=policy, gamma=1e-3, epsilon=1.0, random_state=0)
    p = bandit.probabilities(torch.ones(1000, 1))
    assert p.tolist() == pytest.approx([1e-3] * 1000, rel=1e-3)
    drawn = bandit.choose(torch.ones(3000, 1000, 1)).action
    assert len(drawn.unique()) > 900  # 950 of 1000 are expected


def test_thompson_without_exploration_draws_among_equals():
    bandit, x = NeuralBandit(3, 4, policy="ts", nu=0.0, random_state=0), torch.ones(3, 4)
    for i in range(20):
        bandit.partial_fit(x, i % 3, loss=0.7)
    assert bandit.choose(x).prob == pytest.approx(1 / 3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("policy", ["fastcb", "squarecb", "ts"])
def test_learns_alike_where_gradients_are_off(policy, mode):
    def run(off):
        bandit, g = NeuralBandit(3, 4, policy=policy, gamma=100.0, random_state=0), stream(0, "x")
        for i in range(6):
            with mode() if off and i % 2 else contextlib.nullcontext():
                x = torch.randn(3, 4, generator=g)
                decision, waiting = bandit.choose(x), bandit.choose(2 * x)
                bandit.partial_fit(x, decision.action, loss=0.3)
            bandit.partial_fit(decision=waiting, loss=0.8)
            assert not bandit.network.training
        return bandit.predict_loss(x)

    assert torch.equal(run(True), run(False))


@pytest.mark.parametrize("policy", ["fastcb", "ucb"])
def test_a_module_that_fails_leaves_the_bandit_as_it_was(policy):
    class Fails(nn.Linear):
        def forward(self, x):
            if self.training and float(x.max()) > 10:
                raise RuntimeError("too large")
            return super().forward(x)

    net = Fails(4, 1)
    bandit = NeuralBandit(3, policy=policy, module=net, gamma=100.0, random_state=0)
    x = torch.randn(3, 4, generator=stream(0, "x"))
    bandit.partial_fit(x, 0, loss=0.5)
    decision = bandit.choose(x + 100)
    other = copy.deepcopy(bandit)
    with pytest.raises(RuntimeError, match="too large"):
        bandit.partial_fit(decision=decision, loss=0.5)
    assert not bandit.network.training
    assert decision.id in bandit._waiting
    for each in (bandit, other):
        each.partial_fit(x.expand(2, 3, 4), [0, 1], loss=[0.5, 0.2])
    assert bandit.rounds == other.rounds == 3
    assert torch.equal(bandit.probabilities(x), other.probabilities(x))
    assert tuple(bandit.choose(x)) == tuple(other.choose(x))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda b, x: b.choose(x[:0]), ValueError, "at least one row"),
        (lambda b, x: b.predict_loss(x[:0]), ValueError, "at least one row"),
        (lambda b, x: b.partial_fit(x[:0], [], loss=[]), ValueError, "at least one row"),
        (lambda b, x: b.partial_fit(x[0], 0, loss=0.1, prob=[0.1, 0.2]), ValueError, "prob must hold 1 numbers, got 2"),
        (lambda b, x: b.partial_fit(x[0], 0, loss="a"), TypeError, "loss must be a number or 1 of them, got 'a'"),
        (lambda b, x: b.partial_fit(x[0], "a", loss=0.1), TypeError, "action must hold 1 integers, got 'a'"),
        (lambda b, x: b.choose(None), TypeError, "contexts must be numbers in one block, got NoneType"),
        (lambda b, x: b.choose([[1, 2], [3]]), TypeError, "contexts must be numbers in one block, got list"),
        (
            lambda b, x: NeuralBandit(2.5, 3, policy="greedy"),
            ValueError,
            "must be at least 1 and whole, got 2.5, 3 and 32",
        ),
        (
            lambda b, x: NeuralBandit(3, disjoint=True, module=nn.Linear(22, 1)),
            ValueError,
            "reads 22 features, which 3 arms cannot share evenly",
        ),
        (
            lambda b, x: NeuralBandit(3, 4, random_state=np.random.default_rng(0)),
            TypeError,
            "cannot be numpy's Generator",
        ),
    ],
)
def test_what_cannot_be_used_is_named(call, error, text):
    bandit = NeuralBandit(3, 4, policy="greedy", random_state=0)
    with pytest.raises(error, match=text):
        call(bandit, torch.ones(2, 3, 4))
    assert bandit.rounds == 0


def test_a_refused_loss_leaves_the_decision_waiting():
    bandit = NeuralBandit(2, 3, policy="squarecb", gamma=50.0, random_state=0)
    decision = bandit.choose(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        bandit.partial_fit(decision=decision, loss=2.0)
    bandit.partial_fit(decision=decision, loss=0.2)
    with pytest.raises(ValueError, match="not waiting"):
        bandit.partial_fit(decision=decision, loss=0.2)


def test_decisions_are_copied_and_pickled():
    decision = NeuralBandit(2, 3, policy="squarecb", gamma=50.0, random_state=0).choose(torch.zeros(2, 3))
    for other in (copy.deepcopy(decision), copy.copy(decision), pickle.loads(pickle.dumps(decision))):
        assert (*other, other.id) == (*decision, decision.id)


def test_waiting_contexts_are_bounded_by_their_number(monkeypatch):
    monkeypatch.setattr(WaitingDecisions, "rows_at_most", 20)
    bandit = NeuralBandit(2, 3, policy="squarecb", gamma=50.0, random_state=0)
    made = [bandit.choose(torch.zeros(8, 2, 3)) for _ in range(5)]
    assert len(bandit._waiting) == 2
    bandit.partial_fit(decision=made[-1], loss=torch.full((8,), 0.5))
    for _ in range(15):
        last = bandit.choose(torch.zeros(2, 3))
        assert bandit._waiting.rows <= 20
    bandit.partial_fit(decision=last, loss=0.5)
    assert len(bandit._waiting) == 14


def test_a_context_that_waits_is_the_one_that_was_seen():
    def run(overwrite):
        bandit, x = NeuralBandit(2, 3, policy="squarecb", gamma=50.0, random_state=0), torch.ones(2, 3)
        decision = bandit.choose(x)
        if overwrite:
            x.zero_()
        return bandit.partial_fit(decision=decision, loss=1.0).predict_loss(torch.ones(2, 3))

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
@pytest.mark.parametrize("policy", ["fastcb", "ts"])
def test_copies_of_a_bandit_go_on_as_it_does(policy, copied):
    bandit, x = NeuralBandit(2, 3, policy=policy, random_state=0), torch.rand(6, 2, 3, generator=stream(0, "x"))
    bandit.partial_fit(x, bandit.choose(x).action, loss=torch.full((6,), 0.5))
    waiting = bandit.choose(x[0])
    other = copied(bandit)
    for each in (bandit, other):
        each.partial_fit(decision=waiting, loss=0.2)
    torch.testing.assert_close(other.choose(x).prob, bandit.choose(x).prob, rtol=0, atol=0)
    assert other.rounds == bandit.rounds == 7


@pytest.mark.parametrize("policy", ["fastcb", "ts"])
def test_looking_changes_no_later_choice(policy):
    def run(look):
        bandit = NeuralBandit(3, 4, policy=policy, perturb="sampled", gamma=100.0, random_state=0)
        chosen, g = [], stream(0, "x")
        for _ in range(10):
            x = torch.randn(3, 4, generator=g)
            if look:
                torch.testing.assert_close(bandit.predict_loss(x), bandit.predict_loss(x))
                bandit.probabilities(x)
            chosen.append(tuple(bandit.choose(x)))
            bandit.partial_fit(x, chosen[-1][0], loss=0.3)
        return chosen

    assert run(True) == run(False)


def test_no_propensity_is_nan():
    with pytest.raises(ValueError, match="positive and finite"):
        NeuralBandit(5, 3, policy="squarecb", gamma=float("inf")).choose(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="finite"):
        NeuralBandit(5, 3, policy="ts", random_state=0).choose(torch.full((5, 3), 1e20))


def test_logged_decisions_that_cannot_be_read():
    bandit = NeuralBandit(2, 3, policy="squarecb", gamma=50.0, random_state=0)
    logged = {"contexts": torch.zeros(4, 2, 3), "loss": torch.zeros(4), "prob": torch.full((4,), 0.5)}
    with pytest.raises(ValueError, match="lack action"):
        bandit.evaluate(logged)
    with pytest.raises(ValueError, match="integers"):
        bandit.evaluate(logged | {"action": torch.full((4,), 0.5)})
    with pytest.raises(ValueError, match="confidence"):
        bandit.evaluate(logged | {"action": torch.zeros(4).long()}, confidence=1.5)

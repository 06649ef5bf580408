"""IPS, SNIPS and DR against their formulas, against the truth, and with bad logs."""

import pandas as pd
import pytest
import torch

from etude.data import stream
from etude.decision import NeuralBandit, policy_value


def _log(n=2000, k=3, seed=0):
    g = stream(seed, "log")
    logging = torch.rand(n, k, generator=g, dtype=torch.float64) + 0.2
    logging = logging / logging.sum(1, keepdim=True)
    target = torch.rand(n, k, generator=g, dtype=torch.float64)
    target = target / target.sum(1, keepdim=True)
    means = torch.rand(n, k, generator=g, dtype=torch.float64)
    actions = torch.multinomial(logging, 1, generator=g)[:, 0]
    rows = torch.arange(n)
    losses = (torch.rand(n, generator=g, dtype=torch.float64) < means[rows, actions]).double()
    return target, actions, losses, logging[rows, actions], means


def test_the_three_formulas():
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]])
    actions, losses = torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.5, 0.25])
    logged, q = torch.tensor([0.25, 0.5, 0.4]), torch.tensor([[0.9, 0.1], [0.3, 0.6], [0.5, 0.5]])
    w = [2.0, 0.0, 2.0]
    ips = (2 * 1 + 0 + 2 * 0.25) / 3
    assert policy_value(target, actions, losses, logged, estimator="ips").value == pytest.approx(ips, abs=1e-7)
    snips = (2 * 1 + 2 * 0.25) / 4
    found = policy_value(target, actions, losses, logged, estimator="snips")
    assert found.value == pytest.approx(snips, abs=1e-7)
    assert found.effective_n == pytest.approx(sum(w) ** 2 / sum(x * x for x in w))
    dr = (0.5 + 2 * (1 - 0.9) + 0.3 + 0 + 0.5 + 2 * (0.25 - 0.5)) / 3
    found = policy_value(target, actions, losses, logged, estimator="dr", predicted=q)
    assert found.value == pytest.approx(dr, abs=1e-6)


@pytest.mark.parametrize("estimator", ["ips", "snips", "dr"])
def test_the_interval_covers_the_truth(estimator):
    covered = 0
    for seed in range(60):
        target, actions, losses, logged, means = _log(600, seed=seed)
        truth = float((target * means).sum(1).mean())
        found = policy_value(target, actions, losses, logged, estimator=estimator, predicted=means * 0 + 0.4)
        covered += found.low <= truth <= found.high
    assert 52 <= covered <= 60


def test_dr_is_exact_with_the_true_model_and_without_noise():
    target, actions, _, logged, means = _log()
    losses = means[torch.arange(len(means)), actions]
    found = policy_value(target, actions, losses, logged, predicted=means)
    assert found.value == pytest.approx(float((target * means).sum(1).mean()))


def test_a_good_model_narrows_the_interval():
    target, actions, losses, logged, means = _log()
    ips = policy_value(target, actions, losses, logged, estimator="ips")
    dr = policy_value(target, actions, losses, logged, predicted=means)
    assert dr.high - dr.low < 0.9 * (ips.high - ips.low)


def test_evaluating_the_logging_policy_gives_the_mean_loss():
    probabilities = torch.full((4, 2), 0.5)
    actions, losses = torch.tensor([0, 1, 1, 0]), torch.tensor([0.0, 1.0, 0.5, 0.25])
    for estimator in ("ips", "snips"):
        found = policy_value(probabilities, actions, losses, torch.full((4,), 0.5), estimator=estimator)
        assert found.value == pytest.approx(0.4375)
        assert found.effective_n == pytest.approx(4)


def test_equals_the_open_bandit_pipeline():
    ope = pytest.importorskip("obp.ope", reason="optional: the peer obp is not installed")
    target, actions, losses, logged, means = _log(300)
    shared = {"reward": losses.numpy(), "action": actions.numpy(), "pscore": logged.numpy()}
    shared["action_dist"] = target.numpy()[:, :, None]
    peers = {
        "ips": ope.InverseProbabilityWeighting().estimate_policy_value(**shared),
        "snips": ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**shared),
        "dr": ope.DoublyRobust().estimate_policy_value(
            **shared, estimated_rewards_by_reg_model=means.numpy()[:, :, None]
        ),
    }
    for name, value in peers.items():
        ours = policy_value(target, actions, losses, logged, estimator=name, predicted=means)
        assert ours.value == pytest.approx(value, abs=1e-6)


def test_bad_logs_are_named():
    target, actions, losses, logged, means = _log(5)
    bad = logged.clone()
    bad[2] = 0
    with pytest.raises(ValueError, match="logged probability 0 of row 2"):
        policy_value(target, actions, losses, bad, estimator="ips")
    for i, value in enumerate((float("nan"), float("inf"))):
        unknown, off = losses.double().clone(), target.double().clone()
        unknown[i] = off[i, 0] = value
        with pytest.raises(ValueError, match=f"of row {i} is not finite"):
            policy_value(target, actions, unknown, logged, estimator="ips")
        with pytest.raises(ValueError, match=f"probabilities of row {i} must be at least 0 and sum to 1"):
            policy_value(off, actions, losses, logged, estimator="ips")
        with pytest.raises(ValueError, match="predicted losses must be finite"):
            policy_value(target, actions, losses, logged, predicted=off)
    with pytest.raises(ValueError, match="probabilities of row 0 must be at least 0 and sum to 1"):
        policy_value(2 * target, actions, losses, logged, estimator="ips")
    with pytest.raises(ValueError, match="actions must be 0 to 2, got"):
        policy_value(target, actions + 3, losses, logged, estimator="ips")
    with pytest.raises(ValueError, match="actions must hold integers"):
        policy_value(target, actions + 0.5, losses, logged, estimator="ips")
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        policy_value(target, actions, losses, logged, estimator="ips", confidence=1.5)
    with pytest.raises(ValueError, match=r"must have shape \(5,\)"):
        policy_value(target, actions[:3], losses, logged, estimator="ips")
    with pytest.raises(ValueError, match="needs predicted losses"):
        policy_value(target, actions, losses, logged)
    with pytest.raises(ValueError, match='estimator must be "ips", "snips" or "dr"'):
        policy_value(target, actions, losses, logged, estimator="mrdr", predicted=means)
    never = torch.nn.functional.one_hot((actions + 1) % 3, 3).double()
    with pytest.raises(ValueError, match="never takes a logged action"):
        policy_value(never, actions, losses, logged, estimator="snips")
    assert policy_value(never, actions, losses, logged, estimator="ips").effective_n == 0


def test_logs_may_be_lists_arrays_and_columns_of_data_frames():
    target, actions, losses, logged, means = _log(40)
    for made in (lambda t: t.numpy(), lambda t: t.tolist(), lambda t: pd.DataFrame(t.numpy()).squeeze()):
        ours = policy_value(*map(made, (target, actions, losses, logged)), predicted=made(means))
        assert ours.value == pytest.approx(policy_value(target, actions, losses, logged, predicted=means).value)
    with pytest.raises(ValueError, match=r"probabilities must have shape \(n, K\), got \(3,\)"):
        policy_value(target[0], actions, losses, logged, estimator="ips")


def test_a_filtered_data_frame_is_a_log():
    bandit = NeuralBandit(2, 3, disjoint=True, policy="greedy", random_state=0)
    x = torch.randn(6, 3, generator=stream(0, "x"))
    frame = pd.DataFrame({"action": [0, 1, 0, 1, 0, 1], "loss": [0.1, 0.9, 0.3, 0.5, 0.2, 0.0], "prob": [0.5] * 6})
    part = frame[frame.action == 0]  # rows 0, 2 and 4
    log = {"contexts": x[::2], "action": part.action, "loss": part.loss, "prob": part.prob}
    plain = {"contexts": x[::2], "action": [0, 0, 0], "loss": [0.1, 0.3, 0.2], "prob": [0.5, 0.5, 0.5]}
    assert bandit.evaluate(log) == bandit.evaluate(plain)
    assert bandit.partial_fit(x[::2], part.action, loss=part.loss, prob=part.prob).rounds == 3

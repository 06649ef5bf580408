"""Regret of online regression, and slopes on logarithmic axes."""

import pytest
import torch

from etude.data import stream
from etude.decision import BanditSettings, ClassificationBandit, log_slope, regression_regret, simulate


def _env():
    g = stream(0, "classes")
    y = torch.randint(3, (150,), generator=g)
    return ClassificationBandit(torch.eye(3)[y] + 0.2 * torch.randn(150, 3, generator=g), y)


def test_learning_costs_less_than_standing_still_and_more_than_hindsight():
    found = regression_regret(_env(), (0, 1), 150, lr=0.3, hidden_dim=16, fit_steps=400)
    assert set(found) == {"perturbed", "plain", "frozen"}
    for cumulative in found.values():
        assert cumulative.shape == (2, 150)
        assert (cumulative[:, -1] > 0).all()
    assert (found["plain"][:, -1] < found["frozen"][:, -1]).all()
    steps = (20, 50, 100, 150)
    assert (log_slope(found["plain"], steps) < log_slope(found["frozen"], steps)).all()


def test_a_vanishing_perturbation_is_the_plain_learner():
    found = regression_regret(_env(), (0,), 60, lr=0.3, c_p=1e-6, hidden_dim=8, fit_steps=50)
    torch.testing.assert_close(found["perturbed"], found["plain"], rtol=1e-3, atol=1e-3)


def test_forced_arms_are_uniform_and_predictions_kept():
    run = simulate(_env(), BanditSettings("greedy", lr=0.3), (0, 1), 300, hidden_dim=8, random_arms=True)
    assert (torch.bincount(run.arms.flatten(), minlength=3) > 150).all()
    assert run.predicted.abs().sum() > 0
    early = (run.predicted - run.losses)[:, :30].square().mean()
    assert (run.predicted - run.losses)[:, -100:].square().mean() < early


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_regret_is_the_same_whatever_torch_was_told(switched_off):
    run = lambda: regression_regret(_env(), (0,), 20, lr=0.3, hidden_dim=8, fit_steps=5)
    expected = run()
    with switched_off():
        found = run()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_double_precision_as_torchs_default_changes_no_context():
    torch.set_default_dtype(torch.float64)
    try:
        found = regression_regret(_env(), (0,), 10, lr=0.3, hidden_dim=8, fit_steps=5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found["plain"].shape == (1, 10)


def test_one_step_has_no_slope():
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.50, got \[0, 5\]"):
        log_slope(torch.ones(1, 50), [0, 5])
    with pytest.raises(ValueError, match=r"at least two different steps, got \[40\]"):
        log_slope(torch.ones(1, 50), (40,))


def test_log_slope_by_hand():
    t = torch.arange(1, 101, dtype=torch.float64)
    cumulative = torch.stack([t.sqrt(), 3 * t])
    torch.testing.assert_close(log_slope(cumulative, (10, 30, 100)), torch.tensor([0.5, 1.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="positive"):
        log_slope(-cumulative, (10, 30))

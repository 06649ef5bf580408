"""Recipes carried to a larger batch, and the covariance of a step."""

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.training import TrainConfig, large_batch_config, multiplicative_noise, step_noise

BASE = TrainConfig(batch_size=32, optimizer="sgd", lr=0.1, momentum=0.9)
REGIME = {0: 0.1, 6: 0.01, 9: 0.001}


def test_the_base_recipe_in_updates():
    c = large_batch_config(BASE, REGIME, num_rows=4000, batch=32, epochs=12)
    assert (c.steps, c.lr, c.schedule) == (1500, 0.1, "step")
    assert c.boundaries == {0: 1.0, 750: pytest.approx(0.1), 1125: pytest.approx(0.01)}
    assert c.momentum == 0.9


def test_the_same_epochs_are_fewer_updates_and_an_adapted_regime_has_as_many():
    few = large_batch_config(BASE, REGIME, num_rows=4000, batch=512, epochs=12, adapted=False)
    assert (few.steps, few.batch_size) == (94, 512)
    assert few.lr == pytest.approx(0.4)
    many = large_batch_config(BASE, REGIME, num_rows=4000, batch=512, epochs=12)
    assert many.steps == 1500
    assert list(many.boundaries) == [0, 750, 1125]
    assert large_batch_config(BASE, REGIME, num_rows=4000, batch=512, epochs=12, rule="linear").lr == pytest.approx(1.6)
    assert large_batch_config(BASE, REGIME, num_rows=4000, batch=512, epochs=12, rule="none").lr == pytest.approx(0.1)


@pytest.mark.parametrize(("rows", "batch", "kept"), [(20, 512, {0: 1.0}), (100, 128, {0: 1.0, 5: 0.1, 7: 0.01})])
def test_phases_that_fall_on_one_update_keep_the_first_rate(rows, batch, kept):
    c = large_batch_config(BASE, REGIME, num_rows=rows, batch=batch, epochs=12, adapted=False, rule="none")
    assert c.lr == 0.1
    assert c.boundaries == pytest.approx(kept)


def test_noise_of_a_step_by_the_closed_form():
    """For a linear model with squared loss, the gradient of a row is known; with replacement cov = cov_row / B."""
    g = stream(0, "x")
    x, y = torch.randn(500, 3, generator=g), torch.randn(500, 1, generator=g)
    net = nn.Linear(3, 1, bias=False)
    rows = 2 * (net(x) - y) * x
    wanted = rows.detach().var(0, unbiased=False).sum().item()

    def loss(m, b):
        return (m(b.x) - b.y).square().mean()

    for batch, lr in ((8, 0.3), (128, 0.3)):
        got = step_noise(net, loss, Split(x, y), batch, lr, stream(1, "b"), batches=3000)
        assert got == pytest.approx(lr**2 * wanted / batch, rel=0.08)


def test_multiplicative_noise_makes_a_large_batch_as_noisy_as_a_small_one():
    """Trace of cov((1/M) sum g_n z_n) = (E z^2 E|g|^2 - |E g|^2) / M for rows drawn with replacement, E z^2 = M / m."""
    batch, base, draws = 64, 8, 6000
    rows = torch.randn(300, 4, generator=stream(0, "g")) + 0.2
    g = stream(1, "noise")
    weights = torch.stack([multiplicative_noise(batch, base, g) for _ in range(draws)])
    assert float(weights.mean()) == pytest.approx(1, abs=0.02)
    assert float(weights.var()) == pytest.approx(batch / base - 1, rel=0.02)
    picked = rows[torch.randint(300, (draws, batch), generator=stream(2, "rows"))]
    noisy = (weights[..., None] * picked).mean(1)
    found = float(noisy.var(0).sum())
    second, mean = float(rows.square().sum(1).mean()), float(rows.mean(0).square().sum())
    assert found == pytest.approx(second / base - mean / batch, rel=0.05)
    small = rows[torch.randint(300, (draws, base), generator=stream(3, "rows"))].mean(1)
    assert found == pytest.approx(float(small.var(0).sum()), rel=0.1)
    assert torch.equal(multiplicative_noise(8, 8, stream(0, "n")), torch.ones(8))
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"base_batch must lie in 1..8.*{wrong}"):
            multiplicative_noise(8, wrong, stream(0, "n"))


def test_bad_input_is_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"1 normalises by the batch.*model.eval\(\)"):
        step_noise(net, lambda m, b: m(b.x).sum(), Split(torch.ones(4, 2), torch.ones(4)), 2, 0.1, stream(0, "b"))
    with pytest.raises(ValueError, match="batch=0"):
        large_batch_config(BASE, REGIME, num_rows=100, batch=0, epochs=12)
    with pytest.raises(ValueError, match="epoch 0"):
        large_batch_config(BASE, {3: 0.1}, num_rows=100, batch=64, epochs=12)
    with pytest.raises(ValueError, match="unknown rule"):
        large_batch_config(BASE, REGIME, num_rows=100, batch=64, epochs=12, rule="cubic")

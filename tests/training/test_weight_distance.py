"""Distances from the start and the laws fitted to them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from etude.data.tasks import Split
from etude.training import DistanceTrace, TrainConfig, WeightDistance, compare_walks, fit_distances, log_spaced, train


@given(st.floats(0.1, 5), st.floats(0.1, 5))
def test_a_log_law_is_found_and_fits_better_than_the_others(a, c):
    t = np.array(log_spaced(200))
    fit = fit_distances(t, a + c * np.log(t))
    assert (fit.log_a, fit.log_c) == pytest.approx((a, c), rel=1e-6)
    assert fit.log_r2 == pytest.approx(1.0)
    assert fit.log_r2 > max(fit.power_r2, fit.sqrt_r2)


@given(st.floats(0.1, 5), st.floats(0.1, 1.5))
def test_a_power_law_is_found_and_fits_better(a, p):
    t = np.array(log_spaced(200))
    fit = fit_distances(t, a * t**p)
    assert (fit.power_a, fit.power_p) == pytest.approx((a, p), rel=1e-3)
    assert fit.power_r2 == pytest.approx(1.0, abs=1e-6)
    assert fit.power_r2 > fit.log_r2
    if abs(p - 0.5) < 1e-3:
        assert fit.sqrt_r2 == pytest.approx(1.0, abs=1e-4)


def test_a_random_walk_is_told_from_an_ultra_slow_one():
    t = np.arange(1, 400)
    walk = fit_distances(t, np.sqrt(t))
    assert walk.sqrt_r2 == pytest.approx(1.0)
    assert walk.power_p == pytest.approx(0.5, abs=1e-4)
    assert walk.log_r2 < 0.95


def test_recorded_distance_is_euclidean_over_all_parameters():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    probe = WeightDistance(model)
    with torch.no_grad():
        model[0].weight += 1.0
        model[1].bias -= 2.0
        model[1].running_mean += 9.0  # a buffer, not a weight
    assert probe.record(1) == pytest.approx((4 * 1 + 2 * 4) ** 0.5)
    with pytest.raises(ValueError, match="must increase, got 1 after 1"):
        probe.record(1)
    assert (probe.steps, len(probe.distances)) == ([1], 1)


def test_the_window_of_a_fit():
    probe = WeightDistance(nn.Linear(1, 1))
    t = np.arange(1, 30)
    probe.steps, probe.distances = t.tolist(), np.where(t <= 10, np.log(t) + 1, 50.0 + t).tolist()
    assert probe.fit(last=10).log_r2 == pytest.approx(1.0)
    assert probe.fit().log_r2 < 0.9
    with pytest.raises(ValueError, match="at least 3"):
        probe.fit(first=28)


def test_walks_compared():
    probes = [WeightDistance(nn.Linear(1, 1)) for _ in range(2)]
    t = np.arange(1, 30)
    for probe, factor in zip(probes, (1.0, 3.0)):
        probe.steps, probe.distances = t.tolist(), (factor * (1 + np.log(t))).tolist()
    found = compare_walks(probes)
    assert found["log_r2"] == pytest.approx(1.0)
    assert found["power_r2"] == pytest.approx(fit_distances(t, 1 + np.log(t)).power_r2)
    assert found["spread"] == pytest.approx(1.0)  # (3 - 1) / 2


def test_trace_of_a_training_run_starts_before_the_first_update():
    x = torch.randn(32, 3)
    trace = DistanceTrace([1, 2, 5, 10])
    start = {}

    def build(seed):
        net = nn.Linear(3, 1)
        start[seed] = [p.detach().clone() for p in net.parameters()]
        return net

    config = TrainConfig(steps=10, batch_size=8, optimizer="sgd", lr=0.1)
    done = train(
        build, Split(x, x.sum(1, keepdim=True)), loss=lambda m, b: (m(b.x) - b.y).square().mean(), config=config,
        seeds=(3, 4), callbacks=[trace], plan="sequential",
    )  # fmt: skip
    assert set(trace.probes) == {3, 4}
    assert trace.probes[3].steps == [1, 2, 5, 10]
    moved = sum((a - b).square().sum() for a, b in zip(done[0].module.parameters(), start[3])).sqrt()
    assert trace.probes[3].distances[-1] == pytest.approx(moved.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("steps", "distances", "message"),
    [
        ([1, 2], [1.0, 2.0], "at least 3"),
        ([1, 2, 3], [1.0, 2.0], "one distance each"),
        ([0, 1, 2], [1.0, 2.0, 3.0], "numbered from 1"),
        ([1, 2, 3], [0.0, 0.0, 0.0], "finite and positive"),
        ([1, 2, 3], [1.0, np.nan, 0.0], "finite and positive"),
        ([1, 2, 3], [2.0, 2.0, 2.0], "all distances are 2"),
        ([5, 5, 5], [1.0, 2.0, 3.0], "all updates are 5"),
    ],
)
def test_bad_input_is_named(steps, distances, message):
    with pytest.raises(ValueError, match=message):
        fit_distances(steps, distances)


def test_log_spaced_updates():
    assert log_spaced(200, 40)[0] == 1
    assert log_spaced(200, 40)[-1] == 200
    assert sorted(set(log_spaced(200, 40))) == log_spaced(200, 40)
    with pytest.raises(ValueError, match="at least 1"):
        log_spaced(0)

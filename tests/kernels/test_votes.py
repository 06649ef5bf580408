"""Votes against scikit-learn's neighbours and against what deep nets of a power become."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from etude.data import dirichlet_on_sphere
from etude.kernels import PowerDual, deep_kernel, hilbert_weights, nearest_weights, power_weights, vote_shares


def _case(n=80, test=60):
    drawn = dirichlet_on_sphere(n + test, ([3, 1, 2], [1, 2, 2]), 0.4, 0)
    labels = torch.eye(2, dtype=torch.float64)[drawn.y[:n]]
    return drawn.x[n:], drawn.x[:n], labels, drawn.y[:n].numpy()


def test_hilbert_estimate_equals_scikit_learn():
    rows, points, labels, y = _case()
    peer = KNeighborsClassifier(len(points), weights=lambda r: r**-2.0).fit(points.numpy(), y)
    got = vote_shares(rows, points, labels, {"hilbert": lambda u: hilbert_weights(u, 2)})["hilbert"]
    np.testing.assert_allclose(got.numpy(), peer.predict_proba(rows.numpy()), rtol=1e-8)


def test_nearest_equals_scikit_learn_and_so_does_a_deep_power():
    rows, points, labels, y = _case()
    peer = KNeighborsClassifier(1).fit(points.numpy(), y).predict(rows.numpy())
    rules = {"nearest": nearest_weights, "deep": lambda u: power_weights(u, 2, 60)}
    found = vote_shares(rows, points, labels, rules)
    np.testing.assert_array_equal(found["nearest"].argmax(1).numpy(), peer)
    np.testing.assert_array_equal(found["deep"].argmax(1).numpy(), peer)


def test_power_weights_are_the_deep_kernel():
    u = torch.tensor([[0.1, 0.3, 0.9], [0.01, 0.5, 0.2]], dtype=torch.float64)
    kernel = deep_kernel(u, PowerDual([0, 0, 0, 1.0]), 2, "nngp")
    got = power_weights(u, 3, 2)
    torch.testing.assert_close(got / got[:, :1], kernel / kernel[:, :1])


def test_coincident_points_share_the_vote():
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    labels = torch.eye(2, dtype=torch.float64)[torch.tensor([0, 1, 1])]
    rules = {"hilbert": lambda u: hilbert_weights(u, 2), "nearest": nearest_weights}
    for shares in vote_shares(points[:1], points, labels, rules).values():
        assert shares.tolist() == [[0.5, 0.5]]


def test_a_chunk_changes_nothing(monkeypatch):
    rows, points, labels, _ = _case()
    rule = {"h": lambda u: hilbert_weights(u, 3)}
    whole = vote_shares(rows, points, labels, rule)["h"]
    monkeypatch.setattr("etude.kernels.votes.CHUNK_PAIRS", 1)
    torch.testing.assert_close(vote_shares(rows, points, labels, rule)["h"], whole)


@pytest.mark.parametrize("depth", [60, 1100])
def test_a_power_beyond_float64_leaves_the_nearest_and_a_row_orthogonal_to_all_takes_everyone(depth):
    u = torch.tensor([[0.2, 0.1, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    assert power_weights(u, 2, depth).tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


def test_bad_powers_are_named():
    with pytest.raises(ValueError, match="degree must be at least 2"):
        power_weights(torch.zeros(1, 1), 1, 3)

"""Planar batches and scores."""

import pytest
import torch

from etude.data.geometry import convex_hull_targets, delaunay_targets, tour_length, tsp_targets
from etude.data.planar import fresh_batches, labelled_pool, planar_problem, planar_scores, pool_batches
from etude.data.randomness import stream

LABEL = {"hull": convex_hull_targets, "delaunay": delaunay_targets, "tsp": tsp_targets}


@pytest.mark.parametrize("problem", LABEL)
def test_labels_belong_to_their_points_and_score_full_marks(problem):
    data = planar_problem(problem, 20, 6, stream(0, "p"))
    want = LABEL[problem](data.x)
    assert torch.equal(data.y, want[:, : data.y.shape[1]]) and bool((data.y >= 0).any(0).all())
    assert all(v == pytest.approx(1.0) for k, v in planar_scores(problem, data, data.y).items() if k != "tour_length")


def test_scores_of_wrong_outputs():
    data = planar_problem("hull", 20, 6, stream(1, "p"))
    nothing = torch.full_like(data.y, -1)
    assert planar_scores("hull", data, nothing) == {"exact": 0.0, "valid": 0.0, "area": 0.0}
    three = torch.where(torch.arange(data.y.shape[1]) < 3, data.y, -1)
    scores = planar_scores("hull", data, three)
    assert scores["valid"] == 1.0 and scores["exact"] < 1.0 and 0 < scores["area"] < 1
    tours = planar_problem("tsp", 20, 6, stream(1, "p"))
    other = torch.arange(6).expand(20, 6)
    scores = planar_scores("tsp", tours, other)
    want = tour_length(tours.x, other).mean() / tour_length(tours.x, tours.y).mean()
    assert scores["tour_ratio"] == pytest.approx(float(want), rel=1e-5) and scores["tour_ratio"] > 1


def test_fresh_batches_have_one_size_each_and_repeat_with_the_generator():
    feed = fresh_batches("hull", 8, (4, 7))
    a, b = (stream(2, "data") for _ in range(2))
    sizes = set()
    for step in range(20):
        one, two = feed.draw(a, step), feed.draw(b, step)
        assert torch.equal(one.x, two.x) and torch.equal(one.y, two.y)
        sizes.add(one.x.shape[1])
    assert sizes == {4, 5, 6, 7}


def test_pool_is_labelled_once_and_drawn_from():
    pool = labelled_pool("tsp", 30, (5, 6), seed=0, method="insertion")
    assert set(pool) == {5, 6} and pool[5].n == 30
    assert torch.equal(pool[5].y, tsp_targets(pool[5].x, method="insertion"))
    batch = pool_batches(pool, 16).draw(stream(0, "data"), 0)
    source = pool[batch.x.shape[1]]
    rows = (batch.x[:, None] == source.x[None]).all((2, 3)).float().argmax(1)
    assert torch.equal(source.x[rows], batch.x) and torch.equal(source.y[rows], batch.y)


def test_bad_input():
    with pytest.raises(ValueError, match="problem"):
        planar_problem("knapsack", 2, 5, stream(0, "p"))
    with pytest.raises(ValueError, match="sizes"):
        fresh_batches("hull", 2, (6, 5))
    with pytest.raises(ValueError, match="empty"):
        pool_batches({}, 4)

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.layers.clustering import k_center, kmeans, kmeans_plus_plus


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_is_sklearns_from_the_same_start(weighted: bool) -> None:
    from sklearn.cluster import KMeans

    x = torch.randn(200, 3, generator=gen(0), dtype=torch.float64)
    start = x[:7].clone()
    weights = torch.rand(200, generator=gen(1), dtype=torch.float64) if weighted else None
    ours = kmeans(x, 7, generator=gen(2), init=start, iters=200, weights=weights)
    peer = KMeans(7, init=start.numpy(), n_init=1, max_iter=200, tol=0.0)
    peer.fit(x.numpy(), sample_weight=None if weights is None else weights.numpy())
    assert ours.converged
    assert np.allclose(ours.centers.numpy(), peer.cluster_centers_, atol=1e-8)
    assert (ours.labels.numpy() == peer.labels_).all()
    assert float(ours.inertia) == pytest.approx(peer.inertia_)


def test_sets_are_clustered_each_for_itself() -> None:
    x = torch.randn(3, 60, 2, generator=gen(0))
    start = x[:, :4].clone()
    together = kmeans(x, 4, generator=gen(1), init=start, iters=500)
    assert together.centers.shape == (3, 4, 2) and together.labels.shape == (3, 60)
    for i in range(3):
        alone = kmeans(x[i], 4, generator=gen(1), init=start[i], iters=500)
        assert torch.allclose(together.centers[i], alone.centers, atol=1e-6)
        assert together.inertia[i].item() == pytest.approx(alone.inertia.item(), rel=1e-5)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 8))
def test_labels_are_the_nearest_centres_and_inertia_falls(seed: int, k: int) -> None:
    x = torch.randn(40, 2, generator=gen(seed))
    short, long = (kmeans(x, k, generator=gen(seed), iters=i) for i in (1, 30))
    assert long.inertia <= short.inertia * (1 + 1e-6)
    assert torch.equal(long.labels, torch.cdist(x, long.centers).argmin(1))
    assert len(long.labels.unique()) == k  # no cluster is lost


def test_an_empty_cluster_is_put_on_the_farthest_row() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0]])
    found = kmeans(x, 3, generator=gen(0), init=torch.tensor([[0.5], [500.0], [600.0]]))
    assert sorted(found.centers[:, 0].tolist()) == [0.0, 1.0, 10.0] and found.inertia == 0


def test_one_cluster_is_the_mean() -> None:
    x = torch.randn(30, 4, generator=gen(0))
    assert torch.allclose(kmeans(x, 1, generator=gen(1)).centers[0], x.mean(0), atol=1e-6)


def test_seeding_draws_in_proportion_to_the_squared_distance() -> None:
    # from the first row at 0: masses 1 and 9, so the far one comes nine times in ten
    x = torch.tensor([[0.0], [1.0], [3.0]]).expand(4000, 3, 1)
    weights = torch.tensor([1.0, 1e-12, 1e-12])  # the first draw is row 0
    second = kmeans_plus_plus(x, 2, gen(0), weights=weights)
    assert (second[:, 0] == 0).all()
    assert (second[:, 1] == 2).float().mean().item() == pytest.approx(0.9, abs=0.02)


@given(seed=st.integers(0, 10**6), k=st.integers(1, 12))
def test_seeding_never_takes_a_row_twice(seed: int, k: int) -> None:
    x = torch.randint(0, 2, (12, 2), generator=gen(seed)).float()  # at most four distinct points
    rows = kmeans_plus_plus(x, k, gen(seed))
    assert len(rows.unique()) == k
    distinct = len(x.unique(dim=0))
    assert len(x[rows].unique(dim=0)) == min(k, distinct)  # duplicates only once all points are taken


def test_farthest_first_on_a_line() -> None:
    x = torch.tensor([[0.0], [1.0], [4.0], [10.0], [6.0]])
    assert k_center(x, 4, 0).tolist() == [3, 2, 4, 1] or k_center(x, 4, 0).tolist() == [3, 4, 2, 1]
    assert k_center(x, 1, torch.tensor([0, 3])).tolist() in ([2], [4])
    assert k_center(x, 2, torch.tensor([0, 3])).tolist() == [2, 4]  # equally far: the lowest index first
    assert k_center(x, 0, 0).tolist() == []


@given(seed=st.integers(0, 10**6))
def test_farthest_first_is_within_twice_the_best_radius(seed: int) -> None:
    from itertools import combinations

    x = torch.randn(9, 2, generator=gen(seed))
    far = torch.cdist(x, x)
    chosen = torch.cat([torch.tensor([0]), k_center(x, 2, 0)])
    radius = far[:, chosen].amin(1).max()
    best = min(float(far[:, list(c)].amin(1).max()) for c in combinations(range(9), 3))
    assert float(radius) <= 2 * best + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_random_centres_are_rows_that_weigh_something(seed: int) -> None:
    x, weights = torch.arange(20.0)[:, None], torch.zeros(20)
    weights[[3, 11]] = 1.0
    found = kmeans(x, 2, generator=gen(seed), init="random", iters=1, weights=weights)
    assert sorted(found.centers[:, 0].tolist()) == [3.0, 11.0]
    assert len(set(found.labels[[3, 11]].tolist())) == 2


def test_bad_input_is_named() -> None:
    x = torch.randn(5, 2, generator=gen(0))
    for call, message in [
        (lambda: kmeans(x, 6, generator=gen(0)), r"k must lie in 1\.\.5"),
        (lambda: kmeans(x, 2, generator=gen(0), init="best"), "init"),
        (lambda: kmeans(x, 2, generator=gen(0), init=x[:3]), r"\(\.\.\., 2, 2\)"),
        (lambda: kmeans(x, 2, generator=gen(0), iters=0), "iters"),
        (lambda: kmeans(x, 2, generator=gen(0), weights=-torch.ones(5)), "weights"),
        (lambda: kmeans(x * torch.nan, 2, generator=gen(0)), "NaN"),
        (lambda: kmeans_plus_plus(x[0], 1, gen(0)), "shape"),
        (lambda: k_center(x, 5, 0), "no centre yet"),
        (lambda: k_center(x, 1, torch.tensor([], dtype=torch.long)), "at least one row"),
        (lambda: k_center(x, 1, 7), "at least one row in 0..4"),
        (lambda: k_center(x, 1, torch.tensor([True, False, True, False, False])), "mask.nonzero"),
        (lambda: k_center(x, 1, 1.7), "numbers of rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

"""Labels against Qhull and brute force, scores against closed forms, the conventions, bad input."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull, Delaunay

from etude.data import geometry as G
from etude.data.randomness import stream
from etude.data.tours import _counter_clockwise

seeds = st.integers(0, 2**31 - 1)
SQUARE = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def points(seed, batch, n):
    return G.uniform_points(batch, n, stream(seed, "points"))


class TestHull:
    @settings(max_examples=20, deadline=None)
    @given(seeds, st.integers(4, 30))
    def test_equals_qhull(self, seed, n):
        x = points(seed, 8, n)
        for row, hull in zip(x, G.convex_hull_targets(x), strict=True):
            true = ConvexHull(row.double().numpy()).vertices
            true = np.roll(true, -int(true.argmin()))
            assert hull[hull >= 0].tolist() == true.tolist()

    def test_square_runs_counter_clockwise_from_the_lowest_index(self):
        assert G.convex_hull_targets(SQUARE).tolist() == [1, 4, 3, 2, -1]

    def test_points_on_an_edge_are_no_corners(self):
        x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [1.0, 1.0]])
        assert G.convex_hull_targets(x).tolist() == [0, 2, 3, -1]

    def test_duplicates_give_the_lowest_index(self):
        x = torch.cat([SQUARE, SQUARE])
        assert G.convex_hull_targets(x)[:4].tolist() == [1, 4, 3, 2]

    def test_padding_is_not_read(self):
        x = points(0, 6, 9)
        lengths = torch.tensor([3, 4, 5, 6, 7, 9])
        hulls = G.convex_hull_targets(x, lengths=lengths)
        for row, n, hull in zip(x, lengths.tolist(), hulls, strict=True):
            alone = G.convex_hull_targets(row[:n])
            assert hull[hull >= 0].tolist() == alone[alone >= 0].tolist()

    @pytest.mark.parametrize(
        ("x", "want"),
        [
            ([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.5, 0.5]], [0, 2, -1, -1]),
            ([[2.0, 2.0], [1.0, 1.0], [0.0, 0.0]], [0, 2, -1]),
            ([[3.0, 1.0], [0.0, 0.0]], [0, 1]),
            ([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [0, -1, -1]),
        ],
    )
    def test_without_area_gives_the_extremes_or_raises(self, x, want):
        assert G.convex_hull_targets(torch.tensor(x)).tolist() == want
        with pytest.raises(ValueError, match="no area"):
            G.convex_hull_targets(torch.tensor(x), strict=True)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_bad_coordinates_are_named(self, bad):
        x = points(0, 3, 5)
        x[1, 2, 0] = bad
        with pytest.raises(ValueError, match="row 1"):
            G.convex_hull_targets(x)

    def test_bad_lengths(self):
        for lengths in ([0, 3], [3, 6], [3]):
            with pytest.raises(ValueError, match="lengths"):
                G.convex_hull_targets(points(0, 2, 5), lengths=torch.tensor(lengths))


class TestArea:
    @settings(max_examples=15, deadline=None)
    @given(seeds, st.integers(4, 20))
    def test_true_hull_covers_everything_and_a_smaller_polygon_less(self, seed, n):
        x = points(seed, 8, n)
        hull = G.convex_hull_targets(x)
        assert torch.allclose(G.hull_area_coverage(x, hull), torch.ones(8, dtype=torch.float64))
        size = (hull >= 0).sum(1)
        smaller = torch.where(torch.arange(n) < size[:, None] - 1, hull, -1)
        part = G.hull_area_coverage(x, smaller)
        big = size > 3
        assert bool((part[big] < 1).all()) and bool(part[~big].isnan().all())

    def test_closed_form(self):
        assert float(G.hull_area_coverage(SQUARE, torch.tensor([1, 3, 2]))) == pytest.approx(0.5)
        assert float(G.hull_area_coverage(SQUARE, torch.tensor([1, 0, 2]))) == pytest.approx(0.25)

    @pytest.mark.parametrize(
        "output",
        [[1, 3, 4, 2], [1, 2], [1, 4, 3, 1], [1, 4, 1, 2], []],
        ids=["crossing", "two points", "repeat at the end", "repeat", "nothing"],
    )
    def test_no_simple_polygon_is_nan(self, output):
        s = torch.tensor([output + [-1] * (6 - len(output))])
        assert not bool(G.is_simple_polygon(SQUARE[None], s))
        assert math.isnan(float(G.hull_area_coverage(SQUARE[None], s)))

    def test_an_edge_that_folds_back_or_touches_is_not_simple(self):
        x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
        assert not bool(G.is_simple_polygon(x, torch.tensor([0, 1, 2, 3])))
        assert bool(G.is_simple_polygon(x, torch.tensor([0, 1, 3])))

    def test_many_rows_at_once_equal_one_by_one(self, monkeypatch):
        x = points(1, 20, 6)
        s = torch.stack([torch.randperm(6, generator=stream(i, "s")) for i in range(20)])
        whole = G.is_simple_polygon(x, s)
        monkeypatch.setattr(G, "_PAIRS_AT_ONCE", 72)
        assert G.is_simple_polygon(x, s).tolist() == whole.tolist()
        assert 0 < int(whole.sum()) < 20

    def test_index_out_of_range(self):
        with pytest.raises(ValueError, match="index 5"):
            G.hull_area_coverage(SQUARE, torch.tensor([0, 5, 2]))


class TestSameCycle:
    def test_rotation_direction_and_padding(self):
        a = torch.tensor([[0, 1, 2, 3], [0, 1, 2, -1]])
        b = torch.tensor([[2, 3, 0, 1, -1], [2, 1, 0, -1, -1]])
        assert G.same_cycle(a, b).tolist() == [True, True]
        assert G.same_cycle(a, b, directed=True).tolist() == [True, False]

    def test_other_order_or_length_differs(self):
        a = torch.tensor([[0, 1, 2, 3]])
        assert not bool(G.same_cycle(a, torch.tensor([[0, 2, 1, 3]])))
        assert not bool(G.same_cycle(a, torch.tensor([[0, 1, 2, -1]])))
        assert not bool(G.same_cycle(torch.tensor([[0, 1, -1]]), torch.tensor([[0, 1, 1]])))

    def test_empty(self):
        empty = torch.full((1, 3), -1)
        assert bool(G.same_cycle(empty, empty)) and not bool(G.same_cycle(empty, torch.tensor([[0, 1, 2]])))
        for none, some in ((empty[:, :0], torch.tensor([[0, 1, 2]])), (torch.tensor([[0, 1, 2]]), empty[:, :0])):
            assert not bool(G.same_cycle(none, some))
        assert bool(G.same_cycle(empty[:, :0], empty))

    def test_outputs_of_no_width_score_nothing(self):
        none = torch.empty(1, 0, dtype=torch.int64)
        assert math.isnan(float(G.hull_area_coverage(SQUARE[None], none)))
        assert float(G.tour_length(SQUARE[None], none)) == 0
        assert G.triangle_coverage(none, G.delaunay_targets(SQUARE[None])).tolist() == [0.0]

    def test_coinciding_points_count_as_one(self):
        x = torch.cat([SQUARE, SQUARE])
        assert not bool(G.same_cycle(torch.tensor([1, 4, 3, 2]), torch.tensor([6, 9, 8, 7])))
        assert bool(G.same_cycle(torch.tensor([1, 4, 3, 2]), torch.tensor([6, 9, 8, 7]), points=x))

    @settings(max_examples=20, deadline=None)
    @given(seeds, st.integers(1, 9))
    def test_every_rotation_of_a_cycle_is_the_same(self, seed, n):
        a = torch.randperm(n, generator=stream(seed, "cycle"))
        for shift in range(n):
            assert bool(G.same_cycle(a, a.roll(shift), directed=True)) and bool(G.same_cycle(a, a.flip(0).roll(shift)))


class TestDelaunay:
    def test_equals_scipy_as_a_set_and_is_sorted_by_incentre(self):
        x = points(3, 10, 8)
        for row, flat in zip(x, G.delaunay_targets(x), strict=True):
            ours = flat[flat >= 0].view(-1, 3)
            p = row.double().numpy()
            assert {tuple(t) for t in ours.tolist()} == {tuple(sorted(t)) for t in Delaunay(p).simplices.tolist()}
            assert (ours.sort(1).values == ours).all()
            corner = p[ours.numpy()]
            side = np.linalg.norm(np.roll(corner, -1, 1) - np.roll(corner, -2, 1), axis=-1)
            incentre = (side[..., None] * corner).sum(1) / side.sum(1, keepdims=True)
            assert incentre.tolist() == sorted(incentre.tolist())

    def test_coverage(self):
        x = points(4, 5, 6)
        target = G.delaunay_targets(x)
        assert G.triangle_coverage(target, target).tolist() == [1.0] * 5
        first = target[:, :3].roll(1, dims=1)
        want = [3 / int((t >= 0).sum()) for t in target]
        assert G.triangle_coverage(first, target).tolist() == pytest.approx(want)
        assert G.triangle_coverage(target[:, :2], target).tolist() == [0.0] * 5

    def test_row_without_area_has_no_triangle(self):
        x = torch.stack([SQUARE, torch.arange(5.0)[:, None].expand(5, 2)])
        assert (G.delaunay_targets(x)[1] == -1).all()


class TestTours:
    @settings(max_examples=10, deadline=None)
    @given(seeds, st.sampled_from([4, 5, 6, 7]))
    def test_exact_equals_brute_force(self, seed, n):
        x = points(seed, 3, n).double()
        tours = torch.tensor([(0, *p) for p in permutations(range(1, n))])
        best = torch.stack([G.tour_length(row.expand(len(tours), -1, -1), tours).min() for row in x])
        assert torch.allclose(G.tour_length(x, G.tsp_targets(x)), best)

    @pytest.mark.parametrize("method", ["auto", "local", "nearest", "insertion"])
    def test_convention(self, method):
        x = points(5, 20, 9)
        tours = G.tsp_targets(x, method=method)
        assert (tours[:, 0] == 0).all() and (tours.sort(1).values == torch.arange(9)).all()
        c = x.gather(1, tours[..., None].expand(-1, -1, 2)).double()
        d = c.roll(-1, 1)
        assert bool(((c[..., 0] * d[..., 1] - c[..., 1] * d[..., 0]).sum(1) >= -1e-9).all())

    def test_flat_tour_takes_the_smaller_second_index(self):
        x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        tour = G.tsp_targets(x).tolist()
        assert tour[1] < tour[-1] and float(G.tour_length(x, torch.tensor(tour))) == pytest.approx(6)

    def test_quality_order(self):
        x = points(6, 60, 12)
        length = {m: float(G.tour_length(x, G.tsp_targets(x, method=m)).mean()) for m in
                  ("exact", "local", "insertion", "nearest")}  # fmt: skip
        assert length["exact"] <= length["local"] + 1e-6 < length["insertion"] < length["nearest"]
        assert length["local"] < 1.005 * length["exact"]

    def test_local_search_beats_its_start_above_the_exact_limit(self):
        x = points(7, 4, 30)
        local, start = (G.tour_length(x, G.tsp_targets(x, method=m)) for m in ("auto", "insertion"))
        assert bool((local <= start + 1e-6).all()) and float(local.mean()) < 0.97 * float(start.mean())

    def test_few_cities(self):
        for n in (1, 2, 3):
            tour = G.tsp_targets(points(8, 4, n))
            assert (tour.sort(1).values == torch.arange(n)).all()

    def test_length_closed_form(self):
        assert float(G.tour_length(SQUARE, torch.tensor([1, 4, 3, 2]))) == pytest.approx(4)
        assert float(G.tour_length(SQUARE, torch.tensor([1, 4, 3, 2, -1]))) == pytest.approx(4)
        assert float(G.tour_length(SQUARE, torch.tensor([1, -1]))) == 0

    def test_bad_input(self):
        x = points(0, 2, 13)
        with pytest.raises(ValueError, match="12 cities"):
            G.tsp_targets(x, method="exact")
        with pytest.raises(ValueError, match="method"):
            G.tsp_targets(x, method="lkh")
        with pytest.raises(ValueError, match="index 13"):
            G.tour_length(x, torch.tensor([[0, 13], [0, 1]]))
        with pytest.raises(ValueError, match="padding"):
            G.tour_length(x, torch.tensor([[0, 1, 2], [0, -1, 1]]))
        with pytest.raises(ValueError, match="shape"):
            G.tsp_targets(torch.rand(2, 5, 3))


def test_of_points_at_one_place_labels_name_the_lowest_index():
    for seed in range(50):
        points = torch.rand(6, 2, generator=stream(seed, "points"))
        doubled = torch.cat([points, points[:2]])
        assert int(G.delaunay_targets(doubled).max()) < 6
        assert G.delaunay_targets(doubled).tolist() == G.delaunay_targets(points).tolist()
    moved = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 0]])
    same, other = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 3]])
    assert float(G.triangle_coverage(other, same)) == 0.0
    assert float(G.triangle_coverage(other, same, points=moved[None])) == 1.0


def test_a_tour_visits_the_lower_index_of_one_place_first():
    cities = torch.tensor([[0.0, 1], [1, 0], [1, 0], [1, 1], [0, 0]])
    assert G.tsp_targets(cities).tolist() == [0, 4, 1, 2, 3]
    around = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 0]])
    assert G.tsp_targets(around).tolist() == [0, 3, 1, 2]
    assert G.tsp_targets(torch.zeros(4, 2)).tolist() == [0, 1, 2, 3]


def test_the_label_does_not_depend_on_which_of_the_twins_the_solver_took_first():
    line = np.array([[[0.0, 0], [0, 0], [1, 0], [2, 0]]])
    for tour in ([0, 1, 2, 3], [0, 3, 2, 1], [0, 2, 3, 1], [0, 1, 3, 2]):
        ours = _counter_clockwise(line, np.array([tour]))[0].tolist()
        assert ours == [0, 1, 2, 3]


def test_an_empty_batch_has_no_triangles():
    assert G.delaunay_targets(torch.rand(0, 4, 2)).shape == (0, 0)


def test_tours_of_any_integer_type_but_no_fractions():
    points, tour = torch.rand(1, 4, 2), torch.tensor([[0, 2, 1]])
    assert G.tour_length(points, tour.to(torch.uint8)) == G.tour_length(points, tour)
    with pytest.raises(ValueError, match=r"must be integers, got torch\.float32"):
        G.tour_length(points, tour.float())


@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_labels_far_from_the_origin_are_those_at_home(offset):
    """Metres of a national grid, seconds of a clock: the same points, moved."""
    far = points(3, 6, 9).double() + offset
    near = far - offset  # exact
    for make in (G.convex_hull_targets, G.delaunay_targets, G.tsp_targets):
        assert torch.equal(make(far), make(near)), make.__name__
    assert torch.equal(G.tour_length(far, G.tsp_targets(far)), G.tour_length(near, G.tsp_targets(near)))
    assert torch.equal(G.hull_area_coverage(far, G.convex_hull_targets(far)), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("power", [-700, -60, 60, 700])
def test_labels_and_scores_do_not_depend_on_the_unit(power):
    """Local search once stopped at improvements of 1e-12, and ran for ever where rounding exceeds that."""
    x = points(5, 3, 9).double()
    scaled = torch.from_numpy(np.ldexp(x.numpy(), power))
    for make in (G.convex_hull_targets, G.delaunay_targets, G.tsp_targets):
        assert torch.equal(make(scaled), make(x)), make.__name__
    local = [G.tsp_targets(p, method="local", restarts=2) for p in (x, scaled)]
    assert torch.equal(*local)
    some = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    assert torch.equal(G.hull_area_coverage(scaled, some), G.hull_area_coverage(x, some))
    assert torch.equal(G.tour_length(scaled, local[0]), torch.ldexp(G.tour_length(x, local[0]), torch.tensor(power)))


def test_short_and_long_tours_in_single_precision():
    x = points(1, 4, 6)
    tour = G.tsp_targets(x)
    for unit in (2.0**-100, 2.0**100):
        assert torch.equal(G.tour_length(x * unit, tour), G.tour_length(x, tour) * unit)
    assert torch.autograd.gradcheck(lambda p: G.tour_length(p, tour), (x.double().requires_grad_(),))


def test_points_of_any_number_type():
    x = torch.tensor([[0, 0], [4, 0], [4, 3], [1, 1]])
    for kind in (torch.int64, torch.bfloat16, torch.float16, torch.float32):
        p = x.to(kind)
        hull = G.convex_hull_targets(p)
        assert hull.tolist() == [0, 1, 2, 3]
        assert float(G.tour_length(p, hull[:3])) == 12.0
        assert float(G.hull_area_coverage(p, hull)) == 1.0
    assert G.tour_length(x.numpy(), np.array([0, 1, 2])) == 12.0
    assert bool(G.same_cycle(np.array([1, 2, 0]), np.array([0, 1, 2])))
    assert float(G.hull_area_coverage(x.numpy(), np.array([0, 1, 2]))) == pytest.approx(6 / 6.5)


def test_coverage_of_one_instance_and_of_indices_that_are_none():
    three = torch.tensor([2, 0, 1])
    assert float(G.triangle_coverage(three, torch.tensor([0, 1, 2, 0, 2, 3]))) == 0.5
    with pytest.raises(ValueError, match="index 9 at step 1"):
        G.triangle_coverage(torch.tensor([[0, 9, 2]]), three[None], points=torch.rand(1, 3, 2))
    with pytest.raises(ValueError, match="must be integers"):
        G.triangle_coverage(three[None].float(), three[None])
    with pytest.raises(ValueError, match="shape"):
        G.triangle_coverage(three[None], three.expand(2, 3))


def test_lengths_and_restarts_that_are_none():
    x = points(0, 2, 5)
    for lengths in ([3.5, 4.0], [True, True]):
        with pytest.raises(ValueError, match="whole numbers of points"):
            G.convex_hull_targets(x, lengths=torch.tensor(lengths))
    with pytest.raises(ValueError, match="restarts must be at least 0, got -1"):
        G.tsp_targets(x, method="local", restarts=-1)

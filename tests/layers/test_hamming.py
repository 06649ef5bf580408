"""HammingIndex against brute force: distances, order of ties, padding, exclusions, both kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.randomness import numpy_stream
from etude.layers import HammingIndex, hamming_distances
from etude.layers import hamming as module


def brute(queries, codes, n_bits, k, exclude=None):
    """Neighbours by full comparison of the bits, ties by index."""
    q, c = (np.unpackbits(x, axis=1)[:, :n_bits].astype(int) for x in (queries, codes))
    distances = (q[:, None] != c[None]).sum(-1)
    for row, out in enumerate(exclude if exclude is not None else []):
        distances[row, [i for i in np.atleast_1d(out) if i >= 0]] = n_bits + 1
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, 1), order


def draw(seed, n, width):
    return numpy_stream(seed, "codes").integers(0, 256, (n, width), dtype=np.uint8)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 300),
    n_bits=st.integers(1, 140),
    n_queries=st.sampled_from([1, 3, 33, 200]),
    data=st.data(),
)
def test_equals_brute_force_with_ties_by_index(seed, n, n_bits, n_queries, data):
    width = -(-n_bits // 8)
    k = data.draw(st.integers(1, n))
    codes, queries = draw(seed, n, width), draw(seed + 1, n_queries, width)
    distances, indices = HammingIndex().fit(codes, n_bits).kneighbors(queries, k)
    expected_distances, expected_indices = brute(queries, codes, n_bits, k)
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("n_queries", [2, 40])
@pytest.mark.parametrize("n_bits", [5, 64, 200, 254, 255, 256, 512])
def test_many_blocks_and_wide_codes(n_queries, n_bits, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 256)
    monkeypatch.setattr(module, "_BLOCK_PAIRS", 512)
    width = -(-n_bits // 8)
    codes = draw(0, 3001, width)
    queries = np.concatenate([draw(1, n_queries - 1, width), ~codes[7:8]])  # the farthest possible code too
    distances, indices = HammingIndex().fit(codes, n_bits).kneighbors(queries, 3001)
    expected_distances, expected_indices = brute(queries, codes, n_bits, 3001)
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)
    assert distances.max() == n_bits


def test_kernels_agree(monkeypatch):
    codes, queries = draw(0, 5000, 16), draw(1, 60, 16)
    index = HammingIndex().fit(codes)
    by_matmul = index.kneighbors(queries, 20)
    monkeypatch.setattr(module, "_MATMUL_FROM", 10**9)
    by_popcount = index.kneighbors(queries, 20)
    monkeypatch.setattr(module, "_popcount", module._table_popcount)
    by_table = index.kneighbors(queries, 20)
    for other in (by_popcount, by_table):
        np.testing.assert_array_equal(by_matmul[0], other[0])
        np.testing.assert_array_equal(by_matmul[1], other[1])


def test_equal_codes_come_in_index_order():
    distances, indices = HammingIndex().fit(np.zeros((500, 4), np.uint8)).kneighbors(np.zeros((1, 4), np.uint8), 7)
    assert indices.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert distances.tolist() == [[0] * 7]


def test_padding_bits_never_count():
    bits = numpy_stream(3, "bits").integers(0, 2, (50, 13), dtype=np.uint8)
    clean = np.packbits(bits, axis=1)
    dirty = clean | np.array([0, 0b111], np.uint8)
    for n_queries in (1, 50):
        a = HammingIndex().fit(clean, 13).kneighbors(dirty[:n_queries], 5)
        b = HammingIndex().fit(dirty, 13).kneighbors(clean[:n_queries], 5)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
        assert (a[0][:, 0] == 0).all()
    np.testing.assert_array_equal(hamming_distances(clean, dirty, 13).diagonal(), 0)


def test_single_bits_are_big_endian():
    codes = np.packbits(np.eye(12, dtype=np.uint8), axis=1)
    distances = hamming_distances(np.zeros((1, 2), np.uint8), codes, 12)
    assert distances.tolist() == [[1] * 12]
    assert codes[0].tolist() == [128, 0]
    one_byte = np.packbits(np.eye(5, dtype=np.uint8), axis=1)
    assert (hamming_distances(one_byte, one_byte, 5) == 2 * (1 - np.eye(5))).all()


@pytest.mark.parametrize("n_queries", [3, 50])
def test_exclude_in_all_its_forms(n_queries):
    codes, queries = draw(0, 400, 4), draw(1, n_queries, 4)
    index = HammingIndex().fit(codes, 31)
    one = numpy_stream(0, "e").integers(-1, 400, n_queries)
    two = numpy_stream(1, "e").integers(-1, 400, (n_queries, 6))
    for exclude in (one, two, torch.from_numpy(two), [list(set(r[r >= 0].tolist())) for r in two]):
        got = index.kneighbors(queries, 30, exclude=exclude)
        as_rows = exclude.numpy() if isinstance(exclude, torch.Tensor) else exclude
        want = brute(queries, codes, 31, 30, as_rows)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])


def test_own_row_is_left_out_and_missing_neighbours_are_padded():
    codes = draw(0, 3, 2)
    distances, indices = HammingIndex().fit(codes).kneighbors(codes, 3, exclude=np.arange(3))
    assert all(i not in row for i, row in enumerate(indices.tolist()))
    assert (indices[:, -1] == -1).all()
    assert (distances[:, -1] == 17).all()
    _, none = HammingIndex().fit(codes).kneighbors(codes[:1], 2, exclude=[[0, 1, 2]])
    assert none.tolist() == [[-1, -1]]


@pytest.mark.parametrize("n_queries", [4, 150])
def test_radius_gives_the_whole_ball(n_queries):
    codes, queries = draw(0, 2000, 2), draw(1, n_queries, 2)
    distances, indices = HammingIndex().fit(codes).radius(queries, 4, exclude=np.zeros(n_queries, int))
    full = hamming_distances(queries, codes)
    full[:, 0] = 99
    assert len(distances) == len(indices) == n_queries
    for row, (d, i) in enumerate(zip(distances, indices, strict=True)):
        assert set(i.tolist()) == set(np.flatnonzero(full[row] <= 4).tolist())
        np.testing.assert_array_equal(d, full[row, i])
        assert (np.lexsort((i, d)) == np.arange(len(i))).all()


def test_radius_zero_and_empty_balls():
    codes = np.array([[0], [255], [0]], np.uint8)
    distances, indices = HammingIndex().fit(codes).radius(np.array([[0], [15]], np.uint8), 0)
    assert [i.tolist() for i in indices] == [[0, 2], []]
    assert [d.tolist() for d in distances] == [[0, 0], []]


@pytest.mark.parametrize("radius", [16, 255, 300, 70_000, float("inf")])
def test_a_radius_beyond_the_code_holds_every_code(radius):
    codes = draw(0, 200, 2)
    distances, indices = HammingIndex().fit(codes).radius(codes[:3], radius)
    assert [len(i) for i in indices] == [200] * 3 and max(d.max() for d in distances) <= 16


def test_matches_faiss():
    faiss = pytest.importorskip("faiss", reason="optional: the peer faiss is not installed")
    codes, queries = draw(0, 20_000, 16), draw(1, 70, 16)
    peer = faiss.IndexBinaryFlat(128)
    peer.add(codes)
    distances, _ = peer.search(queries, 10)
    np.testing.assert_array_equal(HammingIndex().fit(codes).kneighbors(queries, 10)[0], distances)


def test_tensors_are_accepted():
    codes = draw(0, 20, 2)
    a = HammingIndex().fit(torch.from_numpy(codes)).kneighbors(torch.from_numpy(codes[:3]), 2)
    b = HammingIndex().fit(codes).kneighbors(codes[:3], 2)
    np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HammingIndex().fit(np.zeros((3, 2))), "2-D uint8.*float64"),
        (lambda: HammingIndex().fit(np.zeros(3, np.uint8)), "1-D uint8"),
        (lambda: HammingIndex().fit(np.zeros((0, 2), np.uint8)), "at least one code"),
        (lambda: HammingIndex().fit(np.zeros((3, 0), np.uint8)), "no bytes"),
        (lambda: HammingIndex().fit(np.zeros((3, 2), np.uint8), 17), r"n_bits=17.*2 bytes.*9 to 16"),
        (lambda: HammingIndex().fit(np.zeros((3, 2), np.uint8), 8), r"n_bits=8.*2 bytes"),
        (lambda: HammingIndex().kneighbors(np.zeros((1, 2), np.uint8), 1), r"call fit\(codes\) first"),
        (lambda: fitted().kneighbors(np.zeros((1, 5), np.uint8), 1), "5 bytes.*2 bytes"),
        (lambda: fitted().radius(np.zeros((1, 1), np.uint8), 1), "1 bytes.*2 bytes"),
        (lambda: fitted().kneighbors(np.zeros((1, 2), np.uint8), 4), r"1\.\.3, got 4"),
        (lambda: fitted().kneighbors(np.zeros((1, 2), np.uint8), 0), r"1\.\.3, got 0"),
        (lambda: fitted().kneighbors(np.zeros((1, 2), np.uint8), 1.0), r"whole number in 1\.\.3, got 1\.0"),
        (lambda: HammingIndex().fit(np.zeros((3, 2), np.uint8), 15.5), r"n_bits=15\.5.*9 to 16"),
        (lambda: fitted().radius(np.zeros((1, 2), np.uint8), -1), "radius.*-1"),
        (lambda: fitted().radius(np.zeros((1, 2), np.uint8), float("nan")), "radius.*nan"),
        (lambda: fitted().kneighbors(np.zeros((2, 2), np.uint8), 1, exclude=[0]), "1 entries for 2 queries"),
        (lambda: fitted().kneighbors(np.zeros((1, 2), np.uint8), 1, exclude=[3]), r"index 3 .*0\.\.2"),
        (lambda: hamming_distances(np.zeros((1, 2), np.uint8), np.zeros((1, 3), np.uint8)), "2 bytes.*3 bytes"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fitted():
    return HammingIndex().fit(np.zeros((3, 2), np.uint8))

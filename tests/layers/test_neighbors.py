"""Nearest neighbours against brute force in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError

from etude.data.randomness import numpy_stream
from etude.layers import NearestNeighbors
from etude.layers import neighbors as module


def reference(Q, X, metric, k):
    Q, X = Q.astype(np.float64), X.astype(np.float64)
    d = -(Q[:, None] * X[None]).sum(-1) if metric == "dot" else cdist(Q, X, metric)
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(d, order, 1), order


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 200),
    d=st.integers(1, 20),
    metric=st.sampled_from(["cosine", "euclidean", "sqeuclidean", "dot"]),
    data=st.data(),
)
def test_equals_brute_force(seed, n, d, metric, data):
    rng = numpy_stream(seed, "x")
    X, Q = rng.normal(size=(n, d)), rng.normal(size=(5, d))
    k = data.draw(st.integers(1, n))
    distances, indices = NearestNeighbors(metric).fit(X).kneighbors(Q, k)
    want_distances, want_indices = reference(Q, X, metric, k)
    np.testing.assert_allclose(distances, want_distances, atol=1e-9)
    if d > 1 or metric != "cosine":  # in one dimension every cosine is +-1, up to scipy's rounding
        np.testing.assert_array_equal(indices, want_indices)


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_duplicates_in_many_blocks_come_in_index_order(metric, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 64)
    rng = numpy_stream(0, "x")
    distinct = rng.normal(size=(13, 37)).astype(np.float32)
    which = rng.integers(0, 13, 1000)
    X = distinct[which]
    Q = rng.normal(size=(9, 37)).astype(np.float32)
    distances, indices = NearestNeighbors(metric).fit(X).kneighbors(Q, 300)
    order = reference(Q, distinct, metric, 13)[1]
    for row in range(9):
        want = np.concatenate([np.flatnonzero(which == c) for c in order[row]])[:300]
        np.testing.assert_array_equal(indices[row], want)
    assert (np.diff(distances, axis=1) >= 0).all()


def test_near_duplicates_are_told_apart_far_from_the_origin():
    X = np.full((3, 8), 1000.0, np.float32)
    X[0, 0] += 0.5
    X[1, 0] += 0.25
    distances, indices = NearestNeighbors("euclidean").fit(X).kneighbors(np.full((1, 8), 1000.0, np.float32), 3)
    assert indices.tolist() == [[2, 1, 0]]
    assert distances.tolist() == [[0.0, 0.25, 0.5]]


def test_zero_vectors_have_cosine_distance_one():
    distances, _ = NearestNeighbors().fit(np.array([[0.0, 0.0], [1.0, 0.0]])).kneighbors(np.zeros((1, 2)), 2)
    assert distances.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("scale", "dtype"), [(1e-30, np.float32), (1e30, np.float32), (1e-200, np.float64)])
@pytest.mark.parametrize("search", ["exact", "signs"])
def test_the_scale_of_vectors_does_not_change_their_cosines(scale, dtype, search):
    X = numpy_stream(0, "x").normal(size=(300, 8)).astype(dtype)
    small = (X.astype(np.float64) * scale).astype(dtype)
    wanted = NearestNeighbors().fit(X).kneighbors(X[:50], 3)
    found = NearestNeighbors(search=search, shortlist=300).fit(small).kneighbors(small[:50], 3)
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)


def test_no_cosine_distance_is_negative():
    X = numpy_stream(0, "x").normal(size=(200, 7))
    assert NearestNeighbors().fit(3 * X).kneighbors(X, 1)[0].min() >= 0


@pytest.mark.filterwarnings("error")
def test_reversed_and_read_only_arrays(tmp_path):
    X = numpy_stream(0, "x").normal(size=(30, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for rows, place in ((X[::-1], 29), (mapped, 0), (np.broadcast_to(X[:1], (5, 4)), 0)):
        index = NearestNeighbors("euclidean").fit(rows)
        assert index.kneighbors(rows[place : place + 1], 1)[1].tolist() == [[place]]


def test_exclude_and_padding():
    X = numpy_stream(0, "x").normal(size=(40, 3))
    index = NearestNeighbors("euclidean").fit(X)
    _, own = index.kneighbors(X, 1)
    np.testing.assert_array_equal(own[:, 0], np.arange(40))
    _, other = index.kneighbors(X, 39, exclude=np.arange(40))
    assert all(row not in found for row, found in enumerate(other.tolist()))
    distances, indices = index.kneighbors(X[:2], 40, exclude=[[0, 1], []])
    assert indices[0, -2:].tolist() == [-1, -1]
    assert np.isinf(distances[0, -2:]).all()
    assert indices[1].min() == 0
    with pytest.raises(ValueError, match="1 entries for 2 queries"):
        index.kneighbors(X[:2], 1, exclude=[0])


def test_types_follow_the_queries():
    X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    index = NearestNeighbors().fit(X)
    a = index.kneighbors(X, 2)
    b = index.kneighbors(X.numpy(), 2)
    assert isinstance(a[0], torch.Tensor)
    assert isinstance(b[0], np.ndarray)
    assert a[0].dtype == torch.float32
    np.testing.assert_array_equal(a[1].numpy(), b[1])


def test_signs_find_what_exact_search_finds(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 500)
    rng = numpy_stream(0, "x")
    centres = rng.normal(size=(50, 48)) + 0.5
    X = (centres[rng.integers(0, 50, 4000)] + 0.5 * rng.normal(size=(4000, 48))).astype(np.float16)
    Q = X[:60].astype(np.float32) + 0.2 * rng.normal(size=(60, 48)).astype(np.float32)
    exact = NearestNeighbors().fit(X).kneighbors(Q, 10)
    signs = NearestNeighbors(search="signs", shortlist=400).fit(X).kneighbors(Q, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact[1], signs[1], strict=True)])
    narrow = NearestNeighbors(search="signs", shortlist=10).fit(X).kneighbors(Q, 10)
    worse = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact[1], narrow[1], strict=True)])
    assert recall > 0.97 > worse
    everything = NearestNeighbors(search="signs", shortlist=4000).fit(X).kneighbors(Q, 10, exclude=np.arange(60))
    np.testing.assert_array_equal(everything[1], NearestNeighbors().fit(X).kneighbors(Q, 10, exclude=np.arange(60))[1])


def test_memory_mapped_int8(tmp_path):
    rng = numpy_stream(0, "x")
    mapped = np.memmap(tmp_path / "v", dtype=np.int8, mode="w+", shape=(200, 16))
    mapped[:] = rng.integers(-127, 128, (200, 16))
    index = NearestNeighbors(search="signs", shortlist=50).fit(mapped)
    assert index.kneighbors(np.asarray(mapped[:20], np.float32), 1)[1][:, 0].tolist() == list(range(20))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NearestNeighbors("manhattan"), ValueError, "cosine.*manhattan"),
        (lambda: NearestNeighbors(search="fast"), ValueError, "exact.*fast"),
        (lambda: NearestNeighbors("dot", search="signs"), ValueError, "needs metric='cosine'"),
        (lambda: NearestNeighbors(shortlist=0), ValueError, "shortlist.*0"),
        (lambda: NearestNeighbors().kneighbors(np.zeros((1, 2)), 1), NotFittedError, r"fit\(X\)"),
        (lambda: NearestNeighbors().fit(np.zeros((0, 2))), ValueError, "at least one vector"),
        (lambda: NearestNeighbors().fit(np.zeros(3)), ValueError, "matrix"),
        (lambda: NearestNeighbors().fit(np.array([[0.0], [np.nan]])), ValueError, "row 1"),
        (lambda: fitted().kneighbors(np.zeros((1, 3)), 1), ValueError, "3 columns.*2"),
        (lambda: fitted().kneighbors(np.zeros((1, 2)), 5), ValueError, r"1\.\.4, got 5"),
        (lambda: fitted().kneighbors(np.array([[0.0, np.inf]]), 1), ValueError, "query 0"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def fitted():
    return NearestNeighbors().fit(np.eye(4, 2))

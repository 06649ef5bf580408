"""Retrieval metrics: expectation over all orders of ties, by enumeration; scikit-learn where it agrees."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from etude.data.randomness import numpy_stream
from etude.training.metrics import (
    average_precision,
    ndcg,
    precision_at,
    precision_recall,
    recall_at,
    reciprocal_rank,
)


def by_enumeration(relevant, distances, formula):
    """Mean of a formula on the ordered relevance over all orders that respect the distances."""
    relevant, distances = np.asarray(relevant), np.asarray(distances)
    orders = [p for p in permutations(range(len(distances))) if (np.diff(distances[list(p)]) >= 0).all()]
    return np.mean([formula(relevant[list(p)]) for p in orders])


def plain_ap(r):
    return (r * r.cumsum() / np.arange(1, len(r) + 1)).sum() / r.sum()


def plain_ndcg(k):
    def formula(r):
        discount = 1 / np.log2(np.arange(2, len(r) + 2)) * (np.arange(len(r)) < k)
        return (r * discount).sum() / (np.sort(r)[::-1] * discount).sum()

    return formula


cases = st.integers(2, 7).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(any),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)


@settings(max_examples=40)
@given(cases)
def test_ties_are_averaged_over_all_orders(case):
    relevant, distances = case
    for kind in (np.int64, np.float64):
        d = np.array(distances, dtype=kind)
        assert float(average_precision(relevant, d)) == pytest.approx(by_enumeration(relevant, d, plain_ap))
        assert float(ndcg(relevant, d, 3)) == pytest.approx(by_enumeration(relevant, d, plain_ndcg(3)))
        first = by_enumeration(relevant, d, lambda r: 1 / (r.argmax() + 1))
        assert float(reciprocal_rank(relevant, d)) == pytest.approx(first)
        share = by_enumeration(relevant, d, lambda r: r[:2].sum() / r.sum())
        assert float(recall_at(relevant, d, 2)) == pytest.approx(share)
        assert float(precision_at(relevant, d, 2)) == pytest.approx(by_enumeration(relevant, d, lambda r: r[:2].mean()))


@settings(max_examples=20)
@given(cases)
def test_chance_is_the_mean_over_all_orders(case):
    relevant, distances = case
    flat = np.zeros(len(distances))
    assert average_precision(relevant, distances).chance == pytest.approx(by_enumeration(relevant, flat, plain_ap))
    assert ndcg(relevant, distances, 3).chance == pytest.approx(by_enumeration(relevant, flat, plain_ndcg(3)))
    assert recall_at(relevant, distances, 2).chance == pytest.approx(2 / len(flat))


def test_agrees_with_scikit_learn():
    rng = numpy_stream(0, "r")
    relevant = rng.random((30, 200)) < 0.2
    distances = rng.normal(size=(30, 200))
    want = [average_precision_score(r, -d) for r, d in zip(relevant, distances, strict=True)]
    np.testing.assert_allclose(average_precision(relevant, distances).per_query, want)
    tied = rng.integers(0, 6, (30, 200))
    gains = rng.integers(0, 4, (30, 200))
    assert float(ndcg(gains, tied, 10)) == pytest.approx(ndcg_score(gains, -tied, k=10))
    assert float(ndcg(gains, tied)) == pytest.approx(ndcg_score(gains, -tied))


def test_index_order_is_never_used():
    rng = numpy_stream(1, "r")
    relevant, distances = rng.random((5, 60)) < 0.3, rng.integers(0, 4, (5, 60))
    order = rng.permutation(60)
    for metric in (average_precision, reciprocal_rank):
        np.testing.assert_allclose(
            metric(relevant, distances).per_query, metric(relevant[:, order], distances[:, order]).per_query
        )


def test_perfect_and_worst_rankings():
    relevant = np.array([1, 1, 0, 0])
    assert float(average_precision(relevant, [0, 0, 1, 1])) == 1
    assert float(average_precision(relevant, [1, 1, 0, 0])) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert float(ndcg(relevant, [0, 0, 1, 1], 2)) == 1
    assert float(reciprocal_rank(relevant, [5, 6, 1, 1])) == pytest.approx(1 / 3)


def test_queries_without_anything_to_find_are_left_out():
    score = average_precision([[0, 0], [1, 0]], [[0, 1], [0, 1]])
    assert np.isnan(score.per_query[0])
    assert score.mean == float(score) == 1
    assert score.chance == pytest.approx(0.75)
    with pytest.raises(ValueError, match="no query"):
        average_precision([[0, 0]], [[0, 1]])


def test_large_tables_of_hamming_distances():
    rng = numpy_stream(2, "r")
    labels = rng.integers(0, 20, 3000)
    relevant = labels[:100, None] == labels
    distances = rng.integers(0, 129, (100, 3000))
    a = average_precision(torch.from_numpy(relevant), torch.from_numpy(distances))
    b = average_precision(relevant, distances.astype(np.float64))
    np.testing.assert_allclose(a.per_query, b.per_query)
    assert a.mean == pytest.approx(a.chance, abs=0.01)
    assert a.chance == pytest.approx(1 / 20, abs=0.01)


def test_precision_recall_curve():
    recall, precision = precision_recall([[1, 0, 1, 0]], [[0, 1, 1, 2]], levels=4)
    assert recall.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert precision.tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3])
    _, chance = precision_recall([[1, 0, 1, 0]], [[3, 3, 3, 3]], levels=2)
    assert chance.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_precision([[1, 0]], [[1, 0, 2]]), r"\(1, 2\).*\(1, 3\)"),
        (lambda: average_precision([[2, 0]], [[1, 0]]), "boolean"),
        (lambda: average_precision(np.zeros((1, 0)), np.zeros((1, 0))), "at least one item"),
        (lambda: average_precision([[1, 0], [1, 0]], [[1, 0], [1, np.nan]]), "query 1 hold NaN"),
        (lambda: ndcg([[-1, 2]], [[1, 0]]), "at least 0"),
        (lambda: ndcg([[1, 2]], [[1, 0]], 0), "k must be at least 1"),
        (lambda: recall_at([[1, 0]], [[1, 0]], 0), "k must be at least 1"),
        (lambda: precision_recall([[1, 0]], [[1, 0]], 0), "levels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

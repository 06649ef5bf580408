"""Classification metrics against scikit-learn and in closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from etude.training.metrics import accuracy, auroc, brier, class_accuracy, confusion, expected_calibration_error, nll
from etude.training.metrics.classification import error_consistency


def sample(seed: int, n: int = 300, classes: int = 5, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes)) * sharp
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return probs, rng.integers(classes, size=n)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 7))
def test_equal_to_scikit_learn(seed: int, classes: int) -> None:
    probs, y = sample(seed, classes=classes)
    labels = probs.argmax(1)
    everything = list(range(classes))
    assert accuracy(probs, y) == accuracy(labels, y) == pytest.approx(sk.accuracy_score(y, labels))
    np.testing.assert_array_equal(confusion(probs, y), sk.confusion_matrix(y, labels, labels=everything))
    recalls = sk.recall_score(y, labels, labels=everything, average=None, zero_division=0)
    mine = class_accuracy(probs, y)
    present = np.isin(everything, y)
    np.testing.assert_allclose(mine[present], recalls[present])
    assert nll(probs, y) == pytest.approx(sk.log_loss(y, probs, labels=everything))
    if classes == 2:
        assert brier(probs, y) == pytest.approx(2 * sk.brier_score_loss(y, probs[:, 1]))


@given(seed=st.integers(0, 1000), bins=st.integers(1, 30))
def test_calibration_by_a_plain_loop(seed: int, bins: int) -> None:
    probs, y = sample(seed)
    confidence, right = probs.max(1), probs.argmax(1) == y
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probs, y, bins) == pytest.approx(total)
    order = np.argsort(confidence, kind="stable")
    parts = [order[np.arange(len(y)) * bins // len(y) == b] for b in range(bins)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    total = sum(len(p) / len(y) * abs(right[p].mean() - confidence[p].mean()) for p in parts if len(p))
    assert expected_calibration_error(probs, y, bins, adaptive=True) == pytest.approx(total)


def test_calibration_in_closed_form() -> None:
    sure = np.eye(4)[np.arange(40) % 4]
    assert expected_calibration_error(sure, np.arange(40) % 4) == 0.0
    assert expected_calibration_error(sure, (np.arange(40) + 1) % 4) == 1.0
    even = np.full((40, 4), 0.25)
    assert expected_calibration_error(even, np.arange(40) % 4) == pytest.approx(0.0)
    assert expected_calibration_error(np.full(10, 0.8), np.array([1] * 6 + [0] * 4)) == pytest.approx(0.2)
    edge = np.tile([0.6, 0.4], (10, 1))  # 0.6 = 9/15 belongs to (8/15, 9/15]
    assert expected_calibration_error(edge, np.zeros(10, int)) == pytest.approx(0.4)


def test_calibrated_scores_come_out_small() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    y = (rng.uniform(size=20_000) < p).astype(int)
    for adaptive in (False, True):
        assert expected_calibration_error(p, y, adaptive=adaptive) < 0.02
        assert expected_calibration_error(p**3, y, adaptive=adaptive) > 0.05


def test_matches_the_definition_of_brier_and_nll() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    y = torch.tensor([0, 2])
    assert brier(probs, y) == pytest.approx(((0.09 + 0.04 + 0.01) + (0.01 + 0.64 + 0.81)) / 2)
    assert nll(probs, y) == pytest.approx(-(math.log(0.7) + math.log(0.1)) / 2)
    assert nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-math.log(np.finfo(float).tiny))


def test_tensors_sequences_and_missing_classes() -> None:
    logits = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0))
    y = logits.argmax(-1).clone()
    y[0] = (y[0] + 1) % 3
    assert accuracy(logits, y) == pytest.approx(5 / 6)
    assert accuracy(logits.to(torch.bfloat16), y) == accuracy(logits.to(torch.bfloat16).argmax(-1), y)
    got = class_accuracy(np.array([0, 0, 2]), np.array([0, 2, 2]), num_classes=4)
    np.testing.assert_array_equal(got, [1.0, np.nan, 0.5, np.nan])
    assert confusion([0, 1], [1, 1]).tolist() == [[0, 0], [1, 1]]
    assert confusion([0], [0], num_classes=3).shape == (3, 3)


def test_a_diverged_net_scores_nan_and_not_class_zero() -> None:
    scores = torch.full((4, 3), torch.nan)
    y = torch.zeros(4, dtype=torch.long)
    for value in (accuracy(scores, y), nll(scores, y), brier(scores, y), expected_calibration_error(scores, y)):
        assert math.isnan(value)
    assert np.isnan(class_accuracy(scores, y)).all()


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: accuracy([1, 2], [1]), "do not fit"),
        (lambda: accuracy(np.zeros((0, 3)), np.zeros(0, int)), "no rows"),
        (lambda: confusion([0, 3], [0, 1], num_classes=3), r"0\.\.2, got 0\.\.3"),
        (lambda: confusion([0, -1], [0, 1]), "-1"),
        (lambda: confusion([0.5, 1.0], [0, 1]), "integers"),
        (lambda: nll([[0.5, 0.6]], [0]), "row 0 is no probability distribution"),
        (lambda: nll([[1.5, -0.5]], [0]), "apply softmax"),
        (lambda: nll([[0.5, 0.5]], [2]), r"0\.\.1"),
        (lambda: brier([[0.5, 0.5]], [0.5]), "integers"),
        (lambda: brier(np.zeros((0, 2)), np.zeros(0, int)), "no rows"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [0], bins=0), "at least 1"),
        (lambda: expected_calibration_error(np.ones((2, 2, 2)), [0, 1]), "need probabilities"),
        (lambda: accuracy(np.zeros((4, 1)), [0, 1, 1, 0]), r"\(4, 1\) are scores of one class: give labels"),
    ],
)
def test_bad_input(call: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call()


@given(seed=st.integers(0, 1000))
def test_error_consistency_is_cohens_kappa_of_hits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random(80) < 0.7, rng.random(80) < 0.4
    b[:40] = a[:40]
    assert error_consistency(a, b) == pytest.approx(sk.cohen_kappa_score(a, b))
    assert error_consistency(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(1)


def test_error_consistency_without_errors_is_zero_and_bad_hits_are_refused() -> None:
    always, some = np.ones(6, bool), np.array([1, 0, 1, 1, 0, 1], bool)
    assert error_consistency(always, always) == 0
    assert error_consistency(always, some) == 0
    assert error_consistency(~some, some) == pytest.approx(sk.cohen_kappa_score(~some, some))
    for bad in (some[:5], some.astype(int)):
        with pytest.raises(ValueError, match="two bool arrays of one length"):
            error_consistency(bad, some)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_equals_scikit_learns_and_counts_ties_as_half(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 60)
    scores = rng.integers(0, 8, 60) + y
    assert auroc(scores, y) == pytest.approx(sk.roc_auc_score(y, scores))
    assert auroc([1.0, 1.0], [True, False]) == 0.5
    assert np.isnan(auroc([np.nan, 1.0], [1, 0]))
    many, positive = rng.random(100_000), rng.random(100_000) < 0.5
    assert auroc(many, positive) == pytest.approx(sk.roc_auc_score(positive, many), rel=1e-12)
    with pytest.raises(ValueError, match="positive and negative"):
        auroc(scores, np.ones(60))

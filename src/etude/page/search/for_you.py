"""Suggestions for one reader: a logistic regression on sentence vectors, fitted when the page is opened.

Positive are the papers that the reader voted for or keeps, negative those dismissed; random others are soft negatives
(their weight is a quarter). Both classes weigh the same, C is 0.1 for vectors of unit length. The reason shown is
the three liked papers nearest to a suggestion.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

LEAST = 3  # liked papers with vectors, before anything is suggested
SOFT_WEIGHT = 0.25
SOFT_MOST = 1000


@dataclass(frozen=True)
class Suggestion:
    """A paper, the model's probability, and the liked papers nearest to it."""

    paper_id: int
    score: float
    reasons: tuple[int, ...]


def fit(
    vectors: np.ndarray, yes: np.ndarray, no: np.ndarray, others: np.ndarray, *, seed: int = 0, c: float = 0.1
) -> Callable[[np.ndarray], np.ndarray]:
    """The model of a taste: a function from vectors (m, d) to probabilities (m,).

    Parameters
    ----------
    vectors
        Shape (n, d).
    yes, no
        Masks (n,) of liked and dismissed papers.
    others
        Places of the papers that soft negatives are drawn from.
    """
    from sklearn.linear_model import LogisticRegression

    from etude.data.randomness import numpy_stream  # torch comes with it, and the page should start quickly

    count = min(others.size, max(50, 5 * int(yes.sum())), SOFT_MOST)
    soft = np.sort(numpy_stream(seed, "for-you").choice(others, size=count, replace=False))
    rows = np.concatenate([np.flatnonzero(yes), np.flatnonzero(no), soft])
    target = np.arange(rows.size) < yes.sum()
    weight = np.ones(rows.size)
    weight[int(yes.sum() + no.sum()) :] = SOFT_WEIGHT
    for side in (target, ~target):  # balanced: each class weighs one half
        weight[side] *= 0.5 * rows.size / weight[side].sum()
    model = LogisticRegression(C=c, max_iter=500).fit(vectors[rows].astype(np.float64), target, weight)

    def probability(x: np.ndarray) -> np.ndarray:
        answer: np.ndarray = model.predict_proba(x.astype(np.float64))[:, 1]
        return answer

    return probability


def suggest(
    ids: np.ndarray, vectors: np.ndarray, liked: Collection[int], dismissed: Collection[int] = (), *, k: int = 20,
    seed: int = 0, c: float = 0.1,
) -> list[Suggestion]:  # fmt: skip
    """The `k` papers most to a reader's taste, none of them liked or dismissed already.

    Parameters
    ----------
    ids, vectors
        Paper ids (n,) and their unit vectors (n, d).
    liked, dismissed
        Ids of the reader's papers; those without a vector are left out.

    Returns
    -------
    list of Suggestion
        Best first; empty while fewer than 3 liked papers have vectors.
    """
    yes = np.isin(ids, list(liked))
    no = np.isin(ids, list(dismissed)) & ~yes
    others = np.flatnonzero(~yes & ~no)
    if yes.sum() < LEAST or others.size == 0:
        return []
    scores = fit(vectors, yes, no, others, seed=seed, c=c)(vectors[others])
    best = np.argsort(-scores, kind="stable")[:k]
    liked_ids, liked_vectors = ids[yes], vectors[yes].astype(np.float32)
    near: np.ndarray = vectors[others[best]].astype(np.float32) @ liked_vectors.T
    reasons = np.argsort(-near, axis=1, kind="stable")[:, :3]
    return [
        Suggestion(int(ids[others[i]]), float(scores[i]), tuple(int(x) for x in liked_ids[r]))
        for i, r in zip(best, reasons, strict=True)
    ]

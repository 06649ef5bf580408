"""How good the search is on the papers of this page, and how well taste is guessed: `etude index check`, benchmarks."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from etude.page import tables as t
from etude.page.database import Database
from etude.page.search.for_you import LEAST, fit
from etude.page.search.hybrid import search
from etude.page.search.query import parse
from etude.page.search.semantic import SemanticIndex
from etude.page.search.taste import Shelf

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features (n, d) and a mask (n,) of liked papers to scores (n,)."""


@dataclass(frozen=True)
class Quality:
    """Shares and mean reciprocal ranks; None where it could not be measured."""

    papers: int
    recall_at_10: float | None
    title_mrr: float
    sentence_mrr: dict[str, float]


def recall_of_signs(vectors: np.ndarray, *, queries: int = 200, k: int = 10, seed: int = 0) -> float:
    """Share of the exact `k` nearest that the scan of signs with re-scoring finds, over some of the vectors."""
    from etude.data.randomness import numpy_stream
    from etude.layers.neighbors import NearestNeighbors

    x = np.ascontiguousarray(vectors, np.float32)
    chosen = numpy_stream(seed, "index-check").choice(len(x), min(queries, len(x)), replace=False)
    k = min(k, len(x))
    _, exact = NearestNeighbors("cosine", search="exact").fit(x).kneighbors(x[chosen], k)
    _, found = NearestNeighbors("cosine", search="signs").fit(x).kneighbors(x[chosen], k)
    both = zip(np.asarray(exact), np.asarray(found), strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / k for a, b in both]))


def _mrr(ranks: Sequence[int | None]) -> float:
    return float(np.mean([0.0 if r is None else 1.0 / r for r in ranks])) if ranks else float("nan")


def _sentence(abstract: str) -> str:
    """The longest sentence, cut to a query's length."""
    return max(re.split(r"(?<=[.!?])\s+", abstract), key=len)[:400]


def check(db: Database, *, index: SemanticIndex | None = None, most: int = 200, seed: int = 0) -> Quality:
    """Measure search on the page's own papers: every title, and a sentence of every abstract, as a query.

    Parameters
    ----------
    index
        An index with an encoder; None measures words alone.
    most
        Papers that are asked for, drawn at random.
    """
    from etude.data.randomness import numpy_stream

    p = t.paper.c
    rows = db.rows(sa.select(p.id, p.title, p.abstract).where(p.hidden.is_(False)).order_by(p.id))
    if len(rows) > most:
        keep = numpy_stream(seed, "index-check", "papers").choice(len(rows), most, replace=False)
        rows = [rows[i] for i in sorted(keep)]
    meaning = index if index is not None and index.ready else None

    def rank(text: str, paper: int, by: SemanticIndex | None) -> int | None:
        hits = search(db, parse(text), meaning=by, limit=50)
        return next((i for i, hit in enumerate(hits, 1) if hit.row["id"] == paper), None)

    def semantic(text: str, paper: int) -> int | None:
        found = meaning.rank(text, 50) if meaning is not None else []
        return found.index(paper) + 1 if paper in found else None

    titles = [rank(r["title"], r["id"], meaning) for r in rows]
    asked = [(_sentence(r["abstract"]), r["id"]) for r in rows if r["abstract"]]
    sentences = {"words": _mrr([rank(q, i, None) for q, i in asked])}
    if meaning is not None:
        sentences |= {"meaning": _mrr([semantic(q, i) for q, i in asked])}
        sentences |= {"both": _mrr([rank(q, i, meaning) for q, i in asked])}
    _, vectors = Shelf(db).vectors()
    recall = recall_of_signs(vectors, seed=seed) if len(vectors) > 1 else None
    return Quality(len(rows), recall, _mrr(titles), sentences)


def leave_one_out_auc(
    ids: np.ndarray, features: np.ndarray, liked: Collection[int], disliked: Collection[int] = (), *, seed: int = 0,
    model: Score | None = None,
) -> float:  # fmt: skip
    """How often a liked paper that was left out of the fit stands above a paper that is not liked.

    Parameters
    ----------
    ids, features
        Paper ids (n,) and their vectors (n, d): sentence vectors, or tf-idf rows (dense) for the peer.
    liked, disliked
        Ids of a reader's papers; all others are candidates.
    model
        Fits training rows and returns scores of all rows; None: the page's own logistic regression.

    Returns
    -------
    float
        The mean over liked papers of the share of candidates below it (ties count one half).

    Raises
    ------
    ValueError
        With fewer than four liked papers that have features.
    """
    yes = np.isin(ids, list(liked))
    no = np.isin(ids, list(disliked)) & ~yes
    if yes.sum() < LEAST + 1:
        raise ValueError(f"at least {LEAST + 1} liked papers are needed, got {int(yes.sum())}")
    others = np.flatnonzero(~yes)
    shares = []
    for left_out in np.flatnonzero(yes):
        kept = yes.copy()
        kept[left_out] = False
        if model is None:
            pool = np.flatnonzero(~kept & ~no)  # the one left out is a stranger, as any other
            scores = fit(features, kept, no, pool, seed=seed)(features)
        else:
            scores = model(features, kept)
        against = scores[others]
        shares.append(float(np.mean((against < scores[left_out]) + 0.5 * (against == scores[left_out]))))
    return float(np.mean(shares))


def tfidf_svm(features: np.ndarray, liked: np.ndarray, *, c: float = 0.01) -> np.ndarray:
    """The peer: a linear SVM of liked against all others, as public self-hosted paper lists use it (C = 0.01)."""
    from sklearn.svm import LinearSVC

    model = LinearSVC(C=c, class_weight="balanced", max_iter=10_000).fit(features, liked)
    scores: np.ndarray = model.decision_function(features)
    return scores


def tfidf(texts: Sequence[str], most: int = 20_000) -> np.ndarray:
    """Rows of words and pairs of words, sub-linear tf, at most 20,000 columns, dense float32."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    maker = TfidfVectorizer(ngram_range=(1, 2), max_features=most, sublinear_tf=True, stop_words="english")
    rows: np.ndarray = maker.fit_transform(texts).toarray().astype(np.float32)
    return rows

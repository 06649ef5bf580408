"""Exact nearest neighbours of real vectors.

A block of vectors is compared with all queries in one matrix product. Its rounding only decides what is *worth*
comparing: whatever lies within the product's error bound of the k-th best is measured again in float64, by
differences for Euclidean metrics, so that equal vectors get equal distances and ties go to the lowest index.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor

from etude.data.randomness import stream
from etude.layers.exclusion import Exclusions, excluded_pairs
from etude.layers.hamming import HammingIndex

Metric = Literal["cosine", "euclidean", "sqeuclidean", "dot"]

_QUERIES, _BLOCK = 256, 16_384  # a product of 16 MB
_PAIRS = 1 << 15  # pairs at a time in float64


def as_matrix(x: Any, what: str) -> Tensor:
    """A tensor of one vector a row, sharing the memory of `x` where it can."""
    tensor = x if isinstance(x, Tensor) else _from_numpy(np.asarray(x))
    if tensor.ndim != 2:
        raise ValueError(f"{what} must be a matrix with one vector a row, got shape {tuple(tensor.shape)}")
    return tensor.detach()


def _from_numpy(x: np.ndarray) -> Tensor:
    if any(stride < 0 for stride in x.strides):  # a reversed view, which torch cannot share
        x = x.copy()
    with warnings.catch_warnings():  # a read-only array or memory map: nothing here writes to it
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(x)


class _Candidates(NamedTuple):
    query: Tensor  # (m,)
    distance: Tensor  # (m,) float64
    item: Tensor  # (m,)

    def nearest(self, k: int) -> "_Candidates":
        """The k best of every query, sorted by (query, distance, index)."""
        order = torch.argsort(self.item, stable=True)
        order = order[torch.argsort(self.distance[order], stable=True)]
        order = order[torch.argsort(self.query[order], stable=True)]
        query = self.query[order]
        order = order[torch.arange(len(query), device=query.device) - torch.searchsorted(query, query) < k]
        return _Candidates(self.query[order], self.distance[order], self.item[order])


class NearestNeighbors:
    """Nearest neighbours with scikit-learn's order of returns, ties by the lowest index.

    Parameters
    ----------
    metric
        "cosine" (1 - cosine, a zero vector has distance 1 to everything), "euclidean", "sqeuclidean", or "dot"
        (minus the inner product).
    search
        "exact", or "signs" (cosine only): scan the packed signs of the centred, randomly rotated vectors for a
        shortlist, then measure the shortlist exactly. For millions of vectors; they may be a memory-mapped
        array of float16 or int8.
    shortlist
        Size of that shortlist.
    random_state
        Seed of the rotation.

    Examples
    --------
    >>> import torch
    >>> index = NearestNeighbors("euclidean").fit(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    >>> distances, indices = index.kneighbors(torch.zeros(1, 2), 2)
    >>> distances.tolist(), indices.tolist()
    ([[0.0, 5.0]], [[0, 1]])
    """

    def __init__(
        self,
        metric: Metric = "cosine",
        *,
        search: Literal["exact", "signs"] = "exact",
        shortlist: int = 1000,
        random_state: int = 0,
    ) -> None:
        if metric not in get_args(Metric):
            raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
        if search not in ("exact", "signs"):
            raise ValueError(f"search must be 'exact' or 'signs', got {search!r}")
        if search == "signs" and metric != "cosine":
            raise ValueError(f"search='signs' compares directions: it needs metric='cosine', got {metric!r}")
        if shortlist < 1:
            raise ValueError(f"shortlist must be positive, got {shortlist}")
        self.metric, self.search, self.shortlist, self.random_state = metric, search, shortlist, random_state

    def fit(self, X: Any) -> "NearestNeighbors":
        """Keep the vectors, shape (n, d), without copying them.

        Raises
        ------
        ValueError
            If there are none, or one is not finite (the row is named).
        """
        vectors = as_matrix(X, "X")
        if 0 in vectors.shape:
            raise ValueError(f"X needs at least one vector and one column, got shape {tuple(vectors.shape)}")
        self._vectors = vectors
        self.n_samples_fit_, self.n_features_in_ = vectors.shape
        norms = []
        for low, high in self._blocks():
            block = self._rows(slice(low, high))
            norm = self._norm(block)
            if not bool(norm.isfinite().all()):
                row = low + int((~norm.isfinite()).nonzero()[0, 0])
                raise ValueError(f"X has a value that is not finite in row {row}")
            norms.append(norm)
        self._norms = torch.cat(norms)
        if self.search == "signs":
            self._fit_signs()
        return self

    def kneighbors(self, Q: Any, n_neighbors: int = 5, *, exclude: Exclusions = None) -> tuple[Any, Any]:
        """The nearest vectors of every query.

        Parameters
        ----------
        Q
            Shape (q, d). A tensor gives tensors back, an array gives arrays.
        exclude
            Vectors a query must not get: for every query an index (-1: none), a row of indices padded with -1,
            or a sequence of indices. For queries that are the fitted vectors: ``exclude=range(n)``.

        Returns
        -------
        distances, indices
            Shapes (q, n_neighbors), ascending. Where exclusion leaves too few, distance inf and index -1.

        Raises
        ------
        ValueError
            If the width is not that of the fitted vectors (both are named), `n_neighbors` is not in 1..n, or a
            query is not finite.
        """
        queries = self._check_queries(Q, n_neighbors)
        n_queries, device = len(queries), queries.device
        distances = torch.full((n_queries, n_neighbors), float("inf"), dtype=torch.float64, device=device)
        indices = torch.full((n_queries, n_neighbors), -1, dtype=torch.int64, device=device)
        out = [torch.from_numpy(a).to(device) for a in excluded_pairs(exclude, n_queries, self.n_samples_fit_)]
        find = self._exact if self.search == "exact" else self._by_signs
        for start in range(0, n_queries, _QUERIES):
            part = queries[start : start + _QUERIES]
            mine = (out[0] >= start) & (out[0] < start + len(part))
            found = find(part, n_neighbors, out[0][mine] - start, out[1][mine])
            place = torch.arange(len(found.query), device=device) - torch.searchsorted(found.query, found.query)
            distances[start + found.query, place] = found.distance
            indices[start + found.query, place] = found.item
        distances = distances.to(queries.dtype)
        return (distances, indices) if isinstance(Q, Tensor) else (distances.numpy(), indices.numpy())

    # -- searching ----------------------------------------------------------------------------------------------

    def _exact(self, queries: Tensor, k: int, out_query: Tensor, out_index: Tensor) -> _Candidates:
        euclidean = self.metric in ("euclidean", "sqeuclidean")
        norms = self._norm(queries)[:, None]
        left = _divided(queries, norms) if self.metric == "cosine" else queries
        longest = 1.0 if self.metric == "cosine" else float(self._norms.max())
        scale = (left.norm(dim=1, keepdim=True) + euclidean * longest) * longest
        error = 2 * (queries.shape[1] + 4) * torch.finfo(queries.dtype).eps * scale  # of a product, both sides
        limit = torch.full_like(norms, -float("inf"))
        best = _Candidates(*(torch.empty(0, dtype=t, device=queries.device) for t in _DTYPES))
        for low, high in self._blocks():
            block = self._rows(slice(low, high))
            if self.metric == "cosine":
                block = _divided(block, self._norms[low:high, None])
            score = left @ block.T
            if euclidean:
                score -= self._norms[low:high] ** 2 / 2
            inside = (out_index >= low) & (out_index < high)
            score[out_query[inside], out_index[inside] - low] = -float("inf")
            if low == 0 and high > k:
                limit = score.topk(k, dim=1).values[:, -1:] - error
            query, column = (score >= limit.clamp_min(torch.finfo(score.dtype).min)).nonzero(as_tuple=True)
            if not len(query):
                continue
            distance = self._measure(queries, query, column + low)
            old = best
            best = _Candidates(
                torch.cat([old.query, query]),
                torch.cat([old.distance, distance]),
                torch.cat([old.item, column + low]),
            ).nearest(k)
            count = torch.bincount(best.query, minlength=len(queries))
            full = count == k
            kth = best.distance[count.cumsum(0)[full] - 1].to(score.dtype)
            limit[full, 0] = self._score_of(kth, norms[full, 0]) - error.expand_as(norms)[full, 0]
        return best

    def _score_of(self, distance: Tensor, query_norm: Tensor) -> Tensor:
        """The product score that belongs to a distance."""
        if self.metric == "cosine":
            return 1 - distance
        if self.metric == "dot":
            return -distance
        squared = distance**2 if self.metric == "euclidean" else distance
        return (query_norm**2 - squared) / 2

    def _measure(self, queries: Tensor, query: Tensor, index: Tensor) -> Tensor:
        """Distances of pairs in float64: the same vectors give the same number wherever they stand."""
        parts = []
        for start in range(0, len(query), _PAIRS):
            a = queries[query[start : start + _PAIRS]].double()
            b = self._rows(index[start : start + _PAIRS]).double()
            if self.metric == "dot":
                parts.append(-(a * b).sum(1))
            elif self.metric == "cosine":
                if queries.dtype == torch.float64:  # squares of float32 numbers stay within float64 as they are
                    a, b = _scaled(a)[0], _scaled(b)[0]
                norms = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
                parts.append(1 - torch.where(norms > 0, (a * b).sum(1) / norms, 0.0).clamp_max(1.0))
            else:
                squared = ((a - b) ** 2).sum(1)
                parts.append(squared.sqrt() if self.metric == "euclidean" else squared)
        return torch.cat(parts)

    def _fit_signs(self) -> None:
        d = self.n_features_in_
        generator = stream(self.random_state, "rotation")
        self._rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q.to(self._vectors.device)
        total = torch.zeros(d, dtype=torch.float64, device=self._vectors.device)
        for low, high in self._blocks():
            block = _divided(self._rows(slice(low, high)), self._norms[low:high, None])
            total += block.sum(0, dtype=torch.float64)
        self._mean = (total / self.n_samples_fit_).float()
        codes = [
            self._signs(_divided(self._rows(slice(low, high)), self._norms[low:high, None]))
            for low, high in self._blocks()
        ]
        self._codes = HammingIndex().fit(np.concatenate(codes), n_bits=d)

    def _signs(self, unit: Tensor) -> np.ndarray:
        return np.packbits(((unit.float() - self._mean) @ self._rotation > 0).cpu().numpy(), axis=1)

    def _by_signs(self, queries: Tensor, k: int, out_query: Tensor, out_index: Tensor) -> _Candidates:
        size = min(max(self.shortlist, k), self.n_samples_fit_)
        codes = self._signs(_divided(queries, self._norm(queries)[:, None]))
        exclude: list[list[int]] = [[] for _ in queries]
        for q, i in zip(out_query.tolist(), out_index.tolist(), strict=True):
            exclude[q].append(i)
        short = torch.from_numpy(self._codes.kneighbors(codes, size, exclude=exclude)[1]).to(queries.device)
        query, place = (short >= 0).nonzero(as_tuple=True)
        index = short[query, place]
        return _Candidates(query, self._measure(queries, query, index), index).nearest(k)

    # -- small helpers ------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for low in range(0, self.n_samples_fit_, _BLOCK):
            yield low, min(low + _BLOCK, self.n_samples_fit_)

    def _norm(self, x: Tensor) -> Tensor:
        if self.metric != "cosine":
            return x.norm(dim=1)
        scaled, exponents = _scaled(x)
        return torch.ldexp(scaled.norm(dim=1), exponents[:, 0])

    def _rows(self, which: slice | Tensor) -> Tensor:
        rows = self._vectors[which]
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()

    def _check_queries(self, Q: Any, n_neighbors: int) -> Tensor:
        if not hasattr(self, "_vectors"):
            raise NotFittedError("this NearestNeighbors holds no vectors yet: call fit(X) first")
        queries = as_matrix(Q, "Q").to(self._vectors.device)
        queries = queries.double() if self._vectors.dtype == torch.float64 else queries.float()
        if queries.shape[1] != self.n_features_in_:
            raise ValueError(f"queries have {queries.shape[1]} columns, the fitted vectors have {self.n_features_in_}")
        if not bool(queries.isfinite().all()):
            row = int((~queries.isfinite()).any(1).nonzero()[0, 0])
            raise ValueError(f"query {row} has a value that is not finite")
        if not 1 <= n_neighbors <= self.n_samples_fit_:
            raise ValueError(f"n_neighbors must lie in 1..{self.n_samples_fit_}, got {n_neighbors}")
        return queries


_DTYPES = (torch.int64, torch.float64, torch.int64)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows divided by a power of two near their largest entry, which rounds nothing, and the exponents (n, 1): no
    square of an entry that counts then leaves the range of floats."""
    exponents = torch.frexp(x.abs().amax(1, keepdim=True)).exponent
    return torch.ldexp(x, -exponents), exponents


def _divided(x: Tensor, norms: Tensor) -> Tensor:
    return x / torch.where(norms > 0, norms, 1.0)

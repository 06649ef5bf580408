"""Nearest papers among millions, in the memory of one process: signs of all, vectors of a shortlist only.

Of every vector 384 signs are kept (of the centred, randomly rotated vector: 48 bytes, 120 MB for all of arXiv). A
query scans them exactly, takes the nearest by Hamming distance, fetches their vectors from the database and measures
those. Papers are added in place; a vector that changes gets a second code, and what counts is the vector fetched.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Fetch = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids, shape (m,), to the ids found and their unit vectors, shapes (n,) and (n, d)."""
SHORTLIST = 5000  # measured at 2.5 million mixtures of real vectors: 1,000 find 0.93 of the ten nearest
SHARD = 262_144  # codes in one index: only the last one is built anew when papers come


class _Shard:
    """Some papers' codes; they are put word by word when they are first asked for after a change.

    `layers.HammingIndex` gives the same and more, but torch comes with it: 300 MB that a page need not hold.
    """

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        self._words: np.ndarray | None = None

    def add(self, ids: np.ndarray, codes: np.ndarray) -> None:
        self._ids.append(ids.copy())
        self._codes.append(codes)
        self.count += len(ids)
        self._words = None
        if self.count == SHARD:  # it stays as it is from now on
            self._make()
            self._codes = []

    def _make(self) -> None:
        self._ids, self._codes = [np.concatenate(self._ids)], [np.concatenate(self._codes)]
        self._words = np.ascontiguousarray(self._codes[0].view(np.uint64).T)  # (words, n): one pass a word

    def nearest(self, code: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Distances and ids of the nearest `k` codes, and of those as far as the last of them."""
        if self._words is None:
            self._make()
        assert self._words is not None
        far = np.zeros(self.count, np.uint16)
        for words, word in zip(self._words, code.view(np.uint64)[0], strict=True):
            far += _ones(words ^ word)
        limit = int(np.searchsorted(np.cumsum(np.bincount(far)), min(k, self.count)))
        kept = np.flatnonzero(far <= limit)
        return far[kept], self._ids[0][kept]


def _ones_by_table(words: np.ndarray) -> np.ndarray:
    """`numpy.bitwise_count` for NumPy 1.x."""
    table = np.array([i.bit_count() for i in range(1 << 16)], np.uint8)
    counted: np.ndarray = table[words.view(np.uint16)].reshape(len(words), 4).sum(1, dtype=np.uint8)
    return counted


_ones: Callable[..., Any] = getattr(np, "bitwise_count", _ones_by_table)


class SignScan:
    """Exact scan of signs, then exact measure of a shortlist.

    Parameters
    ----------
    fetch
        Gives the vectors of the shortlist.
    shortlist
        How many are measured.
    seed
        Of the rotation.
    """

    def __init__(self, fetch: Fetch, *, shortlist: int = SHORTLIST, seed: int = 0) -> None:
        if shortlist < 1:
            raise ValueError(f"shortlist must be positive, got {shortlist}")
        self.fetch, self.shortlist, self.seed = fetch, shortlist, seed
        self._shards: list[_Shard] = []
        self._rotation: np.ndarray | None = None

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take in unit vectors, shape (n, d); the first ones given also set the centre that all are measured from."""
        if not len(ids):
            return
        if self._rotation is None:
            self._centre: np.ndarray = vectors.astype(np.float32).mean(0)
            self._rotation = _rotation(vectors.shape[1], self.seed)
        codes = self._signs(vectors)
        while len(ids):
            if not self._shards or self._shards[-1].count == SHARD:
                self._shards.append(_Shard())
            room = SHARD - self._shards[-1].count
            self._shards[-1].add(ids[:room], codes[:room])
            ids, codes = ids[room:], codes[room:]

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and cosines, best first, of the `k` nearest to a unit vector, shape (d,)."""
        if not self._shards:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        code, wanted = self._signs(query[None]), max(k, self.shortlist)
        found = [shard.nearest(code, wanted) for shard in self._shards]
        order = np.argsort(np.concatenate([far for far, _ in found]), kind="stable")[:wanted]
        ids, vectors = self.fetch(np.unique(np.concatenate([ids for _, ids in found])[order]))
        cosine = vectors.astype(np.float32) @ query.astype(np.float32)
        best = np.argsort(-cosine, kind="stable")[:k]
        return ids[best], cosine[best]

    def _signs(self, vectors: np.ndarray) -> np.ndarray:
        assert self._rotation is not None
        codes = np.zeros((len(vectors), -(-vectors.shape[1] // 64) * 8), np.uint8)  # whole words
        for i in range(0, len(vectors), 4096):
            signs = (vectors[i : i + 4096].astype(np.float32) - self._centre) @ self._rotation > 0
            packed = np.packbits(signs, axis=1)
            codes[i : i + 4096, : packed.shape[1]] = packed
        return codes


def _rotation(d: int, seed: int) -> np.ndarray:
    """A random rotation, shape (d, d): after it every sign tells as much as any other."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    rotation: np.ndarray = (q * np.sign(np.diag(r))).astype(np.float32)
    return rotation

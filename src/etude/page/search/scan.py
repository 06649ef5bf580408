"""Nearest papers among millions, in the memory of one process: signs of all, vectors of a shortlist only.

Of every vector 384 signs are kept (of the centred, randomly rotated vector: 48 bytes, 120 MB for all of arXiv). A
query scans them exactly, takes the nearest by Hamming distance, fetches their vectors from the database and measures
those. Papers are added in place; a vector that changes gets a second code, and what counts is the vector fetched.
"""

from collections.abc import Callable

import numpy as np

Fetch = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids, shape (m,), to the ids found and their unit vectors, shapes (n,) and (n, d)."""
SHARD = 262_144  # codes in one index: only the last one is built anew when papers come


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

    def __init__(self, fetch: Fetch, *, shortlist: int = 1000, seed: int = 0) -> None:
        if shortlist < 1:
            raise ValueError(f"shortlist must be positive, got {shortlist}")
        self.fetch, self.shortlist, self.seed = fetch, shortlist, seed
        self._codes: list[np.ndarray] = []  # of the last shard
        self._shards: list[tuple[np.ndarray, object]] = []
        self._tail = np.zeros(0, np.int64)
        self._rotation: np.ndarray | None = None

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take in unit vectors, shape (n, d); the first ones given also set the centre that all are measured from."""
        from etude.layers.hamming import HammingIndex

        if self._rotation is None:
            self._centre: np.ndarray = vectors.astype(np.float32).mean(0)
            self._rotation = _rotation(vectors.shape[1], self.seed)
        for start in range(0, len(ids), SHARD):
            part, codes = ids[start : start + SHARD], self._signs(vectors[start : start + SHARD])
            while len(part):
                if self._shards and len(self._tail) < SHARD:
                    self._shards.pop()
                else:
                    self._tail, self._codes = np.zeros(0, np.int64), []
                room = SHARD - len(self._tail)
                self._tail = np.concatenate([self._tail, part[:room]])
                self._codes = [np.concatenate([*self._codes, codes[:room]])]
                index = HammingIndex().fit(self._codes[0], n_bits=vectors.shape[1])
                self._shards.append((self._tail, index))
                part, codes = part[room:], codes[room:]

    def nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and cosines, best first, of the `k` nearest to a unit vector, shape (d,)."""
        if not self._shards:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        code = self._signs(query[None])
        found: list[np.ndarray] = []
        far: list[np.ndarray] = []
        wanted = max(k, self.shortlist)
        for ids, index in self._shards:
            distance, place = index.kneighbors(code, min(wanted, len(ids)))  # type: ignore[attr-defined]
            found.append(ids[place[0]])
            far.append(distance[0])
        order = np.argsort(np.concatenate(far), kind="stable")[:wanted]
        ids, vectors = self.fetch(np.unique(np.concatenate(found)[order]))
        cosine = vectors.astype(np.float32) @ query.astype(np.float32)
        best = np.argsort(-cosine, kind="stable")[:k]
        return ids[best], cosine[best]

    def _signs(self, vectors: np.ndarray) -> np.ndarray:
        assert self._rotation is not None
        parts = [
            np.packbits((vectors[i : i + 8192].astype(np.float32) - self._centre) @ self._rotation > 0, axis=1)
            for i in range(0, len(vectors), 8192)
        ]
        return np.concatenate(parts)


def _rotation(d: int, seed: int) -> np.ndarray:
    """A random rotation, shape (d, d): after it every sign tells as much as any other."""
    from etude.data.randomness import numpy_stream

    q, r = np.linalg.qr(numpy_stream(seed, "rotation").standard_normal((d, d)))
    rotation: np.ndarray = (q * np.sign(np.diag(r))).astype(np.float32)
    return rotation

"""Exact search among packed binary codes.

Codes are rows of bytes in the order of `numpy.packbits` (first bit = highest bit of the first byte); bits beyond
`n_bits` are padding and never count. Ties go to the lowest index, always.

Two kernels give the same integers. Few queries: XOR and population count on 64-bit columns of the codes. Many
queries: a block of codes is unpacked to bytes and multiplied with the queries in int8, because
``d(x, q) = |q| + sum_j x_j (1 - 2 q_j)``. Both scan block by block and keep, for every query, only what is nearer
than its k-th neighbour so far.
"""

from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from etude.layers.exclusion import Exclusions, excluded_pairs

Codes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Kernel = Callable[[int, int], NDArray[Any]]

_BLOCK = 8_192  # codes a block: its buffers stay in a core's cache ...
_BLOCK_PAIRS = 131_072  # ... and are larger where there are few queries, whose pairs are few
_SCAN_QUERIES = 8  # queries at a time in the popcount kernel
_MATMUL_FROM = 32  # from so many queries on, unpacking a block pays
_CHUNK = 128  # queries at a time overall


def _table_popcount(x: NDArray[Any], out: Codes) -> Codes:
    """`numpy.bitwise_count` for NumPy 1.x: 16 bits a look-up."""
    table = np.array([i.bit_count() for i in range(1 << 16)], dtype=np.uint8)
    parts = table[np.ascontiguousarray(x).view(np.uint16)].reshape(*x.shape, -1)
    return parts.sum(axis=-1, dtype=np.uint8, out=out)


_popcount: Callable[..., Any] = getattr(np, "bitwise_count", _table_popcount)
_int8_matmul: Callable[..., Any] | None = getattr(torch, "_int_mm", None)


def _check_codes(codes: Any, what: str) -> Codes:
    array = codes.detach().cpu().numpy() if isinstance(codes, torch.Tensor) else np.asarray(codes)
    if array.ndim != 2 or array.dtype != np.uint8:
        raise ValueError(
            f"{what} must be packed codes: a 2-D uint8 array (see numpy.packbits), "
            f"got {array.ndim}-D {array.dtype} of shape {array.shape}"
        )
    if array.shape[1] == 0:
        raise ValueError(f"{what} have no bytes: shape {array.shape}")
    return array


def _check_bits(n_bits: int | None, width: int) -> int:
    bits = 8 * width if n_bits is None else n_bits
    if not isinstance(bits, Integral) or not 8 * (width - 1) < bits <= 8 * width:
        raise ValueError(
            f"n_bits={bits} does not fit codes of {width} bytes, which hold {8 * width - 7} to {8 * width} bits"
        )
    return int(bits)


def _columns(codes: Codes, n_bits: int) -> NDArray[Any]:
    """Machine words of the codes, one row a word: shape (words, n); padding bits are zero."""
    n, width = codes.shape
    word = next((size for size in (1, 2, 4) if width <= size), 8)
    padded = np.zeros((n, -(-width // word) * word), dtype=np.uint8)
    padded[:, :width] = codes
    if n_bits % 8:
        padded[:, width - 1] &= (0xFF << (8 - n_bits % 8)) & 0xFF
    return np.ascontiguousarray(padded.view(f"u{word}").T)


def _unpacked(columns: NDArray[Any]) -> NDArray[np.int8]:
    """Bits as bytes: (words, n) -> (n, 8 * bytes), values 0 and 1."""
    flat = np.unpackbits(np.ascontiguousarray(columns.T).view(np.uint8).reshape(-1))  # faster than axis=1
    return flat.view(np.int8).reshape(columns.shape[1], -1)


def hamming_distances(a: Any, b: Any, n_bits: int | None = None) -> NDArray[np.int32]:
    """All distances between two sets of packed codes.

    Parameters
    ----------
    a, b
        uint8, shapes (q, w) and (n, w).
    n_bits
        Number of bits that count; None: all 8 w.

    Returns
    -------
    Shape (q, n). For sets whose distance matrix fits in memory; otherwise use `HammingIndex`.
    """
    a, b = _check_codes(a, "a"), _check_codes(b, "b")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"codes of {a.shape[1]} bytes cannot be compared with codes of {b.shape[1]} bytes")
    bits = _check_bits(n_bits, a.shape[1])
    x, y = (torch.from_numpy(_unpacked(_columns(c, bits)).astype(np.float32)) for c in (a, b))
    ones = x.sum(1, keepdim=True) + y.sum(1) - 2 * (x @ y.T)  # exact: integers far below 2**24
    return ones.to(torch.int32).numpy()


def _true_positions(mask: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """`nonzero` of a (q, b) mask that is nearly everywhere False: eight columns and all queries a word."""
    if mask.shape[1] % 8:
        return mask.nonzero()  # type: ignore[return-value]
    words = np.flatnonzero(np.bitwise_or.reduce(mask.view(np.uint64), axis=0))
    query, word, byte = mask.reshape(len(mask), -1, 8)[:, words].nonzero()
    return query, words[word] * 8 + byte


def _blocks(n: int, first: int, largest: int) -> Iterator[tuple[int, int]]:
    """Blocks that double from `first` to `largest`: the early ones find a useful threshold."""
    start, size = 0, min(-(-max(first, 64) // 8) * 8, largest)
    while start < n:
        stop = min(n, start + size)
        yield start, stop
        start, size = stop, min(2 * size, largest)


class _Nearest:
    """Candidates of each query as single integers ``(query * radix + distance) * n + index``, which sort as
    (query, distance, index): the order of the result, with ties to the lowest index."""

    def __init__(self, n_queries: int, n: int, max_distance: int, keep: int | None, below: int) -> None:
        self.n_queries, self.n, self.keep, self.radix = n_queries, n, keep, max_distance + 2
        self.below = np.full((n_queries, 1), below, dtype=np.int32)  # only distances under this can enter
        self.kept = np.empty(0, dtype=np.int64)
        self.pending: list[Ints] = []
        self.n_pending = 0

    def offer(self, distances: NDArray[Any], offset: NDArray[np.int32], start: int, out: tuple[Ints, Ints]) -> None:
        """Take in a block, (q, b): true distance = entry + offset; `out` are the pairs to leave out."""
        mask = distances < (self.below - offset).astype(distances.dtype)
        if out[0].size:
            mask[out[0], out[1] - start] = False
        query, column = _true_positions(mask)
        if not query.size:
            return
        distance = distances[query, column].astype(np.int64) + offset[query, 0]
        self.pending.append((query * self.radix + distance) * self.n + (column + start))
        self.n_pending += query.size
        if self.keep is not None and self.n_pending > max(self.n_queries * self.keep, 2048):
            self.merge()

    def merge(self) -> None:
        keys = np.sort(np.concatenate([self.kept, *self.pending]))
        if self.keep is not None:
            row = keys // (self.radix * self.n)
            starts = np.searchsorted(row, np.arange(self.n_queries + 1))
            keys = keys[np.arange(keys.size) - starts[row] < self.keep]
            full = np.flatnonzero(np.diff(starts) >= self.keep)
            count = np.minimum(np.diff(starts), self.keep)
            last = np.cumsum(count)[full] - 1
            self.below[full, 0] = keys[last] // self.n % self.radix
        self.kept, self.pending, self.n_pending = keys, [], 0

    def result(self) -> tuple[Ints, Ints, Ints]:
        """(query, distance, index) of all candidates, sorted."""
        self.merge()
        rest, index = np.divmod(self.kept, self.n)
        query, distance = np.divmod(rest, self.radix)
        return query, distance, index


class HammingIndex:
    """Exact nearest neighbours of packed codes by Hamming distance.

    Examples
    --------
    >>> import numpy as np
    >>> codes = np.packbits(np.array([[0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]]), axis=1)
    >>> distances, indices = HammingIndex().fit(codes, n_bits=4).kneighbors(codes[:1], n_neighbors=2)
    >>> distances.tolist(), indices.tolist()
    ([[0, 2]], [[0, 1]])
    """

    n_bits_: int
    n_samples_fit_: int

    def fit(self, codes: Any, n_bits: int | None = None) -> "HammingIndex":
        """Keep the codes, uint8 (n, w) in `numpy.packbits` order.

        Parameters
        ----------
        n_bits
            Bits that count (None: all 8 w); the padding of the last byte is ignored, here and in queries.

        Raises
        ------
        ValueError
            If `codes` are not packed bytes, there are none, or `n_bits` does not fit their width.
        """
        array = _check_codes(codes, "codes")
        if len(array) == 0:
            raise ValueError("an index needs at least one code, got an array of shape " + str(array.shape))
        self.n_bits_ = _check_bits(n_bits, array.shape[1])
        self.n_samples_fit_, self._width = array.shape
        self._words = _columns(array, self.n_bits_)
        return self

    def kneighbors(
        self, queries: Any, n_neighbors: int = 10, *, exclude: Exclusions = None
    ) -> tuple[NDArray[np.int32], Ints]:
        """The `n_neighbors` nearest codes of every query, nearest first, ties by the lowest index.

        Parameters
        ----------
        queries
            uint8, shape (q, w).
        exclude
            Codes that a query must not get: for every query an index, or a row of indices padded with -1, or
            a sequence of indices.

        Returns
        -------
        distances, indices
            Shapes (q, n_neighbors). Where exclusion leaves too few codes, the index is -1 and the distance
            ``n_bits_ + 1``.

        Raises
        ------
        ValueError
            If the width of the queries is not that of the codes, or `n_neighbors` is not in 1..n.
        """
        words, n_queries = self._queries(queries)
        if not isinstance(n_neighbors, Integral) or not 1 <= n_neighbors <= self.n_samples_fit_:
            raise ValueError(f"n_neighbors must be a whole number in 1..{self.n_samples_fit_}, got {n_neighbors}")
        distances = np.full((n_queries, n_neighbors), self.n_bits_ + 1, dtype=np.int32)
        indices = np.full((n_queries, n_neighbors), -1, dtype=np.int64)
        for start, (query, distance, index) in self._search(words, exclude, n_neighbors, self.n_bits_ + 1):
            place = np.arange(query.size) - np.searchsorted(query, query)
            distances[start + query, place] = distance
            indices[start + query, place] = index
        return distances, indices

    def radius(
        self, queries: Any, radius: int, *, exclude: Exclusions = None
    ) -> tuple[list[NDArray[np.int32]], list[Ints]]:
        """All codes within `radius` bits (inclusive) of every query: a list of distances and one of indices,
        one array a query, sorted by distance, then index."""
        words, n_queries = self._queries(queries)
        if not radius >= 0:
            raise ValueError(f"radius must be at least 0, got {radius}")
        below = int(min(radius, self.n_bits_)) + 1  # a larger one holds every code, too, but fits no byte
        distances: list[NDArray[np.int32]] = []
        indices: list[Ints] = []
        for start, (query, distance, index) in self._search(words, exclude, None, below):
            size = min(_CHUNK, n_queries - start)
            cuts = np.searchsorted(query, np.arange(1, size))
            distances += np.split(distance.astype(np.int32), cuts)
            indices += np.split(index, cuts)
        return distances, indices

    def _queries(self, queries: Any) -> tuple[NDArray[Any], int]:
        if not hasattr(self, "_words"):
            raise NotFittedError("this HammingIndex holds no codes yet: call fit(codes) first")
        array = _check_codes(queries, "queries")
        if array.shape[1] != self._width:
            raise ValueError(f"queries have {array.shape[1]} bytes, the index holds codes of {self._width} bytes")
        return _columns(array, self.n_bits_), len(array)

    def _search(
        self, words: NDArray[Any], exclude: Exclusions, keep: int | None, below: int
    ) -> Iterator[tuple[int, tuple[Ints, Ints, Ints]]]:
        n, n_queries = self.n_samples_fit_, words.shape[1]
        out_query, out_code = excluded_pairs(exclude, n_queries, n)
        for start in range(0, n_queries, _CHUNK):
            part = words[:, start : start + _CHUNK]
            kernel, offset = self._kernel(part)
            largest = max(_BLOCK, _BLOCK_PAIRS // part.shape[1])
            first = largest if keep is None else max(keep, 4096 // part.shape[1])
            nearest = _Nearest(part.shape[1], n, self.n_bits_, keep, below)
            mine = (out_query >= start) & (out_query < start + part.shape[1])
            by_code = np.argsort(out_code[mine], kind="stable")
            pairs = out_query[mine][by_code] - start, out_code[mine][by_code]
            for low, high in _blocks(n, first, largest):
                a, b = np.searchsorted(pairs[1], (low, high))
                nearest.offer(kernel(low, high), offset, low, (pairs[0][a:b], pairs[1][a:b]))
            yield start, nearest.result()

    def _kernel(self, queries: NDArray[Any]) -> tuple[Kernel, NDArray[np.int32]]:
        """Function of a block's bounds that gives distances (q, b), up to an offset a query, (q, 1)."""
        n_queries = queries.shape[1]
        if n_queries >= _MATMUL_FROM and _int8_matmul is not None:
            bits = _unpacked(queries)
            signs = torch.from_numpy(1 - 2 * bits)

            buffer = torch.empty(n_queries * max(_BLOCK, _BLOCK_PAIRS // n_queries), dtype=torch.int32)

            def by_matmul(low: int, high: int) -> NDArray[np.int32]:
                block = torch.from_numpy(_unpacked(self._words[:, low:high]))
                product = buffer[: n_queries * (high - low)].view(n_queries, high - low)
                _int8_matmul(signs, block.T, out=product)
                return product.numpy()

            return by_matmul, bits.sum(axis=1, dtype=np.int32)[:, None]

        narrow = self.n_bits_ < 255  # distances, and n_bits + 1, fit a byte; otherwise add up three words at a time
        largest = max(_BLOCK, _BLOCK_PAIRS // n_queries)
        distances = np.empty((n_queries, largest), dtype=np.uint8 if narrow else np.uint16)
        xor = np.empty((min(_SCAN_QUERIES, n_queries), largest), dtype=self._words.dtype)
        counts = np.empty((2, *xor.shape), dtype=np.uint8)

        def by_popcount(low: int, high: int) -> NDArray[Any]:
            block, size = self._words[:, low:high], high - low
            for start in range(0, n_queries, _SCAN_QUERIES):
                part = queries[:, start : start + _SCAN_QUERIES, None]
                total = distances[start : start + _SCAN_QUERIES, :size]
                x, one, some = (buffer[: len(total), :size] for buffer in (xor, *counts))
                some = total if narrow else some
                for i, (column, query) in enumerate(zip(block, part, strict=True)):
                    np.bitwise_xor(column, query, out=x)
                    if i == 0 or (i % 3 == 0 and not narrow):
                        _popcount(x, out=some)
                    else:
                        np.add(some, _popcount(x, out=one), out=some)
                    if not narrow and (i % 3 == 2 or i + 1 == len(block)):
                        np.add(total if i > 2 else np.uint16(0), some, out=total)
            return distances[:, :size]

        return by_popcount, np.zeros((n_queries, 1), dtype=np.int32)

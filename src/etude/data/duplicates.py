"""Duplicates and near-duplicates of texts: exact, MinHash and SimHash.

Sources: MinHash, Broder 1997, with banding as in Leskovec, Rajaraman & Ullman, "Mining of Massive Datasets",
chapter 3; SimHash, Charikar 2002, with the block search of Manku et al. 2007.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from etude.data.randomness import numpy_stream

IntArray = NDArray[np.int64]
Method = Literal["exact", "minhash", "simhash"]
_CHUNK = 1 << 18  # hashes of shingles x permutations held at once
_STEP = np.uint64(0x9E3779B97F4A7C15)


def normalize_text(text: str) -> str:
    """One form for texts that a reader takes for the same: Unicode NFKC, case folded, single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def duplicate_groups(
    texts: Sequence[str],
    method: Method = "minhash",
    threshold: float = 0.8,
    *,
    seed: int = 0,
    shingle: int = 5,
    num_permutations: int = 128,
    max_distance: int = 3,
) -> IntArray:
    """Number the groups of texts that are (nearly) the same.

    Parameters
    ----------
    texts
        Compared after `normalize_text`.
    method
        - "exact": equal.
        - "minhash": Jaccard similarity of the sets of word `shingle`-grams at least `threshold`, as estimated
          from `num_permutations` hashes; single words for texts shorter than that.
        - "simhash": 64-bit codes of the words at most `max_distance` bits apart.
    seed
        Of the permutations; the hashes of words are the same in every process.

    Returns
    -------
    array
        (n,) group numbers in the order of first appearance. Groups are transitive: a text near to one of
        its members belongs to a group. Keep the first of each: ``np.unique(groups, return_index=True)[1]``.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a sequence of strings, got one string")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i} is {type(text).__name__}, not a string")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    if shingle < 1 or num_permutations < 2 or not 0 <= max_distance < 32:
        raise ValueError(
            f"shingle >= 1, num_permutations >= 2 and 0 <= max_distance < 32 are needed, got {shingle}, "
            f"{num_permutations}, {max_distance}"
        )
    if method not in ("exact", "minhash", "simhash"):
        raise ValueError(f"method must be 'exact', 'minhash' or 'simhash', got {method!r}")
    parent = np.arange(len(texts), dtype=np.int64)
    first: dict[str, int] = {}
    for i, text in enumerate(map(normalize_text, texts)):
        parent[i] = first.setdefault(text, i)
    if method != "exact" and len(first) > 1:
        rows = np.fromiter(first.values(), dtype=np.int64, count=len(first))
        words, lengths = _hashed_words(list(first))
        if method == "minhash":
            signatures = _minhash(words, lengths, shingle, num_permutations, seed)
            pairs = _minhash_pairs(signatures, threshold)
        else:
            pairs = _simhash_pairs(_simhash(words, lengths), max_distance)
        for a, b in pairs:
            _union(parent, int(rows[a]), int(rows[b]))
    roots = np.array([_find(parent, i) for i in range(len(texts))], dtype=np.int64)
    _, starts, inverse = np.unique(roots, return_index=True, return_inverse=True)
    order = np.empty(len(starts), dtype=np.int64)
    order[np.argsort(starts)] = np.arange(len(starts))
    return order[inverse]


def _hashed_words(texts: list[str]) -> tuple[NDArray[np.uint64], IntArray]:
    """64-bit hashes of all words of all texts in a row, and the number of words of each text."""
    known: dict[str, int] = {}
    flat: list[int] = []
    lengths = np.empty(len(texts), dtype=np.int64)
    for i, text in enumerate(texts):
        words = text.split()
        lengths[i] = len(words)
        for word in words:
            code = known.get(word)
            if code is None:
                code = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
                known[word] = code
            flat.append(code)
    return np.array(flat, dtype=np.uint64), lengths


def _shingles(words: NDArray[np.uint64], lengths: IntArray, k: int) -> tuple[NDArray[np.uint64], IntArray]:
    """Hashes of the word k-grams of every text, and their numbers; a text of fewer words gives its single words."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    grams = np.zeros(max(len(words) - k + 1, 0), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for j in range(k):
            grams = (grams ^ words[j : j + len(grams)]) * _STEP
            grams ^= grams >> np.uint64(29)
    short = lengths < k
    counts = np.where(short, lengths, lengths - k + 1)
    index = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(starts, counts)
    from_words = np.repeat(short, counts)
    out = np.empty(len(index), dtype=np.uint64)
    out[from_words] = words[index[from_words]]
    out[~from_words] = grams[index[~from_words]]
    return out, counts


def _minhash(
    words: NDArray[np.uint64], lengths: IntArray, k: int, num_permutations: int, seed: int
) -> NDArray[np.uint32]:
    """Signatures (n, num_permutations); a text without words has the largest value everywhere."""
    hashes, counts = _shingles(words, lengths, k)
    rng = numpy_stream(seed, "minhash")
    a = rng.integers(0, 2**32, num_permutations, dtype=np.uint32) | np.uint32(1)  # odd: h -> a h + b is a permutation
    b = rng.integers(0, 2**32, num_permutations, dtype=np.uint32)
    hashes = (hashes >> np.uint64(32)).astype(np.uint32)
    signatures = np.full((len(lengths), num_permutations), np.iinfo(np.uint32).max, dtype=np.uint32)
    ends = np.cumsum(counts)
    first = 0
    per_chunk = max(1, _CHUNK // num_permutations)
    with np.errstate(over="ignore"):
        while first < len(counts):
            start = int(ends[first] - counts[first])
            last = max(first + 1, int(np.searchsorted(ends, start + per_chunk, side="right")))
            block = hashes[start : int(ends[last - 1])]
            filled = np.flatnonzero(counts[first:last])
            if len(filled):
                values = block[:, None] * a
                values += b
                offsets = (ends[first:last] - counts[first:last] - start)[filled]
                signatures[first + filled] = np.minimum.reduceat(values, offsets, axis=0)
            first = last
    return signatures


def _bands(num_permutations: int, threshold: float) -> tuple[int, int]:
    """Bands b and rows r whose curve 1 - (1 - J^r)^b misses few pairs above the threshold and admits few below."""
    grid = np.linspace(0.0, 1.0, 201)
    best, chosen = np.inf, (1, num_permutations)
    for r in range(1, num_permutations + 1):
        b = num_permutations // r
        found = 1 - (1 - grid**r) ** b
        cost = 0.1 * found[grid < threshold].sum() + 0.9 * (1 - found)[grid >= threshold].sum()
        if cost < best:
            best, chosen = cost, (b, r)
    return chosen


def _minhash_pairs(signatures: NDArray[np.uint32], threshold: float) -> list[tuple[int, int]]:
    bands, r = _bands(signatures.shape[1], threshold)
    pairs: list[tuple[int, int]] = []
    for band in range(bands):
        block = np.ascontiguousarray(signatures[:, band * r : (band + 1) * r])
        keys = block.view(np.dtype((np.void, block.itemsize * r))).ravel()
        for members in _buckets(keys):
            while len(members) > 1:  # compare with the first, go on with those unlike it
                near = (signatures[members] == signatures[members[0]]).mean(1) >= threshold
                pairs += [(int(members[0]), int(m)) for m in members[near][1:]]
                members = members[~near]
    return pairs


def _simhash(words: NDArray[np.uint64], lengths: IntArray) -> NDArray[np.uint64]:
    """64-bit codes (n,): the sign of the sum over words of +-1 for each bit of their hashes."""
    shifts = np.arange(64, dtype=np.uint64)
    codes = np.zeros(len(lengths), dtype=np.uint64)
    ends = np.cumsum(lengths)
    for i in range(len(lengths)):
        block = words[ends[i] - lengths[i] : ends[i]]
        ones = ((block[:, None] >> shifts) & np.uint64(1)).sum(0)
        codes[i] = ((2 * ones > len(block)).astype(np.uint64) << shifts).sum(dtype=np.uint64)
    return codes


def _simhash_pairs(codes: NDArray[np.uint64], max_distance: int) -> list[tuple[int, int]]:
    """Codes within `max_distance` bits agree in one of max_distance + 1 blocks."""
    edges = [64 * i // (max_distance + 1) for i in range(max_distance + 2)]
    pairs: list[tuple[int, int]] = []
    for low, high in pairwise(edges):
        width = high - low
        mask = np.uint64((1 << width) - 1)
        for members in _buckets((codes >> np.uint64(low)) & mask):
            for j in range(len(members) - 1):
                apart = np.bitwise_count(codes[members[j + 1 :]] ^ codes[members[j]])
                pairs += [(int(members[j]), int(m)) for m in members[j + 1 :][apart <= max_distance]]
    return pairs


def _buckets(keys: NDArray[np.generic]) -> list[IntArray]:
    """Index arrays (ascending) of equal keys, those with at least two."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(order, np.cumsum(counts)[:-1])
    return [part for part, count in zip(parts, counts) if count > 1]


def _find(parent: IntArray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _union(parent: IntArray, a: int, b: int) -> None:
    a, b = _find(parent, a), _find(parent, b)
    parent[max(a, b)] = min(a, b)

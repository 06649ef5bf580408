"""Words and word sequences of a collection, and documents as their counts.

N-grams are looked up as integers, ``((w1 * W) + w2) * W + w3`` over the W known words, so that counting bigrams of
a million tokens is a few array operations.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

Tokenizer = Callable[[Any], Sequence[str]]
Ints = NDArray[np.int64]

_WORD = re.compile(r"(?u)\b\w\w+\b")


def words_of(text: str) -> list[str]:
    """Lower-cased runs of at least two word characters: the default tokenizer."""
    return _WORD.findall(text.lower())


def tokenize(texts: Iterable[Any], tokenizer: Tokenizer | None = None) -> list[Sequence[str]]:
    """Tokens of every document.

    Raises
    ------
    ValueError
        If `texts` is one string, or an entry is not a string and no tokenizer was given (the index is named).
    """
    if isinstance(texts, str):
        raise ValueError("texts must be a sequence of documents, got one string: pass [text]")
    texts = list(texts)  # an iterator gives its documents once
    if tokenizer is not None:
        return [tokenizer(text) for text in texts]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"document {i} is {type(text).__name__}, not str: pass raw text, or a tokenizer")
    return [words_of(text) for text in texts]


@dataclass(frozen=True)
class Vocabulary:
    """The n-grams that count: `grams[n]` holds the sorted keys of those of length n.

    Columns of the count matrix are ordered by length, then key. Known words are numbered by falling frequency, so
    that a smaller key is a more frequent n-gram's start.
    """

    words: tuple[str, ...]
    """Every word that occurs often enough, most frequent first."""
    grams: dict[int, Ints]
    """Length to sorted keys."""

    @classmethod
    def build(
        cls,
        documents: Sequence[Sequence[str]],
        *,
        ngram_range: tuple[int, int] = (1, 1),
        min_count: int = 5,
        max_features: int | None = None,
        per_document: bool = False,
    ) -> "Vocabulary":
        """Collect the n-grams that occur at least `min_count` times.

        Parameters
        ----------
        documents
            Token lists.
        ngram_range
            Shortest and longest n-gram.
        max_features
            Keep only so many n-grams *of each length*, the most frequent ones.
        per_document
            Count documents that hold the n-gram instead of its occurrences.

        Raises
        ------
        ValueError
            If the range is not 1 <= shortest <= longest, `min_count` is below 1, `max_features` is no positive
            integer, or no n-gram is frequent enough.
        """
        if max_features is not None and not (isinstance(max_features, Integral) and max_features > 0):
            raise ValueError(f"max_features must be a positive integer or None, got {max_features!r}")
        if not min_count >= 1:
            raise ValueError(f"min_count must be at least 1, got {min_count!r}")
        if np.shape(ngram_range) != (2,) or not 1 <= ngram_range[0] <= ngram_range[1]:
            raise ValueError(f"ngram_range must be (shortest, longest) with 1 <= shortest <= longest: {ngram_range!r}")
        shortest, longest = ngram_range
        count: Counter[str] = Counter()
        for tokens in documents:
            count.update(set(tokens) if per_document else tokens)
        frequent = sorted((w for w, c in count.items() if c >= min_count), key=lambda w: (-count[w], w))
        empty = cls(tuple(frequent), {})
        if len(frequent) ** longest >= 2**62:
            raise ValueError(f"{len(frequent)} words are too many for n-grams of length {longest}: raise min_count")
        grams = {}
        for n in range(shortest, longest + 1):
            keys, document = empty._keys(empty.encode(documents), n)
            if per_document:
                pairs = np.unique(np.stack([keys, document]), axis=1)
                keys = pairs[0]
            distinct, times = np.unique(keys, return_counts=True)
            distinct, times = distinct[times >= min_count], times[times >= min_count]
            if max_features is not None:
                best = np.lexsort((distinct, -times))[:max_features]
                distinct = np.sort(distinct[best])
            grams[n] = distinct
        if not sum(map(len, grams.values())):
            raise ValueError(f"no n-gram of length {shortest}..{longest} occurs {min_count} times: lower min_count")
        return cls(tuple(frequent), grams)

    def __len__(self) -> int:
        return sum(map(len, self.grams.values()))

    def terms(self) -> list[str]:
        """The n-grams as text, in the order of the columns."""
        result = []
        for n, keys in self.grams.items():
            for key in keys.tolist():
                parts = []
                for _ in range(n):
                    key, word = divmod(key, len(self.words))
                    parts.append(self.words[word])
                result.append(" ".join(reversed(parts)))
        return result

    def encode(self, documents: Sequence[Sequence[str]]) -> tuple[Ints, Ints]:
        """Word numbers of all tokens in one array (-1: unknown), and the bounds of the documents, (D + 1,)."""
        number = {word: i for i, word in enumerate(self.words)}
        flat = [number.get(token, -1) for tokens in documents for token in tokens]
        bounds = np.concatenate([[0], np.cumsum([len(tokens) for tokens in documents], dtype=np.int64)])
        return np.array(flat, dtype=np.int64), bounds

    def counts(self, documents: Sequence[Sequence[str]]) -> csr_matrix:
        """How often each n-gram occurs in each document: (D, V) float32, sorted indices."""
        encoded = self.encode(documents)
        rows, columns, start = [], [], 0
        for n, known in self.grams.items():
            keys, document = self._keys(encoded, n)
            place = np.searchsorted(known, keys)
            hit = known[np.minimum(place, len(known) - 1)] == keys if len(known) else np.zeros(len(keys), bool)
            rows.append(document[hit])
            columns.append(place[hit] + start)
            start += len(known)
        row, column = np.concatenate(rows), np.concatenate(columns)
        matrix = csr_matrix((np.ones(len(row), np.float32), (row, column)), (len(documents), len(self)))
        matrix.sum_duplicates()
        return matrix

    def _keys(self, encoded: tuple[Ints, Ints], n: int) -> tuple[Ints, Ints]:
        """Keys of all n-grams of known words, and the document of each."""
        flat, bounds = encoded
        document = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        size = max(len(flat) - n + 1, 0)
        keys, inside = np.zeros(size, dtype=np.int64), document[:size] == document[n - 1 :]
        for i in range(n):
            word = flat[i : i + size]
            keys = keys * len(self.words) + word
            inside &= word >= 0
        return keys[inside], document[:size][inside]

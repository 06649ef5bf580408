"""A store of passages of text: vectors, ids and sources, with what a query must not see left out."""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from etude.layers.neighbors import NearestNeighbors, as_matrix


class Hits(NamedTuple):
    """What `PassageStore.search` finds, best first."""

    ids: np.ndarray
    """(q, k), dtype object; None where exclusion left too few passages."""
    similarities: Tensor
    """(q, k), cosine, descending; -inf where there is no passage."""
    vectors: Tensor
    """(q, k, d), as stored; zeros where there is no passage."""


class PassageStore:
    """Passages of text with their vectors, searched by cosine.

    Parameters
    ----------
    encoder
        Turns texts into vectors: a callable ``list[str] -> (n, d)`` or an object with such an `encode`.
    index
        A `NearestNeighbors` with metric "cosine" (None: exact search).
    """

    def __init__(self, encoder: Callable[[list[str]], Any] | Any, index: NearestNeighbors | None = None) -> None:
        if isinstance(encoder, str) or not (callable(encoder) or hasattr(encoder, "encode")):
            raise ValueError(f"encoder must be callable or have a method encode, got {type(encoder).__name__}")
        self.encoder = encoder
        self.index = NearestNeighbors() if index is None else index
        if self.index.metric != "cosine":
            raise ValueError(f"a passage store searches by cosine, got an index with metric {self.index.metric!r}")
        self.passages: list[str] = []
        self.ids: list[Hashable] = []
        self.sources: list[Hashable] = []
        self.vectors = torch.empty(0, 0)
        self._stale = True

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, float32 (n, d)."""
        encode = self.encoder.encode if hasattr(self.encoder, "encode") else self.encoder
        return as_matrix(encode(list(texts)), "the encoder's output").float()

    def add(
        self,
        passages: Sequence[str],
        ids: Sequence[Hashable] | np.ndarray,
        sources: Sequence[Hashable] | np.ndarray | None = None,
    ) -> "PassageStore":
        """Add passages under their ids (several may share one), with the document each was taken from.

        Raises
        ------
        ValueError
            If `passages` is one string, lengths differ or the encoder's width changed.
        TypeError
            For an id or a source that cannot be hashed; the message names it.
        """
        if isinstance(passages, str):
            raise ValueError("passages must be a list of texts, got one string: put it in a list")
        ids, sources = _plain(ids), None if sources is None else _plain(sources)
        if len(passages) != len(ids) or (sources is not None and len(sources) != len(ids)):
            raise ValueError(
                f"got {len(passages)} passages, {len(ids)} ids"
                + ("" if sources is None else f" and {len(sources)} sources")
            )
        for what, values in (("id", ids), ("source", sources or [])):
            for i, value in enumerate(values):
                if not _hashable(value):
                    raise TypeError(f"{what} {i} cannot be hashed: {value!r} ({type(value).__name__})")
        if not len(passages):
            return self
        vectors = self.encode(passages)
        if len(vectors) != len(passages):
            raise ValueError(f"the encoder returned {len(vectors)} vectors for {len(passages)} passages")
        if len(self) and vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"the encoder returned {vectors.shape[1]} columns, the store holds {self.vectors.shape[1]}"
            )
        self.vectors = torch.cat([self.vectors, vectors]) if len(self) else vectors
        self.passages += [str(p) for p in passages]
        self.ids += ids
        self.sources += [None] * len(ids) if sources is None else sources
        self._stale = True
        return self

    def search(self, vectors: Any, k: int, *, exclude: Sequence[Hashable | Iterable[Hashable]] | None = None) -> Hits:
        """The k most similar passages of every query vector (q, d).

        Parameters
        ----------
        exclude
            For every query an id, a collection of ids (list, tuple, set, array), or None. A passage with such an
            id is left out, and so is every passage of the same source. Ids that the store does not hold are
            ignored.

        Raises
        ------
        ValueError
            If the store holds fewer than k passages or the widths differ.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1..{len(self)}, the number of passages, got {k}")
        queries = as_matrix(vectors, "vectors")
        if self._stale:
            self.index.fit(self.vectors)
            self._stale = False
        rows = None if exclude is None else self._rows_of(exclude)
        distances, indices = self.index.kneighbors(queries, k, exclude=rows)
        found = indices >= 0
        ids = np.full(tuple(indices.shape), None, dtype=object)
        for q, place in found.nonzero().tolist():
            ids[q, place] = self.ids[int(indices[q, place])]
        return Hits(ids, 1 - distances, self.vectors[indices.clamp_min(0)] * found[..., None])

    def _rows_of(self, exclude: Sequence[Hashable | Iterable[Hashable]]) -> list[list[int]]:
        by_id: dict[Hashable, list[int]] = {}
        by_source: dict[Hashable, list[int]] = {}
        for row, (identifier, source) in enumerate(zip(self.ids, self.sources, strict=True)):
            by_id.setdefault(identifier, []).append(row)
            if source is not None:
                by_source.setdefault(source, []).append(row)
        result = []
        for entry in exclude:
            many = isinstance(entry, list | tuple | set | frozenset | np.ndarray)
            rows: set[int] = set()
            for identifier in _plain(entry if many else [entry]):  # type: ignore[arg-type]
                own = by_id.get(identifier, [])
                rows.update(own)
                for row in own:
                    rows.update(by_source.get(self.sources[row], []))
            result.append(sorted(rows))
        return result

    def save(self, path: str | Path, *, with_passages: bool = True) -> None:
        """Write vectors, ids and sources (strings, numbers, tuples of them), and the texts unless told otherwise."""
        record = {"ids": self.ids, "sources": self.sources}
        if with_passages:
            record["passages"] = list(self.passages)
        save_file({"vectors": self.vectors.contiguous()}, str(path), {"store": json.dumps(record)})

    @classmethod
    def load(
        cls, path: str | Path, encoder: Callable[[list[str]], Any] | Any, index: NearestNeighbors | None = None
    ) -> "PassageStore":
        """Read what `save` wrote; texts that were not written are empty strings."""
        store = cls(encoder, index)
        with safe_open(str(path), framework="pt") as file:
            record = json.loads(file.metadata()["store"])
            store.vectors = file.get_tensor("vectors")
        store.ids, store.sources = ([_tuples(v) for v in record[name]] for name in ("ids", "sources"))
        store.passages = record.get("passages", [""] * len(store.ids))
        return store


def _plain(values: Iterable[Any]) -> list[Hashable]:
    """Python values, so that 3 and numpy.int64(3) are one id and JSON can hold it."""
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _tuples(value: Any) -> Hashable:
    """JSON's lists as the tuples that they were: a list could not have been an id."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True

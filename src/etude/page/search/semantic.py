"""Meaning: MiniLM sentence vectors of title and abstract, searched exactly, or by signs where papers are very many.

Vectors are made by a worker, never inside a request, and wait in the table `vector`. The query's own vector needs the
model in the page's process: it is loaded in the background on first use, and until then search is by words.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from etude.errors import EtudeError
from etude.page import tables as t
from etude.page.database import Database

MODEL = "all-MiniLM-L6-v2"
EXACT_UP_TO = 100_000
WINDOW_WORDS = 170  # about 256 tokens, the model's limit
Encode = Callable[[Sequence[str]], np.ndarray]


def load_encoder() -> Encode:
    """The sentence encoder as a function of texts; raises `MissingExtra` without the extra `hf`."""
    from etude.layers.text_encoders import TextEncoder

    encoder = TextEncoder(MODEL)

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = encoder.encode(list(texts), cache=False).numpy()
        return vectors

    return encode


def windows(title: str, abstract: str) -> list[str]:
    """The texts whose vectors are averaged: title and abstract, in two windows when they are long."""
    words = abstract.split()
    if len(words) <= WINDOW_WORDS:
        return [f"{title}. {abstract}".strip()]
    return [f"{title}. {' '.join(part)}" for part in (words[:WINDOW_WORDS], words[WINDOW_WORDS : 2 * WINDOW_WORDS])]


def embed(encode: Encode, papers: Sequence[tuple[str, str]]) -> np.ndarray:
    """Unit vectors, shape (n, d), of (title, abstract) pairs."""
    texts: list[str] = []
    owner: list[int] = []
    for i, (title, abstract) in enumerate(papers):
        for text in windows(title, abstract):
            texts.append(text)
            owner.append(i)
    raw = encode(texts)
    total = np.zeros((len(papers), raw.shape[1]), np.float32)
    np.add.at(total, owner, raw)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def digest(title: str, abstract: str) -> str:
    return hashlib.sha256(f"{title}\n{abstract}".encode()).hexdigest()


def embed_pending(db: Database, encode: Encode, *, limit: int = 64) -> int:
    """Make the vectors of up to `limit` papers that have none, or whose text has changed. Returns how many."""
    p, v = t.paper.c, t.vector.c
    joined = t.paper.outerjoin(t.vector, v.paper_id == p.id)
    todo = []
    fresh = sa.select(p.id, p.title, p.abstract, v.digest).select_from(joined)
    fresh = fresh.where(sa.or_(v.paper_id.is_(None), p.version > 1)).order_by(p.id)
    for row in db.rows(fresh):
        if row["digest"] != digest(row["title"], row["abstract"]):
            todo.append(row)
        if len(todo) == limit:
            break
    if not todo:
        return 0
    vectors = embed(encode, [(r["title"], r["abstract"]) for r in todo]).astype(np.float16)
    with db.begin() as c:
        c.execute(sa.delete(t.vector).where(v.paper_id.in_([r["id"] for r in todo])))
        rows = [
            {"paper_id": r["id"], "model": MODEL, "digest": digest(r["title"], r["abstract"]), "f16": x.tobytes()}
            for r, x in zip(todo, vectors, strict=True)
        ]
        c.execute(sa.insert(t.vector), rows)
    return len(todo)


class SemanticIndex:
    """The vectors of a page in memory.

    Parameters
    ----------
    encode
        A sentence encoder; None loads MiniLM in the background when the first query comes.
    """

    def __init__(self, db: Database, encode: Encode | None = None) -> None:
        self.db, self._encode = db, encode
        self.problem: str | None = None
        self.ids = np.zeros(0, np.int64)
        self._index: Any = None
        self._vectors: np.ndarray = np.zeros((0, 0), np.float32)
        self._stamp: tuple[int, int] = (-1, -1)
        self._lock = threading.Lock()
        self._loading: threading.Thread | None = None

    def refresh(self) -> None:
        """Read the vectors again when there are others than before."""
        v = t.vector.c
        newest = sa.func.coalesce(sa.func.max(v.paper_id), 0).label("newest")
        row = self.db.rows(sa.select(sa.func.count().label("n"), newest).select_from(t.vector))[0]
        stamp = (row["n"], row["newest"])
        with self._lock:
            if stamp == self._stamp:
                return
            rows = self.db.rows(sa.select(v.paper_id, v.f16).where(v.model == MODEL).order_by(v.paper_id))
            self.ids = np.array([r["paper_id"] for r in rows], np.int64)
            self._stamp = stamp
            if not rows:
                self._index = None
                return
            from etude.layers.neighbors import NearestNeighbors

            half = np.frombuffer(b"".join(r["f16"] for r in rows), np.float16).reshape(len(rows), -1)
            self._vectors = half.astype(np.float32) if len(rows) <= EXACT_UP_TO else half
            how: Any = "exact" if len(rows) <= EXACT_UP_TO else "signs"
            self._index = NearestNeighbors("cosine", search=how).fit(self._vectors)

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Paper ids, shape (n,), and their vectors, shape (n, d), as last read."""
        with self._lock:
            return self.ids, self._vectors[: len(self.ids)]

    @property
    def ready(self) -> bool:
        """Whether a query can be ranked by meaning now; the first call starts loading the model."""
        if self._encode is None and self.problem is None and self._loading is None:
            self._loading = threading.Thread(target=self._load, name="etude-meaning", daemon=True)
            self._loading.start()
        return self._encode is not None and self._index is not None

    def _load(self) -> None:
        try:
            encode = load_encoder()
            encode(["warm up"])
            self._encode = encode
        except (EtudeError, OSError) as error:
            self.problem = str(error)

    def rank(self, text: str, depth: int = 200) -> list[int]:
        """Paper ids by meaning, best first; none while the model is not ready."""
        if not self.ready:
            return []
        assert self._encode is not None
        return self._nearest(np.asarray(self._encode([text]), np.float32), depth)

    def _nearest(self, query: np.ndarray, depth: int) -> list[int]:
        k = min(depth, len(self.ids))
        _, places = self._index.kneighbors(query, k)
        return self.ids[places[0]].tolist()

    def related(self, paper_id: int, k: int = 8, *, diversity: float = 0.7) -> list[int]:
        """Papers like one paper, by maximal marginal relevance: near to it, not all alike."""
        at = np.flatnonzero(self.ids == paper_id)
        if self._index is None or at.size == 0:
            return []
        own = self._vectors[at[0]].astype(np.float32)
        near = [i for i in self._nearest(own[None], 4 * k + 1) if i != paper_id]
        places = np.searchsorted(self.ids, near)
        vectors: np.ndarray = self._vectors[places].astype(np.float32)
        relevance: np.ndarray = vectors @ own
        chosen: list[int] = []
        left = list(range(len(near)))
        while left and len(chosen) < k:
            repeat: np.ndarray = (vectors[left] @ vectors[chosen].T).max(1) if chosen else np.zeros(len(left))
            best = left[int(np.argmax(diversity * relevance[left] - (1 - diversity) * repeat))]
            chosen.append(best)
            left.remove(best)
        return [near[i] for i in chosen]

"""Meaning: MiniLM sentence vectors of title and abstract, searched exactly, or by signs where papers are very many.

Vectors are made by a worker, never inside a request, and wait in the table `vector`. The query's own vector needs the
model in the page's process, as `QueryEncoder`: it is loaded in the background on first use, and until then search is by
words. With `ETUDE_ENCODER=static` vectors are averages of the tokens' vectors: far quicker to make, and worse.
"""

import copy
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa

from etude.errors import EtudeError, UsageError
from etude.page import tables as t
from etude.page.database import Database
from etude.page.search.scan import SignScan

MODEL = "all-MiniLM-L6-v2"
MODELS = {"full": MODEL, "static": f"{MODEL}-static"}
EXACT_UP_TO = 100_000
READ = 8192  # vectors read at once
AT_ONCE = 5000  # ids in one question; SQLite takes 32,766
TEXTS_AT_ONCE = 16
CLEARLY = 0.8  # share of the time that another precision has to stay below
NEIGHBOURS_OF = 20  # papers whose neighbours are candidates, where not all papers can be
WINDOW_WORDS = 170  # about 256 tokens, the model's limit
LIKE = 0.2  # cosine below which a text is like a paper by chance: words that mean nothing reach .18
Encode = Callable[[Sequence[str]], np.ndarray]


def model_name() -> str:
    """Whose vectors this process makes and reads, by the environment variable `ETUDE_ENCODER` (full or static).

    Raises
    ------
    UsageError
        For another value.
    """
    asked = os.environ.get("ETUDE_ENCODER") or "full"
    if asked not in MODELS:
        raise UsageError(f"ETUDE_ENCODER={asked}: choose one of {', '.join(MODELS)}")
    return MODELS[asked]


def load_encoder() -> Encode:
    """The sentence encoder as a function of texts; raises `MissingExtra` without the extra `hf`."""
    import torch

    from etude.layers.text_encoders import TextEncoder

    if model_name() == MODELS["static"]:
        from etude.layers.static_encoder import StaticEncoder

        return StaticEncoder.distil().encode

    encoder = TextEncoder(MODEL, device="cuda" if torch.cuda.is_available() else "cpu", batch_size=TEXTS_AT_ONCE)
    encoder.model = quicker_precision(encoder.model)

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = encoder.encode(list(texts), cache=False).numpy()
        return vectors

    return encode


def load_query_encoder() -> Encode:
    """The same vectors for one process that answers and stays small; raises `MissingExtra` without the extra `hf`."""
    from threadpoolctl import threadpool_limits

    if model_name() == MODELS["static"]:
        encode = load_encoder()
    else:
        from etude.page.search.query_encoder import QueryEncoder, model_folder

        encode = QueryEncoder(model_folder())
    threadpool_limits(1, user_api="blas")  # more threads wait longer for each other than a few words take
    return encode


def quicker_precision(model: Any) -> Any:
    """The model, or a copy of it in bfloat16 where this machine is clearly quicker in that, as measured on a batch.

    Processors that multiply bfloat16 embed two to three times as many texts with it; others are slower. The vectors
    (cosine to those of float32: .9999) lose no more than their storage in 16 bits does anyway.
    """
    import torch

    where = next(model.parameters()).device
    ids = torch.full((TEXTS_AT_ONCE, 128), 1000, device=where)
    half = copy.deepcopy(model).bfloat16()

    def seconds(which: Any) -> float:
        start = time.perf_counter()
        which(input_ids=ids)
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter() - start

    with torch.inference_mode():
        plain, light = (min(seconds(m) for _ in range(3)) for m in (model, half))
    return half if light < CLEARLY * plain else model


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
    lacking = sa.select(p.id, p.title, p.abstract, p.version, v.digest)
    lacking = lacking.select_from(t.paper.outerjoin(t.vector, v.paper_id == p.id)).where(v.paper_id.is_(None))
    todo = db.rows(lacking.order_by(p.id).limit(limit))
    edited = sa.select(p.id, p.title, p.abstract, p.version, v.digest).where(p.version > 1, p.version > v.version)
    todo += db.rows(edited.where(v.paper_id == p.id).order_by(p.id).limit(max(0, limit - len(todo))))
    same = [r for r in todo if r["digest"] == digest(r["title"], r["abstract"])]  # edited, but not in its words
    if same:
        with db.begin() as c:
            for r in same:
                c.execute(sa.update(t.vector).where(v.paper_id == r["id"]).values(version=r["version"]))
        todo = [r for r in todo if r not in same]
    if not todo:
        return len(same)
    vectors = embed(encode, [(r["title"], r["abstract"]) for r in todo]).astype(np.float16)
    rows = [
        {"paper_id": r["id"], "digest": digest(r["title"], r["abstract"]), "f16": x.tobytes(), "version": r["version"]}
        for r, x in zip(todo, vectors, strict=True)
    ]
    with db.begin() as c:
        store_vectors(c, rows)
    return len(todo)


def forget_other_models(db: Database) -> int:
    """Remove the vectors that another model made, so that they are made anew. Returns how many."""
    with db.begin() as c:
        return c.execute(sa.delete(t.vector).where(t.vector.c.model != model_name())).rowcount


def store_vectors(c: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write vectors of papers in place of those they had; `n` counts the writings, so a reader sees what is new."""
    v = t.vector.c
    ids = [r["paper_id"] for r in rows]
    for start in range(0, len(ids), AT_ONCE):
        c.execute(sa.delete(t.vector).where(v.paper_id.in_(ids[start : start + AT_ONCE])))
    # the clock, so that vectors that were all removed and made anew are seen to be new
    n = max((c.execute(sa.select(sa.func.max(v.n))).scalar() or 0) + 1, time.time_ns() // 1_000_000)
    c.execute(sa.insert(t.vector), [{"model": model_name(), "version": 1, "n": n} | r for r in rows])


class SemanticIndex:
    """The vectors of a page in memory: all of them while they are few, their signs when there are very many.

    Parameters
    ----------
    encode
        A sentence encoder; None loads MiniLM in the background when the first query comes.
    exact_up_to
        Papers until which every vector is compared.
    """

    def __init__(self, db: Database, encode: Encode | None = None, *, exact_up_to: int = EXACT_UP_TO) -> None:
        self.db, self._encode, self._most = db, encode, exact_up_to
        self.problem: str | None = None
        self._ids = np.zeros(0, np.int64)
        self._vectors: np.ndarray = np.zeros((0, 0), np.float32)
        self._place: dict[int, int] = {}
        self._count = 0
        self._scan: SignScan | None = None
        self._stamp = (-1, -1)
        self._lock = threading.Lock()
        self._loading: threading.Thread | None = None

    def refresh(self) -> None:
        """Read the vectors that have come, or changed, since the last time."""
        v = t.vector.c
        newest = (sa.func.coalesce(sa.func.max(column), -1) for column in (v.n, v.paper_id))
        with self._lock:
            with self.db.engine.connect() as c:
                stamp = tuple(c.execute(sa.select(*(sa.select(x).scalar_subquery() for x in newest))).one())
                if stamp == self._stamp:
                    return
                since = self._stamp[0] if stamp[0] > self._stamp[0] else -1  # written past us: read all
                if since == -1:
                    self._forget()
                    if c.execute(sa.select(sa.func.count()).select_from(t.vector)).scalar_one() > self._most:
                        self._scan = SignScan(self._fetch)
                query = sa.select(v.paper_id, v.f16).where(v.n > since, v.n <= stamp[0], v.model == model_name())
                rows = c.execution_options(yield_per=READ).execute(query.order_by(v.paper_id))
                for part in rows.partitions():
                    ids = np.array([r[0] for r in part], np.int64)
                    self._add(ids, np.frombuffer(b"".join(r[1] for r in part), np.float16).reshape(len(ids), -1))
            self._stamp = stamp  # type: ignore[assignment]

    def _forget(self) -> None:
        self._ids, self._vectors = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        self._place, self._count, self._scan = {}, 0, None

    def _add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        if self._scan is None and self._count + len(ids) > self._most:  # too many to compare each: signs from now on
            self._scan = SignScan(self._fetch)
            if self._count:
                self._scan.add(*self._held())
            self._ids, self._vectors, self._place = np.zeros(0, np.int64), np.zeros((0, 0), np.float32), {}
        if self._scan is not None:
            self._scan.add(ids, vectors)
            self._count += len(ids)
            return
        new = [i for i in ids.tolist() if i not in self._place]
        need = self._count + len(new)
        if need > len(self._ids):
            grown = np.zeros((max(need, 2 * len(self._ids)), vectors.shape[1]), np.float32)
            if self._count:
                grown[: self._count] = self._vectors[: self._count]
            self._vectors = grown
            self._ids = np.concatenate([self._ids[: self._count], np.zeros(len(grown) - self._count, np.int64)])
        self._place |= {i: self._count + place for place, i in enumerate(new)}
        places = [self._place[i] for i in ids.tolist()]
        self._ids[places], self._vectors[places] = ids, vectors
        self._count = need

    def _held(self) -> tuple[np.ndarray, np.ndarray]:
        return self._ids[: self._count], self._vectors[: self._count]

    def __len__(self) -> int:
        return self._count

    def _fetch(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of some papers from the database, in the order of their ids."""
        found: list[tuple[int, bytes]] = []
        with self.db.engine.connect() as c:
            for start in range(0, len(ids), AT_ONCE):
                listed = ",".join(str(int(i)) for i in ids[start : start + AT_ONCE])
                sql = f"SELECT paper_id, f16 FROM vector WHERE paper_id IN ({listed}) ORDER BY paper_id"
                found += c.exec_driver_sql(sql).tuples().all()
        raw = np.frombuffer(b"".join(x for _, x in found), np.float16)
        return np.array([i for i, _ in found], np.int64), raw.reshape(len(found), -1) if found else raw.reshape(0, 0)

    def pool(self, wanted: Iterable[int], *, strangers: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Paper ids, shape (n,), and unit vectors, shape (n, d): of all papers; where these are too many to hold,
        of those wanted, their neighbours and some strangers."""
        if self._scan is None:
            return self._held()
        from etude.data.randomness import numpy_stream

        ids = np.array(sorted(set(wanted)), np.int64)
        known, vectors = self._fetch(ids)
        near = [self._scan.nearest(x.astype(np.float32), 200)[0] for x in vectors[:NEIGHBOURS_OF]]
        drawn = numpy_stream(seed, "strangers").integers(0, self._count, strangers) + 1
        return self._fetch(np.unique(np.concatenate([known, *near, drawn])))

    @property
    def ready(self) -> bool:
        """Whether a query can be ranked by meaning now; the first call starts loading the model."""
        if self._encode is None and self.problem is None and self._loading is None:
            self._loading = threading.Thread(target=self._load, name="etude-meaning", daemon=True)
            self._loading.start()
        return self._encode is not None and self._count > 0

    def _load(self) -> None:
        try:
            encode = load_query_encoder()
            encode(["warm up"])
            self._encode = encode
        except (EtudeError, OSError) as error:
            self.problem = str(error)

    def rank(self, text: str, depth: int = 200) -> list[int]:
        """Paper ids by meaning, best first; none while the model is not ready."""
        if not self.ready:
            return []
        assert self._encode is not None
        return self.nearest(np.asarray(self._encode([text]), np.float32)[0], depth, LIKE)

    def nearest(self, query: np.ndarray, depth: int, least: float = -1.0) -> list[int]:
        """Ids of the papers nearest to a unit vector, shape (d,), of cosine `least` or more; equal ones by their id."""
        with self._lock:
            if self._scan is not None:
                found, cosines = self._scan.nearest(query, depth)
                return found[cosines >= least].tolist()
            ids, vectors = self._held()
        cosine: np.ndarray = vectors @ query
        k = min(depth, len(ids))
        if k < len(ids):
            kept = np.flatnonzero(cosine >= np.partition(cosine, len(ids) - k)[len(ids) - k])
            ids, cosine = ids[kept], cosine[kept]
        order = np.lexsort((ids, -cosine))[:k]
        return ids[order][cosine[order] >= least].tolist()

    def related(self, paper_id: int, k: int = 8, *, diversity: float = 0.7) -> list[int]:
        """Papers like one paper, by maximal marginal relevance: near to it, not all alike."""
        known, own = self._vectors_of([paper_id])
        if len(known) == 0:
            return []
        near = [i for i in self.nearest(own[0], 4 * k + 1) if i != paper_id]
        order, found = self._vectors_of(near)
        vectors = found[np.argsort(order)][np.argsort(np.argsort(near))]
        relevance: np.ndarray = vectors @ own[0]
        chosen: list[int] = []
        left = list(range(len(near)))
        while left and len(chosen) < k:
            repeat: np.ndarray = (vectors[left] @ vectors[chosen].T).max(1) if chosen else np.zeros(len(left))
            best = left[int(np.argmax(diversity * relevance[left] - (1 - diversity) * repeat))]
            chosen.append(best)
            left.remove(best)
        return [near[i] for i in chosen]

    def _vectors_of(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        if self._scan is not None:
            known, vectors = self._fetch(np.array(ids, np.int64))
            return known, vectors.astype(np.float32)
        held = [i for i in ids if i in self._place]
        return np.array(held, np.int64), self._vectors[[self._place[i] for i in held]]

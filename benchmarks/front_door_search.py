"""The page's search beside its peers, at its largest, and as it embeds.

Largest: 2,500,000 papers. 2,000 titles of computer science (DBLP) are embedded by MiniLM; a made-up paper's vector is
a mixture of a real one, one of that one's 30 nearest and, by a third, any other. Their float16 vectors lie in an
SQLite database as the page keeps them, and a process of its own reads them, searches and tells its time, its recall
against the exact float32 product and its highest memory. Queries: real vectors of 60 other titles.

Quality: the first 1,000 items of AG News' test file; documents are the descriptions, the query is the headline, which
is not in the index. Peers rank the same texts: bm25s (Lucene's BM25, English stop words, as installed) and the linear
SVM on tf-idf (pairs of words, 20,000 columns, C = 0.01, fitted to one paper and scored over all at every request) by
which arxiv-sanity-lite finds similar papers. faiss and usearch search the same vectors. Without the data or a
package its rows are left out.
"""

import functools
import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from etude.data.randomness import numpy_stream
from etude.lab.bench import Case, Figure, scratch_folder

MANY, REAL, ASKED, BLOCK = 2_500_000, 2_000, 60, 65_536
NEWS, QUERIES = 1_000, 300
SOME = 20_000  # vectors for the peers
NOW = 1_790_000_000


@functools.cache
def real() -> tuple[np.ndarray, np.ndarray]:
    """MiniLM's vectors of titles, to make papers of, (2000, 384), and to ask with, (60, 384); kept in the cache."""
    from etude.data import load_texts
    from etude.layers.text_encoders import TextEncoder

    titles = list(dict.fromkeys(load_texts("octis_dblp").texts))
    chosen = numpy_stream(0, "front-door", "titles").choice(len(titles), REAL + ASKED, replace=False)
    found = TextEncoder().encode([titles[i] for i in chosen]).numpy()
    return found[:REAL], found[REAL:]


class Papers:
    """Made-up papers' unit vectors, block by block, the same at every pass."""

    def __init__(self) -> None:
        self.x = real()[0]
        near = [np.argpartition(-(part @ self.x.T), 31, axis=1)[:, :31] for part in np.split(self.x, 8)]
        self.near = np.concatenate(near)

    def block(self, number: int, size: int) -> np.ndarray:
        g = numpy_stream(number, "front-door", "papers")
        a, w = g.integers(0, REAL, size), g.random((size, 1), np.float32)
        b, c = self.near[a, g.integers(0, 31, size)], g.integers(0, REAL, size)
        x = w * self.x[a] + (1 - w) * self.x[b] + 0.33 * self.x[c]
        made: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
        return made


def store_for(path: Path) -> sqlite3.Connection:
    """A new page's database, open for vectors that have no papers; nothing of it need survive a crash."""
    from etude.page.database import Database

    Database(path).close()
    c = sqlite3.connect(path)
    c.execute("PRAGMA journal_mode=OFF")
    c.execute("PRAGMA synchronous=OFF")
    return c


def write(c: sqlite3.Connection, first: int, vectors: np.ndarray) -> None:
    """Store vectors as the page does, for papers numbered from `first` on."""
    c.executemany(
        "INSERT INTO vector(paper_id, model, digest, f16, version, n) VALUES (?, 'all-MiniLM-L6-v2', '', ?, 1, 1)",
        ((first + i, v.tobytes()) for i, v in enumerate(vectors.astype(np.float16))),
    )


@functools.cache
def many() -> dict[str, Any]:
    """Make the papers, find the exact answers, let a process search; what it told."""
    path = scratch_folder() / "many.sqlite"
    queries, papers = real()[1], Papers()
    best, ids = np.full((ASKED, 10), -2.0, np.float32), np.zeros((ASKED, 10), np.int64)
    c = store_for(path)
    for number, first in enumerate(range(0, MANY, BLOCK)):
        x = papers.block(number, min(BLOCK, MANY - first))
        write(c, first + 1, x)
        score = queries @ x.T
        places = np.argpartition(-score, 10, axis=1)[:, :10]
        both = np.concatenate([best, np.take_along_axis(score, places, 1)], axis=1)
        named = np.concatenate([ids, places + first + 1], axis=1)
        order = np.argsort(-both, axis=1)[:, :10]
        best, ids = np.take_along_axis(both, order, 1), np.take_along_axis(named, order, 1)
    c.commit()
    c.close()
    np.savez(scratch_folder() / "asked.npz", queries=queries, exact=ids)
    command = [sys.executable, __file__, str(path), str(scratch_folder() / "asked.npz")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    path.unlink()
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


def search_many(database: str, asked: str) -> dict[str, float]:
    """In a process of its own: read the papers' vectors, ask, and say what it took."""
    import statistics

    from etude.page.database import Database
    from etude.page.search.semantic import SemanticIndex

    with np.load(asked) as f:
        queries, exact = f["queries"], f["exact"]
    index, start = SemanticIndex(Database(database)), time.perf_counter()
    index.refresh()
    loaded = time.perf_counter() - start
    spent, shares = [], []
    for q, right in zip(queries, exact, strict=True):
        start = time.perf_counter()
        found = index.nearest(q, 200)
        spent.append(time.perf_counter() - start)
        shares.append(len(set(found[:10]) & set(right.tolist())) / 10)
    status = Path("/proc/self/status").read_text()  # of this program alone: `getrusage` counts the one that started it
    memory = int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]
    return {"loaded": loaded, "ms": 1000 * statistics.median(spent), "recall": float(np.mean(shares)), "MB": memory}


# --- quality ---------------------------------------------------------------------------------------------------------


@functools.cache
def news() -> tuple[list[str], list[str], np.ndarray]:
    """Headlines, descriptions and classes of AG News' test file."""
    from etude.data import load_texts

    data = load_texts("ag_news")
    pairs = [t.split("\n", 1) if "\n" in t else t.split(". ", 1) for t in data.texts]
    kept = [i for i, p in enumerate(pairs) if len(p) == 2 and len(p[1]) > 60][:NEWS]
    labels = np.asarray(data.labels)
    return [pairs[i][0] for i in kept], [pairs[i][1] for i in kept], labels[kept]


@functools.cache
def page() -> tuple[Any, Any]:
    """A page's database with the descriptions as papers, and its index of meanings."""
    from etude.page import store
    from etude.page.database import Database
    from etude.page.records import make_record
    from etude.page.search.lexical import index_matches
    from etude.page.search.semantic import SemanticIndex, load_encoder, store_vectors, windows

    db = Database(scratch_folder() / "news.sqlite")
    records = [make_record(title=f"Item {i}", abstract=text) for i, text in enumerate(news()[1])]
    matches = store.add_all(db, records, source="news", now=NOW, after=index_matches)
    ids = [m.paper_id for m in matches]
    assert len(set(ids)) == len(records), "every description is a paper"
    from etude.layers.text_encoders import TextEncoder

    texts = [windows("", text)[0] for text in news()[1]]
    vectors = TextEncoder().encode(texts).numpy().astype(np.float16)  # kept in the cache
    with db.begin() as c:
        store_vectors(c, [{"paper_id": i, "digest": "", "f16": v.tobytes()} for i, v in zip(ids, vectors, strict=True)])
    index = SemanticIndex(db, load_encoder())
    index.refresh()
    return db, index


def mrr(ranked: list[list[int]], right: list[int]) -> float:
    """Mean reciprocal rank among the first 50."""
    found = [1 / (r[:50].index(i) + 1) if i in r[:50] else 0.0 for r, i in zip(ranked, right, strict=True)]
    return float(np.mean(found))


@functools.cache
def static() -> Any:
    from etude.layers.static_encoder import StaticEncoder

    return StaticEncoder.distil()


def mrr_static() -> float:
    """Headlines as queries, by the averaged vectors of their tokens."""
    queries, papers = static().encode(news()[0][:QUERIES]), static().encode(news()[1])
    return mrr((np.argsort(-(queries @ papers.T), axis=1)[:, :50] + 1).tolist(), list(range(1, QUERIES + 1)))


@functools.cache
def mrr_ours(how: str) -> float:
    """Headlines as queries: by words, by meaning, by both."""
    from etude.page.search.hybrid import search
    from etude.page.search.query import parse

    db, index = page()
    ranked = []
    for headline in news()[0][:QUERIES]:
        if how == "meaning":
            ranked.append(index.rank(headline, 50))
        else:
            hits = search(db, parse(plain(headline)), meaning=index if how == "both" else None, limit=50)
            ranked.append([h.row["id"] for h in hits])
    return mrr(ranked, list(range(1, QUERIES + 1)))


def gain() -> float:
    """What fusing adds to the better of its two parts."""
    return mrr_ours("both") - max(mrr_ours("words"), mrr_ours("meaning"))


def plain(text: str) -> str:
    """Words alone: a headline's colons and hyphens are no operators."""
    return " ".join(re.findall(r"\w+", text))


@functools.cache
def bm25() -> Any:
    import bm25s

    made = bm25s.BM25()
    made.index(bm25s.tokenize(news()[1], stopwords="en", show_progress=False), show_progress=False)
    return made


def bm25_rank(text: str, k: int = 50) -> list[int]:
    import bm25s

    words = bm25s.tokenize(text, stopwords="en", show_progress=False)
    found, _ = bm25().retrieve(words, k=k, show_progress=False, n_threads=1)
    return (found[0] + 1).tolist()


@functools.cache
def tfidf() -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    maker = TfidfVectorizer(ngram_range=(1, 2), max_features=20_000, sublinear_tf=True, stop_words="english")
    return maker, maker.fit_transform(news()[1]).astype(np.float32)


def svm_like(place: int, k: int = 10) -> list[int]:
    """Papers like one paper as arxiv-sanity-lite finds them: an SVM of it against all, scored over all."""
    from sklearn.svm import LinearSVC

    _, x = tfidf()
    liked = np.zeros(x.shape[0])
    liked[place] = 1
    model = LinearSVC(class_weight="balanced", C=0.01, max_iter=10_000, tol=1e-6).fit(x, liked)
    order = np.argsort(-model.decision_function(x))
    return [int(i) for i in order if i != place][:k]


@functools.cache
def of_one_class(how: str, times: int = 60) -> float:
    """Share of the ten papers like a paper that are of its class."""
    labels, shares = news()[2], []
    for place in range(0, NEWS, NEWS // times):
        found = svm_like(place) if how == "svm" else [i - 1 for i in page()[1].related(place + 1, 10)]
        shares.append(np.mean([labels[i] == labels[place] for i in found]))
    return float(np.mean(shares))


# --- vectors beside faiss and usearch --------------------------------------------------------------------------------


@functools.cache
def some() -> tuple[np.ndarray, np.ndarray]:
    """20,000 made-up papers' vectors, and the exact ten of every query."""
    x = Papers().block(0, SOME)
    exact = np.argsort(-(real()[1] @ x.T), axis=1)[:, :10]
    return x, exact


def recall(found: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), some()[1].tolist(), strict=True)]))


@functools.cache
def ours(exact: bool) -> Any:
    from etude.page.database import Database
    from etude.page.search.semantic import SemanticIndex

    path = scratch_folder() / "some.sqlite"
    if not path.exists():
        c = store_for(path)
        write(c, 0, some()[0])
        c.commit()
        c.close()
    index = SemanticIndex(Database(path), exact_up_to=10**9 if exact else 0)
    index.refresh()
    return index


def ours_all(exact: bool) -> np.ndarray:
    return np.array([ours(exact).nearest(q, 10) for q in real()[1]])


@functools.cache
def faiss_index() -> Any:
    import faiss

    made = faiss.IndexFlatIP(some()[0].shape[1])
    made.add(some()[0])
    return made


def faiss_all() -> np.ndarray:
    return np.concatenate([faiss_index().search(q[None], 10)[1] for q in real()[1]])


@functools.cache
def usearch_index() -> Any:
    from usearch.index import Index

    made = Index(ndim=some()[0].shape[1], metric="cos", dtype="f16")
    made.add(np.arange(SOME), some()[0], threads=2)
    return made


def usearch_all() -> np.ndarray:
    return np.array([usearch_index().search(q, 10).keys for q in real()[1]])


# --- embedding -------------------------------------------------------------------------------------------------------


@functools.cache
def embedding(kind: str = "full") -> dict[str, float]:
    """Abstracts a second of the worker's loop, and what a question to the database waits meanwhile, in ms."""
    import torch

    from etude.lab.environment import cores
    from etude.page import store
    from etude.page.database import Database
    from etude.page.records import make_record
    from etude.page.search.semantic import embed_pending, load_encoder

    db = Database(scratch_folder() / f"embed-{kind}.sqlite")
    text = (news()[1] * 2)[: 4 * 96]
    records = [make_record(title=f"Paper {i}", abstract=" ".join(text[4 * i : 4 * i + 4])) for i in range(96)]
    store.add_all(db, records, source="news", now=NOW)
    before = torch.get_num_threads()
    torch.set_num_threads(cores())  # a worker's process has all of them; the page's, as other figures here, has one
    encode = load_encoder() if kind == "full" else static().encode
    encode(["warm up"])
    waits: list[float] = []
    done = threading.Event()

    def votes() -> None:
        with db.begin() as c:
            who = c.exec_driver_sql(
                "INSERT INTO account(handle, role, for_you, created_at) VALUES ('a', 'member', 0, 0) RETURNING id"
            ).scalar_one()
        n = 0
        while not done.wait(0.02):
            start = time.perf_counter()
            store.set_vote(db, 1 + n % 96, who, n // 96 % 2 == 0, now=NOW)
            waits.append(time.perf_counter() - start)
            n += 1

    thread = threading.Thread(target=votes)
    thread.start()
    start = time.perf_counter()
    made = 0
    while new := embed_pending(db, encode):
        made += new
    spent = time.perf_counter() - start
    done.set()
    thread.join()
    torch.set_num_threads(before)
    words = sum(len(r.abstract.split()) for r in records) / len(records)
    return {"rate": made / spent, "wait": 1000 * max(waits), "words": words}


def cases() -> list[Case | Figure]:
    """Comparisons and figures, as far as the packages and the data are here."""
    from etude.errors import EtudeError

    if find_spec("transformers") is None:
        return []
    from etude.data import load_texts

    try:
        load_texts("octis_dblp")
        load_texts("ag_news")
    except EtudeError:
        return []
    note = "2,500,000 papers"
    out: list[Case | Figure] = [
        Figure("sign scan and re-score, recall@10", lambda: many()["recall"], "", 0.97, at_most=False, once=True,
               note=f"{note}, against exact float32"),
        Figure("sign scan and re-score, time", lambda: many()["ms"], "ms", 200, once=True, note=f"{note}, 200 found"),
        Figure("sign scan and re-score, highest memory", lambda: many()["MB"], "MB", 600, once=True, note=note),
        Figure("signs of all papers made from the database", lambda: many()["loaded"], "s", once=True, note=note),
        Figure("abstracts embedded", lambda: embedding()["rate"], "abstracts/s", 60, at_most=False, once=True,
               note="about 150 words each"),
        Figure("abstracts embedded, static encoder", lambda: embedding("static")["rate"], "abstracts/s", 60,
               at_most=False, once=True, note="ETUDE_ENCODER=static"),
        Figure("headline finds its text, MRR, static encoder", mrr_static, "", once=True),
        Figure("longest wait of a vote while embedding", lambda: embedding()["wait"], "ms", once=True),
        *(Figure(f"headline finds its text, MRR, {how}", functools.partial(mrr_ours, how), "", once=True)
          for how in ("words", "meaning")),
        Figure("headline finds its text, MRR, both", lambda: mrr_ours("both"), "", once=True),
        Figure("headline finds its text, both less the better of the two", gain, "", 0.0, at_most=False, once=True),
        Figure("papers alike are of one class, ours", lambda: of_one_class("ours"), "", once=True),
        Figure("papers alike are of one class, SVM on tf-idf", lambda: of_one_class("svm"), "", once=True),
        Case("papers like one paper", lambda: page()[1].related(7), lambda: svm_like(6), "SVM on tf-idf, full scan",
             note=f"{NEWS:,} papers"),
        Figure("recall@10 of signs and re-score", lambda: recall(ours_all(False)), "", 0.97, at_most=False, once=True,
               note=f"{SOME:,} papers"),
    ]  # fmt: skip
    if find_spec("bm25s") is not None:
        out += [
            Figure("headline finds its text, MRR, bm25s", lambda: mrr([bm25_rank(h) for h in news()[0][:QUERIES]],
                   list(range(1, QUERIES + 1))), "", once=True),
            Case("search by words", words, lambda: [bm25_rank(h) for h in news()[0][:40]], "bm25s",
                 note="40 headlines; ours in SQLite on disk, with operators"),
        ]  # fmt: skip
    if find_spec("faiss") is not None:
        both = lambda a, b: min(recall(a), recall(b)) > 0.99  # noqa: E731
        note = f"{SOME:,} papers, 60 queries one by one"
        out.append(Case("nearest ten, exact", lambda: ours_all(True), faiss_all, "faiss-cpu, flat", both, note=note))
    if find_spec("usearch") is not None:
        out += [
            Figure("recall@10 of usearch's graph", lambda: recall(usearch_all()), "", once=True, note="as installed"),
            Case("nearest ten, approximate", lambda: ours_all(False), usearch_all, "usearch, HNSW",
                 note=f"{SOME:,} papers, 60 queries, without the time to build its graph"),
        ]  # fmt: skip
    return out


def words() -> list[list[int]]:
    """Ours by words alone, as ids."""
    from etude.page.search.lexical import rank
    from etude.page.search.query import parse

    with page()[0].engine.connect() as c:
        return [rank(c, parse(plain(h)), depth=50) for h in news()[0][:40]]


if __name__ == "__main__":
    print(json.dumps(search_many(*sys.argv[1:3])))

"""Document and word vectors against gensim, searches of packed codes and of vectors against faiss: same data, same
number of threads. Results are compared by retrieval quality (gensim) or number by number (faiss).

gensim is compiled code without batches and hard to beat per word; the exact softmax needs few passes instead.
"""

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from etude.data import load_texts, topic_documents
from etude.data.randomness import numpy_stream
from etude.errors import SourceUnavailable
from etude.lab.bench import Case
from etude.layers import HammingIndex, NearestNeighbors
from etude.text import DisambiguatedSkipGram, ParagraphVector
from etude.text import evaluation as ev
from etude.training.metrics import average_precision

THREADS = torch.get_num_threads()


@lru_cache
def _draw() -> tuple[str, ev.RetrievalDraw]:
    """800 documents and 300 queries of 20 Newsgroups, or of the generator where that set cannot be had."""
    try:
        name, corpus = "20 Newsgroups", ev.TokenCorpus.of(load_texts("newsgroups20"))
    except SourceUnavailable:
        drawn = topic_documents(3000, 0, n_words=6000, mean_length=120, focus=0.15)
        name, corpus = "generated topics", ev.TokenCorpus([t.split() for t in drawn.texts], drawn.labels.numpy())
    return name, corpus.draw(0, n_documents=800, n_queries=300, max_features=5000)


def _better(ours: ParagraphVector, peer: Any) -> bool:
    """Our mean average precision of inferred queries is at least gensim's, less one point."""
    _, draw = _draw()
    mine = average_precision(draw.relevant, ev.cosine_distances(ours.transform(draw.queries), ours.vectors_))
    inferred = np.stack([peer.infer_vector(list(q), epochs=20) for q in draw.queries])
    theirs = average_precision(draw.relevant, ev.cosine_distances(inferred, peer.dv.vectors))
    return mine.mean >= theirs.mean - 0.01


def _gensim() -> list[Case]:
    from gensim.models import Doc2Vec, Word2Vec
    from gensim.models.doc2vec import TaggedDocument

    name, draw = _draw()
    documents = [list(d) for d in draw.documents]
    tagged = [TaggedDocument(d, [i]) for i, d in enumerate(documents)]
    ours = ParagraphVector(128, max_features=5000, min_count=5, tokenizer=ev.as_tokens, device="cpu", random_state=0)
    return [
        Case(
            name=f"real paragraph vectors, 800 documents of {name}: ours 25 epochs, peer 20",
            ours=lambda: ours.fit(documents),
            peer=lambda: Doc2Vec(
                tagged, dm=0, vector_size=128, epochs=20, negative=5, min_count=5, workers=THREADS, seed=1
            ),
            peer_name="gensim Doc2Vec",
            same=_better,
            target=1.0,
            note="same: MAP at least the peer's less .01",
        ),
        Case(
            name="skip-gram with one sense, 64 numbers, 2 epochs of the same documents",
            ours=lambda: DisambiguatedSkipGram(1, 64, max_epochs=2, device="cpu", random_state=0).fit(documents),
            peer=lambda: Word2Vec(
                documents, sg=1, vector_size=64, epochs=2, negative=5, min_count=5, workers=THREADS, seed=1
            ),
            peer_name="gensim Word2Vec",
            note="no package keeps sense vectors; this is the cost without senses",
        ),
    ]


def _codes(n: int, n_queries: int, n_bits: int, k: int, target: float) -> Case:
    import faiss

    rng = numpy_stream(0, "codes", n_bits)
    codes = rng.integers(0, 256, (n, n_bits // 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (n_queries, n_bits // 8), dtype=np.uint8)
    flat = faiss.IndexBinaryFlat(n_bits)
    flat.add(codes)
    index = HammingIndex().fit(codes)
    return Case(
        name=f"{n_queries} queries among {n / 1e6:g} M codes of {n_bits} bits, k = {k}",
        ours=lambda: index.kneighbors(queries, k),
        peer=lambda: flat.search(queries, k),
        peer_name="faiss IndexBinaryFlat",
        same=lambda a, b: bool((a[0] == b[0]).all()),
        target=target,
    )


def _vectors() -> Case:
    import faiss

    rng = numpy_stream(0, "vectors")
    vectors, queries = (rng.normal(size=(n, 384)).astype(np.float32) for n in (100_000, 256))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, queries)]
    flat = faiss.IndexFlatIP(384)
    flat.add(unit[0])
    index = NearestNeighbors().fit(unit[0])
    return Case(
        name="256 queries among 100,000 vectors of 384 numbers, cosine, k = 10",
        ours=lambda: index.kneighbors(unit[1], 10),
        peer=lambda: flat.search(unit[1], 10),
        peer_name="faiss IndexFlatIP",
        same=lambda a, b: bool(np.abs(1 - a[0] - b[0]).max() < 1e-5) and (a[1] == b[1]).mean() > 0.99,
        target=1.0,
    )


def _two_stage() -> Case:
    import faiss

    rng = numpy_stream(0, "two stages")
    centres = rng.normal(size=(2000, 384)).astype(np.float32)
    vectors = centres[rng.integers(0, 2000, 200_000)] + 0.7 * rng.normal(size=(200_000, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:32] + 0.02 * rng.normal(size=(32, 384)).astype(np.float32)
    flat = faiss.IndexFlatIP(384)
    flat.add(vectors)
    index = NearestNeighbors(search="signs", shortlist=1000).fit(vectors)

    def recall(a: Any, b: Any) -> bool:
        return bool(np.mean([len(set(x) & set(y)) / 10 for x, y in zip(a[1], b[1], strict=True)]) >= 0.95)

    return Case(
        name="signs, then re-scoring: 32 queries among 200,000 vectors",
        ours=lambda: index.kneighbors(queries, 10),
        peer=lambda: flat.search(queries, 10),
        peer_name="faiss IndexFlatIP (exact)",
        same=recall,
        target=1.0,
        note="same: recall of the exact ten at least .95",
    )


def cases() -> list[Case]:
    """gensim and faiss, where they are installed."""
    found = _gensim() if find_spec("gensim") else []
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        found += [
            _codes(1_000_000, 256, 128, 10, target=0.8),
            _codes(1_000_000, 8, 128, 10, target=1 / 3),
            _codes(2_500_000, 1, 384, 1000, target=1 / 3),
            _codes(2_500_000, 64, 384, 1000, target=0.8),
            _vectors(),
            _two_stage(),
        ]
    return found

"""What studies of document codes and of word senses measure with: rankings, shortlists, induced senses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import adjusted_rand_score

from etude.data.randomness import numpy_stream, stream
from etude.data.senses import SenseInstances, pseudo_words
from etude.data.text import TextDataset
from etude.errors import DataError
from etude.text.disambiguated_skipgram import DisambiguatedSkipGram
from etude.text.senses import bands, context_means, sense_loss
from etude.text.vocabulary import Vocabulary, tokenize

Tokens = Sequence[str]


def as_tokens(document: Tokens) -> Tokens:
    """Tokenizer for documents that are token lists already."""
    return document


@dataclass(frozen=True)
class TokenCorpus:
    """Documents as token lists, with what a study draws from them."""

    documents: list[Tokens]
    labels: NDArray[np.int64]
    train_rows: NDArray[np.int64] | None = None
    query_rows: NDArray[np.int64] | None = None
    generic: list[Tokens] | None = None
    """Documents of another, general collection."""
    provenance: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, *sets: TextDataset, generic: TextDataset | None = None) -> "TokenCorpus":
        """From labelled text sets; several sets are one corpus whose labels are the sets."""
        official: dict[str, Any] = {}
        labels = [np.full(len(s), i) for i, s in enumerate(sets)]
        if len(sets) == 1:
            if sets[0].labels is None:
                raise DataError(f"{sets[0].name or 'the documents'}: retrieval is scored by labels; there are none")
            official, labels = sets[0].official, [sets[0].labels.numpy()]
        whole = {"train", "test"} <= set(official)
        provenance = tuple(p for s in (*sets, *([generic] if generic else [])) for p in s.provenance)
        return cls(
            documents=[words for s in sets for words in tokenize(s.texts)],
            labels=np.concatenate(labels),
            train_rows=official["train"].numpy() if whole else None,
            query_rows=official["test"].numpy() if whole else None,
            generic=None if generic is None else list(tokenize(generic.texts)),
            provenance=provenance,
        )

    def draw(self, seed: int, *, n_documents: int, n_queries: int, max_features: int | None) -> "RetrievalDraw":
        """See `draw_documents`."""
        return draw_documents(
            self.documents, self.labels, seed, n_documents=n_documents, n_queries=n_queries,
            max_features=max_features, train_rows=self.train_rows, query_rows=self.query_rows,
        )  # fmt: skip

    def generic_part(self, seed: int, n_documents: int) -> list[Tokens]:
        """Documents of the general collection; without one, every second document of this one."""
        pool = self.documents[::2] if self.generic is None else self.generic
        return [pool[i] for i in numpy_stream(seed, "generic").permutation(len(pool))[:n_documents]]

    def pseudo_words(self, n_pairs: int, seed: int, *, n_documents: int, min_count: int) -> SenseInstances:
        """Ambiguous words made in a random part of the documents; see `etude.data.pseudo_words`."""
        rows = numpy_stream(seed, "documents").permutation(len(self.documents))[:n_documents]
        part = [self.documents[i] for i in rows]
        total = sum(map(len, part))
        share = max(1e-3, 4 * min_count / total)  # in a small corpus every word is a large share
        return pseudo_words(part, n_pairs, seed, min_count=min_count, max_share=share, provenance=self.provenance)


class RetrievalDraw(NamedTuple):
    """Training documents and queries of one seed, as token lists with labels."""

    documents: list[Tokens]
    labels: NDArray[np.int64]
    queries: list[Tokens]
    query_labels: NDArray[np.int64]

    @property
    def relevant(self) -> NDArray[np.bool_]:
        """(queries, documents): same label."""
        return self.query_labels[:, None] == self.labels


def draw_documents(
    documents: Sequence[Tokens],
    labels: NDArray[np.int64],
    seed: int,
    *,
    n_documents: int,
    n_queries: int,
    max_features: int | None = None,
    train_rows: NDArray[np.int64] | None = None,
    query_rows: NDArray[np.int64] | None = None,
) -> RetrievalDraw:
    """Draw training documents and queries that hold at least one word of the training documents' vocabulary.

    Parameters
    ----------
    n_documents, n_queries
        At most so many; where both come from one pool, a tenth is kept for queries at least.
    max_features
        Size of the vocabulary (words that occur five times).
    train_rows, query_rows
        Rows to draw from (an official split); None: all rows, without overlap.
    """
    rng = numpy_stream(seed, "documents")
    if train_rows is None or query_rows is None:
        order = rng.permutation(len(documents))
        cut = max(len(order) // 10, min(n_queries, len(order) // 3))
        query_rows, train_rows = order[:cut], order[cut:]
    else:
        train_rows, query_rows = rng.permutation(train_rows), rng.permutation(query_rows)
    train = train_rows[: n_documents + n_documents // 10]
    least = min(5, 1 + len(train) // 250)
    vocabulary = Vocabulary.build([documents[i] for i in train], max_features=max_features, min_count=least)

    def known(rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        rows = rows[: n + n // 5]
        counts = vocabulary.counts([documents[i] for i in rows])
        return rows[np.diff(counts.indptr) > 0][:n]

    train, queries = known(train, n_documents), known(query_rows, n_queries)
    while True:  # fewer documents know fewer words, so short ones may have none left
        least = min(5, 1 + len(train) // 250)
        vocabulary = Vocabulary.build([documents[i] for i in train], max_features=max_features, min_count=least)
        kept = known(train, len(train))
        if len(kept) == len(train):
            break
        train = kept
    return RetrievalDraw([documents[i] for i in train], labels[train], [documents[i] for i in queries], labels[queries])


def latent_vectors(
    draw: RetrievalDraw, *, dim: int, max_features: int | None, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Tf-idf and a truncated SVD of queries and documents, (q, dim) and (n, dim): a baseline without training."""
    tfidf = TfidfVectorizer(analyzer=as_tokens, max_features=max_features, sublinear_tf=True)
    documents = tfidf.fit_transform(draw.documents)
    svd = TruncatedSVD(min(dim, documents.shape[1] - 1, documents.shape[0] - 1), random_state=seed).fit(documents)
    return svd.transform(tfidf.transform(draw.queries)), svd.transform(documents)


def cosine_distances(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """1 - cosine of all pairs, (q, d) and (n, d) -> (q, n); a zero vector has distance 1 to everything."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (a, b))
    return 1 - a @ b.T


def reranked_distances(hamming: NDArray[Any], cosine: NDArray[Any], shortlist: int) -> NDArray[Any]:
    """Distances of the two-stage search, (q, n): a Hamming ball, inside it by cosine, outside by Hamming.

    The ball of a query is the smallest one that holds at least `shortlist` documents; ties belong to it.
    """
    if not 1 <= shortlist <= hamming.shape[1]:
        raise ValueError(f"shortlist must lie in 1..{hamming.shape[1]}, got {shortlist}")
    radius = np.partition(hamming, shortlist - 1, axis=1)[:, shortlist - 1 : shortlist]
    return np.where(hamming <= radius, cosine, 2.0 + hamming)


def distance_histogram(distances: NDArray[Any], relevant: NDArray[np.bool_]) -> list[Any]:
    """Records (distance, what, share): how Hamming distances spread for relevant and other pairs."""
    records = []
    for what, mask in (("same label", relevant), ("different label", ~relevant)):
        share = np.bincount(distances[mask], minlength=int(distances.max()) + 1) / max(int(mask.sum()), 1)
        records += [{"distance": i, "what": what, "share": round(float(s), 6)} for i, s in enumerate(share)]
    return records


def sense_map(model: Any, word: str, n_neighbors: int = 8) -> list[Any]:
    """Records (x, y, label, sense) for a plane through one word's sense vectors and the neighbours of each."""
    points = []
    for sense in np.flatnonzero(model.active_senses_[model.vocabulary_.index(word)]).tolist():
        points.append((word, sense, sense))
        points += [(w, k, sense) for w, k, _ in model.sense_neighbors(word, sense, n_neighbors)]
    vectors = np.stack([model.sense_vectors_[model.vocabulary_.index(w), k] for w, k, _ in points])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    plane = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    xy = np.zeros((len(points), 2))  # vectors of one number span a line only
    xy[:, : len(plane.S)] = plane.U[:, :2] * plane.S[:2]
    return [
        {"x": round(float(x), 4), "y": round(float(y), 4), "label": w, "sense": sense + 1, "own": w == word}
        for (x, y), (w, _, sense) in zip(xy, points, strict=True)
    ]


def induction_score(instances: SenseInstances, predicted: NDArray[Any]) -> float:
    """Adjusted Rand index of predicted against gold senses, averaged over the ambiguous words."""
    rows = instances.by_word().values()
    return float(np.mean([adjusted_rand_score(instances.senses[r], predicted[r]) for r in rows]))


def cluster_contexts(
    model: DisambiguatedSkipGram, instances: SenseInstances, n_senses: int, seed: int
) -> NDArray[np.int64]:
    """The baseline without sense vectors: k-means on the mean skip-gram vectors of each word's contexts, (n,)."""
    number = {w: i for i, w in enumerate(model.vocabulary_)}
    known = [[number[w] for w in context if w in number] for context in instances.contexts]
    padded = torch.full((len(known), max(1, *map(len, known))), -1)
    for i, context in enumerate(known):
        padded[i, : len(context)] = torch.tensor(context)
    vectors = torch.from_numpy(model.sense_vectors_[:, 0])
    means = context_means(vectors, model.word_weights_, padded).numpy()
    predicted = np.zeros(len(known), dtype=np.int64)
    for rows in instances.by_word().values():
        k = min(n_senses, len(rows))
        predicted[rows] = KMeans(k, n_init=4, random_state=seed).fit_predict(means[rows])
    return predicted


def gradient_error(seed: int, *, step: float = 1e-5, through_choice: bool = True) -> float:
    """Largest relative difference between the sense model's gradients and finite differences, in float64.

    A random problem of three words with three senses each; every parameter of every table is moved by `step`, with
    the same Gumbel noise each time. Relative to the largest difference quotient of its table.

    Parameters
    ----------
    through_choice
        False leaves out the gradient through the choice of senses, as a model with hard assignment does.
    """
    generator = stream(seed, "gradients")
    words = torch.randint(0, 9, (1, 7), generator=generator)
    band = bands(words, 2).double()
    shapes = {
        "senses": (1, 3, 3, 3), "selector": (1, 3, 3, 3), "context": (1, 7, 3), "output": (1, 7, 3), "negatives": (4, 3)
    }  # fmt: skip
    tables = {k: torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for k, s in shapes.items()}
    prior = torch.rand(1, 3, 3, generator=generator, dtype=torch.float64)

    def loss() -> torch.Tensor:
        parts = sense_loss(
            **tables, band=band, n_negatives=5, temperature=0.5, generator=stream(seed, "noise"), entropy_weight=0.25,
            prior=prior,
        )  # fmt: skip
        return parts.skipgram + parts.entropy

    gradients = dict(zip(tables, torch.autograd.grad(loss(), list(tables.values())), strict=True))
    if not through_choice:
        gradients |= {name: torch.zeros_like(tables[name]) for name in ("selector", "context")}
    worst = 0.0
    for name, table in tables.items():
        flat, numeric = table.data.view(-1), torch.empty(table.numel(), dtype=torch.float64)
        for i in range(len(flat)):
            before = float(flat[i])
            values = []
            for moved in (before + step, before - step):
                flat[i] = moved
                with torch.no_grad():
                    values.append(float(loss()))
            flat[i] = before
            numeric[i] = (values[0] - values[1]) / (2 * step)
        difference = (numeric - gradients[name].reshape(-1)).abs().max()
        worst = max(worst, float(difference / numeric.abs().max()))
    return worst

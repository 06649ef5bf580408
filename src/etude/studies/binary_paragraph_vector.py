"""Binary paragraph vectors and disambiguated skip-gram: do codes learned end to end find documents better than codes
hashed afterwards or made by an autoencoder, and do sense vectors trained by gradients alone find senses?

Queries are inferred, never trained; relevant = same label; ties of Hamming distances are averaged.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from etude.data import load_senses, load_texts, numpy_stream, topic_documents
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import hamming_distances
from etude.studies._codes_plots import codes_plots
from etude.studies._codes_senses import measure_senses
from etude.studies._codes_settings import settings_of
from etude.text import (
    BinaryParagraphVector,
    IterativeQuantization,
    ParagraphVector,
    RandomHyperplanes,
    SemanticHashing,
    SignHash,
)
from etude.text import evaluation as ev
from etude.training.metrics import average_precision, ndcg, precision_recall

DOCUMENTS = ("newsgroups20", "wikilead", "octis_dblp", "topics")
SENSES = ("pseudo_words", "semeval2010_task14", "topic_words")
SOURCES = ("nyt_snippets", "movie_snippets", "amazon_snippets", "tweets")


class CodesConfig(StudyConfig):
    """Sizes of the collections, the codes and the sense vectors."""

    protocols: tuple[str, ...] = ("newsgroups20", "wikilead", "snippets", "pseudo_words", "semeval2010_task14")
    n_documents: PositiveInt = 4000
    """Training documents drawn for each seed."""
    n_queries: PositiveInt = 1000
    max_features: PositiveInt = 5000
    """Words of the vocabulary, and as many bigrams where they are used."""
    precision: Literal["fp32", "bf16"] = "fp32"
    shortlist: PositiveInt = 100
    """Documents that a short code hands on to the long vectors."""
    n_pairs: PositiveInt = 15
    """Pseudo-words, each made of two words that occur `min_count` times in `sense_documents` documents."""
    min_count: PositiveInt = 60
    sense_documents: PositiveInt = 5000
    n_senses: PositiveInt = 3
    sense_dim: PositiveInt = 64
    sense_epochs: PositiveInt = 8
    sense_batch: PositiveInt = 512


class CodesStudy(Study):
    """Every arm of a seed sees the same documents and queries, or the same corpus and occurrences."""

    configs: ClassVar = {
        "quick": CodesConfig(
            n_seeds=3, protocols=("topics", "topic_words"), n_documents=600, n_queries=200, max_features=1000,
            n_pairs=8, min_count=30, sense_documents=300, sense_dim=16, sense_epochs=5, sense_batch=128,
        ),
        "laptop": CodesConfig(),
        "gpu": CodesConfig(
            protocols=("newsgroups20", "wikilead", "octis_dblp", "snippets", "pseudo_words", "semeval2010_task14"),
            n_documents=20_000, n_queries=2000, max_features=50_000, precision="bf16", n_pairs=30, min_count=120,
            sense_documents=20_000, sense_dim=300, n_senses=5, sense_epochs=10, sense_batch=1024,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "binary128": Arm("Binary PV-DBOW, 128 bits", protocols=DOCUMENTS),
        "binary32": Arm("Binary PV-DBOW, 32 bits", protocols=DOCUMENTS),
        "bigrams128": Arm("Binary PV-DBOW, words and bigrams", protocols=DOCUMENTS),
        "autoencoder128": Arm("semantic hashing: binarised autoencoder", role="baseline", protocols=DOCUMENTS),
        "real": Arm("real PV-DBOW, 128 numbers, cosine", role="reference", protocols=DOCUMENTS),
        "sign128": Arm("real PV, signs of its centred numbers", role="baseline", derived=True),
        "hyperplanes32": Arm("real PV, 32 random hyperplanes", role="baseline", derived=True),
        "itq32": Arm("real PV, iterative quantisation", role="baseline", derived=True),
        "svd_itq128": Arm("tf-idf, SVD and ITQ: nothing trained", role="reference", protocols=DOCUMENTS),
        "real_binary28": Arm("Real-Binary PV: the 28-bit code alone", role="baseline", protocols=DOCUMENTS),
        "reranked": Arm("Real-Binary PV: a shortlist by code, re-ranked by the 300 numbers", derived=True),
        "random": Arm("random codes, 128 bits", role="control", protocols=(*DOCUMENTS, "snippets")),
        "transferred": Arm("Binary PV trained on Wikipedia, the collection inferred", protocols=("snippets",)),
        "in_domain": Arm("Binary PV trained on the collection", role="baseline", protocols=("snippets",)),
        "dsg": Arm("disambiguated skip-gram", protocols=SENSES),
        "hard": Arm("multi-sense skip-gram with hard assignment", role="baseline", protocols=SENSES),
        "kmeans": Arm("k-means on mean vectors of the contexts", role="reference", protocols=SENSES),
        "random_senses": Arm("senses drawn at random", role="control", protocols=SENSES),
        "gradients": Arm("gradients of the sense model against finite differences", protocols=SENSES),
        "no_choice": Arm("the same without the gradient through the choice", role="control", protocols=SENSES),
    }
    kinds: ClassVar = ("documents",)

    def task(self, protocol: str, config: CodesConfig) -> Any:
        """The collection as token lists; documents are drawn for each seed."""
        if protocol == "semeval2010_task14":
            return load_senses(protocol)
        if protocol in ("topics", "topic_words"):
            drawn = topic_documents(1000, 0, focus=0.15) if protocol == "topics" else topic_documents(
                300, 0, n_topics=6, n_words=200, focus=0.9, mean_length=30, words_per_topic=12
            )  # fmt: skip
            return ev.TokenCorpus([t.split() for t in drawn.texts], drawn.labels.numpy())
        if protocol in ("newsgroups20", "octis_dblp"):
            return ev.TokenCorpus.of(load_texts(protocol))
        wiki = load_texts("wikilead").drop("Uncategorized")
        return (
            ev.TokenCorpus.of(*map(load_texts, SOURCES), generic=wiki)
            if protocol == "snippets"
            else ev.TokenCorpus.of(wiki)
        )

    def user_task(self, data: Any, config: CodesConfig) -> Any:
        """The user's labelled documents; every second one stands for the general collection."""
        return ev.TokenCorpus.of(data)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the arm and score its rankings, or its senses."""
        of_senses = job.arm in ("dsg", "hard", "kmeans", "random_senses", "gradients", "no_choice")
        for seed in job.seeds:
            yield from measure_senses(job, seed) if of_senses else _retrieval(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Precision and recall, score by bits, histogram of distances, map of one word's senses."""
        return codes_plots(results)


def _fit(job: Job, seed: int, arm: str, documents: Any) -> Any:
    """The arm's model, fitted."""
    c = job.config
    kind = {"real": ParagraphVector, "autoencoder128": SemanticHashing}.get(arm, BinaryParagraphVector)
    own = settings_of(job.protocol, arm)
    return kind(
        max_features=c.max_features, precision=c.precision, tokenizer=ev.as_tokens, handle_unknown="ignore",
        device=job.device, random_state=seed, **own,
    ).fit(documents)  # fmt: skip


def _retrieval(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    c = job.config
    draw = job.task.draw(seed, n_documents=c.n_documents, n_queries=c.n_queries, max_features=c.max_features)
    ranked: dict[str, Any] = {}  # arm: distances (queries, documents)
    if job.arm == "random":
        codes = numpy_stream(seed, "random codes").integers(0, 256, (2, len(draw.documents), 16), dtype=np.uint8)
        ranked["random"] = hamming_distances(codes[0, : len(draw.queries)], codes[1])
    elif job.arm == "svd_itq128":
        queries, documents = ev.latent_vectors(draw, dim=128, max_features=c.max_features, seed=seed)
        hash_ = IterativeQuantization(documents.shape[1], random_state=seed).fit(documents)
        ranked[job.arm] = hamming_distances(hash_.transform(queries), hash_.transform(documents), hash_.n_bits)
    elif job.arm == "real":
        model = _fit(job, seed, "real", draw.documents)
        documents, queries = model.vectors_, model.transform(draw.queries)
        ranked["real"] = ev.cosine_distances(queries, documents)
        itq, planes = IterativeQuantization(32, random_state=seed), RandomHyperplanes(32, seed)
        hashes = {"sign128": SignHash(), "hyperplanes32": planes, "itq32": itq}
        for arm, hash_ in hashes.items():
            hash_.fit(documents)
            ranked[arm] = hamming_distances(hash_.transform(queries), hash_.transform(documents))
    elif job.arm == "real_binary28":
        model = _fit(job, seed, job.arm, draw.documents)
        queries = model.infer(draw.queries)
        ranked[job.arm] = hamming_distances(queries.codes, model.codes_, model.n_bits)
        cosine = ev.cosine_distances(queries.vectors, model.real_vectors_)
        ranked["reranked"] = ev.reranked_distances(ranked[job.arm], cosine, min(c.shortlist, len(draw.documents)))
    elif job.arm == "transferred":
        model = _fit(job, seed, "binary128", job.task.generic_part(seed, c.n_documents))
        ranked[job.arm] = hamming_distances(model.transform(draw.queries), model.transform(draw.documents))
    else:
        model = _fit(job, seed, "binary128" if job.arm == "in_domain" else job.arm, draw.documents)
        ranked[job.arm] = hamming_distances(model.transform(draw.queries), model.codes_, model.n_bits)
    for arm, distances in ranked.items():
        yield Measurement(arm, seed, "map", average_precision(draw.relevant, distances).mean)
        yield Measurement(arm, seed, "ndcg10", ndcg(draw.relevant, distances, 10).mean)
        for recall, precision in zip(*precision_recall(draw.relevant, distances), strict=True):
            yield Measurement(arm, seed, "precision", float(precision), step=float(recall))
    if job.arm == "binary128" and seed == c.seeds[0]:
        yield Artifact(job.arm, seed, "histogram", ev.distance_histogram(ranked[job.arm], draw.relevant))

"""How the study of paragraph codes ranks documents for queries that were never trained on."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from etude.data import numpy_stream
from etude.lab.study import Artifact, Job, Measurement
from etude.layers import hamming_distances
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


def _fit(job: Job, seed: int, arm: str, documents: Any) -> Any:
    """The arm's model, fitted."""
    c = job.config
    kind = {"real": ParagraphVector, "autoencoder128": SemanticHashing}.get(arm, BinaryParagraphVector)
    own = settings_of(job.protocol, arm)
    return kind(
        max_features=c.max_features, precision=c.precision, tokenizer=ev.as_tokens, handle_unknown="ignore",
        device=job.device, random_state=seed, **own,
    ).fit(documents)  # fmt: skip


def measure_retrieval(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    """Rank the collection for every query by the arm's distances and score the rankings."""
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

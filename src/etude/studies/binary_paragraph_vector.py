"""Binary paragraph vectors and disambiguated skip-gram: do codes learned end to end find documents better than codes
hashed afterwards or made by an autoencoder, and do sense vectors trained by gradients alone find senses?

Queries are inferred, never trained; relevant = same label; ties of Hamming distances are averaged.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from etude.data import load_senses, load_texts, topic_documents
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._codes_plots import codes_plots
from etude.studies._codes_retrieval import measure_retrieval
from etude.studies._codes_senses import measure_senses
from etude.text import evaluation as ev

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
            yield from measure_senses(job, seed) if of_senses else measure_retrieval(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Precision and recall, score by bits, histogram of distances, map of one word's senses."""
        return codes_plots(results)

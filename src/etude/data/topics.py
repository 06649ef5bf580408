"""Documents with known topics, drawn from an exact generator."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etude.data.randomness import numpy_stream


@dataclass(frozen=True)
class TopicDocuments:
    """Texts, their topics, and the distributions they were drawn from."""

    texts: list[str]
    labels: Tensor
    """(n,) int64, the topic."""
    words: tuple[str, ...]
    word_probabilities: Tensor
    """(topics, V), the distribution of a document's words given its topic."""


def topic_documents(
    n_documents: int,
    seed: int,
    *,
    n_topics: int = 10,
    n_words: int = 2000,
    mean_length: int = 60,
    focus: float = 0.3,
    words_per_topic: int = 80,
    collocations: float = 0.2,
) -> TopicDocuments:
    """Draw documents of one topic each.

    A word comes from the document's topic with probability `focus`, otherwise from a background that all topics
    share (Zipf's law). A topic is a random distribution over `words_per_topic` words, which topics may share.

    Parameters
    ----------
    n_documents
        Their topics are uniform.
    seed
        Of the stream "topics"; the distributions depend on it too.
    mean_length
        Lengths are Poisson, at least 5.
    collocations
        Probability that a word is followed by the partner that the topic gives it (a fixed permutation of the
        background words for each topic): word order then tells more about the topic than the words alone.
    """
    for name, value in (("n_documents", n_documents), ("n_topics", n_topics), ("mean_length", mean_length)):
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if not 1 <= words_per_topic <= n_words:
        raise ValueError(f"words_per_topic must lie in 1..{n_words}, got {words_per_topic}")
    if not (0 <= focus <= 1 and 0 <= collocations <= 1):
        raise ValueError(f"focus and collocations are probabilities, got {focus} and {collocations}")
    rng = numpy_stream(seed, "topics")
    background = 1 / (np.arange(n_words) + 3.0)
    background /= background.sum()
    own = np.zeros((n_topics, n_words))
    for topic in own:
        chosen = rng.choice(n_words, words_per_topic, replace=False)
        topic[chosen] = rng.dirichlet(np.full(words_per_topic, 0.5))
    probabilities = (1 - focus) * background + focus * own
    partner = np.stack([rng.permutation(n_words) for _ in range(n_topics)])
    labels = rng.integers(0, n_topics, n_documents)
    lengths = np.maximum(rng.poisson(mean_length, n_documents), 5)
    words = tuple(f"w{i:05d}" for i in range(n_words))
    cumulative = probabilities.cumsum(axis=1)
    cumulative[:, -1] = 1.0
    texts = []
    for topic, length in zip(labels, lengths, strict=True):
        drawn = np.searchsorted(cumulative[topic], rng.random(length), side="right")
        follows = np.flatnonzero(rng.random(length) < collocations)
        follows = follows[follows > 0]
        drawn[follows] = partner[topic][drawn[follows - 1]]
        texts.append(" ".join(words[i] for i in drawn.tolist()))
    return TopicDocuments(texts, torch.from_numpy(labels), words, torch.from_numpy(probabilities))

"""Documents with known topics: distributions, seeds, bad input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.topics import topic_documents


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_distributions_are_distributions_and_seeds_decide(seed):
    a, b = (topic_documents(20, seed, n_topics=3, n_words=50, words_per_topic=5) for _ in range(2))
    assert a.texts == b.texts
    torch.testing.assert_close(a.word_probabilities.sum(1), torch.ones(3, dtype=torch.float64))
    assert (a.word_probabilities > 0).all()
    assert a.texts != topic_documents(20, seed + 1, n_topics=3, n_words=50, words_per_topic=5).texts


def test_word_frequencies_follow_the_topic():
    drawn = topic_documents(600, 0, n_topics=2, n_words=30, words_per_topic=6, focus=0.6, collocations=0.0)
    number = {w: i for i, w in enumerate(drawn.words)}
    counts = np.zeros((2, 30))
    for text, label in zip(drawn.texts, drawn.labels, strict=True):
        np.add.at(counts[int(label)], [number[w] for w in text.split()], 1)
    shares = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, drawn.word_probabilities.numpy(), atol=0.01)


def test_naive_bayes_knows_the_topic():
    drawn = topic_documents(300, 1, n_topics=5, focus=0.5)
    number = {w: i for i, w in enumerate(drawn.words)}
    log = drawn.word_probabilities.log()
    guess = [int(log[:, [number[w] for w in text.split()]].sum(1).argmax()) for text in drawn.texts]
    assert (np.array(guess) == drawn.labels.numpy()).mean() > 0.95


def test_collocations_depend_on_the_topic():
    drawn = topic_documents(400, 2, n_topics=2, n_words=40, words_per_topic=5, focus=0.0, collocations=0.8)
    followers = [{}, {}]
    for text, label in zip(drawn.texts, drawn.labels, strict=True):
        words = text.split()
        for first, second in itertools.pairwise(words):
            followers[int(label)].setdefault(first, []).append(second)
    word = drawn.words[0]
    usual = [max(set(f[word]), key=f[word].count) for f in followers]
    assert usual[0] != usual[1]
    torch.testing.assert_close(drawn.word_probabilities[0], drawn.word_probabilities[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_documents": 0}, "n_documents"),
        ({"n_topics": 0}, "n_topics"),
        ({"words_per_topic": 3000}, r"1\.\.2000, got 3000"),
        ({"focus": 1.5}, "probabilities"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        topic_documents(**{"n_documents": 5, "seed": 0, **changes})

"""What the study measures with: draws, two-stage rankings, induction scores, the gradient check."""

import numpy as np
import pytest
import torch

from etude.data.senses import SenseInstances, pseudo_words
from etude.data.text import TextDataset
from etude.data.topics import topic_documents
from etude.errors import DataError
from etude.text import DisambiguatedSkipGram
from etude.text import evaluation as ev
from etude.text.vocabulary import Vocabulary


def dataset(n=60, seed=0, **changes):
    drawn = topic_documents(n, seed, n_topics=3, n_words=80, words_per_topic=10)
    return TextDataset(drawn.texts, drawn.labels, classes=("a", "b", "c"), **changes)


def test_draws_are_disjoint_seeded_and_within_bounds():
    corpus = ev.TokenCorpus.of(dataset(200))
    a, b, c = (corpus.draw(s, n_documents=80, n_queries=30, max_features=50) for s in (1, 1, 2))
    assert (len(a.documents), len(a.queries)) == (80, 30)
    assert a.documents == b.documents
    assert a.documents != c.documents
    key = {tuple(d) for d in a.documents}
    assert not key & {tuple(q) for q in a.queries}
    assert a.relevant.shape == (30, 80)
    assert a.relevant[3, 5] == (a.query_labels[3] == a.labels[5])


def test_official_parts_stay_apart():
    official = {"train": torch.arange(50), "test": torch.arange(50, 60)}
    corpus = ev.TokenCorpus.of(dataset(60, official=official))
    draw = corpus.draw(0, n_documents=100, n_queries=100, max_features=None)
    train = {tuple(d) for d in corpus.documents[:50]}
    assert all(tuple(d) in train for d in draw.documents)
    assert all(tuple(q) not in train for q in draw.queries)
    assert len(draw.queries) == 10


def test_documents_without_a_known_word_are_left_out():
    documents = [["aa", "bb"]] * 40 + [["zz"]] + [["aa"]] * 20
    draw = ev.draw_documents(documents, np.arange(61), 0, n_documents=60, n_queries=15, max_features=2)
    assert ["zz"] not in draw.documents + draw.queries


def test_a_model_finds_a_word_in_every_document_drawn():
    """A word that is frequent in the pool may be rare in the part that is drawn."""
    documents = [["x"]] * 880 + [[f"w{i // 5}"] for i in range(220)] + [["x"]] * 50
    draw = ev.draw_documents(
        documents, np.arange(1150), 0, n_documents=1000, n_queries=50, train_rows=np.arange(1100),
        query_rows=np.arange(1100, 1150),
    )  # fmt: skip
    least = min(5, 1 + len(draw.documents) // 250)
    found = Vocabulary.build(draw.documents, min_count=least)
    assert 800 < len(draw.documents) < 1000
    assert (np.diff(found.counts(draw.documents).indptr) > 0).all()


def test_several_sets_are_labelled_by_set():
    corpus = ev.TokenCorpus.of(dataset(20), dataset(30, seed=1), generic=dataset(10, seed=2))
    assert np.bincount(corpus.labels).tolist() == [20, 30]
    assert len(corpus.generic_part(0, 7)) == 7
    assert sorted(map(tuple, corpus.generic_part(0, 99))) == sorted(map(tuple, corpus.generic))
    alone = ev.TokenCorpus.of(dataset(20))
    assert len(alone.generic_part(0, 99)) == 10


def test_unlabelled_documents_are_refused():
    with pytest.raises(DataError, match="labels"):
        ev.TokenCorpus.of(TextDataset(["aa bb"] * 5))


def test_reranking_orders_the_ball_by_cosine_and_the_rest_by_bits():
    hamming = np.array([[0, 3, 1, 1, 5]])
    cosine = np.array([[0.9, 0.0, 0.5, 0.1, 0.2]])
    order = ev.reranked_distances(hamming, cosine, 2).argsort(1)
    assert order.tolist() == [[3, 2, 0, 1, 4]]  # the tie at distance 1 belongs to the ball
    np.testing.assert_array_equal(ev.reranked_distances(hamming, cosine, 5), cosine)
    with pytest.raises(ValueError, match=r"1\.\.5, got 6"):
        ev.reranked_distances(hamming, cosine, 6)


def test_cosine_distances():
    a = np.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(ev.cosine_distances(a, np.array([[2.0, 0], [0, 3]])), [[0, 1], [1, 1]])


def test_latent_vectors_tell_topics_apart():
    draw = ev.TokenCorpus.of(dataset(200)).draw(0, n_documents=150, n_queries=40, max_features=None)
    queries, documents = ev.latent_vectors(draw, dim=10, max_features=None, seed=0)
    assert queries.shape == (40, 10)
    nearest = ev.cosine_distances(queries, documents).argmin(1)
    assert (draw.labels[nearest] == draw.query_labels).mean() > 0.6


def test_histogram_sums_to_one():
    distances, relevant = np.array([[0, 1, 1], [3, 0, 2]]), np.array([[1, 0, 0], [0, 1, 1]], bool)
    records = ev.distance_histogram(distances, relevant)
    for what in ("same label", "different label"):
        assert sum(r["share"] for r in records if r["what"] == what) == pytest.approx(1, abs=1e-5)


def test_induction_score_averages_over_words():
    instances = SenseInstances([], ["a", "a", "b", "b"], [[]] * 4, np.array([0, 1, 0, 1]))
    assert ev.induction_score(instances, np.array([1, 0, 0, 1])) == 1
    assert ev.induction_score(instances, np.array([1, 0, 0, 0])) == 0.5
    assert ev.induction_score(instances, np.zeros(4)) == 0


def test_context_clusters_find_pseudo_words():
    drawn = topic_documents(250, 0, n_topics=6, n_words=200, focus=0.9, mean_length=40, words_per_topic=12)
    instances = pseudo_words([t.split() for t in drawn.texts], 5, 0, min_count=40, max_share=0.05)
    model = DisambiguatedSkipGram(1, 8, subsample=None, max_epochs=3, batch_size=128, random_state=0)
    predicted = ev.cluster_contexts(model.fit(instances.documents), instances, 2, 0)
    assert ev.induction_score(instances, predicted) > 0.3
    points = ev.sense_map(model, instances.words[0], 4)
    assert len(points) == 5
    assert [p["own"] for p in points] == [True, False, False, False, False]
    line = DisambiguatedSkipGram(1, 1, subsample=None, max_epochs=1, random_state=0).fit(instances.documents)
    assert all(p["y"] == 0 for p in ev.sense_map(line, instances.words[0], 4))


def test_gradient_check_sees_a_missing_part():
    assert ev.gradient_error(0) < 1e-6
    assert ev.gradient_error(0, through_choice=False) == 1

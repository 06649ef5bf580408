"""Hashes of real vectors, and semantic hashing."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from etude.data.randomness import numpy_stream, stream
from etude.data.topics import topic_documents
from etude.layers import hamming_distances
from etude.text import IterativeQuantization, RandomHyperplanes, SemanticHashing, SignHash
from etude.text.count_loss import Counts, count_cross_entropy
from etude.text.semantic_hashing import CodeAutoencoder
from etude.training.metrics import average_precision


def bits(codes, n):
    return np.unpackbits(codes, axis=1)[:, :n]


def test_sign_hash_is_above_the_mean():
    X = numpy_stream(0, "x").normal(size=(50, 11)) + 3
    codes = SignHash().fit_transform(X)
    np.testing.assert_array_equal(bits(codes, 11), X.mean(0) < X)


def test_hyperplanes_estimate_angles():
    """Charikar: a bit differs with probability angle / pi."""
    X = numpy_stream(1, "x").normal(size=(40, 6))
    centred = X - X.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    angles = np.arccos(np.clip(unit @ unit.T, -1, 1)) / np.pi
    codes = RandomHyperplanes(4000, random_state=0).fit_transform(X)
    np.testing.assert_allclose(hamming_distances(codes, codes, 4000) / 4000, angles, atol=0.04)
    again = RandomHyperplanes(4000, random_state=0).fit(X).transform(X)
    np.testing.assert_array_equal(codes, again)
    assert (codes != RandomHyperplanes(4000, random_state=1).fit_transform(X)).any()


def test_itq_never_gets_worse_and_finds_a_rotated_cube():
    rng = numpy_stream(2, "x")
    corners = rng.choice([-1.0, 1.0], (2000, 5)) * 1.0
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    X = corners @ rotation + 0.05 * rng.normal(size=(2000, 5))
    hash_ = IterativeQuantization(5, n_iter=60, random_state=0).fit(X)
    assert (np.diff(hash_.quantization_errors_) < 1e-9).all()
    np.testing.assert_allclose(hash_.components_.T @ hash_.components_, np.eye(5), atol=1e-9)
    codes = bits(hash_.transform(X), 5)
    truth = bits(np.packbits(corners > 0, axis=1), 5)
    agreement = np.abs((2.0 * codes - 1).T @ (2.0 * truth - 1)) / len(X)
    np.testing.assert_allclose(np.sort(agreement.max(1)), 1, atol=0.02)  # equal up to order and sign of the bits


def test_itq_keeps_the_principal_components():
    rng = numpy_stream(3, "x")
    X = rng.normal(size=(300, 6)) * np.array([5, 4, 3, 0.1, 0.1, 0.1])
    hash_ = IterativeQuantization(3, random_state=0).fit(X)
    assert np.abs(hash_.components_[3:]).max() < 0.1


@pytest.mark.parametrize("hash_", [SignHash(), RandomHyperplanes(8), IterativeQuantization(3)])
def test_conventions(hash_):
    X = numpy_stream(4, "x").normal(size=(30, 5)).astype(np.float32)
    clone(hash_).fit(X).transform(X[:1])
    with pytest.raises(NotFittedError):
        clone(hash_).transform(X)
    with pytest.raises(ValueError, match="features"):
        clone(hash_).fit(X).transform(X[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        clone(hash_).fit(np.full((3, 5), np.nan))


@pytest.mark.parametrize("hash_", [SignHash(), RandomHyperplanes(2, 0), IterativeQuantization(2, random_state=0)])
def test_scikit_learns_checks(hash_):
    check_estimator(hash_)


def test_bad_sizes_are_named():
    X = np.eye(6)
    with pytest.raises(ValueError, match=r"1\.\.6.*got 7"):
        IterativeQuantization(7).fit(X)
    with pytest.raises(ValueError, match="n_bits must be positive"):
        RandomHyperplanes(0).fit(X)


@pytest.mark.parametrize(
    ("hash_", "message"),
    [
        (RandomHyperplanes(2.5), "n_bits must be an integer, got 2.5"),
        (RandomHyperplanes(None), "n_bits must be positive, got None"),
        (IterativeQuantization(2.5), "n_bits must be an integer, got 2.5"),
        (IterativeQuantization(2, n_iter=-1), "n_iter must be at least 0, got -1"),
        (IterativeQuantization(2, n_iter=1.5), "n_iter must be an integer, got 1.5"),
    ],
)
def test_sizes_that_are_no_whole_numbers_are_named(hash_, message):
    with pytest.raises(ValueError, match=message):
        hash_.fit(np.ones((5, 4)))


# -- semantic hashing ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
    return topic_documents(260, 0, n_topics=4, n_words=300, focus=0.5, mean_length=40)


def test_autoencoder_is_the_plain_formula():
    generator = stream(0, "g")
    dense = torch.randint(0, 3, (4, 7), generator=generator).float() + torch.eye(4, 7)
    rows, columns = dense.nonzero(as_tuple=True)
    counts = Counts(rows, columns, dense[rows, columns])
    model = CodeAutoencoder(dense.sum(0), hidden_dim=5, n_bits=3)
    logits = model.to_code((dense @ model.word + model.word_bias).relu())
    torch.testing.assert_close(model.encode(counts, 4), logits)
    decoded = model.from_code((logits > 0).float()).relu()
    torch.testing.assert_close(model(counts, counts, 4), count_cross_entropy(decoded, model.weight, model.bias, counts))


def test_semantic_hashing_finds_topics(corpus):
    model = SemanticHashing(20, hidden_dim=32, max_epochs=12, lr=0.01, min_count=2, random_state=0)
    codes = model.fit_transform(corpus.texts[:200])
    assert codes.shape == (200, 3)
    queries = model.transform(corpus.texts[200:])
    relevant = (corpus.labels[200:, None] == corpus.labels[:200]).numpy()
    score = average_precision(relevant, hamming_distances(queries, codes, 20))
    assert score.mean > score.chance + 0.1
    np.testing.assert_array_equal(model.transform(corpus.texts[:200]), codes)


def test_semantic_hashing_is_reproducible(corpus):
    a, b = (SemanticHashing(8, hidden_dim=8, max_epochs=2, random_state=1).fit(corpus.texts[:50]) for _ in range(2))
    np.testing.assert_array_equal(a.codes_, b.codes_)


def test_a_training_text_without_known_words_has_the_code_that_transform_gives_it(corpus):
    texts = [*corpus.texts[:50], "qqqq"]
    model = SemanticHashing(
        8, hidden_dim=8, max_epochs=2, min_count=2, lr=0.1, handle_unknown="ignore", random_state=1
    ).fit(texts)
    assert model.codes_[-1].tolist() == [0]
    np.testing.assert_array_equal(model.codes_, model.transform(texts))


def test_semantic_hashing_bad_input(corpus):
    with pytest.raises(ValueError, match="at least 2 documents"):
        SemanticHashing().fit(["aa bb"])
    with pytest.raises(ValueError, match="hidden_dim"):
        SemanticHashing(hidden_dim=0).fit(corpus.texts[:5])
    for changes, message in (
        ({"n_bits": 2.5}, "n_bits must be an integer, got 2.5"),
        ({"handle_unknown": "zz"}, "handle_unknown must be one of"),
        ({"precision": "zz"}, "precision must be one of"),
        ({"lr": 1e38}, "training diverged after .* lower lr"),
    ):
        with pytest.raises(ValueError, match=message):
            SemanticHashing(**{"hidden_dim": 8, "max_epochs": 2, **changes}).fit(corpus.texts[:20])
    with pytest.raises(NotFittedError):
        SemanticHashing().transform(["aa"])
    model = SemanticHashing(8, hidden_dim=8, max_epochs=1, random_state=1).fit(corpus.texts[:50])
    with pytest.warns(UserWarning, match="document 1 has no word"):
        codes = model.transform([corpus.texts[0], "unheard of"])
    assert codes[1].sum() == 0
    assert model.transform([]).shape == (0, 1)
    with pytest.raises(ValueError, match="document 0 .*: leave it out, or set handle_unknown='warn'"):
        model.set_params(handle_unknown="error").transform(["unheard of"])

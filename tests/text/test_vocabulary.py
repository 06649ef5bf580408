"""Vocabulary and counts against scikit-learn's CountVectorizer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from etude.text.vocabulary import Vocabulary, tokenize, words_of

texts = st.lists(
    st.lists(st.sampled_from(["aa", "bb", "cc", "dd", "ee"]), min_size=1, max_size=12).map(" ".join),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40)
@given(texts=texts, longest=st.integers(1, 3), min_df=st.integers(1, 2), new=texts)
def test_counts_equal_scikit_learns(texts, longest, min_df, new):
    peer = CountVectorizer(ngram_range=(1, longest), min_df=min_df)
    try:
        want = peer.fit_transform(texts)
    except ValueError:
        with pytest.raises(ValueError, match="lower min_count"):
            Vocabulary.build(tokenize(texts), ngram_range=(1, longest), min_count=min_df, per_document=True)
        return
    vocabulary = Vocabulary.build(tokenize(texts), ngram_range=(1, longest), min_count=min_df, per_document=True)
    terms = vocabulary.terms()
    assert sorted(terms) == sorted(peer.vocabulary_)
    order = [peer.vocabulary_[t] for t in terms]
    np.testing.assert_array_equal(vocabulary.counts(tokenize(texts)).toarray(), want.toarray()[:, order])
    np.testing.assert_array_equal(vocabulary.counts(tokenize(new)).toarray(), peer.transform(new).toarray()[:, order])


def test_max_features_counts_each_length():
    documents = tokenize(["aa bb aa bb aa cc", "aa bb dd ee aa bb"])
    vocabulary = Vocabulary.build(documents, ngram_range=(1, 2), min_count=1, max_features=2)
    assert vocabulary.terms() == ["aa", "bb", "aa bb", "bb aa"]


def test_n_grams_do_not_cross_documents_or_unknown_words():
    vocabulary = Vocabulary.build([["a", "b"], ["a", "b"]], ngram_range=(2, 2), min_count=1)
    assert vocabulary.terms() == ["a b"]
    assert vocabulary.counts([["a"], ["b"], ["a", "x", "b"], ["a", "b"]]).toarray().tolist() == [[0], [0], [0], [1]]


def test_words_are_lower_case_and_unicode():
    assert words_of("L'Été: a big_Dog, 42!") == ["été", "big_dog", "42"]


def test_documents_may_come_from_an_iterator():
    assert tokenize(text for text in ["aa bb", "cc"]) == tokenize(["aa bb", "cc"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokenize("one text"), r"pass \[text\]"),
        (lambda: tokenize(["a", 3]), "document 1 is int"),
        (lambda: Vocabulary.build([["a"]], ngram_range=(2, 1)), r"\(2, 1\)"),
        (lambda: Vocabulary.build([["a"]], ngram_range=3), "ngram_range must be .*: 3"),
        (lambda: Vocabulary.build([["a"]], min_count=-4), "min_count must be at least 1, got -4"),
        (lambda: Vocabulary.build([["a"]], min_count=2), "lower min_count"),
        (lambda: Vocabulary.build([["a"]], min_count=1, max_features=0), "max_features must be a positive integer"),
        (lambda: Vocabulary.build([["a"]], min_count=1, max_features=-1), "max_features must be a positive integer"),
        (lambda: Vocabulary.build([[str(i) for i in range(3000)]], ngram_range=(1, 6), min_count=1), "too many"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

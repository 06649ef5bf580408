"""Pseudo-words, and the published set of word senses read from a small archive of its form."""

import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import senses as module
from etude.data.senses import load_senses, pseudo_words
from etude.data.sources import SourceFiles
from etude.data.topics import topic_documents
from etude.errors import DataError, UsageError


@pytest.fixture(scope="module")
def documents():
    drawn = topic_documents(300, 0, n_topics=6, n_words=150, focus=0.9, words_per_topic=15, mean_length=40)
    return [t.split() for t in drawn.texts]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_pseudo_words_keep_the_text_and_know_the_truth(documents, seed):
    instances = pseudo_words(documents, 5, seed, min_count=40, max_share=0.05, window=3)
    names = {w for w in instances.words}
    assert len(names) == 5
    parts = [p for name in names for p in name.split("|")]
    assert len(set(parts)) == 10
    count = Counter(w for d in documents for w in d)
    assert min(count[p] for p in parts) >= 40
    at = 0
    for original, merged in zip(documents, instances.documents, strict=True):
        assert len(original) == len(merged)
        for i, (old, new) in enumerate(zip(original, merged, strict=True)):
            if old in parts:
                assert instances.words[at] == new
                assert new.split("|")[instances.senses[at]] == old
                assert instances.contexts[at] == merged[max(0, i - 3) : i] + merged[i + 1 : i + 4]
                at += 1
            else:
                assert old == new
    assert at == len(instances.words) == len(instances.senses)
    assert sorted(np.concatenate(list(instances.by_word().values())).tolist()) == list(range(at))


def test_pairs_are_unrelated_and_equally_frequent(documents):
    instances = pseudo_words(documents, 6, 3, min_count=40, max_share=0.05)
    count = Counter(w for d in documents for w in d)
    for name in set(instances.words):
        a, b = name.split("|")
        assert abs(np.log(count[a] / count[b])) < 1
        held = [sum(w in d for d in map(set, documents)) for w in (a, b)]
        together = sum(a in d and b in d for d in map(set, documents))
        assert together < 0.5 * held[0] * held[1] / len(documents)


def test_too_many_pairs_are_refused(documents):
    with pytest.raises(ValueError, match=r"holds only \d+ of the 500 pairs"):
        pseudo_words(documents, 500, 0, min_count=40, max_share=0.05)


def archive(folder, texts, gold):
    path = folder / "set.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in texts.items():
            file.writestr(f"texts/{name}.txt", text)
        file.writestr("test/gold.key", gold)
    return SourceFiles("semeval2010_task14", {"set.zip": path}, "1", "none", "0")


def test_published_set_is_read(tmp_path, monkeypatch):
    files = archive(
        tmp_path,
        {"bank.n": "bank.n.1\tthe bank of river and bank\tfar away\nbank.n.2\tmoney bank\t\n"},
        "bank.n bank.n.1 bank.n.7\nbank.n bank.n.2 bank.n.1&&2\n",
    )
    monkeypatch.setattr(module, "fetch", lambda name, path=None: files)
    got = load_senses("semeval2010-task14")
    assert got.words == ["bank.n", "bank.n"]
    assert got.documents == [["the", "bank.n", "of", "river", "and", "bank", "far", "away"], ["money", "bank.n"]]
    assert got.contexts == [["the", "of", "river", "and", "bank", "far", "away"], ["money"]]
    assert got.senses[0] != got.senses[1]
    assert got.provenance[0]["name"] == "semeval2010_task14"


def test_broken_set_is_named(tmp_path, monkeypatch):
    files = archive(tmp_path, {"bank.n": "bank.n.9\tno such word\t\n"}, "bank.n bank.n.9 bank.n.1\n")
    monkeypatch.setattr(module, "fetch", lambda name, path=None: files)
    with pytest.raises(DataError, match=r"bank\.n\.9"):
        load_senses()
    with pytest.raises(UsageError, match="no sense set named 'other'"):
        load_senses("other")

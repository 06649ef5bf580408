"""Tokens: ids and back, offsets that point at the characters, masks, cutting, saving."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data import Tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat .", "The dog's bone, the cat!", "naïve café 12"]
SUBWORDS = ("bpe", "wordpiece", "unigram")


@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_bytes_come_back_exactly_and_offsets_point_at_their_character(texts):
    tokenizer = train_tokenizer([], "byte")
    done = tokenizer.encode(texts)
    assert tokenizer.vocab_size == 260
    assert tokenizer.decode(done.ids) == texts
    for text, ids, spans, mask in zip(texts, done.ids, done.offsets, done.mask, strict=True):
        assert int(mask.sum()) == len(text.encode())
        assert (ids[~mask] == tokenizer.pad_id).all()
        assert (spans[~mask] == -1).all()
        for (start, end), known in zip(spans.tolist(), mask.tolist(), strict=True):
            assert not known or end == start + 1


@given(st.lists(st.text(alphabet="abc é\n", min_size=1, max_size=20), min_size=1, max_size=4))
def test_known_characters_come_back_exactly(texts):
    tokenizer = train_tokenizer(["abc é\n"], "char")
    assert tokenizer.decode(tokenizer.encode(texts).ids) == texts


def test_words_are_the_commonest_and_ties_go_by_the_alphabet():
    tokenizer = train_tokenizer(TEXTS, "word", 4 + 4)
    assert tokenizer.vocab[4:] == ("the", "cat", "!", ",")
    lower = train_tokenizer(TEXTS, "word", 5, lowercase=True)
    assert lower.encode(["THE bone"]).ids.tolist() == [[4, lower.unk_id]]
    everything = train_tokenizer(TEXTS, "word")
    assert "dog's" in everything.vocab
    assert everything.decode(everything.encode(["the dog's café"]).ids) == ["the dog's café"]


@pytest.mark.parametrize("kind", ["char", "word", *SUBWORDS])
def test_offsets_lead_back_to_the_text(kind):
    if kind in SUBWORDS:
        pytest.importorskip("tokenizers", reason="optional: the extra hf is not installed")
    tokenizer = train_tokenizer(TEXTS * 5, kind, 60)
    for text in TEXTS:
        done = tokenizer.encode([text])
        pieces = [text[a:b] for a, b in done.offsets[0].tolist()]
        if kind == "word":
            assert "".join(pieces) == text.replace(" ", "")
        elif kind == "char":
            assert "".join(pieces) == text
        else:
            assert "".join(p.strip() for p in pieces) == text.replace(" ", "")


@pytest.mark.parametrize("kind", ["byte", "char", "word", *SUBWORDS])
def test_saving_keeps_every_id(kind):
    if kind in SUBWORDS:
        pytest.importorskip("tokenizers", reason="optional: the extra hf is not installed")
    tokenizer = train_tokenizer(TEXTS * 5, kind, None if kind == "byte" else 40)
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.vocab == tokenizer.vocab
    assert tokenizer.vocab[:4] == ("<pad>", "<unk>", "<bos>", "<eos>")
    assert tokenizer.vocab_size <= 260
    assert torch.equal(again.encode(TEXTS).ids, tokenizer.encode(TEXTS).ids)


def test_cutting_counts_the_texts_and_keeps_the_end_token():
    tokenizer = train_tokenizer(["abcdef"], "char")
    done = tokenizer.encode(["abcdef", "ab", ""], 4, add_bos=True, add_eos=True)
    assert done.n_truncated == 1
    assert done.ids.shape == (3, 4)
    assert done.lengths.tolist() == [4, 4, 2]
    assert done.ids[0, 0] == tokenizer.bos_id
    assert done.ids[0, -1] == done.ids[1, -1] == done.ids[2, 1] == tokenizer.eos_id
    assert done.offsets[0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 2]]
    assert done.mask.dtype == torch.bool


def test_no_texts_and_empty_texts_give_empty_rows():
    tokenizer = train_tokenizer(["ab"], "char")
    assert tokenizer.encode([]).ids.shape == (0, 0)
    assert tokenizer.encode(["", ""]).ids.shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train_tokenizer("abc", "char"), "takes a list of texts, got one text"),
        (lambda: train_tokenizer(["", " "], "word"), "no token"),
        (lambda: train_tokenizer(["a"], "char", 4), "more than the 4 special tokens, got 4"),
        (lambda: train_tokenizer(["a"], "byte", 100), "260 tokens"),
        (lambda: train_tokenizer(["a"], "syllable"), "got 'syllable'"),
        (lambda: train_tokenizer(["a"], "bpe"), "'bpe' needs a vocab_size"),
        (lambda: train_tokenizer(["a"], "char").encode("a"), "got one text"),
        (lambda: train_tokenizer(["a"], "char").encode(["a"], 0), "max_length must be more than 0"),
        (lambda: train_tokenizer(["a"], "char").encode(["a"], 1, add_eos=True), "more than 1 here, got 1"),
        (lambda: train_tokenizer(["a"], "char").decode([[9]]), "id 9 is outside the vocabulary of 5"),
        (lambda: train_tokenizer(["a"], "char").decode(torch.tensor([4])), "got one row"),
        (lambda: Tokenizer("char", ["a", "b", "c", "d"]), "begins with <pad>"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

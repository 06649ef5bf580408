"""BLEU, edit distance and perplexity against peers, closed forms and definitions."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.training.metrics import bits_per_symbol, bleu, edit_distance, label_error_rate, masked_accuracy, perplexity

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree"]


def corpus(seed, rows=20):
    rng = random.Random(seed)

    def sentence(low=4):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, 12)))

    return [sentence(1) for _ in range(rows)], [[sentence() for _ in range(rng.randint(1, 3))] for _ in range(rows)]


class TestBleu:
    def test_perfect_and_hopeless(self):
        assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(1.0)
        assert bleu("a b c d e", "v w x y z") == 0.0

    def test_clipped_precision_and_brevity_by_hand(self):
        # "the the the": one of three unigrams counts; c = 3 < r = 6
        assert bleu(["the the the"], ["the cat sat on a mat"], max_order=1) == pytest.approx(math.exp(1 - 2) / 3)
        # longer than the reference: no penalty
        assert bleu(["a b c x"], ["a b c"], max_order=2) == pytest.approx(math.sqrt(3 / 4 * 2 / 3))
        # equal length: exp(0) = 1
        assert bleu(["a b c"], ["a b d"], max_order=1) == pytest.approx(2 / 3)

    def test_nearest_reference_length_takes_the_shorter_of_two(self):
        short = bleu(["a b c"], [["a b", "a b c d"]], max_order=1)
        assert short == pytest.approx(1.0)  # r = 2, so no penalty

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_sacrebleu(self, seed):
        sacrebleu = pytest.importorskip("sacrebleu", reason="optional: peer for BLEU")
        candidates, references = corpus(seed)
        columns = [[r[k] if k < len(r) else None for r in references] for k in range(3)]
        theirs = sacrebleu.corpus_bleu(candidates, columns, smooth_method="none", tokenize="none")
        assert bleu(candidates, references) == pytest.approx(theirs.score / 100, abs=1e-9)

    def test_tokens_of_any_kind(self):
        candidates, references = corpus(1)
        want = bleu(candidates, references, max_order=2)

        def score(form):
            return bleu([form(c) for c in candidates], [[form(r) for r in rs] for rs in references], max_order=2)

        assert score(str.split) == want
        assert score(lambda s: [WORDS.index(w) for w in s.split()]) == want
        assert score(lambda s: torch.tensor([WORDS.index(w) for w in s.split()])) == want
        assert bleu([torch.tensor([1, 2, 3])], [torch.tensor([1, 2, 3])], max_order=3) == pytest.approx(1.0)

    def test_too_short_for_the_order_is_zero(self):
        assert bleu(["a b"], ["a b"]) == 0.0 and bleu([""], ["a b"], max_order=1) == 0.0

    def test_bad_input(self):
        with pytest.raises(ValueError, match="2 candidates and 1"):
            bleu(["a", "b"], ["a"])
        with pytest.raises(ValueError, match="at least one"):
            bleu([], [])
        with pytest.raises(ValueError, match="sentence 0"):
            bleu(["a"], [[]])
        with pytest.raises(ValueError, match="max_order"):
            bleu(["a"], ["a"], max_order=0)


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    same = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(same, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


class TestEditDistance:
    def test_known(self):
        assert edit_distance("kitten", "sitting") == 3
        assert edit_distance("", "abc") == 3 and edit_distance("abc", "") == 3 and edit_distance("", "") == 0
        assert edit_distance([1, 2, 3], torch.tensor([2, 3, 4])) == 2

    @given(st.text("abc", max_size=5), st.text("abc", max_size=5))
    def test_equals_the_definition(self, a, b):
        assert edit_distance(a, b) == slow_distance(a, b)

    @given(*[st.lists(st.integers(0, 3), max_size=12)] * 3)
    def test_is_a_distance(self, a, b, c):
        assert edit_distance(a, b) == edit_distance(b, a)
        assert (edit_distance(a, b) == 0) == (a == b)
        assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)

    def test_rate(self):
        assert label_error_rate(["ab", "xyz"], ["abc", "xyz"]) == pytest.approx(1 / 6)
        with pytest.raises(ValueError, match="empty"):
            label_error_rate(["a"], [""])
        with pytest.raises(ValueError, match="1 outputs and 2"):
            label_error_rate(["a"], ["a", "b"])


class TestPerplexity:
    def test_uniform_guess_is_the_alphabet(self):
        assert perplexity(math.log(8)) == pytest.approx(8)
        assert perplexity(torch.full((5,), math.log(8))) == pytest.approx(8)
        assert bits_per_symbol([math.log(8)] * 3) == pytest.approx(3)

    def test_geometric_mean(self):
        assert perplexity([math.log(2), math.log(8)]) == pytest.approx(4)

    def test_infinite_and_bad(self):
        assert perplexity([math.inf, 1.0]) == math.inf and perplexity(1e6) == math.inf
        for bad in ([], [math.nan, 1.0]):
            with pytest.raises(ValueError, match="empty or hold a NaN"):
                perplexity(bad)


def test_masked_accuracy_of_nan_is_nan():
    logits, targets = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    logits[1, 2] = torch.nan
    assert math.isnan(masked_accuracy(logits, targets))
    targets[1, 2] = -100  # not asked
    assert masked_accuracy(logits, targets) == 1.0

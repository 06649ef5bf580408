import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.data.duplicates import duplicate_groups, normalize_text
from etude.data.randomness import numpy_stream

WORDS = [f"word{i}" for i in range(3000)]


def article(rng, length=120):
    return " ".join(rng.choice(WORDS, length))


def edited(rng, text, changes):
    words = text.split()
    for i in rng.choice(len(words), changes, replace=False):
        words[i] = str(rng.choice(WORDS))
    return " ".join(words)


def test_normal_form():
    assert normalize_text("  The\tCAT \n sat ") == "the cat sat"
    assert normalize_text("ﬁne Straße") == normalize_text("fine STRASSE")


def test_exact_groups_in_order_of_appearance():
    assert duplicate_groups(["b", "a", "B ", "c", "A"], "exact").tolist() == [0, 1, 0, 2, 1]
    assert duplicate_groups([], "exact").tolist() == []


@pytest.mark.parametrize("method", ["minhash", "simhash"])
def test_planted_near_duplicates_are_found_and_others_are_not(method):
    rng = numpy_stream(0, "texts")
    originals = [article(rng) for _ in range(60)]
    copies = [edited(rng, t, 1) for t in originals[:30]]
    assert duplicate_groups(originals[:2] + originals[:1], "simhash", max_distance=0).tolist() == [0, 1, 0]
    groups = duplicate_groups(originals + copies, method, 0.8)
    found = (groups[60:] == groups[:30]).mean()
    assert found >= (0.95 if method == "minhash" else 0.6)
    assert len(np.unique(groups[:60])) == 60  # no false pair


def test_the_threshold_decides():
    rng = numpy_stream(1, "texts")
    text = article(rng, 400)
    far = edited(rng, text, 12)  # each change breaks 5 of 396 shingles: Jaccard about .74
    shingles = [{tuple(t.split()[i : i + 5]) for i in range(396)} for t in (text, far)]
    similarity = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert 0.7 < similarity < 0.78
    assert len(set(duplicate_groups([text, far], "minhash", 0.9, num_permutations=256).tolist())) == 2
    assert len(set(duplicate_groups([text, far], "minhash", 0.6, num_permutations=256).tolist())) == 1


def test_short_texts_fall_back_to_words_and_empty_ones_are_their_own_group():
    groups = duplicate_groups(["red fox", "fox red", "", "blue owl", "  "], "minhash", 0.9)
    assert groups[0] == groups[1] and groups[2] == groups[4] and len(set(groups.tolist())) == 3


def test_groups_are_transitive_and_repeatable():
    rng = numpy_stream(2, "texts")
    a = article(rng, 300)
    b = edited(rng, a, 3)
    c = edited(rng, b, 3)
    groups = duplicate_groups([a, c, b], "minhash", 0.85, num_permutations=256)
    assert len(set(groups.tolist())) == 1
    for method in ("minhash", "simhash"):
        texts = [a, b, c, article(rng), "x"]
        assert (duplicate_groups(texts, method) == duplicate_groups(texts, method)).all()


@given(st.lists(st.text(alphabet="ab ", max_size=6), max_size=8), st.sampled_from(["exact", "minhash", "simhash"]))
def test_equal_texts_share_a_group_whatever_the_method(texts, method):
    groups = duplicate_groups(texts, method, num_permutations=16)
    assert len(groups) == len(texts)
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            if normalize_text(a) == normalize_text(b):
                assert groups[i] == groups[j]
    seen = [g for i, g in enumerate(groups) if g not in groups[:i]]
    assert seen == list(range(len(seen)))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (("abc",), {}, ValueError, "one string"),
        ((["a", 3],), {}, TypeError, "text 1 is int"),
        ((["a"], "semantic"), {}, ValueError, "method must be"),
        ((["a"], "minhash", 0.0), {}, ValueError, "threshold"),
        ((["a"],), {"num_permutations": 1}, ValueError, "num_permutations"),
        ((["a"],), {"max_distance": 40}, ValueError, "max_distance"),
    ],
)
def test_bad_input(arguments, options, error, text):
    with pytest.raises(error, match=text):
        duplicate_groups(*arguments, **options)

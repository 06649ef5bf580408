"""The Reber grammar, strings that resemble it, and rows of characters."""

import pytest
import torch

from etude.data.randomness import stream
from etude.data.reber import SHARES, character_rows, has_legal_pairs, legal_pairs, reber_grammar, reber_strings


def test_labels_are_the_grammars_own():
    strings, y = reber_strings(400, (11, 30), generator=stream(0, "t"))
    assert len(set(strings)) == 400 and int(y.sum()) == 200
    assert torch.equal(reber_grammar().accepts(strings), y.bool())
    assert all(s[0] == "B" and s[-1] == "E" and 11 <= len(s) <= 30 for s in strings)
    again, _ = reber_strings(400, (11, 30), generator=stream(0, "t"))
    assert again == strings


def test_the_three_kinds_have_their_shares_and_the_memoryless_reader_its_score():
    strings, y = reber_strings(1000, (11, 30), generator=stream(1, "t"))
    wrong = [s for s, right in zip(strings, y.tolist()) if not right]
    foreign = [s for s in wrong if not set(s) <= set("BTPSXVE")]
    hidden = [s for s in wrong if has_legal_pairs(s)]
    assert (len(foreign), len(hidden)) == (round(500 * SHARES[0]), round(500 * SHARES[2]))
    for s in hidden:  # one letter away from the grammar
        assert bool(reber_grammar().accepts([s[0] + ("P" if s[1] == "T" else "T") + s[2:]])[0])
    right = sum(has_legal_pairs(s) == bool(v) for s, v in zip(strings, y.tolist()))
    assert right / 1000 == pytest.approx(1 - SHARES[2] / 2, abs=0.001)  # 93.9 %


def test_legal_pairs_of_the_published_automaton():
    assert {"BT", "BP", "TX", "PV", "SE", "VE", "PS", "TT"} <= legal_pairs()
    assert not {"BS", "XE", "EB", "TP", "VT"} & legal_pairs()
    assert not has_legal_pairs("B")


def test_shares_are_parameters():
    strings, y = reber_strings(40, (11, 30), shares=(0, 0, 1), generator=stream(0, "t"))
    assert all(has_legal_pairs(s) for s in strings) and int(y.sum()) == 20


def test_rows_of_characters():
    rows = character_rows(["BTE", "Bé"], torch.tensor([1, 0]), max_length=2)
    assert rows.x.tolist() == [[66, 84], [66, 127]] and rows.lengths.tolist() == [2, 2]
    assert character_rows(["ab", "c"]).x.tolist() == [[97, 98], [99, 0]]


def test_bad_input():
    g = stream(0, "t")
    for n in (3, 0):
        with pytest.raises(ValueError, match="even"):
            reber_strings(n, generator=g)
    with pytest.raises(ValueError, match="sum to 1"):
        reber_strings(10, shares=(0.5, 0.5, 0.5), generator=g)
    with pytest.raises(ValueError, match="lengths"):
        reber_strings(10, (20, 11), generator=g)
    with pytest.raises(ValueError, match="different strings"):
        reber_strings(2000, (5, 6), generator=g)
    with pytest.raises(ValueError, match="at least one character"):
        character_rows(["a", ""])

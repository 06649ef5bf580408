"""Beliefs before and after the cue, shares, noise, bad input."""

import math

import pytest
import torch

from etude.data.garden_path import garden_path_grammar
from etude.data.randomness import stream


def test_the_prefix_says_nothing_and_the_cue_everything():
    g = garden_path_grammar(3, 4, surprise=0.2, noise=0.0)
    text = ["pqryefgh", "pqrxabcd"]
    beliefs = g.beliefs(text)
    likely = torch.tensor([s[0] == "likely" for s in g.states])
    for t in range(4):
        assert beliefs[0, t, likely].sum().item() == pytest.approx(0.8)
    assert beliefs[0, 4, likely].sum().item() == 0 and beliefs[1, 4, likely].sum().item() == pytest.approx(1)
    scores = g.log_probs(text)
    assert scores[0, 3].item() == pytest.approx(math.log(0.2)) and scores[1, 3].item() == pytest.approx(math.log(0.8))
    assert scores[:, 4:].abs().max().item() == pytest.approx(0)  # without noise the tail is certain
    assert g.accepts([*text, "pqrxefgh", "pqyefgh"]).tolist() == [True, True, False, False]


def test_drawn_strings_have_the_share_and_the_noise():
    g = garden_path_grammar(2, 8, surprise=0.1, noise=0.3)
    drawn = g.sample(4000, None, stream(0, "strings"))
    assert bool((drawn.lengths == 11).all()) and bool(g.accepts(drawn.symbols).all())
    texts = g.decode(drawn.symbols)
    assert sum(t[2] == "y" for t in texts) / 4000 == pytest.approx(0.1, abs=0.02)
    odd = [c != "abcdabcd"[j] for t in texts if t[2] == "x" for j, c in enumerate(t[3:])]
    assert sum(odd) / len(odd) == pytest.approx(0.3, abs=0.02)


def test_bad_input():
    for bad in ({"prefix": 0}, {"tail": 0}, {"surprise": 0.0}, {"surprise": 1.0}, {"noise": 1.0}, {"noise": -0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            garden_path_grammar(**bad)

"""Decoding against brute force, its constraints, its end."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.randomness import stream
from etude.layers import decode

END = 0
V = 4


def chain(seed, batch=3):
    """A Markov model whose row b has its own table: step(last, state) with the row number in the state."""
    table = torch.randn(batch, V, V, generator=stream(seed, "table"))

    def step(last, state):
        return table[state[:, 0], last.clamp_min(0)], state

    start = (torch.full((batch,), 1), torch.arange(batch)[:, None])
    return table.log_softmax(-1), step, start


def brute_force(logp, row, max_steps):
    """All sequences with their scores, best first; END ends."""
    found = {}
    for word in product(range(V), repeat=max_steps):
        cut = word.index(END) + 1 if END in word else max_steps
        word = word[:cut]
        last, score = 1, 0.0
        for symbol in word:
            score += float(logp[row, last, symbol])
            last = symbol
        found[word] = score
    return sorted(found.items(), key=lambda kv: -kv[1])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_full_beam_equals_brute_force(seed):
    logp, step, start = chain(seed)
    out = decode(step, start, max_steps=3, beam_size=64, end_id=END)
    for row in range(3):
        want = brute_force(logp, row, 3)
        for k in range(len(want)):
            word = tuple(s for s in want[k][0] if s != END)
            assert float(out.scores[row, k]) == pytest.approx(want[k][1], abs=1e-4)
            if k == 0 or want[k - 1][1] - want[k][1] > 1e-4:
                got = out.sequences[row, k]
                assert tuple(got[got >= 0].tolist()) == word or want[k][1] - want[min(k + 1, len(want) - 1)][1] < 1e-4
                assert bool(out.finished[row, k]) == (END in want[k][0])
        assert bool(torch.isneginf(out.scores[row, len(want) :]).all())


def test_greedy_is_beam_of_one_and_follows_the_argmax():
    logp, step, start = chain(3)
    greedy = decode(step, start, max_steps=6, end_id=END)
    beam = decode(step, start, max_steps=6, end_id=END, method="beam")
    assert torch.equal(greedy.sequences, beam.sequences) and torch.allclose(greedy.scores, beam.scores)
    for row in range(3):
        last, word = 1, []
        for _ in range(6):
            last = int(logp[row, last].argmax())
            if last == END:
                break
            word.append(last)
        got = greedy.sequences[row, 0]
        assert got[got >= 0].tolist() == word


@pytest.mark.parametrize("beam_size", [1, 4])
def test_scores_are_as_exact_as_the_logits(beam_size):
    logp, step, start = chain(3)
    logp = logp.double() / 3
    out = decode(
        lambda last, rows: (logp[rows[:, 0], last.clamp_min(0)], rows), start, max_steps=5, beam_size=beam_size
    )
    exact = logp.log_softmax(-1)
    for row in range(3):
        word = [1, *out.sequences[row, 0].tolist()]
        want = sum(float(exact[row, a, b]) for a, b in pairwise(word))
        assert float(out.scores[row, 0]) == pytest.approx(want, rel=1e-13)
    assert decode(step, start, max_steps=5).scores.dtype == torch.float32


def test_wider_beam_is_never_worse():
    _, step, start = chain(4, batch=20)
    scores = [decode(step, start, max_steps=5, beam_size=b, end_id=END).scores[:, 0] for b in (1, 2, 64)]
    assert bool((scores[2] >= scores[0] - 1e-5).all()) and bool((scores[2] >= scores[1] - 1e-5).all())
    assert bool((scores[2] > scores[0] + 1e-5).any())


def test_states_follow_their_beams():
    """The state counts what was written; a beam that took another's state would be caught."""

    def step(last, state):
        total = state["sum"] + last.clamp_min(0)
        logits = torch.stack([-(total - 3.0).abs(), torch.ones_like(total) * 0.1, torch.zeros_like(total)], -1)
        return logits, {"sum": total, "pair": (total, [total])}

    start = (torch.zeros(2, dtype=torch.int64), {"sum": torch.zeros(2), "pair": (torch.zeros(2), [torch.zeros(2)])})
    out = decode(step, start, max_steps=4, beam_size=5, end_id=None)
    for k in range(5):
        total, score, last = 0.0, 0.0, 0
        for symbol in out.sequences[0, k].tolist():
            total += last
            logits = torch.tensor([-abs(total - 3.0), 0.1, 0.0])
            score += float(logits.log_softmax(-1)[symbol])
            last = symbol
        assert score == pytest.approx(float(out.scores[0, k]), abs=1e-5)


def test_always_ends_and_says_who_did_not():
    def step(last, state):
        logits = torch.zeros(last.shape[0], 3)
        logits[:, END] = torch.where(torch.arange(last.shape[0]) == 0, 50.0, -50.0)
        return logits, state

    out = decode(step, torch.ones(2, dtype=torch.int64), max_steps=7, end_id=END)
    assert out.finished[:, 0].tolist() == [True, False]
    assert (out.sequences[0] == -1).all() and (out.sequences[1] >= 0).sum() == 7


def test_without_end_all_steps_are_written():
    _, step, start = chain(5)
    out = decode(step, start, max_steps=4)
    assert out.sequences.shape == (3, 1, 4) and bool((out.sequences >= 0).all()) and bool(out.finished.all())


def no_repeat(prefix):
    used = torch.zeros(prefix.shape[0], V + 1, dtype=torch.bool)
    return ~used.scatter(1, torch.where(prefix >= 0, prefix, V), True)[:, :V]


@pytest.mark.parametrize("options", [{}, {"beam_size": 3}, {"method": "sample", "num_samples": 5}])
def test_constraint_holds_and_a_dead_end_stops(options):
    _, step, start = chain(6)
    if options.get("method") == "sample":
        options = options | {"generator": stream(0, "sample")}
    out = decode(step, start, max_steps=9, allowed=no_repeat, **options)
    for row in out.sequences.flatten(0, 1):
        real = row[row >= 0].tolist()
        assert sorted(real) == list(range(V))  # after V symbols nothing may follow
    assert not bool(out.finished.any()) and bool(torch.isfinite(out.scores).all())


def test_scores_are_normalised_over_what_is_allowed():
    only = torch.tensor([False, True, False, False])
    _, step, start = chain(7)
    out = decode(step, start, max_steps=3, allowed=lambda prefix: only.expand(prefix.shape[0], -1))
    assert out.scores.abs().max() < 1e-6


class TestSampling:
    def test_frequencies(self):
        logp, step, start = chain(8, batch=1)
        out = decode(step, start, max_steps=1, method="sample", num_samples=20000, generator=stream(1, "s"))
        share = torch.bincount(out.sequences.flatten(), minlength=V) / 20000
        assert torch.allclose(share, logp[0, 1].exp(), atol=0.02)

    def test_low_temperature_and_top_1_are_greedy(self):
        _, step, start = chain(9)
        greedy = decode(step, start, max_steps=5).sequences
        for options in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
            drawn = decode(step, start, max_steps=5, method="sample", generator=stream(2, "s"), **options)
            assert torch.equal(drawn.sequences, greedy)

    def test_top_p_keeps_the_symbol_that_passes_it(self):
        logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
        out = decode(
            lambda last, state: (logits.expand(last.shape[0], -1), state), torch.zeros(1, dtype=torch.int64),
            max_steps=1, method="sample", num_samples=2000, top_p=0.6, generator=stream(3, "s"),
        )  # fmt: skip
        assert set(out.sequences.flatten().tolist()) == {0, 1}
        assert torch.allclose(out.scores, logits[out.sequences[..., 0]])

    def test_top_k_keeps_k_symbols_also_of_equal_ones(self):
        out = decode(
            lambda last, state: (torch.tensor([[0.0, 1.0, 1.0, 1.0]]).expand(len(last), -1), state),
            torch.zeros(1, dtype=torch.int64), max_steps=1, method="sample", num_samples=200, top_k=2,
            generator=stream(5, "s"),
        )  # fmt: skip
        assert set(out.sequences.flatten().tolist()) == {1, 2}

    def test_same_generator_same_samples(self):
        _, step, start = chain(10)
        a, b = (decode(step, start, max_steps=5, method="sample", num_samples=3, generator=stream(4, "s")).sequences
                for _ in range(2))  # fmt: skip
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_steps": 0}, "max_steps"),
        ({"beam_size": 0}, "beam_size"),
        ({"method": "best"}, "method"),
        ({"method": "sample"}, "generator"),
        ({"method": "sample", "beam_size": 2, "generator": torch.Generator()}, "num_samples"),
        ({"num_samples": 2}, "sample"),
        ({"method": "sample", "temperature": 0.0, "generator": torch.Generator()}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"temperature": 0.7}, r"temperature=0\.7.*'greedy'"),
        ({"top_k": 2, "beam_size": 3}, "top_k=2.*'beam'"),
        ({"end_id": V}, rf"0\.\.{V - 1}, got {V}"),
        ({"end_id": -1}, "got -1"),
        ({"allowed": lambda prefix: torch.ones(1, 2, dtype=torch.bool)}, "allowed"),
    ],
)
def test_bad_options(options, match):
    _, step, start = chain(0)
    with pytest.raises(ValueError, match=match):
        decode(step, start, **({"max_steps": 3} | options))


def test_nan_logits_name_the_row():
    def step(last, state):
        logits = torch.zeros(last.shape[0], 3)
        logits[1] = math.nan
        return logits, state

    with pytest.raises(ValueError, match="row 1"):
        decode(step, torch.zeros(2, dtype=torch.int64), max_steps=2)


def test_unknown_state_is_refused():
    with pytest.raises(ValueError, match="reorder"):
        decode(
            lambda last, state: (torch.zeros(len(last), 2), state),
            (torch.zeros(1, dtype=torch.int64), "x"),
            max_steps=1,
        )

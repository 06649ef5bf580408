"""Generators of sequence tasks: labels recomputed from the inputs over many seeds, known scores of guessers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data import sequences as S
from etude.data.randomness import stream

seeds = st.integers(0, 2**31 - 1)
fast = settings(max_examples=20, deadline=None)


def check_frame(batch):
    n, time = batch.y.shape
    assert batch.x.shape[:2] == (n, time) and batch.lengths.shape == (n,)
    asked = ~batch.y.isnan() if batch.y.is_floating_point() else batch.y != -100
    assert torch.equal(batch.score_mask, asked) and bool(asked.any(1).all())
    steps = torch.arange(time)
    assert not bool((asked & (steps >= batch.lengths[:, None])).any())
    if not batch.x.is_floating_point():
        assert int(batch.x.min()) >= 0 and int(batch.x.max()) < batch.num_symbols
        assert int(batch.y[asked].min()) >= 0 and int(batch.y[asked].max()) < batch.num_classes


class TestRecall:
    @fast
    @given(seeds, st.integers(0, 12), st.sampled_from([None, 3]))
    def test_the_answer_is_the_first_symbol(self, seed, delay, distractors):
        b = S.recall(16, delay, stream(seed, "r"), distractors=distractors)
        check_frame(b)
        assert b.x.shape == (16, delay + 2)
        assert torch.equal(b.y[:, -1], b.x[:, 0]) and bool((b.x[:, -1] == b.num_symbols - 1).all())
        middle = b.x[:, 1:-1]
        if distractors is None:
            assert bool((middle < 8).all()) and b.num_symbols == 9
        else:
            assert bool(((middle >= 8) & (middle < 11)).all()) and b.num_symbols == 12

    def test_a_delay_for_each_row(self):
        b = S.recall(200, (2, 9), stream(0, "r"))
        check_frame(b)
        assert set(b.lengths.tolist()) == set(range(4, 12))
        rows = torch.arange(200)
        assert torch.equal(b.y[rows, b.lengths - 1], b.x[:, 0]) and bool((b.x[rows, b.lengths - 1] == 8).all())
        assert int(b.score_mask.sum()) == 200

    def test_chance_is_what_a_guess_scores(self):
        b = S.recall(20000, 3, stream(1, "r"), cues=4)
        share = float((b.y[:, -1] == b.x[:, 1]).float().mean())  # a distractor says nothing
        assert share == pytest.approx(b.info["chance"], abs=0.015)


@fast
@given(seeds, st.integers(2, 40))
def test_adding(seed, length):
    b = S.adding(32, length, stream(seed, "a"))
    check_frame(b)
    marks = b.x[..., 1]
    assert bool((marks.sum(1) == 2).all()) and bool((marks[:, : length // 2].sum(1) == 1).all())
    assert torch.allclose(b.y[:, -1], (b.x[..., 0] * marks).sum(1))


def test_adding_variance():
    b = S.adding(40000, 6, stream(0, "a"))
    assert float((b.y[:, -1] - 1).pow(2).mean()) == pytest.approx(b.info["variance"], rel=0.03)


@fast
@given(seeds, st.integers(10, 60))
def test_temporal_order(seed, length):
    b = S.temporal_order(32, length, stream(seed, "t"))
    check_frame(b)
    signal = b.x < 2
    assert bool((signal.sum(1) == 2).all())
    first, second = b.x[signal].view(32, 2).T
    assert torch.equal(b.y[:, -1], 2 * first + second)
    places = signal.nonzero()[:, 1].view(32, 2)
    assert bool((places[:, 0] < length // 2).all()) and bool((places[:, 1] >= length // 2).all())


@fast
@given(seeds, st.integers(1, 12))
def test_copy(seed, length):
    b = S.copy_paste(16, length, stream(seed, "c"))
    check_frame(b)
    assert torch.equal(b.y[:, length:], b.x[:, :length]) and bool((b.x[:, length:] == 8).all())
    x, y = S.copy_pairs(16, length, stream(seed, "c"))
    back, same = S.copy_pairs(16, length, stream(seed, "c"), reverse_source=True)
    assert torch.equal(x, y) and torch.equal(same, y) and torch.equal(back, x.flip(1))


@fast
@given(seeds, st.booleans())
def test_parity(seed, every_step):
    b = S.parity(16, (1, 10), stream(seed, "p"), every_step=every_step)
    check_frame(b)
    for x, y, n in zip(b.x, b.y, b.lengths.tolist(), strict=True):
        assert bool((x[n:] == 2).all())
        for t in range(n):
            if every_step or t == n - 1:
                assert int(y[t]) == int(x[: t + 1].sum()) % 2


@fast
@given(seeds, st.integers(4, 30))
def test_selective_copy(seed, length):
    b = S.selective_copy(16, length, stream(seed, "s"), memorize=4)
    check_frame(b)
    body = b.x[:, :length]
    assert torch.equal(body[body < 8].view(16, 4), b.y[:, length:])


@fast
@given(seeds, st.integers(1, 8))
def test_associative_recall(seed, pairs):
    b = S.associative_recall(16, pairs, stream(seed, "m"), queries=max(1, pairs - 1))
    check_frame(b)
    for x, y in zip(b.x.tolist(), b.y.tolist(), strict=True):
        table = dict(zip(x[0 : 2 * pairs : 2], x[1 : 2 * pairs : 2], strict=True))
        assert len(table) == pairs
        assert [table[k] - 32 for k in x[2 * pairs :]] == y[2 * pairs :]
        assert len(set(x[2 * pairs :])) == len(x[2 * pairs :])


@fast
@given(seeds, st.integers(1, 4))
def test_two_sided(seed, lag):
    pair, xor = S.two_sided(16, 12, stream(seed, "b"), lag=lag), S.two_sided_xor(16, 12, stream(seed, "b"), lag=lag)
    check_frame(pair)
    check_frame(xor)
    assert torch.equal(pair.x, xor.x)
    for t in range(lag, 12 - lag):
        before, after = pair.x[:, t - lag], pair.x[:, t + lag]
        assert torch.equal(pair.y[:, t], 2 * before + after) and torch.equal(xor.y[:, t], before ^ after)
    assert bool((pair.y[:, :lag] == -100).all()) and bool((pair.y[:, 12 - lag :] == -100).all())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda g: S.recall(4, -1, g), "delay"),
        (lambda g: S.recall(4, (3, 2), g), "delay"),
        (lambda g: S.recall(0, 2, g), "n must"),
        (lambda g: S.recall(4, 2, g, distractors=0), "distractors"),
        (lambda g: S.adding(4, 1, g), "length"),
        (lambda g: S.temporal_order(4, 9, g), "length"),
        (lambda g: S.copy_paste(4, 0, g), "length"),
        (lambda g: S.parity(4, (0, 3), g), "length"),
        (lambda g: S.selective_copy(4, 3, g), "length"),
        (lambda g: S.associative_recall(4, 40, g), "queries <= pairs <= keys"),
        (lambda g: S.two_sided(4, 6, g), "length"),
        (lambda g: S.two_sided(4, 9, g, label="sum"), "label"),
    ],
)
def test_bad_sizes(call, match):
    with pytest.raises(ValueError, match=match):
        call(stream(0, "bad"))


def test_same_generator_same_batch():
    a, b = (S.recall(8, 5, stream(3, "x")) for _ in range(2))
    assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)

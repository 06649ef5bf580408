"""Batches: every row once an epoch, the generator decides the order, uint8 images become floats."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data import Batches, Split, sampled, stream


def generator():
    return stream(0, "order")


@given(n=st.integers(1, 60), size=st.integers(1, 70))
def test_an_epoch_holds_every_row_once(n, size):
    data = Split(torch.arange(n), torch.arange(n) * 2)
    batches = list(Batches(data, size, generator()))
    assert sorted(torch.cat([b.x for b in batches]).tolist()) == list(range(n))
    assert all(torch.equal(b.y, b.x * 2) for b in batches)
    assert len(batches) == len(Batches(data, size, generator())) == -(-n // size)


def test_orders_come_from_the_generator_and_change_from_epoch_to_epoch():
    data = Split(torch.arange(50))
    one, two = Batches(data, 10, generator()), Batches(data, 10, generator())
    first = [torch.cat([b.x for b in one]) for _ in range(2)]
    second = [torch.cat([b.x for b in two]) for _ in range(2)]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], first[1])
    endless = torch.cat([b.x for b in islice(Batches(data, 10, generator()).endless(), 10)])
    assert torch.equal(endless, torch.cat(first))


def test_drop_last_leaves_out_the_short_batch():
    batches = Batches(Split(torch.arange(10)), 4, generator(), drop_last=True)
    assert len(batches) == 2
    assert [b.n for b in batches] == [4, 4]


def test_uint8_images_become_floats_in_the_batch_only():
    data = Split(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.arange(3))
    (batch,) = Batches(data, 3, generator())
    assert batch.x.dtype == torch.float32
    assert torch.allclose(batch.x, torch.tensor(0.2))
    assert data.x.dtype == torch.uint8


def test_lists_of_texts_are_batched():
    (batch,) = Batches(Split(["a", "b", "c"], torch.tensor([0, 1, 2])), 3, generator())
    assert ["abc"[i] for i in batch.y.tolist()] == batch.x


def test_buckets_put_like_lengths_together_and_cut_padding():
    lengths = torch.arange(1, 101)
    x = (torch.arange(100)[None, :] < lengths[:, None]).long()
    batches = list(Batches(Split(x, x, lengths=lengths), 10, generator(), bucket_by_length=True))
    assert sum(b.n for b in batches) == 100
    for batch in batches:
        assert batch.x.shape[1] == batch.y.shape[1] == int(batch.lengths.max())
        assert int(batch.lengths.max() - batch.lengths.min()) == 9
        assert torch.equal(batch.x.sum(1), batch.lengths)
    assert [int(b.lengths.max()) for b in batches] != sorted(int(b.lengths.max()) for b in batches)


def test_balance_gives_every_class_the_same_share():
    y = torch.tensor([0] * 90 + [1] * 10)
    batches = list(Batches(Split(torch.arange(100), y), 20, generator(), balance=y))
    drawn = torch.cat([b.y for b in batches])
    assert drawn.bincount().tolist() == [50, 50]
    rare = torch.cat([b.x for b in batches])[drawn == 1]
    assert set(rare.tolist()) == set(range(90, 100))  # each row of the rare class comes, five times
    assert rare.bincount()[90:].tolist() == [5] * 10


def test_sampled_draws_each_step_anew():
    data = sampled(lambda g, step: Split(torch.randint(100, (2,), generator=g), torch.tensor([step, step])))
    first = list(islice(data.endless(stream(1, "data")), 3))
    again = list(islice(data.endless(stream(1, "data")), 3))
    assert [b.y[0].item() for b in first] == [0, 1, 2]
    assert all(torch.equal(a.x, b.x) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 5, "drop_last": True}, "drop_last leaves nothing of 4 rows"),
        ({"batch_size": 2, "bucket_by_length": True}, "needs data.lengths"),
        ({"batch_size": 2, "balance": torch.zeros(3)}, "balance has 3 entries for 4 rows"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Batches(Split(torch.arange(4)), generator=generator(), **options)


def test_no_rows_and_no_function_are_named():
    with pytest.raises(ValueError, match="no rows"):
        Batches(Split(torch.empty(0)), 1, generator())
    with pytest.raises(ValueError, match="takes a function"):
        sampled(3)

"""The reservoir is uniform, the buffer resumes, bad batches are named."""

import pytest
import torch
from scipy.stats import chisquare

from etude.data import Split, stream
from etude.training import ReplayBuffer


def _buffer(size=5, policy="reservoir", seed=0):
    return ReplayBuffer(size, policy, stream(seed, "replay"))


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_every_row_of_the_stream_is_held_equally_often(batch):
    counts = torch.zeros(40)
    for seed in range(400):
        buffer = _buffer(8, seed=seed)
        for rows in torch.arange(40).split(batch):
            buffer.add(rows)
        held = buffer.rows()
        assert len(held.unique()) == 8
        counts[held] += 1
    assert counts.sum() == 400 * 8
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_row_by_row_and_at_once_are_the_same_reservoir():
    one, many = _buffer(), _buffer()
    many.add(torch.arange(30))
    for i in range(30):
        one.add(torch.tensor([i]))
    assert torch.equal(one.rows(), many.rows())


def test_fifo_holds_the_latest():
    buffer = _buffer(3, "fifo")
    buffer.add(torch.arange(2))
    assert len(buffer) == 2
    buffer.add(torch.arange(2, 9))
    assert sorted(buffer.rows().tolist()) == [6, 7, 8]


def test_places_say_where_rows_went():
    buffer = _buffer(4)
    places = buffer.add(torch.arange(20))
    assert sorted(places[places >= 0].tolist()) == [0, 1, 2, 3]
    held = buffer.rows()
    assert all(int(held[p]) == i for i, p in enumerate(places.tolist()) if p >= 0)


@pytest.mark.parametrize("n", [1, 3, 30])
def test_samples_are_different_rows_uniformly(n):
    buffer = _buffer(60)
    buffer.add(torch.arange(60))
    counts = torch.zeros(60)
    for _ in range(1200 // n):
        rows = buffer.sample(n)
        assert len(rows.unique()) == n
        counts[rows] += 1
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_asking_for_more_than_there_is_gives_all():
    buffer = _buffer(10)
    buffer.add(torch.arange(4))
    assert sorted(buffer.sample(9).tolist()) == [0, 1, 2, 3]


def test_splits_and_dictionaries_come_back_as_they_were():
    buffer = _buffer()
    buffer.add(Split(torch.eye(3), torch.arange(3)))
    batch = buffer.sample(2)
    assert isinstance(batch, Split)
    assert batch.groups is None
    assert torch.equal(batch.x.argmax(1), batch.y)
    other = _buffer()
    other.add({"a": torch.zeros(2, 3), "b": torch.ones(2)})
    assert other.sample(1)["a"].shape == (1, 3)


def test_resumes_with_the_same_draws():
    first = _buffer(seed=3)
    first.add(Split(torch.arange(20.0)[:, None], torch.arange(20)))
    state = first.state_dict()
    second = ReplayBuffer(5, "reservoir", torch.Generator())
    second.load_state_dict(state, like=Split(torch.zeros(1, 1), torch.zeros(1)))
    for buffer in (first, second):
        buffer.add(Split(torch.arange(20.0, 40)[:, None], torch.arange(20, 40)))
    assert torch.equal(first.rows().y, second.rows().y)
    assert torch.equal(first.sample(3).x, second.sample(3).x)


def test_state_of_an_empty_buffer_resumes_too():
    other = _buffer()
    other.load_state_dict(_buffer(seed=9).state_dict())
    assert len(other) == 0


def test_stored_rows_do_not_hang_on_the_batch():
    buffer, rows = _buffer(), torch.ones(2, requires_grad=True)
    buffer.add(rows * 2)
    assert not buffer.rows().requires_grad


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        _buffer(0)
    with pytest.raises(ValueError, match="policy must be 'reservoir' or 'fifo', got 'lifo'"):
        _buffer(2, "lifo")
    with pytest.raises(ValueError, match="give a generator"):
        ReplayBuffer(2)
    buffer = _buffer()
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="empty"):
        buffer.rows()
    with pytest.raises(ValueError, match="must hold tensors"):
        buffer.add(["a"])
    with pytest.raises(ValueError, match=r"got \[1, 2\]"):
        buffer.add((torch.zeros(2), torch.zeros(1)))
    buffer.add(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="n must be at least 1"):
        buffer.sample(0)
    with pytest.raises(ValueError, match=r"rows of shape \(4,\) do not fit the buffer's \(3,\)"):
        buffer.add(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="built otherwise"):
        buffer.add({"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="pass like=batch"):
        _buffer().load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="holds 2 rows"):
        _buffer(1).load_state_dict(buffer.state_dict(), like=torch.zeros(1, 3))

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data.streams import class_stream, drift, in_turn, joint, online, permuted_stream, rotated_stream
from etude.data.tasks import Split, Task


def task(classes: int = 6, rows: int = 10, images: bool = False) -> Task:
    y = torch.arange(classes).repeat_interleave(rows)
    x = torch.arange(len(y)).float()[:, None] + torch.arange(4) / 10
    x = x.view(-1, 1, 2, 2) if images else x
    names = tuple("abcdefghij"[:classes])
    return Task("toy", "table", Split(x, y), None, Split(x + 0.5, y), classes, {"classes": names})


@given(seed=st.integers(0, 10**6), steps=st.sampled_from([1, 2, 3, (1, 2, 3), (4, 1)]))
def test_every_class_comes_once_with_all_its_rows(seed: int, steps) -> None:
    segments = class_stream(task(), steps, seed=seed)
    classes = [c for s in segments for c in s.classes]
    assert len(set(classes)) == len(classes) == (sum(steps) if isinstance(steps, tuple) else 6)
    for s in segments:
        for part in ("train", "test"):
            data = s.split(part)
            assert data.n == 10 * len(s.classes) and set(data.y.tolist()) == set(s.classes)
            assert torch.equal(data.x, getattr(s.task, part).x[data.index])
    again = class_stream(task(), steps, seed=seed)
    assert all(torch.equal(a.rows["train"], b.rows["train"]) for a, b in zip(segments, again))


def test_seeds_differ_and_an_order_can_be_given() -> None:
    orders = {tuple(c for s in class_stream(task(), 2, seed=seed) for c in s.classes) for seed in range(20)}
    assert len(orders) > 15
    segments = class_stream(task(), 2, seed=0, order=(5, 0, 1, 4, 3, 2))
    assert [s.classes for s in segments] == [(5, 0), (1, 4), (3, 2)] and segments[0].name == "classes f, a"


def test_sizes_make_any_imbalance() -> None:
    assert [s.train.n for s in class_stream(task(), 2, seed=0, sizes=7)] == [7, 7, 7]
    uneven = class_stream(task(), 2, seed=0, sizes=(20, 2, 3))
    assert [s.train.n for s in uneven] == [20, 2, 3] and [s.test.n for s in uneven] == [20, 20, 20]
    assert sorted(uneven[2].train.y.bincount()[uneven[2].train.y.unique()].tolist()) == [1, 2]
    by_class = class_stream(task(), 2, seed=0, sizes={3: 1, 5: 4})
    counts = torch.cat([s.train.y for s in by_class]).bincount()
    assert counts.tolist() == [10, 10, 10, 1, 10, 4]


def test_labels_within_a_segment() -> None:
    for s in class_stream(task(), 3, seed=1, relabel=True):
        data = s.train
        assert set(data.y.tolist()) == {0, 1, 2}
        assert torch.equal(torch.tensor(s.classes)[data.y], s.task.train.y[data.index])


def test_a_class_that_is_too_small_is_named() -> None:
    for call, message in [
        (lambda: class_stream(task(), 2, seed=0, sizes=50), r"class [a-f] has 10 training rows, 25 are asked for"),
        (lambda: class_stream(task(), 4, seed=0), "6 classes cannot be cut into steps of 4"),
        (lambda: class_stream(task(), (4, 3), seed=0), "at most 6"),
        (lambda: class_stream(task(), 2, seed=0, sizes=(1, 2)), "2 entries for 3 segments"),
        (lambda: class_stream(task(), 2, seed=0, sizes=1), "cannot hold the 2 classes"),
        (lambda: class_stream(task(), 2, seed=0, sizes={9: 1}), r"\[9\]"),
        (lambda: class_stream(task(), 2, seed=0, order=(0, 0)), "different classes"),
        (lambda: class_stream(task(), 2, seed=0)[0].split("val"), "no part 'val'"),
        (lambda: class_stream(Task("t", "table", Split(torch.zeros(3, 2))), 1, seed=0), "no class labels"),
        (lambda: permuted_stream(task(), 0, seed=0), "n must be"),
        (lambda: rotated_stream(task(), (0.0,), seed=0), "images"),
        (lambda: rotated_stream(task(images=True), (), seed=0), "empty"),
        (lambda: permuted_stream(task(), 2, seed=0, sizes=31, disjoint=True), "62 rows"),
        (lambda: joint([]), "no segments"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_permutations_are_fixed_and_lose_nothing() -> None:
    source = task()
    segments = permuted_stream(source, 3, seed=0, identity_first=True)
    first = segments[0].split("train")
    assert torch.equal(first.x, source.train.x[first.index]) and first.n == 60
    for s in segments[1:]:
        for part in ("train", "test"):
            data = s.split(part)
            plain = getattr(source, part).x[data.index]
            assert not torch.equal(data.x, plain)
            assert torch.equal(data.x.sort(1).values, plain)
    a, b = (segments[1].split(p) for p in ("train", "test"))
    order = [(a.x[0] - v).abs().argmin().item() for v in source.train.x[a.index[0]]]
    assert [(b.x[0] - v).abs().argmin().item() for v in source.test.x[b.index[0]]] == order


def test_draws_keep_proportions_and_can_be_disjoint() -> None:
    segments = permuted_stream(task(), 4, seed=0, sizes=12, test_size=6, disjoint=True)
    rows = torch.cat([s.rows["train"] for s in segments])
    assert len(rows.unique()) == 48
    assert all(s.train.y.bincount().tolist() == [2] * 6 and s.test.y.bincount().tolist() == [1] * 6 for s in segments)
    shared = permuted_stream(task(), 4, seed=0, sizes=30)
    assert len(torch.cat([s.rows["train"] for s in shared]).unique()) > 48


def test_rotation_by_ninety_degrees_moves_pixels() -> None:
    source = task(images=True)
    segments = rotated_stream(source, (0, 90), seed=0)
    for s, turns in zip(segments, (0, 1)):
        data = s.train
        assert torch.allclose(data.x, source.train.x[data.index].rot90(turns, (2, 3)), atol=1e-4)
    assert segments[1].name == "90 degrees"


def test_online_passes_once_and_never_crosses_a_border() -> None:
    segments = class_stream(task(), 2, seed=0)
    batches = list(online(segments, 7))
    assert [t for t, _ in batches] == [0] * 3 + [1] * 3 + [2] * 3
    for t, batch in batches:
        assert set(batch.y.tolist()) <= set(segments[t].classes)
    rows = torch.cat([b.index for _, b in batches])
    assert torch.equal(rows, torch.cat([s.rows["train"] for s in segments])) and len(rows.unique()) == 60


def test_segments_come_in_turn_for_training() -> None:
    segments = class_stream(task(), 2, seed=0)
    source = in_turn(segments, 5, batch_size=8)
    generator = torch.Generator().manual_seed(0)
    seen = [source.draw(generator, step) for step in range(20)]
    for step, batch in enumerate(seen):
        assert batch.n == 8 and set(batch.y.tolist()) <= set(segments[min(step // 5, 2)].classes)
    assert len(torch.cat([b.index for b in seen[:5]]).unique()) > 8
    whole = in_turn(segments, 5).draw(generator, 7)
    assert torch.equal(whole.index, segments[1].rows["train"])
    for bad in ({"steps": 0}, {"steps": 1, "batch_size": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            in_turn(segments, **bad)


def test_joint_holds_all_segments() -> None:
    segments = class_stream(task(), 2, seed=0)
    whole = joint(segments)
    assert whole.n == 60 and torch.equal(whole.x, task().train.x[whole.index])


def test_texts_stream_too() -> None:
    words = Task("w", "documents", Split(["p", "q", "r", "s"], torch.tensor([0, 1, 0, 1])), num_classes=2)
    segments = class_stream(words, 1, seed=0, order=(1, 0))
    assert sorted(segments[0].train.x) == ["q", "s"] and sorted(joint(segments).x) == ["p", "q", "r", "s"]


def test_drift_goes_from_one_state_to_the_other() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert torch.allclose(drift(0)(a, b), a) and torch.allclose(drift(90)(a, b), b, atol=1e-6)
    assert torch.allclose(drift(45)(a, b), (a + b) / math.sqrt(2))
    with pytest.raises(ValueError, match="one shape"):
        drift(1)(a, b[:1])


@pytest.mark.parametrize("rows", [0, -2])
def test_a_class_without_rows_is_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"asks for {rows} rows of class 1"):
        class_stream(task(), 2, seed=0, sizes={1: rows})
    for make in (lambda **s: permuted_stream(task(), 2, seed=0, **s), lambda **s: rotated_stream(
        task(images=True), [0.0, 90.0], seed=0, **s)):  # fmt: skip
        with pytest.raises(ValueError, match=f"at least 1 row of a part, got {rows}"):
            make(sizes=rows)
        with pytest.raises(ValueError, match=f"at least 1 row of a part, got {rows}"):
            make(test_size=rows)


def test_more_disjoint_segments_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="60 rows cannot be shared out over 61 segments"):
        permuted_stream(task(), 61, seed=0, disjoint=True)

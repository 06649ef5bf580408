"""Splits: disjoint, exact in size, stratified, groups whole, the same for the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data import Split, split
from etude.data.tasks import numbered

SEEDS = st.integers(0, 2**31 - 1)


def rows(n, **columns):
    return Split(torch.arange(n), **columns)


def test_split_holds_its_columns_and_counts_rows():
    data = rows(4, y=torch.tensor([0, 1, 0, 1]), groups=np.array([5, 6, 7, 8]), lengths=[1, 2, 3, 4])
    taken = data.take([2, 0])
    assert (data.n, len(data)) == (4, 5)  # len() of a named tuple is its number of fields
    assert taken.x.tolist() == [2, 0]
    assert taken.groups.tolist() == [7, 5]
    assert taken.lengths == [3, 1]
    assert taken.index is None
    assert data.take(torch.tensor([True, False, False, True])).x.tolist() == [0, 3]
    assert Split(["a", "b"]).take([1]).x == ["b"]


@given(seed=SEEDS, n=st.integers(1, 200), by=st.sampled_from(["row", "class"]))
def test_shares_that_sum_to_one_use_every_row_once(seed, n, by):
    y = torch.arange(n) % 2
    if by == "class" and n < 12:
        n, y = 12, torch.arange(12) % 2
    parts = split(rows(n, y=y), (0.5, 0.25, 0.25), seed=seed, by=by)
    assert sorted(torch.cat([p.index for p in parts]).tolist()) == list(range(n))
    assert all(torch.equal(p.x, p.index) for p in parts)


@given(seed=SEEDS, sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_counts_are_met_exactly(seed, sizes):
    parts = split(rows(120), sizes, seed=seed)
    assert [p.n for p in parts] == sizes


@given(seed=SEEDS, weights=st.lists(st.integers(3, 60), min_size=2, max_size=5), share=st.floats(0.2, 0.8))
def test_classes_stand_in_proportion(seed, weights, share):
    y = torch.repeat_interleave(torch.arange(len(weights)), torch.tensor(weights))
    n = len(y)
    first = max(len(weights), min(n - len(weights), round(share * n)))
    parts = split(rows(n, y=y), (first, n - first), seed=seed, by="class")
    assert [p.n for p in parts] == [first, n - first]
    for part in parts:
        counts = part.y.bincount(minlength=len(weights))
        assert (counts > 0).all()
        ideal = torch.tensor(weights, dtype=torch.float64) * part.n / n
        assert ((counts - ideal).abs() <= 2).all()


def test_a_class_as_large_as_the_number_of_parts_stands_in_each():
    y = torch.tensor([0] * 200 + [1] * 3)
    for seed in range(50):
        for part in split(rows(203, y=y), (0.8, 0.1, 0.1), seed=seed, by="class"):
            assert 1 in part.y


@given(seed=SEEDS, n_groups=st.integers(3, 40))
def test_groups_never_cross(seed, n_groups):
    groups = torch.randint(n_groups, (150,), generator=torch.Generator().manual_seed(seed))
    groups[:n_groups] = torch.arange(n_groups)
    parts = split(rows(150, groups=groups), (0.6, 0.2, 0.2), seed=seed, by="group")
    names = [set(p.groups.tolist()) for p in parts]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert sum(p.n for p in parts) == 150
    assert all(p.n for p in parts)


def test_groups_meet_the_sizes_where_they_can():
    parts = split(rows(100, groups=torch.arange(100) // 5), (0.5, 0.3), seed=0, by="group")
    assert [p.n for p in parts] == [50, 30]


@given(seed=SEEDS)
def test_groups_are_spread_with_an_eye_on_the_classes(seed):
    """60 groups of 5 rows of one class each, a fifth of them of the rare class."""
    groups = torch.arange(300) // 5
    y = (groups % 5 == 0).long()
    for part, ideal in zip(split(rows(300, y=y, groups=groups), (0.6, 0.2, 0.2), seed=seed, by="group"), (36, 12, 12)):
        assert abs(int(part.y.sum()) - ideal) <= 5  # a group


def test_groups_that_are_classes_of_their_own_fill_the_parts():
    rows_of_13 = rows(13, y=torch.arange(13), groups=torch.arange(13))
    assert [p.n for p in split(rows_of_13, (7, 3, 3), seed=0, by="group")] == [7, 3, 3]


def test_the_same_seed_gives_the_same_rows_in_the_same_order_and_another_does_not():
    data = rows(50, y=torch.arange(50) % 3)
    for by in ("row", "class"):
        one, two, other = (split(data, (20, 30), seed=s, by=by) for s in (1, 1, 2))
        assert torch.equal(one[0].index, two[0].index)
        assert not torch.equal(one[0].index, other[0].index)


def test_index_goes_back_to_the_whole_set_through_a_second_split():
    outer = split(rows(40), (20, 20), seed=0)[1]
    inner = split(outer, (10,), seed=0)[0]
    assert torch.equal(inner.index, inner.x)
    assert set(inner.index.tolist()) <= set(outer.index.tolist())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    split(rows(20), (10, 10), seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("data", "sizes", "by", "message"),
    [
        (rows(10), (6, 5), "row", r"ask for 11 rows, there are 10"),
        (rows(10), (0.8, 0.3), "row", r"shares sum to at most 1"),
        (rows(10), (-1,), "row", r"at least 0"),
        (rows(10), (), "row", r"sizes is empty"),
        (rows(10), (0.5, 0.5), "class", r"data\.y is None"),
        (rows(10), (0.5, 0.5), "group", r"data\.groups, which is None"),
        (rows(10), (0.5, 0.5), "half", r"by must be .* got 'half'"),
        (rows(10, groups=torch.arange(10)), (0.5,), "row", r"the data have groups"),
        (rows(4, groups=torch.tensor([0, 0, 1, 1])), (1, 1, 1), "group", r"2 groups cannot fill 3 parts"),
        (rows(9, y=torch.tensor([0] * 7 + [1, 2])), (4, 2, 2), "class", r"too few rows .* 1 \(1\), 2 \(1\)"),
        (rows(12, y=torch.arange(12) % 4), (8, 3), "class", r"3 rows cannot hold 4 classes"),
        (rows(4, y=torch.zeros(4, 2)), (2, 2), "class", r"shape \(4, 2\)"),
    ],
)
def test_bad_requests_are_named(data, sizes, by, message):
    with pytest.raises(ValueError, match=message):
        split(data, sizes, seed=0, by=by)


def test_the_name_of_a_class_too_small_to_split_is_given():
    data = rows(21, y=torch.tensor([0] * 20 + [1]))
    with pytest.raises(ValueError, match=r"too few rows .*: rare \(1\)"):
        split(data, (0.5, 0.5), seed=0, by="class", classes=("common", "rare"))


def test_numbers_of_classes_are_ordered_by_value():
    names, codes = numbered(["10", "2", "-1", "2"])
    assert names == ("-1", "2", "10")
    assert codes.tolist() == [2, 1, 0, 1]
    assert numbered(["b", "10", "a"])[0] == ("10", "a", "b")


def test_classes_named_by_numbers_of_any_size_keep_their_order():
    names = ["12345678901234567891", "-3", "12345678901234567890", "7"]
    classes, codes = numbered(names)
    assert classes == ("-3", "7", "12345678901234567890", "12345678901234567891")
    assert [classes[c] for c in codes] == names

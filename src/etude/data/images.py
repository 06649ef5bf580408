"""Image sets by name, all in one form: float32 (N, C, H, W) in [0, 1]."""

import hashlib
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from etude.data.cache import cached
from etude.data.registry import lookup
from etude.data.sources import fetch
from etude.data.suggest import nearest
from etude.data.tasks import Split, Task, split
from etude.errors import DataError, SourceUnavailable, UsageError

LUMINANCE = (0.299, 0.587, 0.114)  # Rec. 601
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    x
        (N, C, H, W) float32 in [0, 1].
    y
        (N,) int64, numbers into `classes`.
    test
        The official test part, of the same form, where the set has one; its rows are not in `x`.
    groups
        (N,) int64 where images belong together; `task` then splits by group.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    name: str
    provenance: tuple[dict[str, Any], ...] = ()
    test: Split | None = None
    groups: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    kind: str = field(default="images", init=False)

    def task(self, seed: int, sizes: Sequence[float | int] = (0.6, 0.2, 0.2)) -> Task:
        """Train, validation and test parts, stratified by class (or whole groups), drawn by `seed`.

        With two sizes, (train, val), the test part is the official one, whole. A part of size 0 becomes None.
        """
        if len(sizes) != 3 and not (len(sizes) == 2 and self.test is not None):
            official = "" if self.test is None else ", or (train, val) beside the official test part"
            raise ValueError(f"sizes must be (train, val, test){official}, got {tuple(sizes)}")
        data = Split(self.x, self.y, self.groups)
        if self.groups is None:
            parts = split(data, sizes, seed=seed, by="class", classes=self.classes)
        else:
            parts = split(data, sizes, seed=seed, by="group")
        val = parts[1] if parts[1].n else None
        test = self.test if len(sizes) == 2 else parts[2] if parts[2].n else None
        meta = {**self.meta, "classes": self.classes}
        return Task(self.name, self.kind, parts[0], val, test, len(self.classes), meta, self.provenance)


def load_images(
    name: str,
    *,
    path: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    pool: int | None = None,
    grey: bool = False,
) -> ImageSet:
    """An image set by its name.

    ============== ============================================== ============
    name           images                                         size
    ============== ============================================== ============
    digits         1,797 digits (scikit-learn)                    1 x 8 x 8
    mnist          60,000 + 10,000 digits                         1 x 28 x 28
    mnist_5k       500 of each digit                              1 x 28 x 28
    fashion_mnist  60,000 + 10,000 pictures of clothes            1 x 28 x 28
    cifar10        8,000 + 2,000 photographs (re-encoded JPEG)    3 x 32 x 32
    cifar10_4k     first 4,000 of the training part, lossless     3 x 32 x 32
    cifar10_full   50,000 + 10,000, the official archive          3 x 32 x 32
    omniglot       4,840 drawings of 242 characters               1 x 105 x 105
    photos         13 photographs (a class and group each)        3 x 256 x 256
    lfw_subset     100 faces, 100 other patches                   1 x 25 x 25
    ============== ============================================== ============

    Parameters
    ----------
    path
        Folder or file that holds the official files; otherwise they are found by `etude.data.fetch`.
    size
        Resize to this height and width (one int: square), bilinear with antialiasing.
    pool
        Average over blocks of `pool` x `pool` pixels: 2 makes 14 x 14 of 28 x 28. After `size`.
    grey
        One channel: the luminance of Rec. 601.

    Raises
    ------
    UsageError
        If there is no such set.
    SourceUnavailable
        If its files cannot be had here.
    """
    key = name.replace("-", "_").lower()
    if key not in _LOADERS:
        raise UsageError(f"no image set named {name!r}{nearest(key, _LOADERS)}; there are {', '.join(_LOADERS)}")
    if key == "photos":  # of many sizes: cut to one before they can stand in one tensor
        return _shaped(_photos(path, 256 if size is None else size), None, pool, grey)
    return _shaped(_LOADERS[key](path), size, pool, grey)


def load_photos(*, path: str | Path | None = None) -> dict[str, Tensor]:
    """The 13 photographs at full size: name to (C, H, W) float32 in [0, 1], C = 1 or 3."""
    files = fetch("photos", path=path)
    return {Path(n).stem: _pixels(decode(p)) for n, p in sorted(files.paths.items()) if not n.endswith(".txt")}


def decode(source: Path | io.BytesIO) -> np.ndarray:
    """An image file as uint8 (H, W) or (H, W, 3)."""
    from PIL import Image

    with Image.open(source) as picture:
        return np.array(picture if picture.mode in ("L", "RGB") else picture.convert("RGB"))


def resize(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) to `size`, bilinear with antialiasing, clipped to [0, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be positive, got {size}")
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True).clamp_(0, 1)


def fit(x: Tensor, size: int | tuple[int, int]) -> Tensor:
    """One image (C, H, W) to `size` without distortion: the middle of it in the wanted proportions, resized."""
    height, width = (size, size) if isinstance(size, int) else size
    h, w = x.shape[-2:]
    scale = min(h / height, w / width)
    crop_h, crop_w = max(1, min(h, round(height * scale))), max(1, min(w, round(width * scale)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return resize(x[None, :, top : top + crop_h, left : left + crop_w], (height, width))[0]


def to_grey(x: Tensor) -> Tensor:
    """(N, 3, H, W) to its luminance (N, 1, H, W); one channel is left alone."""
    if x.shape[1] == 1:
        return x
    return torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMINANCE))[:, None]


def _shaped(data: ImageSet, size: int | tuple[int, int] | None, pool: int | None, grey: bool) -> ImageSet:
    if pool is not None and pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")

    def shape(x: Tensor) -> Tensor:
        x = to_grey(x) if grey else x
        x = x if size is None else resize(x, size)
        if pool is not None and pool > min(x.shape[-2:]):
            raise ValueError(f"pool {pool} is larger than the images ({x.shape[-2]} x {x.shape[-1]})")
        return x if pool in (None, 1) else F.avg_pool2d(x, pool)

    test = None if data.test is None else data.test._replace(x=shape(data.test.x))
    return replace(data, x=shape(data.x), test=test)


def _pixels(array: np.ndarray) -> Tensor:
    """uint8 (..., H, W) or (..., H, W, 3) to float32 (..., C, H, W)."""
    x = torch.from_numpy(np.ascontiguousarray(array))
    x = x.movedim(-1, -3) if x.shape[-1] == 3 else x.unsqueeze(-3)
    return x.float().div_(255)


def _float(x: Tensor) -> Tensor:
    return x.float().div_(255)


# --- one loader a set ------------------------------------------------------------------------------------------


def _digits(path: str | Path | None) -> ImageSet:
    if path is None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        table = np.column_stack([images, labels])
    else:
        table = np.loadtxt(fetch("digits", path=path).path, delimiter=",")
    x = torch.from_numpy(table[:, :64]).float().div(16).view(-1, 1, 8, 8)
    source = lookup("digits")
    record = {"name": "digits", "version": source.version, "sha256": source.files[0].sha256, "license": source.license}
    if path is None:
        import sklearn

        digest = hashlib.sha256(np.ascontiguousarray(table, dtype=np.float64).tobytes()).hexdigest()
        record |= {"version": f"scikit-learn {sklearn.__version__}", "sha256": digest}
    return ImageSet(x, torch.from_numpy(table[:, 64]).long(), DIGITS, "digits", (record,))


def _idx(path: Path) -> Tensor:
    """An idx file of bytes: two zeros, type 8, number of axes, their sizes big-endian, the data."""
    raw = np.fromfile(path, dtype=np.uint8)
    if len(raw) < 4 or raw[2] != 8:
        raise DataError(f"{path} is not an idx file of bytes")
    axes = int(raw[3])
    shape = raw[4 : 4 + 4 * axes].view(">u4").astype(int)
    return torch.from_numpy(raw[4 + 4 * axes :].reshape(shape))


def _idx_set(name: str, classes: tuple[str, ...]) -> Callable[[str | Path | None], ImageSet]:
    def load(path: str | Path | None) -> ImageSet:
        files = fetch(name, path=path)
        x, y, test_x, test_y = (
            _idx(files.paths[f"{part}-{what}-ubyte"])
            for part in ("train", "t10k")
            for what in ("images-idx3", "labels-idx1")
        )
        test = Split(_float(test_x[:, None]), test_y.long())
        return ImageSet(_float(x[:, None]), y.long(), classes, name, files.provenance, test)

    return load


def _mnist_5k(path: str | Path | None) -> ImageSet:
    files = fetch("mnist_5k", path=path)

    def parse() -> dict[str, Tensor]:
        rows = np.loadtxt(files.path, delimiter=",", dtype=np.uint8)
        return {"x": torch.from_numpy(rows[:, :784]).reshape(-1, 1, 28, 28), "y": torch.from_numpy(rows[:, 784])}

    made = cached("images", {"set": "mnist_5k", "sha256": files.sha256}, parse)
    return ImageSet(_float(made["x"]), made["y"].long(), DIGITS, "mnist_5k", files.provenance)


def _cifar10(path: str | Path | None) -> ImageSet:
    try:
        files = fetch("cifar10/cifar10_jpeg_8k_2k.zip", path=path)
    except SourceUnavailable as missing:
        try:
            return _cifar10_part(_cifar10_full(None))
        except SourceUnavailable:
            raise missing from None

    def unpack() -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        with zipfile.ZipFile(files.path) as archive:
            for part in ("train", "test"):
                names = sorted(n for n in archive.namelist() if n.startswith(f"{part}/") and n.endswith(".jpg"))
                pictures = np.stack([decode(io.BytesIO(archive.read(n))) for n in names])
                made[f"{part}_x"] = torch.from_numpy(pictures).movedim(-1, 1)
                made[f"{part}_y"] = torch.tensor([CIFAR10.index(n.split("/")[1]) for n in names])
        return made

    made = cached("images", {"set": "cifar10_8k_2k", "sha256": files.sha256}, unpack)
    test = Split(_float(made["test_x"]), made["test_y"].long())
    meta = {"note": "800 + 200 images a class, re-encoded as JPEG (mean error about 6 of 255)"}
    return ImageSet(
        _float(made["train_x"]), made["train_y"].long(), CIFAR10, "cifar10", files.provenance, test, meta=meta
    )


def _cifar10_part(full: ImageSet) -> ImageSet:
    """The first 800 training and 200 test images of each class."""
    assert full.test is not None

    def first(y: Tensor, n: int) -> Tensor:
        return torch.cat([(y == c).nonzero()[:n, 0] for c in range(len(CIFAR10))])

    rows, test_rows = first(full.y, 800), first(full.test.y, 200)
    meta = {"note": "the first 800 + 200 images of each class of the official archive"}
    return replace(full, x=full.x[rows], y=full.y[rows], name="cifar10", test=full.test.take(test_rows), meta=meta)


def _cifar10_4k(path: str | Path | None) -> ImageSet:
    files = fetch("cifar10/cifar10_train_first4000.npz", path=path)
    with np.load(files.path, allow_pickle=False) as arrays:
        x, y = _pixels(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))
    meta = {"note": "the first 4,000 images of the first training file"}
    return ImageSet(x, y, CIFAR10, "cifar10_4k", files.provenance, meta=meta)


def _cifar10_full(path: str | Path | None) -> ImageSet:
    files = fetch("cifar10_full", path=path)

    def unpack() -> dict[str, Tensor]:
        import tarfile

        made = {}
        with tarfile.open(files.path) as archive:
            for part, numbered in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
                blocks = []
                for name in numbered:
                    content = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
                    assert content is not None
                    blocks.append(np.frombuffer(content.read(), dtype=np.uint8).reshape(-1, 3073))
                rows = np.concatenate(blocks)
                made[f"{part}_y"] = torch.from_numpy(rows[:, 0].copy())
                made[f"{part}_x"] = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())
        return made

    made = cached("images", {"set": "cifar10_full", "sha256": files.sha256}, unpack)
    test = Split(_float(made["test_x"]), made["test_y"].long())
    return ImageSet(_float(made["train_x"]), made["train_y"].long(), CIFAR10, "cifar10_full", files.provenance, test)


def _omniglot(path: str | Path | None) -> ImageSet:
    files = fetch("omniglot/images_background_small*", path=path)
    drawings: dict[str, tuple[str, str]] = {}  # the two archives share an alphabet
    for archive_name in sorted(files.paths):
        with zipfile.ZipFile(files.paths[archive_name]) as archive:
            for member in sorted(n for n in archive.namelist() if n.endswith(".png")):
                drawings.setdefault("/".join(member.split("/")[-3:]), (archive_name, member))
    names = sorted(drawings)

    def unpack() -> dict[str, Tensor]:
        opened = {n: zipfile.ZipFile(p) for n, p in files.paths.items()}
        try:
            pages = [decode(io.BytesIO(opened[a].read(member))) for a, member in (drawings[n] for n in names)]
        finally:
            for archive in opened.values():
                archive.close()
        ink = np.stack([255 - (p if p.ndim == 2 else p[..., 0]) for p in pages])
        return {"x": torch.from_numpy(ink)[:, None]}

    made = cached("images", {"set": "omniglot_small", "sha256": files.sha256}, unpack)
    classes, y = np.unique(np.array([n.rsplit("/", 1)[0] for n in names]), return_inverse=True)
    meta = {"note": "ink is 1; classes are alphabet/character; 20 drawers each"}
    return ImageSet(
        _float(made["x"]), torch.from_numpy(y), tuple(classes.tolist()), "omniglot", files.provenance, meta=meta
    )


def _photos(path: str | Path | None, size: int | tuple[int, int]) -> ImageSet:
    pictures = load_photos(path=path)
    x = torch.stack([fit(p, size).expand(3, -1, -1) for p in pictures.values()])
    rows = torch.arange(len(x))
    return ImageSet(x, rows, tuple(pictures), "photos", fetch("photos", path=path).provenance, groups=rows)


def _lfw_subset(path: str | Path | None) -> ImageSet:
    files = fetch("lfw_subset", path=path)
    x = torch.from_numpy(np.load(files.path, allow_pickle=False)).float()[:, None]
    y = (torch.arange(len(x)) < 100).long()
    return ImageSet(x, y, ("other", "face"), "lfw_subset", files.provenance)


_LOADERS: dict[str, Callable[[str | Path | None], ImageSet]] = {
    "digits": _digits,
    "mnist": _idx_set("mnist", DIGITS),
    "mnist_5k": _mnist_5k,
    "fashion_mnist": _idx_set("fashion_mnist", FASHION),
    "cifar10": _cifar10,
    "cifar10_4k": _cifar10_4k,
    "cifar10_full": _cifar10_full,
    "omniglot": _omniglot,
    "photos": lambda path: _photos(path, 256),
    "lfw_subset": _lfw_subset,
}

"""Frozen features for streams: what an encoder that is never trained again makes of images, tables and texts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.cache import cached
from etude.data.images import ImageSet, load_images, load_photos, resize
from etude.data.randomness import numpy_stream, stream
from etude.data.sources import fetch
from etude.data.tables import TableSet
from etude.data.tasks import Split, Task, split
from etude.data.text import TextDataset, load_texts
from etude.errors import UsageError
from etude.training.config import TrainConfig
from etude.training.engine import train

SVD_WIDTH = 128
IMAGE_SIZE = 64  # pixels that EfficientNet-Lite0 sees of a CIFAR image
TEXTS = 4000


@dataclass(frozen=True)
class FrozenFeatures:
    """Rows of one encoder with their labels.

    x, y
        (N, D) float32 and (N,) class numbers.
    other
        (M, D): what the same encoder makes of unlabelled data of another kind, or None.
    official
        Row numbers of the official (train, test) parts, where the set has them.
    scale
        What `task` fits on its training rows: a number, the width of a whitening PCA; "standard": mean 0 and
        deviation 1 of each column; "none".
    table
        The user's table, whose columns `task` fills and scales by its own training rows; `x` and `y` are then those
        of the whole.
    """

    name: str
    x: Tensor
    y: Tensor
    num_classes: int
    provenance: tuple[dict[str, Any], ...] = ()
    other: Tensor | None = None
    official: tuple[Tensor, Tensor] | None = None
    scale: int | str = "none"
    table: TableSet | None = None
    sizes: tuple[float | int, float | int] = (0.7, 0.3)
    meta: dict[str, Any] = field(default_factory=dict)

    def task(self, seed: int) -> Task:
        """Training and test rows by class, scaled by the training rows. ``meta["other"]`` holds vectors of other
        data in the same scale: those of `other`, or drawn from a Gaussian of the training rows' mean and covariance.
        """
        rows = Split(self.x, self.y)
        if self.table is not None:
            whole = self.table.task(seed, (self.sizes[0], 0.0, self.sizes[1]))
            assert whole.test is not None
            train, test = whole.train, whole.test
        elif self.official is None:
            train, test = split(rows, self.sizes, seed=seed, by="class")
        else:
            train, test = (rows.take(part) for part in self.official)
        scale = _Scale(train.x, self.scale)
        train, test = train._replace(x=scale(train.x)), test._replace(x=scale(test.x))
        other = _gaussian(train.x, seed) if self.other is None else scale(self.other)
        return Task(self.name, "table", train, None, test, self.num_classes, {"other": other}, self.provenance)


class _Scale:
    """x -> (x - mean) @ map, or nothing."""

    def __init__(self, x: Tensor, how: int | str) -> None:
        self.mean, self.map = x.mean(0), None
        if how == "standard":
            std = x.std(0)
            self.map = (1 / torch.where(std > 1e-6 * std.max(), std, torch.inf)).diag_embed()
        elif isinstance(how, int):
            _, s, v = torch.linalg.svd((x - self.mean).double(), full_matrices=False)
            width = min(how, int((s > 1e-6 * s[0]).sum()))
            self.map = (v[:width].T / s[:width] * (len(x) - 1) ** 0.5).float()

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.map is None else (x - self.mean) @ self.map


def _gaussian(x: Tensor, seed: int) -> Tensor:
    draw = numpy_stream(seed, "other").multivariate_normal(x.double().mean(0), np.cov(x.double().T), len(x))
    return torch.from_numpy(draw).float()


def frozen_features(name: str) -> FrozenFeatures:
    """Features of a named set.

    ================ =============================================== ==================== ========================
    name             encoder                                         rows                 other data
    ================ =============================================== ==================== ========================
    digits           whitening PCA of the pixels, 32                 1,797                Gaussian
    digits_conv      small conv net, learned on turned digits 0-4    1,347                Gaussian
    cifar10          EfficientNet-Lite0 (ImageNet), 1,280            8,000 + 2,000        crops of 13 photographs
    wikilead         TF-IDF and SVD of other articles, 128           4,000                Spanish articles
    wikilead_minilm  all-MiniLM-L6-v2, 384                           4,000                Spanish articles
    ================ =============================================== ==================== ========================

    Raises
    ------
    UsageError
        If there is no such set.
    SourceUnavailable, MissingExtra
        If its files or the encoder's weights cannot be had.
    """
    if name == "digits":
        return user_features(load_images("digits"))
    if name == "digits_conv":
        return _digits_conv()
    if name == "cifar10":
        return _cifar10()
    if name in ("wikilead", "wikilead_minilm"):
        return _wikilead(name)
    raise UsageError(
        f"no frozen features named {name!r}; there are digits, digits_conv, cifar10, wikilead, wikilead_minilm"
    )


def user_features(data: ImageSet | TableSet | TextDataset) -> FrozenFeatures:
    """Features of the user's data: a whitening PCA of pixels or columns, TF-IDF with SVD of documents.

    Words are weighted and the SVD taken over all documents, as a frozen encoder that has seen such texts before; no
    label enters. Columns are fitted on the rows that train.

    Raises
    ------
    ValueError
        If the documents have no labels.
    """
    if isinstance(data, TextDataset):
        if data.labels is None:
            raise ValueError(f"{data.name} has no labels: a stream of classes needs them")
        x = _svd_of(data.texts, data.texts)
        return FrozenFeatures(data.name, x, data.labels, len(data.classes), data.provenance)
    if isinstance(data, ImageSet):
        x = data.x if max(data.x.shape[-2:]) <= 16 else resize(data.x, 16)
        return FrozenFeatures(data.name, x.flatten(1), data.y, len(data.classes), data.provenance, scale=32)
    whole = data.task(0, (0.9, 0.0, 0.1)).train
    return FrozenFeatures(data.name, whole.x, whole.y, len(data.classes), data.provenance, scale=32, table=data)


def _digits_conv() -> FrozenFeatures:
    """Half of the digits 0-4, in four turns each, teach a net of 20 classes; the rest of all digits goes through it."""
    data = load_images("digits")
    known = (data.y < 5).nonzero()[:, 0]
    lent = known[torch.randperm(len(known), generator=stream(0, "lent"))[: len(known) // 2]]
    rest = torch.ones(len(data.y), dtype=torch.bool)
    rest[lent] = False

    def make() -> dict[str, Tensor]:
        turned = torch.cat([data.x[lent].rot90(turn, (2, 3)) for turn in range(4)])
        named = torch.cat([data.y[lent] + 5 * turn for turn in range(4)])
        net = train(
            lambda _: nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 20),
            ),
            Split(turned, named), loss=lambda model, b: F.cross_entropy(model(b.x), b.y),
            config=TrainConfig(epochs=15, batch_size=64), seeds=(0,), plan="sequential",
        )[0].module.eval()  # fmt: skip
        with torch.no_grad():
            return {"x": net[:-1](data.x[rest])}  # type: ignore[index]

    key = {"images": "digits", "classes": 5, "turns": 4, "width": 64, "epochs": 15}
    x = cached("frozen_features", key, make)["x"]
    return FrozenFeatures("digits_conv", x, data.y[rest], 10, data.provenance, scale="standard")


def _cifar10() -> FrozenFeatures:
    from etude.layers.efficientnet import EfficientNetLite0, image_features
    from etude.layers.pretrained import load_pretrained

    data = load_images("cifar10")
    assert data.test is not None
    weights = fetch("efficientnet_lite0")
    key = {"images": data.provenance[0]["sha256"], "weights": weights.sha256, "size": IMAGE_SIZE, "crops": 1}

    def make() -> dict[str, Tensor]:
        net = load_pretrained("efficientnet-lite0")
        assert isinstance(net, EfficientNetLite0) and data.test is not None
        parts = {"train": data.x, "test": data.test.x, "other": _crops(1000)}
        return {k: image_features(net, x, size=IMAGE_SIZE) for k, x in parts.items()}

    found = cached("frozen_features", key, make)
    n, m = len(data.y), data.test.n
    return FrozenFeatures(
        "cifar10", torch.cat([found["train"], found["test"]]), torch.cat([data.y, data.test.y]), 10,
        (*data.provenance, *weights.provenance), found["other"], (torch.arange(n), torch.arange(n, n + m)),
    )  # fmt: skip


def _crops(n: int) -> Tensor:
    """(n, 3, 32, 32) squares of the photographs, 48 to 192 pixels wide, the same at every call."""
    photos = [p.expand(3, -1, -1) for p in load_photos().values()]
    rng = numpy_stream(0, "crops")
    out = []
    for i in range(n):
        photo = photos[i % len(photos)]
        side = int(rng.integers(48, min(192, *photo.shape[1:]) + 1))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[1:])
        out.append(resize(photo[None, :, top : top + side, left : left + side], 32))
    return torch.cat(out)


def _wikilead(name: str) -> FrozenFeatures:
    data, spanish = load_texts("wikilead").drop("Uncategorized"), load_texts("wikilead_es")
    assert data.labels is not None
    rows = Split(torch.arange(len(data)), data.labels)
    ours, rest = split(rows, (TEXTS, len(data) - TEXTS), seed=0, by="class")
    texts, pool = ([data.texts[i] for i in part.x.tolist()] for part in (ours, rest))
    chosen = torch.randperm(len(spanish), generator=stream(0, "spanish"))[:2000]
    foreign = [spanish.texts[i] for i in chosen.tolist()]
    if name == "wikilead_minilm":
        from etude.layers.text_encoders import TextEncoder

        encoder = TextEncoder("all-MiniLM-L6-v2", max_length=64, device="cuda" if torch.cuda.is_available() else "cpu")
        both = encoder.encode([*texts, *foreign])
    else:
        key = {"texts": data.provenance[0]["sha256"], "other": spanish.provenance[0]["sha256"], "width": SVD_WIDTH}
        both = cached("frozen_features", key, lambda: {"x": _svd_of(pool, [*texts, *foreign])})["x"]
    return FrozenFeatures(
        name, both[: len(texts)], ours.y, len(data.classes), (*data.provenance, *spanish.provenance),
        both[len(texts) :], sizes=(3000, 1000),
    )  # fmt: skip


def _svd_of(pool: list[str], texts: list[str]) -> Tensor:
    """(n, SVD_WIDTH) unit rows: TF-IDF and its truncated SVD are fitted on `pool`."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, min_df=2 if len(pool) > 100 else 1, stop_words="english")
    counts = words.fit_transform(pool)
    width = min(SVD_WIDTH, counts.shape[1] - 1)
    if width < 1:
        raise ValueError("the documents hold fewer than two different words")
    reduce = TruncatedSVD(width, random_state=0).fit(counts)
    x: NDArray[Any] = reduce.transform(words.transform(texts))
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

"""Image sets by name and from the user's folder, all in one form: float32 (N, C, H, W) in [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.data.tasks import Split, Task, split
from etude.errors import UsageError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images.

    x
        (N, C, H, W) float32 in [0, 1].
    y
        (N,) int64, numbers into `classes`.
    test
        The official test part, of the same form, where the set has one.
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

        With an official test part and two sizes, (train, val), the test part is the official one, whole.
        A validation part of size 0 becomes None.
        """
        data = Split(self.x, self.y, self.groups)
        by = "class" if self.groups is None else "group"
        official = len(sizes) == 2 and self.test is not None
        if len(sizes) != 3 and not official:
            raise ValueError(f"sizes must be (train, val, test), got {tuple(sizes)}")
        parts = split(data, sizes, seed=seed, by=by, classes=self.classes)  # type: ignore[arg-type]
        test = self.test if official else parts[2]
        val = parts[1] if parts[1].n else None
        return Task(self.name, self.kind, parts[0], val, test, len(self.classes), dict(self.meta), self.provenance)


def load_images(
    name: str,
    *,
    path: str | None = None,
    size: int | tuple[int, int] | None = None,
    pool: int | None = None,
    grey: bool = False,
) -> ImageSet:
    """An image set by its name.

    Parameters
    ----------
    size
        Resize to this height and width (one int: square).
    pool
        Average over blocks of `pool` x `pool` pixels (2 makes 14 x 14 of 28 x 28).
    grey
        One channel: the luminance of Rec. 601.
    """
    loaders = {"digits": _digits}
    key = name.replace("-", "_")
    if key not in loaders:
        raise UsageError(f"no image set named {name!r}; there are {', '.join(sorted(loaders))}")
    return _shaped(loaders[key](), size, pool, grey)


def _digits() -> ImageSet:
    import sklearn
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().div(16).view(-1, 1, 8, 8)
    record = {
        "name": "digits",
        "version": f"scikit-learn {sklearn.__version__}",
        "sha256": "",
        "license": "CC BY 4.0",
    }
    return ImageSet(x, torch.from_numpy(labels).long(), tuple("0123456789"), "digits", (record,))


def _shaped(data: ImageSet, size: int | tuple[int, int] | None, pool: int | None, grey: bool) -> ImageSet:
    from dataclasses import replace

    def shape(x: Tensor) -> Tensor:
        if grey and x.shape[1] == 3:
            x = (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
        if pool is not None and pool > 1:
            x = F.avg_pool2d(x, pool)
        return x

    test = None if data.test is None else data.test._replace(x=shape(data.test.x))
    return replace(data, x=shape(data.x), test=test)

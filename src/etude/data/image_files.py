"""The user's folder of images: one sub-folder a class."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.images import ImageSet, fit
from etude.data.progress import track
from etude.data.user_checks import OnBad, keep_classes, listed
from etude.errors import DataError, MissingExtra

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"])
MAX_COMMON_SIZE = 128  # images of one size up to this keep it
DEFAULT_SIZE = 64
ORIENTATION = 0x0112  # of EXIF; 5 and above swap height and width


def image_paths(folder: Path) -> dict[str, list[Path]]:
    """Class (sub-folder) to its image files at any depth, in order of their names; hidden ones are left out."""
    found = {}
    for sub in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(p for p in sub.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        found[sub.name] = [p for p in files if not any(part.startswith(".") for part in p.relative_to(sub).parts)]
    return found


def read_images(folder: Path, *, size: int | tuple[int, int] | None = None, on_bad: OnBad = "raise") -> ImageSet:
    """The user's image folder as an `ImageSet`; see `etude.data.load_user`."""
    by_class = image_paths(folder)
    empty = [name for name, files in by_class.items() if not files]
    if not by_class or len(empty) == len(by_class):
        raise DataError(f"{folder} holds no images in sub-folders: put each class into a folder of its own")
    if empty and on_bad == "raise":
        raise DataError(
            f'class folders without an image: {listed(empty)}; fill or remove them, or on_bad="skip" (--skip-bad)'
        )
    pictures: list[Tensor] = []
    labels: list[str] = []
    bad: list[str] = []
    digest = hashlib.sha256()
    files = [(name, path) for name, paths in by_class.items() for path in paths]
    size = _common_size([path for _, path in files]) if size is None else size
    for name, path in track(files, f"reading {folder.name}"):
        try:
            picture = fit(read_image(path), size)
        except MissingExtra:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file
            bad.append(f"{path.relative_to(folder)} ({type(error).__name__}: {error})")
            continue
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
        pictures.append(picture)
        labels.append(name)
    if bad and on_bad == "raise":
        raise DataError(
            f'unreadable images in {folder}: {listed(bad)}; mend or remove them, or on_bad="skip" (--skip-bad)'
        )
    rows, classes, y, notes = keep_classes(labels, np.arange(len(labels)), str(folder), "image", on_bad)
    x = _stack([pictures[i] for i in rows])
    meta = {**notes, "left_out_files": bad}
    record = {"name": folder.name, "version": "user", "sha256": digest.hexdigest(), "license": "the user's own"}
    return ImageSet(x, torch.from_numpy(y), classes, folder.name, (record,), meta=meta)


def read_image(path: Path) -> Tensor:
    """One image file of any mode as float32 (C, H, W) in [0, 1], C = 1 or 3.

    Transparent parts become white, a palette its colours, 16 bits keep their depth, whole numbers of 32 bits and
    floating point are divided by 1, 255 or 65535, whichever holds them; of an animation the first frame is taken; the
    orientation that a camera noted is applied.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtra("pillow", "images", "reading images") from error
    with Image.open(path) as opened:
        picture: Any = ImageOps.exif_transpose(opened)
        if picture.mode.startswith("I") or picture.mode == "F":
            return _deep(np.array(picture, dtype=np.float32), bits16=picture.mode.startswith("I;16"))
        if picture.mode in ("1", "L"):
            picture = picture.convert("L")
        elif picture.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
            grey = picture.mode in ("LA", "La")
            clear = picture.convert("RGBA")
            white = Image.new("RGBA", clear.size, "white")
            picture = Image.alpha_composite(white, clear).convert("L" if grey else "RGB")
        else:
            picture = picture.convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).float().div_(255)
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _deep(values: np.ndarray, *, bits16: bool) -> Tensor:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its values run from {values.min():g} to {values.max():g}, outside 0 to 65535")
    top = 65535 if bits16 else values.max()
    return torch.from_numpy(values / (1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0))[None]


def _common_size(paths: list[Path]) -> tuple[int, int]:
    """(height, width) of all images where they have one, up to `MAX_COMMON_SIZE`; otherwise the default.
    Only headers are read."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "images", "reading images") from error
    sizes = set()
    for path in paths:
        try:
            with Image.open(path) as opened:
                turned = opened.getexif().get(ORIENTATION, 1) >= 5
                sizes.add(opened.size if turned else opened.size[::-1])
        except Exception:  # named when it is read
            continue
        if len(sizes) > 1:
            break
    common = sizes.pop() if len(sizes) == 1 else None
    return common if common and max(common) <= MAX_COMMON_SIZE else (DEFAULT_SIZE, DEFAULT_SIZE)


def _stack(pictures: list[Tensor]) -> Tensor:
    """One tensor, of three channels where any picture has colour."""
    channels = max(p.shape[0] for p in pictures)
    return torch.stack([p.expand(channels, -1, -1) for p in pictures])

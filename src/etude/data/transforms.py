"""Changes of whole batches of images, each image with its own strength and its own draw.

Images are (N, C, H, W) in floating point. A strength is one number for all images, a range (low, high) that every image
draws from, or a tensor (N,). What lies outside an image counts as `fill`, also inside the bilinear interpolation
along the border. Draws come from `generator`, a CPU generator (None: an unpredictable one); the same state gives
the same images on every device.
"""

from functools import lru_cache
from math import inf, prod
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.data.randomness import as_generator

Strength = float | tuple[float, float] | Tensor
CHUNK = 200_000  # numbers of a field that stay in a core's second-level cache: a quarter faster than all at once
PIECE = 32  # images sampled at a time: larger grids are memory that the system has to hand out anew each time
LET_THROUGH = 1e-4  # at 20 pixels of strength a place is then exact to a two-thousandth of a pixel
HALF = (torch.float16, torch.bfloat16)  # a place in an image has too few digits there: they are moved in float32
TRUNCATE = 4.0  # the Gaussian is cut at this many standard deviations, as SciPy does


def elastic(
    x: Tensor,
    *,
    alpha: Strength = 20.0,
    sigma: float = 4.0,
    generator: torch.Generator | None = None,
    fill: float = 0.0,
) -> Tensor:
    """Elastic deformation: every pixel is fetched from a place shifted by a smooth random field.

    Rows and columns are shifted by ``alpha * G_sigma(U)`` pixels, where U is uniform in (-1, 1) for each pixel and G
    a Gaussian filter that takes the outside of the field as 0. Interpolation is bilinear.

    Parameters
    ----------
    x
        (N, C, H, W); the channels of an image move together.
    alpha
        Strength in pixels before smoothing.
    sigma
        Standard deviation of the filter in pixels.

    Source: Simard, Steinkraus, Platt 2003, section 2; the numbers are those of Li et al. 2018 for MNIST.
    """
    _check(x)
    generator = as_generator(generator)
    if not 0 < sigma < inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if x.dtype in HALF:
        return elastic(x.float(), alpha=alpha, sigma=sigma, generator=generator, fill=fill).to(x.dtype)
    n, _, height, width = x.shape
    strength = _strengths(alpha, n, generator, "alpha").to(x) / 128
    narrow, widen = (factor.to(x) for factor in _smoothing_factors(height, sigma))
    columns = _smoothing(width, sigma).to(x)
    out = torch.empty_like(x)
    step = max(1, CHUNK // (2 * height * width))
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        fields = 2 * (part.stop - start)
        field = (narrow @ _noise((height, fields * width), generator).to(x)).view(-1, width) @ columns
        field = torch.matmul(widen, field.view(-1, fields, width).transpose(0, 1))  # (fields, height, width)
        out[part] = _sample(x[part], field.view(-1, 2, height, width), fill, strength[part])
    return out


def affine(
    x: Tensor,
    *,
    degrees: Strength = 0.0,
    scale: Strength = 1.0,
    shift: tuple[Strength, Strength] = (0.0, 0.0),
    generator: torch.Generator | None = None,
    fill: float = 0.0,
) -> Tensor:
    """Rotate about the middle, magnify, then shift.

    Parameters
    ----------
    degrees
        Counter-clockwise as seen on the screen. A number turns every image by it, (low, high) draws.
    scale
        Above 1 magnifies.
    shift
        (down, right) in pixels.

    Bilinear; a turn by 90 degrees of a square image moves pixels exactly.
    """
    _check(x)
    generator = as_generator(generator)
    if x.dtype in HALF:
        moved = affine(x.float(), degrees=degrees, scale=scale, shift=shift, generator=generator, fill=fill)
        return moved.to(x.dtype)
    n, _, height, width = x.shape
    angle = torch.deg2rad(_strengths(degrees, n, generator, "degrees").double())
    zoom = _strengths(scale, n, generator, "scale").double()
    if (zoom <= 0).any():
        raise ValueError(f"scale must be positive, got {float(zoom.min())}")
    down, right = (_strengths(s, n, generator, "shift").double() for s in shift)
    rows = torch.arange(height, dtype=torch.double) - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.double) - (width - 1) / 2
    # where each output pixel comes from: undo the shift, then the magnification and the turn
    r = rows.view(1, -1, 1) - down.view(n, 1, 1)
    c = columns.view(1, 1, -1) - right.view(n, 1, 1)
    cos, sin = (angle.cos() / zoom).view(n, 1, 1), (angle.sin() / zoom).view(n, 1, 1)
    source_r, source_c = cos * r + sin * c, -sin * r + cos * c
    offset = torch.stack([source_c - columns.view(1, 1, -1), source_r - rows.view(1, -1, 1)], dim=1)
    return _sample(x, offset.to(x), fill)


def erase(
    x: Tensor,
    *,
    area: Strength = (0.02, 0.2),
    aspect: tuple[float, float] = (0.3, 3.3),
    p: float = 1.0,
    generator: torch.Generator | None = None,
    fill: float | None = 0.0,
) -> Tensor:
    """Blank one rectangle of each image.

    Parameters
    ----------
    area
        Share of the image; the rectangle is cut to the image's sides, so a long one may cover less.
    aspect
        Range of height / width, drawn evenly on a log scale.
    p
        Chance that an image is changed at all.
    fill
        Value of the rectangle; None: uniform noise in [0, 1) for every pixel.

    Source: Zhong et al. 2020, algorithm 1. Differs from the paper: a rectangle that does not fit is cut, not
    drawn again.
    """
    _check(x)
    _check_chance(p, "p")
    generator = as_generator(generator)
    n, _, height, width = x.shape
    share = _strengths(area, n, generator, "area")
    if ((share < 0) | (share > 1)).any():
        raise ValueError(f"area is a share between 0 and 1, got {area}")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect must be positive and ordered (low, high), got {aspect}")
    low, high = torch.tensor(aspect).log()
    ratio = (low + (high - low) * torch.rand(n, generator=generator)).exp()
    h = (share * ratio * height * width).sqrt().round().clamp(max=height)
    w = (share / ratio * height * width).sqrt().round().clamp(max=width)
    top = (torch.rand(n, generator=generator) * (height - h + 1)).floor()
    left = (torch.rand(n, generator=generator) * (width - w + 1)).floor()
    hit = torch.rand(n, generator=generator) < p
    r, c = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    box = (r >= top.view(n, 1, 1)) & (r < (top + h).view(n, 1, 1))
    box = box & (c >= left.view(n, 1, 1)) & (c < (left + w).view(n, 1, 1)) & hit.view(n, 1, 1)
    mask = box[:, None].to(x.device)
    if fill is not None:
        return x.masked_fill(mask, fill)
    return torch.where(mask, torch.rand(x.shape, generator=generator).to(x), x)


def crop_flip(
    x: Tensor, *, padding: int = 4, flip: float = 0.5, generator: torch.Generator | None = None, fill: float = 0.0
) -> Tensor:
    """Pad by `padding` pixels on every side, cut the old size at a random place, mirror left-right.

    Parameters
    ----------
    flip
        Chance of mirroring; 0 for digits and letters.
    """
    _check(x)
    generator = as_generator(generator)
    if not isinstance(padding, Integral) or padding < 0:
        raise ValueError(f"padding must be a whole number of at least 0, got {padding}")
    _check_chance(flip, "flip")
    n, channels, height, width = x.shape
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator)
    mirrored = torch.rand(n, generator=generator) < flip
    rows = top.view(n, 1) + torch.arange(height)
    columns = torch.arange(width).expand(n, -1)
    columns = left.view(n, 1) + torch.where(mirrored.view(n, 1), width - 1 - columns, columns)
    padded = F.pad(x, (padding,) * 4, value=fill)
    flat = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(n, 1, -1).to(x.device)
    return padded.flatten(2).gather(2, flat.expand(-1, channels, -1)).view(x.shape)


def symmetries(x: Tensor, which: Tensor) -> Tensor:
    """One of the eight symmetries of the square for each image (N, C, H, H).

    `which` (N,) in 0..7: number of quarter turns counter-clockwise, plus 4 for mirroring left-right first.
    """
    _check(x)
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"the symmetries of the square need square images, got {tuple(x.shape[-2:])}")
    if which.shape != x.shape[:1] or (which < 0).any() or (which > 7).any():
        raise ValueError(f"which must be (N,) with values 0 to 7, got shape {tuple(which.shape)}")
    out = torch.empty_like(x)
    for k in which.unique().tolist():
        rows = (which == k).nonzero()[:, 0].to(x.device)
        part = x[rows].flip(-1) if k >= 4 else x[rows]
        out[rows] = torch.rot90(part, k % 4, (-2, -1))
    return out


def mixup(
    x: Tensor, y: Tensor, num_classes: int, *, alpha: float = 0.2, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Convex mixtures of pairs: images, and targets as class shares (N, num_classes).

    The weight of each pair is drawn from Beta(alpha, alpha). Source: Zhang et al. 2018, eq. 1.
    """
    _check(x)
    generator = as_generator(generator)
    weight = _beta(len(x), alpha, generator).to(x)
    other = torch.randperm(len(x), generator=generator).to(x.device)
    shares = _shares(y, num_classes).to(x)
    w = weight.view(-1, 1, 1, 1)
    return w * x + (1 - w) * x[other], weight[:, None] * shares + (1 - weight[:, None]) * shares[other]


def cutmix(
    x: Tensor, y: Tensor, num_classes: int, *, alpha: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A rectangle of another image in each image; targets are shares by the area that is left.

    Source: Yun et al. 2019, eqs. 1-2.
    """
    _check(x)
    generator = as_generator(generator)
    n, _, height, width = x.shape
    cut = (1 - _beta(n, alpha, generator)).sqrt()
    h, w = (cut * height).round(), (cut * width).round()
    top = (torch.rand(n, generator=generator) * (height - h + 1)).floor()
    left = (torch.rand(n, generator=generator) * (width - w + 1)).floor()
    other = torch.randperm(n, generator=generator).to(x.device)
    r, c = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    box = (r >= top.view(n, 1, 1)) & (r < (top + h).view(n, 1, 1))
    box = (box & (c >= left.view(n, 1, 1)) & (c < (left + w).view(n, 1, 1)))[:, None]
    kept = 1 - (h * w / (height * width)).to(x)
    shares = _shares(y, num_classes).to(x)
    return torch.where(box.to(x.device), x[other], x), kept[:, None] * shares + (1 - kept[:, None]) * shares[other]


# --- shared pieces ---------------------------------------------------------------------------------------------


def _check(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"images must be (N, C, H, W) in floating point, got {x.dtype} of shape {tuple(x.shape)}")


def _check_chance(value: float, name: str) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a chance between 0 and 1, got {value}")


def _shares(y: Tensor, num_classes: int) -> Tensor:
    """Labels (N,) as class shares (N, num_classes)."""
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())} to {int(y.max())}")
    return F.one_hot(y.long(), num_classes)


def _strengths(value: Strength, n: int, generator: torch.Generator | None, name: str) -> Tensor:
    """One strength an image."""
    if isinstance(value, Tensor):
        if value.shape != (n,):
            raise ValueError(f"{name} must hold one strength for each of {n} images, got shape {tuple(value.shape)}")
        found = value.detach().cpu().float()
    elif isinstance(value, tuple):
        low, high = value
        if low > high:
            raise ValueError(f"{name} must be ordered (low, high), got {value}")
        found = low + (high - low) * torch.rand(n, generator=generator)
    else:
        found = torch.full((n,), float(value))
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return found


def _noise(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Uniform in (-128, 128) in 256 steps, for fields that are smoothed afterwards: a sum of a hundred such draws
    cannot be told from one of finer draws, and random bits are what costs most."""
    count = prod(shape)
    bits = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return bits.view(torch.int8)[:count].float().add_(0.5).view(shape)


def _beta(n: int, alpha: float, generator: torch.Generator | None) -> Tensor:
    """Beta(alpha, alpha) from two gammas; torch's own gamma takes a generator only as an operator."""
    if not 0 < alpha < inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    a, b = torch._standard_gamma(torch.full((2, n), float(alpha), dtype=torch.double), generator=generator)
    return (a / (a + b).clamp_min(1e-300)).float()


@lru_cache(maxsize=32)
def _smoothing(size: int, sigma: float) -> Tensor:
    """(size, size), symmetric: row i weighs all places for the filtered value at i, the outside being 0."""
    distance = torch.arange(size, dtype=torch.double)
    distance = (distance[:, None] - distance[None, :]).abs()
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.double)
    total = torch.exp(-0.5 * (offsets / sigma) ** 2).sum()
    weight = torch.exp(-0.5 * (distance / sigma) ** 2) / total
    return weight.masked_fill(distance > radius, 0.0)


@lru_cache(maxsize=32)
def _smoothing_factors(size: int, sigma: float) -> tuple[Tensor, Tensor]:
    """The smoothing as (size, r) @ (r, size), returned as (r, size) and (size, r): what a wide filter lets through
    is spanned by few vectors, and the rest, below `LET_THROUGH` of the largest, is left out."""
    values, vectors = torch.linalg.eigh(_smoothing(size, sigma))
    kept = values.abs() > LET_THROUGH * values.abs().max()
    vectors = vectors[:, kept]
    return vectors.T.contiguous(), vectors * values[kept]


@lru_cache(maxsize=32)
def _places(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Each pixel's place (2, H, W) and the size of a pixel (1, 2, 1, 1), (right, down) in the units of grid_sample,
    where -1 and 1 are the outer edges of the outer pixels."""
    columns = (torch.arange(width, device=device, dtype=dtype) + 0.5) * (2 / width) - 1
    rows = (torch.arange(height, device=device, dtype=dtype) + 0.5) * (2 / height) - 1
    places = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)])
    return places, torch.tensor([2 / width, 2 / height], device=device, dtype=dtype).view(1, 2, 1, 1)


def _sample(x: Tensor, offset: Tensor, fill: float, strength: Tensor | None = None) -> Tensor:
    """x at each pixel's place plus strength (N,) times `offset` (N, 2, H, W), (right, down) in pixels; bilinear."""
    places, unit = _places(*x.shape[-2:], x.dtype, x.device)
    unit = (unit if strength is None else unit * strength.view(-1, 1, 1, 1)).expand(len(x), -1, -1, -1)
    parts = []
    for part, shift, size in zip(x.split(PIECE), offset.split(PIECE), unit.split(PIECE), strict=True):
        grid = torch.addcmul(places, shift, size).permute(0, 2, 3, 1)
        moved = F.grid_sample(
            part - fill if fill else part, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        parts.append(moved + fill if fill else moved)
    return torch.cat(parts)

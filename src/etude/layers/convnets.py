"""Small convolutional nets: a plain one by widths, and the residual nets of the CIFAR papers.

Source: He et al. 2016, arXiv 1512.03385, section 4.2 (`resnet`).
Differs from the paper: the shortcut of a block that changes the shape is a 1 x 1 convolution (the
paper pads with zeros); a last global mean stands before the linear layer in both nets.
"""

from collections.abc import Sequence

from torch import Tensor, nn

NORMS = ("batch", "group")


def _norm(norm: str | None, channels: int) -> nn.Module:
    if norm is None:
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"unknown norm {norm!r}: choose one of {', '.join(NORMS)} or None")


def _check_shape(in_shape: Sequence[int], num_classes: int) -> tuple[int, int, int]:
    if len(in_shape) != 3 or min(in_shape) < 1:
        raise ValueError(f"in_shape is (channels, height, width), got {tuple(in_shape)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    return in_shape[0], in_shape[1], in_shape[2]


class ConvBlock(nn.Module):
    """3 x 3 convolution, norm, ReLU and a halving max-pool; `skip` adds a 1 x 1 path around the convolution."""

    def __init__(self, in_channels: int, channels: int, *, norm: str | None, skip: bool, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=norm is None)
        self.norm = _norm(norm, channels)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if skip else None
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return self.pool(self.act(y))


def convnet(
    in_shape: Sequence[int],
    channels: Sequence[int],
    num_classes: int,
    *,
    norm: str | None = None,
    skip: bool = False,
) -> nn.Sequential:
    """One 3 x 3 block a width, each halving the image (while it is larger than 1 pixel); then mean and linear.

    Parameters
    ----------
    in_shape
        (C, H, W) of one image; the input is (B, C, H, W), the output (B, num_classes).
    channels
        Widths of the blocks, e.g. ``(16, 32)``.
    norm
        ``"batch"``, ``"group"`` or None.
    skip
        A 1 x 1 convolution around each block's convolution.

    Raises
    ------
    ValueError
        For a wrong shape, no widths, a width below 1 or an unknown norm.
    """
    in_channels, height, width = _check_shape(in_shape, num_classes)
    if not channels or min(channels) < 1:
        raise ValueError(f"channels need at least one width of at least 1, got {tuple(channels)}")
    blocks: list[nn.Module] = []
    for out_channels in channels:
        pool = min(height, width) >= 2
        blocks.append(ConvBlock(in_channels, out_channels, norm=norm, skip=skip, pool=pool))
        in_channels = out_channels
        height, width = (height // 2, width // 2) if pool else (height, width)
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut: relu(x + f(x))."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, norm: str | None, skip: bool) -> None:
        super().__init__()
        bias = norm is None
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=bias)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm2 = _norm(norm, channels)
        self.act = nn.ReLU()
        self.shortcut: nn.Module | None = None
        if skip:
            same = stride == 1 and in_channels == channels
            self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y if self.shortcut is None else y + self.shortcut(x))


def resnet(
    in_shape: Sequence[int],
    depth: int,
    width: int,
    num_classes: int,
    *,
    norm: str | None = "batch",
    skip: bool = True,
) -> nn.Sequential:
    """The residual net for small images: three stages of ``(depth - 2) / 6`` blocks, widths 1, 2 and 4 `width`.

    Parameters
    ----------
    depth
        ``6 n + 2`` layers: 8, 14, 20, 32, 44, 56, ...
    width
        Channels of the first stage (16 in the paper).
    skip
        False leaves the shortcuts out (the paper's plain net).

    Raises
    ------
    ValueError
        For a depth that is not ``6 n + 2``, or a wrong shape, width or norm.
    """
    in_channels, _, _ = _check_shape(in_shape, num_classes)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, ...), got {depth}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    stem: list[nn.Module] = [
        nn.Conv2d(in_channels, width, 3, padding=1, bias=norm is None),
        _norm(norm, width),
        nn.ReLU(),
    ]
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            stride = 2 if stage > 0 and i == 0 else 1
            blocks.append(ResidualBlock(channels, width * 2**stage, stride=stride, norm=norm, skip=skip))
            channels = width * 2**stage
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

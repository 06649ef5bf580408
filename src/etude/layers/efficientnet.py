"""EfficientNet-Lite0: a small image classifier trained on ImageNet, used frozen as an image encoder.

Source: Tan & Le 2019, arXiv 1905.11946 (the architecture); the Lite variants of the TensorFlow authors have no
squeeze-and-excitation, ReLU6 for swish, and stem and head of fixed width. Padding is TensorFlow's "same".
"""

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# repeats, kernel, stride, expansion, width
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
MEAN, STD = 127 / 255, 128 / 255  # of the inputs, per channel


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: output size = ceil(input / stride), more zeros behind."""

    def forward(self, input: Tensor) -> Tensor:
        (k, _), (s, _) = self.kernel_size, self.stride
        total = [max(0, (-(-n // s) - 1) * s + k - n) for n in input.shape[-2:]]
        top, left = total[0] // 2, total[1] // 2
        return super().forward(F.pad(input, (left, total[1] - left, top, total[0] - top)))


def _unit(
    d_in: int, d_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        SameConv2d(d_in, d_out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(d_out, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


class _Block(nn.Module):
    """Inverted bottleneck: expand, convolve each channel, project; added to its input where the shape stays."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = d_in * expansion
        self.expand = _unit(d_in, width) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(width, width, kernel, stride, groups=width)
        self.project = _unit(width, d_out, act=False)
        self.adds = stride == 1 and d_in == d_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images (N, 3, H, W) in [0, 1], H and W of at least 32 (224 in training), to logits (N, 1000)."""

    width = 1280

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = _unit(3, 32, 3, 2)
        blocks, d_in = [], 32
        for repeats, kernel, stride, expansion, d_out in STAGES:
            for i in range(repeats):
                blocks.append(_Block(d_in, d_out, kernel, stride if i == 0 else 1, expansion))
                d_in = d_out
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(d_in, self.width)
        self.classifier = nn.Linear(self.width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(N, 1280): the last convolution averaged over the image."""
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < 32:
            raise ValueError(f"images must be (N, 3, H, W) of at least 32 x 32, got {tuple(x.shape)}")
        return self.head(self.blocks(self.stem((x - MEAN) / STD))).mean((-2, -1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    @classmethod
    def from_published(cls, state: dict[str, Tensor]) -> "EfficientNetLite0":
        """The net in eval mode with the weights as published (names ``_blocks.3._bn1.weight`` and so on).

        Raises
        ------
        ValueError
            If the names or shapes are not those of EfficientNet-Lite0.
        """
        net = cls(num_classes=len(state["_fc.bias"]) if "_fc.bias" in state else 1000)
        try:
            net.load_state_dict({_own_name(name): value for name, value in state.items()})
        except RuntimeError as error:
            raise ValueError(f"these are not the weights of EfficientNet-Lite0: {str(error)[:200]}") from error
        return net.eval()


def _own_name(name: str) -> str:
    for pattern, own in (
        (r"^_conv_stem\.", "stem.0."), (r"^_bn0\.", "stem.1."), (r"^_conv_head\.", "head.0."), (r"^_bn1\.", "head.1."),
        (r"^_fc\.", "classifier."),
    ):  # fmt: skip
        name = re.sub(pattern, own, name)
    units = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
             "_project_conv": "project.0", "_bn2": "project.1"}  # fmt: skip
    return re.sub(r"^_blocks\.(\d+)\.(\w+)\.", lambda m: f"blocks.{m[1]}.{units[m[2]]}.", name)


@torch.no_grad()
def image_features(net: EfficientNetLite0, x: Tensor, *, size: int | None = None, batch_size: int = 64) -> Tensor:
    """Features (N, width) of images in batches, on the CPU; `size` resizes them before (bilinear)."""
    from etude.data.images import resize
    from etude.data.progress import track

    device = next(net.parameters()).device
    parts = []
    for part in track(x.split(batch_size), "image features"):
        part = part.to(device)
        parts.append(net.features(part if size is None else resize(part, size)).cpu())
    return torch.cat(parts)

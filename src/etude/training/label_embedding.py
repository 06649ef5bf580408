"""Labels that enter a net with its input, right ones and wrong ones, for local contrastive learning.

Source: Momeni et al. 2023, arXiv 2304.11042; the label in place of the first entries, Hinton 2022, arXiv 2212.13345.
"""

from typing import Literal

import torch
from torch import Tensor

LabelMode = Literal["prepend", "overwrite"]
LABEL_MODES = ("prepend", "overwrite")


def embed_label(x: Tensor, label: Tensor, num_classes: int, mode: LabelMode = "prepend") -> Tensor:
    """The input with its label: zeros, and ``max |x|`` of the row at the label's place.

    Shapes: x (n, d), label (n,) -> (n, d + num_classes), or (n, d) where the first columns are overwritten.
    """
    slots = torch.zeros(len(x), num_classes, dtype=x.dtype, device=x.device)
    slots.scatter_(1, label[:, None], x.abs().amax(1, keepdim=True))
    return torch.cat([slots, x if mode == "prepend" else x[:, num_classes:]], 1)


def wrong_labels(y: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """A label for every row, drawn evenly from the others: ``(y + U{1..C-1}) mod C``. `y` itself is left alone."""
    shift = torch.randint(1, num_classes, y.shape, generator=generator).to(y.device)
    return (y + shift) % num_classes

"""Prototypes in a latent space: learned ones, and the means of classes.

Source: Li, Liu, Chen & Rudin 2018, arXiv 1710.04806, section 3 (`PrototypeLayer`, `prototype_regularizers`);
Snell, Swersky & Zemel 2017, arXiv 1703.05175, section 2.2 (`class_means`, `mean_logits`).
"""

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.distances import cosine_similarities, squared_distances


class Regularizers(NamedTuple):
    """The two terms that tie prototypes and data together, scalars."""

    r1: Tensor
    """Mean over prototypes of the squared distance to the nearest row: every prototype is near some input."""
    r2: Tensor
    """Mean over rows of the squared distance to the nearest prototype: every input is near some prototype."""


def prototype_regularizers(distances: Tensor) -> Regularizers:
    """R1 and R2 from squared distances (B, m) of B rows to m prototypes (eq. 3 and 4 of Li et al.).

    Raises
    ------
    ValueError
        If there is no row or no prototype.
    """
    if distances.ndim != 2 or 0 in distances.shape:
        raise ValueError(f"distances must be (rows, prototypes), both at least 1, got {tuple(distances.shape)}")
    return Regularizers(distances.min(0).values.mean(), distances.min(1).values.mean())


class PrototypeLayer(nn.Module):
    """Squared Euclidean distances to learned prototypes: (B, dim) to (B, num_prototypes).

    A linear layer without bias over these distances keeps a prediction an exact sum of one contribution a
    prototype.

    Parameters
    ----------
    num_prototypes, dim
        m and q of the paper. `prototypes` is an (m, q) parameter, drawn from U[0, 1) as in the authors' code.
    """

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        if not all(isinstance(v, Integral) and not isinstance(v, bool) and v >= 1 for v in (num_prototypes, dim)):
            raise ValueError(
                f"num_prototypes and dim must be whole numbers of at least 1, got {num_prototypes} and {dim}"
            )
        self.num_prototypes, self.dim = num_prototypes, dim
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, dim))

    def forward(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise ValueError(f"z must be (rows, {self.dim}), got {tuple(z.shape)}")
        return squared_distances(z, self.prototypes)

    def regularizers(self, z: Tensor) -> Regularizers:
        """R1 and R2 of a batch of codes (B, dim); `prototype_regularizers` takes distances that are there already."""
        return prototype_regularizers(self(z))

    def extra_repr(self) -> str:
        return f"num_prototypes={self.num_prototypes}, dim={self.dim}"


def class_means(h: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Mean of the rows of each class: (..., n, d) and labels (..., n) to (..., num_classes, d).

    Leading axes (episodes) go in one pass. Rows with a negative label take no part.

    Raises
    ------
    ValueError
        If shapes do not fit, a label is too large, or a class has no row.
    """
    if h.ndim < 2 or y.shape != h.shape[:-1]:
        raise ValueError(f"need rows (..., n, d) with labels (..., n), got {tuple(h.shape)} and {tuple(y.shape)}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if h.dtype in (torch.float16, torch.bfloat16):  # sums of many rows leave their digits, or their range
        return class_means(h.float(), y, num_classes).to(h.dtype)
    y = y.long()
    if y.numel() and int(y.max()) >= num_classes:
        raise ValueError(f"labels must lie below num_classes={num_classes}, got {int(y.max())}")
    place = torch.where(y < 0, num_classes, y)  # the last place is thrown away
    index = place[..., None].expand_as(h)
    sums = h.new_zeros(*h.shape[:-2], num_classes + 1, h.shape[-1]).scatter_add(-2, index, h)
    counts = h.new_zeros(*h.shape[:-2], num_classes + 1).scatter_add(-1, place, torch.ones_like(h[..., 0]))
    sums, counts = sums[..., :num_classes, :], counts[..., :num_classes]
    if bool((counts == 0).any()):
        first = (counts == 0).nonzero()[0].tolist()
        where = f" of episode {tuple(first[:-1])}" if len(first) > 1 else ""
        raise ValueError(f"class {first[-1]}{where} has no row: leave it out of num_classes or add rows")
    return sums / counts[..., None]


def mean_logits(query: Tensor, means: Tensor, *, metric: str = "euclidean", temperature: float = 1.0) -> Tensor:
    """Scores of queries for classes by their means: (..., q, d) and (..., N, d) to (..., q, N), higher = nearer.

    Parameters
    ----------
    metric
        ``"euclidean"``: minus the squared distance; ``"cosine"``: the cosine; ``"dot"``: the inner product.
    temperature
        Divides the scores.

    Raises
    ------
    ValueError
        For an unknown metric or a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if metric == "euclidean":
        scores = -squared_distances(query, means)
    elif metric == "cosine":
        scores = cosine_similarities(query, means)
    elif metric == "dot":
        scores = query @ means.mT
    else:
        raise ValueError(f"unknown metric {metric!r}: choose euclidean, cosine or dot")
    return scores / temperature

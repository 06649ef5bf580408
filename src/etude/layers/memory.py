"""A memory of slots that is read by similarity and written where it is attended, or where it is least used.

    a = softmax(cos(q, M_j) / tau),  r = sum_j a_j M_j
    M_j <- M_j (1 - w_j g) + w_j g v         write weights w, gate g in [0, 1], vector v

Sources: Graves, Wayne & Danihelka 2014, arXiv 1410.5401 (content addressing, erase and add); Santoro et al. 2016
(least recently used slots, usage that decays).
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-12


class Read(NamedTuple):
    """What a query found."""

    value: Tensor
    """(B, k)"""
    weights: Tensor
    """(B, l), summing to 1."""


class ContentMemory(nn.Module):
    """Slots (l, k) with a learned start; the memory itself, (B, l, k), is an argument and a result, never stored.

    Parameters
    ----------
    slots, width
        l and k.
    write
        "content": at the slots that were read. "lru": there, or at the least used slot, mixed by the caller.
    temperature
        tau; small reads one slot, large the mean of all.
    usage_decay
        gamma of ``u <- gamma u + read weights + write weights``.

    Raises
    ------
    ValueError
        For sizes below 1, an unknown way of writing, a temperature that is not positive or a decay outside [0, 1].
    """

    def __init__(
        self, slots: int, width: int, write: Literal["content", "lru"] = "content", *, temperature: float = 0.1,
        usage_decay: float = 0.95,
    ) -> None:  # fmt: skip
        super().__init__()
        if slots < 1 or width < 1:
            raise ValueError(f"slots and width must be at least 1, got {slots} and {width}")
        if write not in ("content", "lru"):
            raise ValueError(f"write must be 'content' or 'lru', got {write!r}")
        if not temperature > 0 or not 0 <= usage_decay <= 1:
            raise ValueError(f"need temperature > 0 and usage_decay in [0, 1], got {temperature} and {usage_decay}")
        self.slots, self.width, self.rule = slots, width, write
        self.temperature, self.usage_decay = temperature, usage_decay
        self.initial = nn.Parameter(torch.randn(slots, width) * 0.1)

    def start(self, batch_size: int) -> Tensor:
        """The learned memory before an episode, (B, l, k)."""
        return self.initial.expand(batch_size, -1, -1)

    def read(self, q: Tensor, M: Tensor) -> Read:
        """Attend with queries (B, k); a zero query or slot has similarity 0, and no gradient comes of it."""
        if q.shape != (M.shape[0], M.shape[2]):
            raise ValueError(f"queries {tuple(q.shape)} do not fit a memory {tuple(M.shape)}")
        wide = torch.promote_types(M.dtype, torch.float32)  # TINY and short queries are 0 in half precision
        rows, asked = M.to(wide), q.to(wide) * self.temperature
        lengths = torch.linalg.vector_norm(rows, dim=-1) * torch.linalg.vector_norm(asked, dim=-1)[:, None]
        cosines = torch.bmm(M, q.to(M.dtype)[..., None])[..., 0] / lengths.clamp_min(TINY)
        weights = cosines.masked_fill(lengths == 0, 0.0).softmax(-1).to(M.dtype)  # else gradients of 1 / TINY
        return Read(torch.bmm(weights[:, None], M)[:, 0], weights)

    def write(self, M: Tensor, weights: Tensor, vector: Tensor, gate: Tensor) -> Tensor:
        """Erase and add: weights (B, l), vector (B, k), gate (B, 1). Gate 0 leaves the memory as it is."""
        share = (weights * gate).to(M.dtype)  # autocast mixes types
        return torch.lerp(M, vector.to(M.dtype)[:, None], share[..., None])

    def where(self, weights: Tensor, usage: Tensor, mix: Tensor | None = None) -> Tensor:
        """Write weights (B, l): those of the reading, or with "lru" ``mix * weights + (1 - mix) * least used``.

        mix
            (B, 1) in [0, 1]; None: the least used slot only. Among equals the lowest index.
        """
        if self.rule == "content":
            return weights
        least = F.one_hot(usage.argmin(-1), self.slots).to(weights.dtype)
        return least if mix is None else torch.lerp(least, weights, mix.to(weights.dtype))

    def used(self, usage: Tensor, read: Tensor, written: Tensor | None = None) -> Tensor:
        """Usage (B, l) after a step; what was written counts, else the next write would hit the same slot."""
        return self.usage_decay * usage + (read if written is None else read + written)

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets."""
        return f"slots={self.slots}, width={self.width}, write={self.rule}"

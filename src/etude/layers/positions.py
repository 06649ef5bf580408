"""Positions for attention: learned, sinusoidal, rotary and linear biases.

Sources: Vaswani et al. 2017, arXiv 1706.03762, section 3.5 (sinusoidal); Su et al. 2021, arXiv 2104.09864
(rotary); Press et al. 2021, arXiv 2108.12409 (linear biases, ALiBi); Chen et al. 2023, arXiv 2306.15595
(interpolation: positions divided by the factor by which the window grows).

Two conventions of the rotary embedding exist. `interleaved=False` rotates the pairs (i, i + d/2), as LLaMA's
published weights do; `interleaved=True` rotates (2i, 2i + 1), as the paper writes it. They differ by a
permutation of the query's and the key's features, so weights trained with one need converting for the other.
"""

import math
import warnings

import torch
from torch import Tensor, nn


def sinusoidal_positions(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Sines (even features) and cosines (odd features) of `positions`, shape ``(..., dim)``.

    Feature 2i is ``sin(t / base^(2i/dim))`` and feature 2i + 1 the cosine of the same angle.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    even = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.to(torch.float32).unsqueeze(-1) * torch.exp(even * (-math.log(base) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim]


def rotary_tables(
    positions: Tensor, head_dim: int, *, base: float = 10000.0, scale: float = 1.0, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, each ``(..., head_dim)``.

    Parameters
    ----------
    positions
        Integer positions of any shape.
    scale
        Positions are multiplied by it: ``trained_length / new_length`` stretches the window.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head size, got {head_dim}")
    even = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = (positions.to(torch.float32) * scale).unsqueeze(-1) * base ** (-even / head_dim)
    angles = angles.repeat_interleave(2, dim=-1) if interleaved else torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate the features of queries or keys; never of values.

    Parameters
    ----------
    x
        Shape (..., T, head_dim).
    cos, sin
        From `rotary_tables`, broadcastable to `x`.
    """
    if interleaved:
        turned = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


def alibi_slopes(num_heads: int) -> Tensor:
    """Slope ``2^(-8h/H)`` of head h = 1..H, shape (H,)."""
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    return 2.0 ** (-8.0 * torch.arange(1, num_heads + 1, dtype=torch.float32) / num_heads)


def alibi_bias(slopes: Tensor, T: int, S: int | None = None) -> Tensor:
    """``-slope * |t - s|`` for the last `T` of `S` positions, shape (H, T, S), to be added to the scores."""
    S = T if S is None else S
    t = torch.arange(S - T, S, device=slopes.device).unsqueeze(1)
    distance = (t - torch.arange(S, device=slopes.device)).abs().to(slopes.dtype)
    return -slopes[:, None, None] * distance


class LearnedPositions(nn.Module):
    """One trained vector a position; a position beyond `max_length` is an error."""

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        self.table = nn.Embedding(max_length, dim)

    def forward(self, positions: Tensor, length: int) -> Tensor:
        """Vectors of `positions`; `length` is the largest position that may occur plus one."""
        if length > self.max_length:
            raise ValueError(
                f"sequence of {length} positions, but learned positions end at max_length={self.max_length}: "
                "build the model with a larger max_length or use position='rope', 'alibi' or 'sinusoidal'"
            )
        return self.table(positions)


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines; see `sinusoidal_positions`. Any length, with a warning beyond `max_length`."""

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        self.max_length, self.dim = max_length, dim

    def forward(self, positions: Tensor, length: int) -> Tensor:
        _warn_longer(length, self.max_length, "sinusoidal")
        return sinusoidal_positions(positions, self.dim)


class RotaryPositions(nn.Module):
    """Rotation of queries and keys, with tables computed once and grown when a longer sequence comes.

    Parameters
    ----------
    head_dim
        Features of one head; even.
    max_length
        Length trained for: a longer sequence gives a warning that names the factor. None: no warning.
    scale
        See `rotary_tables`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        *,
        max_length: int | None = None,
        base: float = 10000.0,
        scale: float = 1.0,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim, self.max_length, self.base = head_dim, max_length, base
        self.scale, self.interleaved = scale, interleaved
        cos, sin = self._tables(max_length or 128)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _tables(self, length: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        return rotary_tables(
            torch.arange(length, device=device), self.head_dim,
            base=self.base, scale=self.scale, interleaved=self.interleaved,
        )  # fmt: skip

    def forward(self, q: Tensor, k: Tensor, positions: Tensor | None, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate q and k, both (B, H, T, head_dim), whose tokens stand at `positions`.

        Parameters
        ----------
        positions
            (T,) or (B, T); None: ``offset .. offset + T - 1``.
        """
        end = offset + q.shape[-2]
        _warn_longer(end, self.max_length, "rotary")
        if end > self.cos.shape[0]:
            self.cos, self.sin = self._tables(2 * end, self.cos.device)
        if positions is None:
            cos, sin = self.cos[offset:end], self.sin[offset:end]
        else:
            cos, sin = self.cos[positions], self.sin[positions]
            if positions.ndim == 2:
                cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        turn = self.interleaved
        return apply_rotary(q, cos, sin, interleaved=turn), apply_rotary(k, cos, sin, interleaved=turn)


class AlibiPositions(nn.Module):
    """The biases of `alibi_bias` as a module: nothing to train, made afresh for every length."""

    slopes: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.register_buffer("slopes", alibi_slopes(num_heads), persistent=False)

    def forward(self, T: int, S: int) -> Tensor:
        return alibi_bias(self.slopes, T, S)


def _warn_longer(length: int, max_length: int | None, kind: str) -> None:
    if max_length is not None and length > max_length:
        warnings.warn(
            f"{kind} positions: a sequence of {length} is {length / max_length:.2f} times the max_length of "
            f"{max_length} that the model was built for",
            UserWarning,
            stacklevel=3,
        )

"""Simulated pieces of physics to put between trainable layers: optics, acoustics, microwaves, coupled oscillators.

Each box maps unit-norm rows (n, m) to (n, p), has fixed random parameters and no trainable ones. `rotated` turns its
scattering into that of another sample of the same kind: a drift of the set-up. All are differentiable, so that ideal
back-propagation can be shown beside; `PhyLL` never uses that.

Source: Momeni et al. 2023, arXiv 2304.11042, experiments (the oscillator chain is our fourth kind).
"""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from etude.data.streams import drift

BoxKind = Literal["optics", "acoustic", "microwave", "duffing"]
BOXES: tuple[BoxKind, ...] = ("optics", "acoustic", "microwave", "duffing")


class PhysicalBox(nn.Module):
    """A scatterer of one kind, (n, m) -> (n, p).

    ========== =======================================================================
    optics     ``|A h|^2``, A complex Gaussian: intensity behind a scattering medium
    acoustic   ``tanh(s (u + u^3 / 3))`` with ``u = B h``, B real: a cubic non-linearity that saturates
    microwave  ``|A (e^{i pi h sqrt(m) / 2} * c)|^2``: the input sits in the phases of a wave c
    duffing    displacement after 20 Euler steps of coupled Duffing oscillators driven by ``B h``
    ========== =======================================================================

    Parameters
    ----------
    generator
        Draws the scattering; the second sample, to which `rotated` turns it, too.
    """

    scatter: Tensor
    other: Tensor
    carrier: Tensor

    def __init__(self, kind: BoxKind, in_features: int, out_features: int, *, generator: torch.Generator) -> None:
        super().__init__()
        if kind not in BOXES:
            raise ValueError(f"unknown box {kind!r}: choose one of {', '.join(BOXES)}")
        if in_features < 1 or out_features < 1:
            raise ValueError(f"need at least 1 input and output, got {in_features} and {out_features}")
        self.kind, self.in_features, self.out_features = kind, in_features, out_features
        dtype = torch.complex64 if kind in ("optics", "microwave") else torch.float32
        shape = (out_features, in_features)
        # complex normal numbers have variance 1; the sum over unit-norm inputs then has variance 1 as well
        self.register_buffer("scatter", torch.randn(shape, dtype=dtype, generator=generator))
        self.register_buffer("other", torch.randn(shape, dtype=dtype, generator=generator))
        wave = torch.rand(in_features, generator=generator) * 2 * math.pi
        self.register_buffer("carrier", torch.polar(torch.full_like(wave, in_features**-0.5), wave))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What `to` and `double` do: of complex buffers they drop the imaginary part, or leave them as they are."""
        waves = [name for name, b in self._buffers.items() if b is not None and b.is_complex()]
        for name in waves:
            self._buffers[name] = torch.view_as_real(self._buffers[name])  # type: ignore[arg-type]
        super()._apply(fn, recurse)
        for name in waves:
            parts: Any = self._buffers[name]
            if parts.dtype not in (torch.float32, torch.float64):  # complex numbers have no half precision
                parts = parts.float()
            self._buffers[name] = torch.view_as_complex(parts.contiguous())
        return self

    def rotated(self, degrees: float) -> "PhysicalBox":
        """The box after a drift: ``cos(a) A_0 + sin(a) A_1``; 90 degrees is another sample altogether."""
        turned = copy.deepcopy(self)
        turned.scatter = drift(degrees)(self.scatter, self.other)
        turned.other = drift(degrees + 90)(self.scatter, self.other)
        return turned

    def forward(self, h: Tensor) -> Tensor:
        if self.kind == "optics":
            return (h.to(self.scatter.dtype) @ self.scatter.T).abs().square()
        if self.kind == "microwave":
            # phases up to pi: unit-norm entries are of the order m^-1/2, so they are scaled back up
            phase = math.pi * h * self.in_features**0.5 / 2
            return (torch.polar(torch.ones_like(phase), phase) * self.carrier @ self.scatter.T).abs().square()
        u = h @ self.scatter.T
        if self.kind == "acoustic":
            return torch.tanh(1.5 * (u + u**3 / 3))
        return _duffing(u)


def _duffing(force: Tensor, steps: int = 20, dt: float = 0.15) -> Tensor:
    """Semi-implicit Euler steps of ``x'' = F - 0.3 x' - x - x^3 + k (neighbours - 2 x)`` from rest on a ring."""
    x = torch.zeros_like(force)
    v = torch.zeros_like(force)
    for _ in range(steps):
        coupling = 0.5 * (x.roll(1, -1) + x.roll(-1, -1) - 2 * x)
        v = v + dt * (2 * force - 0.3 * v - x - x**3 + coupling)
        x = x + dt * v
    return x


def make_boxes(
    kind: BoxKind, widths: tuple[tuple[int, int], ...], generator: torch.Generator
) -> list[Callable[[Tensor], Tensor]]:
    """One box a block, (inputs, outputs) each."""
    return [PhysicalBox(kind, m, p, generator=generator) for m, p in widths]

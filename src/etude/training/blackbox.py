"""A layer that can be run but not differentiated: what goes in and out is checked, gradients never pass.

Source: Momeni et al. 2023, arXiv 2304.11042 ("model-free" layers).
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.layers.modes import evaluating
from etude.training.estimators import as_array


def amplitude(h: Tensor) -> Tensor:
    """What a physical input takes: ``|h| / ||h|| + 1e-6``, row by row."""
    h = h.abs()
    return h / h.norm(dim=-1, keepdim=True).clamp_min(1e-12) + 1e-6


class BlackBox(nn.Module):
    """Any callable (n, m) -> (n, p) as a layer without gradient: a module, a simulator, a device driver.

    Parameters
    ----------
    fn
        Torch modules get tensors, other callables NumPy arrays (tensors where `torch_input` is set); they are copies,
        which it may write into.
    repeats
        Runs that are averaged, for a box that is noisy.
    encode
        Applied before the box; the amplitude code of the paper by default, None for none.

    Attributes
    ----------
    runs
        Rows that have gone through the box so far.

    Raises
    ------
    ValueError
        For an output that is not of numbers, complex, NaN or infinite, or has another number of rows, or of columns in
        another run: the message names box and row.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        name: str = "box",
        repeats: int = 1,
        encode: Callable[[Tensor], Tensor] | None = amplitude,
        torch_input: bool | None = None,
    ) -> None:
        super().__init__()
        if not callable(fn):
            raise TypeError(f"{name}: a box is a callable (n, m) -> (n, p), got {type(fn).__name__}")
        if repeats < 1 or repeats % 1:
            raise ValueError(f"{name}: repeats must be a whole number of at least 1, got {repeats}")
        self.fn, self.name, self.repeats, self.encode = fn, name, repeats, encode
        self.torch_input = isinstance(fn, nn.Module) if torch_input is None else torch_input
        self.runs = 0

    @torch.no_grad()
    def forward(self, h: Tensor) -> Tensor:
        x = h if self.encode is None else self.encode(h)
        self.runs += len(x) * self.repeats
        found = [self._run(x) for _ in range(self.repeats)]
        if len(widths := {y.shape[1] for y in found}) > 1:
            raise ValueError(
                f"{self.name} gave {sorted(widths)} outputs in runs of the same rows: their number must stay"
            )
        return torch.stack(found).mean(0)

    def _run(self, x: Tensor) -> Tensor:
        with evaluating(self.fn) if isinstance(self.fn, nn.Module) else nullcontext():  # hardware does not train
            own = x.clone()  # a box may work in place
            y = self.fn(own) if self.torch_input else self.fn(as_array(own))
        if not isinstance(y, Tensor):
            array = np.asarray(y)
            if array.dtype.kind not in "biufc":
                raise ValueError(f"{self.name} returned {type(y).__name__}, not numbers: need ({len(x)}, p)")
            y = torch.as_tensor(array)
        if y.is_complex():
            raise ValueError(f"{self.name} returned complex numbers: take abs (amplitude) or real in the box")
        if y.ndim != 2 or len(y) != len(x):
            raise ValueError(f"{self.name} got {tuple(x.shape)} and returned {tuple(y.shape)}: need ({len(x)}, p)")
        y = y.detach().to(x, copy=True)  # its next run may write into it
        bad = ~torch.isfinite(y).all(1)
        if bad.any():
            row = int(bad.nonzero()[0, 0])
            raise ValueError(f"{self.name} returned NaN or infinity in row {row} (of {int(bad.sum())} such rows)")
        if len(y) > 1 and bool((y == y[:1]).all()):
            warnings.warn(f"{self.name} gives the same output for every row: it is dead", stacklevel=2)
        return y

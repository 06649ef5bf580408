"""One codebook on one place of a network: normalise, quantise, hand on the mean of the chosen codes.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230, sec. 2, and its official code.
Names: the paper's activation a is `a`, its LayerNorm's output z is `rows`, a codebook's C is `num_codes`.
Differs from the paper: the text sums the k chosen codes, this takes their mean, as the official code does.
"""

import warnings
from collections import deque
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers.code_gradients import BACKWARD
from etude.layers.quantizers import VectorQuantizer

CALLS = 64  # passes through one layer that are kept: a tied layer runs several times in a pass of the model
FIRST, CHECKED = 100, 1000  # training passes before the first look for a collapse, and between two later ones
COLLAPSED = 0.01
GRADIENTS = ("aeloss", "base", "vqvae", "fullaeloss")  # of the paper; "straight" is the quantiser's own


class Call(NamedTuple):
    """What one pass through a layer chose."""

    indices: Tensor
    """(..., G, k)"""
    loss: Tensor
    """|y - z|^2, summed over the width, mean over vectors."""
    rows: Tensor | None
    """(..., G, d): what was quantised; kept in training where dead codes are to be replaced, or when asked for."""


class CodebookLayer(nn.Module):
    """Activations (..., dim) -> the mean of each group's k nearest codes, (..., dim).

    Parameters
    ----------
    dim
        Width of the activation; group g owns the g-th slice of dim / groups numbers and normalises it by itself.
    num_codes, k, groups, similarity, dead_after, generator
        As in `etude.layers.VectorQuantizer`.
    gradient
        Its `backward`: ``"aeloss"`` teaches codes by the task and by the reconstruction within the backward pass;
        ``"base"`` leaves the reconstruction to the loss; ``"vqvae"`` teaches codes by the reconstruction only and pulls
        the activation towards its codes; ``"fullaeloss"`` is "aeloss" with that pull.
    commitment
        beta, the weight of that pull.
    eps
        Added to the variance when slices are normalised.
    name
        Stands in errors and warnings.

    Attributes
    ----------
    calls
        What the last passes chose; cleared when the wrapped model begins anew.
    passes
        Training passes so far.
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        k: int = 1,
        *,
        groups: int = 1,
        gradient: str = "aeloss",
        similarity: str = "cosine",
        dead_after: int | None = None,
        commitment: float = 0.25,
        eps: float = 1e-5,
        name: str = "codebook",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for option, value in (("dim", dim), ("num_codes", num_codes), ("k", k), ("groups", groups)):
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name}: {option} must be a whole number, got {value!r}")
        if groups < 1 or dim % groups:
            raise ValueError(f"{name}: a width of {dim} cannot be cut into {groups} groups of one size")
        if gradient not in BACKWARD:
            raise ValueError(
                f"unknown gradient {gradient!r}: choose one of {', '.join(GRADIENTS)} (beta is given as commitment=)"
            )
        self.dim, self.groups, self.eps, self.name = dim, groups, eps, name
        self.weight = nn.Parameter(torch.ones(groups, dim // groups))
        self.bias = nn.Parameter(torch.zeros(groups, dim // groups))
        self.quantizer = VectorQuantizer(
            num_codes, dim // groups, groups=groups, k=k, similarity=similarity, learn="gradient", backward=gradient,
            dead_after=dead_after, commitment=commitment, name=name, generator=generator,
        )  # fmt: skip
        self.enabled = True
        self.keep_rows = False
        self.shuffle: torch.Generator | None = None
        self.calls: deque[Call] = deque(maxlen=CALLS)
        self.passes = 0

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what passes have left behind stays here, as it hangs on their graphs."""
        return {**self.__dict__, "calls": deque(maxlen=CALLS)}

    def normalize(self, a: Tensor) -> Tensor:
        """(..., dim) -> (..., G, d): each slice with mean 0 and variance 1, then scaled and shifted."""
        if a.shape[-1] != self.dim:
            raise ValueError(
                f"{self.name}: the activation is {a.shape[-1]} wide, the codebook was made for {self.dim}: give "
                "dim= or example= to wrap"
            )
        rows = a.unflatten(-1, (self.groups, self.dim // self.groups)).to(self.weight.dtype)
        return F.layer_norm(rows, rows.shape[-1:], eps=self.eps) * self.weight + self.bias

    def forward(self, a: Tensor) -> Tensor:
        """Quantise, or only look where the layer is disabled.

        Raises
        ------
        ValueError
            If `a` is not finite or of another width.
        """
        rows = self.normalize(a)
        if not self.enabled:
            if self.keep_rows:
                self.calls.append(Call(torch.empty(0), rows.new_zeros(()), rows.detach()))
            return a
        if self.shuffle is not None:
            order = torch.randperm(rows[..., 0, 0].numel(), generator=self.shuffle).to(rows.device)
            rows = rows.reshape(-1, *rows.shape[-2:])[order].view_as(rows)
        out = self.quantizer(rows)
        keeps = self.keep_rows or (self.training and self.quantizer.dead_after is not None)
        self.calls.append(Call(out.indices, out.loss, rows.detach() if keeps else None))
        if self.training:
            self._look_for_collapse()
        return out.values.flatten(-2).to(a.dtype)

    @torch.no_grad()
    def replace_dead(
        self, generator: torch.Generator, optimizer: torch.optim.Optimizer | None = None, *, noise: float = 0.0
    ) -> int:
        """Put codes idle for `dead_after` training passes on random rows of the last pass; how many there were.

        The optimiser's moments of these codes become zero, or old momentum would carry them away again.
        """
        rows = next((call.rows for call in reversed(self.calls) if call.rows is not None), None)
        if self.quantizer.dead_after is None or rows is None:
            raise ValueError(f"{self.name}: replace_dead needs dead_after= and a training pass before it")
        dead = self.quantizer.replace_dead(rows, generator, noise=noise)
        if optimizer is not None and bool(dead.any()):
            for value in optimizer.state.get(self.quantizer.codes, {}).values():
                if isinstance(value, Tensor) and value.shape == self.quantizer.codes.shape:
                    value[dead] = 0
        return int(dead.sum())

    def live_fraction(self, within: int = CHECKED) -> float:
        """Share of the codes that one of the last `within` training passes chose."""
        return float(((self.quantizer.usage > 0) & (self.quantizer.idle < within)).float().mean())

    def _look_for_collapse(self) -> None:
        self.passes += 1
        look = self.passes % CHECKED == 0 or self.passes == FIRST
        if look and (live := self.live_fraction()) < COLLAPSED:
            warnings.warn(
                f"{self.name}: {live:.2%} of the codes were chosen in the last {min(self.passes, CHECKED)} passes; "
                "place them on data with initialize() and set dead_after=",
                stacklevel=2,
            )

    # --- hooks -------------------------------------------------------------------------------------------------

    def on_output(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Forward hook: quantise what the module puts out, the first tensor where there are several."""
        if isinstance(output, Tensor):
            return self(output)
        if isinstance(output, Mapping):
            key = next((k for k, v in output.items() if isinstance(v, Tensor)), None)
            if key is not None:
                return type(output)(**{**output, key: self(output[key])})  # type: ignore[call-arg]
        elif isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
            first = self(output[0])
            if hasattr(output, "_replace"):
                return output._replace(**{output._fields[0]: first})  # type: ignore[attr-defined,union-attr]
            return type(output)([first, *output[1:]])
        raise ValueError(f"{self.name}: puts out {type(output).__name__} without a first tensor to quantise")

    def on_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: quantise the first tensor that goes in."""
        for i, value in enumerate(args):
            if isinstance(value, Tensor):
                return (*args[:i], self(value), *args[i + 1 :]), kwargs
        for key, value in kwargs.items():
            if isinstance(value, Tensor):
                return args, {**kwargs, key: self(value)}
        raise ValueError(f"{self.name}: no tensor goes in")

    def extra_repr(self) -> str:
        return f"{self.dim}, groups={self.groups}"

"""Gradients through rounding: the forward pass rounds, the backward pass pretends it did not.

Sources: Bengio, Léonard & Courville 2013 (arXiv 1308.3432) for the straight-through estimator; Krizhevsky &
Hinton 2011 for rounding the code layer of an autoencoder; Jang, Gu & Poole 2017 (arXiv 1611.01144) and Maddison,
Mnih & Teh 2017 (arXiv 1611.00712) for the Gumbel-softmax.
Convention of the house: a bit is `logit > 0`, so a logit of exactly 0 gives the bit 0, everywhere.
"""

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the first argument, bit for bit. Backward: everything goes to the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        return None, grad_outputs[0]

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        return grad_inputs[1].clone()


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """`value` in the forward pass, the gradient of `surrogate` in the backward pass.

    The forward value is exact (no ``surrogate + (value - surrogate)``, which rounds), and no gradient reaches
    `value`.

    Parameters
    ----------
    value, surrogate
        Tensors of one shape and dtype.

    Raises
    ------
    ValueError
        If shapes or dtypes differ.
    """
    if value.shape != surrogate.shape:
        raise ValueError(
            f"value has shape {tuple(value.shape)}, surrogate {tuple(surrogate.shape)}: they must be the same"
        )
    if value.dtype != surrogate.dtype:
        raise ValueError(f"value is {value.dtype}, surrogate {surrogate.dtype}: cast one of them")
    return _StraightThrough.apply(value.detach(), surrogate)  # type: ignore[no-any-return, no-untyped-call]


def round_ste(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Round to the nearest integer (halves to the even one) after clamping; gradient 1 inside, 0 outside.

    Parameters
    ----------
    x
        Any floating-point tensor.
    low, high
        Bounds of the grid; None leaves that side open. A value on a bound lies inside.

    Raises
    ------
    ValueError
        If `low` exceeds `high`.
    """
    if low is not None and high is not None and low > high:
        raise ValueError(f"low must not exceed high, got low={low}, high={high}")
    clamped = x if low is None and high is None else x.clamp(low, high)
    return straight_through(clamped.detach().round(), clamped)


def binarize(logits: Tensor) -> Tensor:
    """Bits in {0., 1.}: forward ``logits > 0``, backward the sigmoid's derivative h(1 - h).

    Equal to rounding ``sigmoid(logits)``, but for the logit 0, whose bit is 0 by the house's convention.
    """
    return straight_through((logits > 0).to(logits.dtype), logits.sigmoid())


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator, *, hard: bool = False) -> Tensor:
    """Relaxed one-hot draw ``softmax((logits + g) / temperature)`` with g ~ Gumbel(0, 1), over the last axis.

    Parameters
    ----------
    logits
        Unnormalised log-probabilities, shape (..., K); -inf forbids an entry.
    temperature
        Above 0; small values approach a one-hot draw from ``softmax(logits)``.
    generator
        Source of the noise. It may live on the CPU while `logits` are elsewhere.
    hard
        Return the one-hot of the largest entry, with the gradient of the relaxed draw.

    Raises
    ------
    ValueError
        If the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    exponential = torch.empty(logits.shape, dtype=torch.float32, device=generator.device)
    exponential.exponential_(generator=generator).clamp_min_(torch.finfo(torch.float32).tiny)
    noise = -exponential.log_().to(device=logits.device, dtype=logits.dtype)
    soft = ((logits + noise) / temperature).softmax(dim=-1)
    if not hard:
        return soft
    winner = soft.detach().argmax(dim=-1, keepdim=True)
    return straight_through(torch.zeros_like(soft).scatter_(-1, winner, 1.0), soft)

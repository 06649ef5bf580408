"""How a gradient travels through time: its size against the lag, and a penalty on what changes it.

Source: Lipton, Berkowitz & Elkan 2015, arXiv 1506.00019, section 2.3.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.recurrent import make_rnn, spectral_radius
from etude.layers.recurrent_cells import LinearRNN, check_batch_first

RADIUS_ROWS = 4
"""Rows whose state Jacobian is decomposed for a spectral radius."""
FAR = 40  # gradients outside of 2^-40 .. 2^40 are rescaled
State = tuple[Tensor, ...]


class Profile(NamedTuple):
    """How a gradient travels through time."""

    norms: Tensor
    """(time,): ||dh_T / ds_t|| for t = 1..T, spectral norm, mean over rows; s is the whole state (h, or h and c)."""
    lags: Tensor
    """(time,): T - t."""
    slope: float
    """Of log norm against lag, over the further half of the lags; -inf when the gradient is exactly 0 there."""
    spectral_radius: float
    """Largest absolute eigenvalue of the recurrent matrices, or, for gated cells, of the last step's state Jacobian
    (mean over the first rows)."""
    verdict: str


def gradient_profile(rnn: nn.Module, x: Tensor, *, lags: Tensor | None = None) -> Profile:
    """Norm of the Jacobian of the last hidden state with respect to every earlier state.

    For a linear cell it is ||U^(T-t)||, whose log falls or rises with the lag by log(spectral radius).

    Parameters
    ----------
    rnn
        One-directional recurrent module of `make_rnn` or `torch.nn` (batch first). With several layers h_T is the top
        layer's and s_t the state of all layers.
    x
        Shape (batch, time, input), time >= 2.
    lags
        Order of the lags that the slope is fitted on; None: as they are. (A control can pass a permutation.)

    Raises
    ------
    ValueError
        For bidirectional nets, nets that are not batch first, no rows, fewer than two steps, or x that is not finite.
    RuntimeError
        Under `torch.inference_mode()`, where no gradient can be taken; `torch.no_grad()` is fine.
    """
    refuse_inference_mode()
    check_batch_first(rnn)
    if getattr(rnn, "bidirectional", False):
        raise ValueError("gradient_profile needs one direction: a bidirectional net has no last step")
    if x.dim() != 3 or x.shape[0] < 1 or x.shape[1] < 2:
        raise ValueError(
            f"x must have shape (batch, time, input) with a row and two steps at least, got {tuple(x.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values, and so would every gradient")
    with _no_dropout(rnn):
        states, state = [], None
        with torch.no_grad():
            for t in range(x.shape[1]):
                _, state = rnn(x[:, t : t + 1], state)
                states.append(state if isinstance(state, tuple) else (state,))
        norms, exponents = _norms(rnn, x, states)
        radius = _radius(rnn, x[:RADIUS_ROWS], [tuple(p[:, :RADIUS_ROWS] for p in s) for s in states[-2:]])
    lag = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    slope = _slope(norms, exponents, lag if lags is None else lags.to(x.device))
    full = torch.ldexp(norms.double(), exponents.double()).to(norms.dtype)  # older torch: float32 powers
    return Profile(full, lag, slope, radius, _verdict(slope))


@contextmanager
def _no_dropout(rnn: nn.Module) -> Iterator[None]:
    """Training mode, in which cuDNN keeps what backward needs, yet without dropout."""
    mode, dropout = rnn.training, getattr(rnn, "dropout", 0.0)
    rnn.train()
    rnn.dropout = 0.0  # type: ignore[assignment]
    try:
        yield
    finally:
        rnn.train(mode)
        rnn.dropout = dropout  # type: ignore[assignment]


def _pull_back(rnn: nn.Module, x: Tensor, before: State, grads: State) -> State:
    """Vector-Jacobian products of one step: `grads` (layers, batch * o, ...) of the state after it, o for each row."""
    o = grads[0].shape[1] // x.shape[0]
    leaves = tuple(p.detach().repeat_interleave(o, dim=1).requires_grad_(True) for p in before)
    with torch.enable_grad():
        _, after = rnn(x.detach().repeat_interleave(o, dim=0), leaves if len(leaves) > 1 else leaves[0])
        after = after if isinstance(after, tuple) else (after,)
        return torch.autograd.grad(after, leaves, grads, allow_unused=True, materialize_grads=True)


def _rows(grads: State, batch: int) -> Tensor:
    """(batch, o, size of the state) from gradients (layers, batch * o, ...)."""
    return torch.cat([g.transpose(0, 1).flatten(1).view(batch, g.shape[1] // batch, -1) for g in grads], dim=-1)


def _norms(rnn: nn.Module, x: Tensor, states: list[State]) -> tuple[Tensor, Tensor]:
    """Spectral norms of dh_T / ds_t, t = 1..T, as numbers and powers of two: all rows of the Jacobian go back through a
    step together, and are rescaled by a power of two (which rounds nothing) before they leave the range of floats."""
    batch, last = x.shape[0], states[-1]
    o = last[0].shape[-1]
    grads = tuple(torch.zeros_like(p).repeat_interleave(o, dim=1) for p in last)
    grads[0][-1] = torch.eye(o, dtype=x.dtype, device=x.device).repeat(batch, 1)
    norms, exponents, exponent = [], [], 0
    for t in range(x.shape[1] - 1, -1, -1):
        exponents.append(exponent)
        norms.append(torch.linalg.matrix_norm(_rows(grads, batch), ord=2).mean())
        if t:
            grads = _pull_back(rnn, x[:, t : t + 1], states[t - 1], grads)
            size = max(float(g.abs().max()) for g in grads)
            if 0 < size < math.inf and not 2.0**-FAR < size < 2.0**FAR:
                power = min(max(math.frexp(size)[1], -126), 126)  # 2^-power is a normal float32
                grads, exponent = tuple(g * 2.0**-power for g in grads), exponent + power
    return torch.stack(norms[::-1]), torch.tensor(exponents[::-1], device=x.device)


def _slope(norm: Tensor, exponent: Tensor, lag: Tensor) -> float:
    far = lag >= lag.max() / 2
    if not bool((norm[far] > 0).all()):
        return -math.inf
    a, b = lag[far].double(), norm[far].double().log() + exponent[far].double() * math.log(2)
    a = a - a.mean()
    return float((a * b).sum() / (a * a).sum())


def _radius(rnn: nn.Module, x: Tensor, states: list[State]) -> float:
    if isinstance(rnn, (nn.RNN, LinearRNN)):
        return max(spectral_radius(getattr(rnn, f"weight_hh_l{i}")) for i in range(rnn.num_layers))
    before, batch = states[0], x.shape[0]
    sizes = [p[:, 0].numel() for p in before]
    pieces = torch.eye(sum(sizes), dtype=x.dtype, device=x.device).split(sizes, dim=1)  # one unit vector a row
    grads = tuple(
        e.view(sum(sizes), p.shape[0], *p.shape[2:]).repeat(batch, *[1] * (p.dim() - 1)).transpose(0, 1).contiguous()
        for e, p in zip(pieces, before, strict=True)
    )
    jacobian = _rows(_pull_back(rnn, x[:, -1:], before, grads), batch)
    return float(torch.linalg.eigvals(jacobian).abs().amax(-1).mean())


def _verdict(slope: float) -> str:
    factor = math.exp(slope) if math.isfinite(slope) else 0.0
    if factor < 0.99:
        return f"vanishing: the gradient shrinks by a factor {factor:.3f} a step"
    if factor > 1.01:
        return f"exploding: the gradient grows by a factor {factor:.3f} a step"
    return f"kept: the gradient changes by a factor {factor:.3f} a step"


def slope_error(
    radii: Sequence[float], hidden_size: int, steps: int, generator: torch.Generator, *, shuffled: bool = False
) -> float:
    """Mean relative error of `gradient_profile`'s slope against log(spectral radius) over random linear cells.

    The review's statement that a gradient through time behaves as lambda^(T - t), in one number: 0 where it is exact.
    `shuffled` fits the slope on lags in random order, as a control. ValueError for a radius of 0 or 1 (no slope).
    """
    if not radii or any(r <= 0 or r == 1 for r in radii):
        raise ValueError(f"radii must be positive and differ from 1, got {tuple(radii)}")
    errors = []
    for radius in radii:
        cell = make_rnn("elman", 1, hidden_size, activation="linear", init=radius, generator=generator).double()
        order = torch.randperm(steps, generator=generator) if shuffled else None
        profile = gradient_profile(cell, torch.zeros(1, steps, 1, dtype=torch.float64), lags=order)
        errors.append(abs(profile.slope / math.log(radius) - 1))
    return sum(errors) / len(errors)


def norm_preserving_penalty(rnn: nn.RNN, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Penalty on gradients whose norm changes on the way back through an Elman net (Pascanu et al. 2013, section 3.3).

    Omega = mean over steps of (||g_{t+1} D_{t+1} U|| / ||g_{t+1}|| - 1)^2, with g = dE / dh held fixed, as in the
    paper, so that only U and the present activations are moved.

    Parameters
    ----------
    rnn
        One-layer, one-directional `make_rnn("elman", ...)` or `torch.nn.RNN`, batch first.
    x
        Shape (batch, time, input), time >= 2.
    loss
        ``loss(y) -> scalar`` of the outputs (batch, time, h).

    Returns
    -------
    Tensor
        Scalar with a gradient; add it, weighted, to the loss.

    Raises
    ------
    ValueError
        For another kind of net, one that is not batch first, or fewer than two steps.
    """
    if not isinstance(rnn, nn.RNN) or rnn.num_layers != 1 or rnn.bidirectional:
        raise ValueError("the penalty is for Elman nets (nn.RNN) of one layer and one direction")
    check_batch_first(rnn)
    if x.dim() != 3 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (batch, time, input) with at least two steps, got {tuple(x.shape)}")
    h = x.new_zeros(x.shape[0], rnn.hidden_size)
    states = []
    for t in range(x.shape[1]):
        h = rnn(x[:, t : t + 1], h[None])[1][0]
        states.append(h)
    grads = torch.autograd.grad(loss(torch.stack(states, dim=1)), states, retain_graph=True)
    u = rnn.weight_hh_l0  # as it is used, also where it is masked
    terms = []
    for h, g in zip(states[1:], grads[1:], strict=True):
        slope = 1 - h**2 if rnn.nonlinearity == "tanh" else (h > 0).to(h.dtype)
        size = g.norm(dim=-1)
        ratio = ((g * slope) @ u).norm(dim=-1) / size.clamp_min(1e-12)
        terms.append(torch.where(size > 1e-12, (ratio - 1) ** 2, 0.0))
    return torch.stack(terms).mean()


def refuse_inference_mode() -> None:
    """RuntimeError under `torch.inference_mode()`, where every gradient would be 0."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("gradients are taken here: use torch.no_grad() instead of torch.inference_mode()")

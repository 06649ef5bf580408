"""Truncated back-propagation through time: a loss every k1 steps whose gradient reaches back k2 steps.

Source: Lipton, Berkowitz & Elkan 2015, arXiv 1506.00019, section 2.3; BPTT(h; h') of Williams & Peng 1990.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.recurrent_cells import check_batch_first

WindowLoss = Callable[[Tensor, slice], Tensor]


@dataclass
class Window:
    """One piece of a truncated run: call ``loss.backward()``."""

    loss: Tensor
    """Of the steps start..stop; its gradient reaches back to step `back_to`."""
    y: Tensor
    """(batch, stop - start, width)."""
    state: Any
    """After step stop - 1, detached."""
    start: int
    stop: int
    back_to: int
    module: nn.Module

    def clip(self, max_norm: float) -> float:
        """Clip the module's gradients after ``backward`` and return their norm before the clip.

        Raises ValueError when the norm is NaN or infinite: the gradient has exploded beyond repair.
        """
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), max_norm))
        if not math.isfinite(norm):
            raise ValueError(f"steps {self.start}..{self.stop}: gradient norm {norm} before the clip; lower lr or k2")
        return norm


def tbptt(
    rnn: nn.Module,
    x: Tensor,
    k1: int,
    k2: int,
    *,
    loss_fn: WindowLoss | None = None,
    state: Any = None,
) -> Iterator[Window]:
    """Truncated back-propagation through time: every `k1` steps a loss whose gradient reaches back `k2` steps.

    Between two windows the weights may change. Where k2 > k1 the last k2 steps are run again from the stored
    state, so the cost is k2 / k1 of a plain run and memory is that of k2 steps. Where k1 does not divide the time, the
    last window is shorter and begins its run no earlier: k2 - k1 steps before its own first.

    Parameters
    ----------
    rnn
        Anything called as ``rnn(x, state) -> y, state``, batch first, or a model that has it as its method ``run`` and
        brings ``window_loss(y, steps, x)``, such as `RecurrentLM`.
    x
        Shape (batch, time, ...).
    loss_fn
        ``loss_fn(y, steps) -> scalar`` of the outputs (batch, k1, width) at the absolute steps (a slice). None: the
        module's own `window_loss`; a bare recurrent net has none and gets half the mean square of its outputs (with
        a warning): a stand-in that shows gradients and trains nothing.
    state
        State before the first step.

    Yields
    ------
    Window

    Raises
    ------
    ValueError
        If k1 < 1 or k2 < k1, for a net of two directions or not batch first, or when a loss is NaN or infinite.
    """
    if k1 != int(k1) or k2 != int(k2):
        raise ValueError(f"k1 and k2 are whole numbers of steps, got {k1} and {k2}")
    k1, k2 = int(k1), int(k2)
    if k1 < 1 or k2 < k1:
        raise ValueError(f"need 1 <= k1 <= k2 (a step is first seen in the window that scores it), got {k1} and {k2}")
    if x.dim() < 2 or x.shape[1] < 1:
        raise ValueError(f"x must have shape (batch, time, ...) with at least one step, got {tuple(x.shape)}")
    if getattr(rnn, "bidirectional", False):
        raise ValueError("tbptt needs one direction: what reads backwards has no state to hand to the next window")
    check_batch_first(rnn)
    own = getattr(rnn, "window_loss", None)
    if loss_fn is None and own is None:
        warnings.warn("tbptt without loss_fn: half the mean square of the outputs stands in", stacklevel=2)
    return _windows(rnn, x, k1, k2, loss_fn, own, state)


def _windows(
    rnn: nn.Module, x: Tensor, k1: int, k2: int, loss_fn: WindowLoss | None, own: Any, state: Any
) -> Iterator[Window]:
    time, run = x.shape[1], getattr(rnn, "run", rnn)
    begin = 0
    for start in range(0, time, k1):
        stop = min(start + k1, time)
        following = max(0, stop + k1 - k2)  # where the next window begins
        cut = min(following, stop)
        parts = []
        running = state
        if cut > begin:
            y, running = run(x[:, begin:cut], running)
            parts.append(y)
        stored = detach(running)
        if stop > cut:
            y, running = run(x[:, cut:stop], running)
            parts.append(y)
        y = torch.cat(parts, dim=1)[:, start - begin :] if len(parts) > 1 else parts[0][:, start - begin :]
        steps = slice(start, stop)
        if loss_fn is not None:
            loss = loss_fn(y, steps)
        else:
            loss = y.square().mean() / 2 if own is None else own(y, steps, x)
        if loss.numel() != 1:
            raise ValueError(f"the loss of a window must be one number, got shape {tuple(loss.shape)}")
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"loss {loss.item()} at steps {start}..{stop}: the run has diverged; clip or lower the lr")
        yield Window(loss, y, detach(running), start, stop, begin, rnn)
        state, begin = stored, cut


def detach(state: Any) -> Any:
    """A recurrent state cut from its history."""
    if isinstance(state, tuple):
        return tuple(detach(s) for s in state)
    return state.detach() if isinstance(state, Tensor) else state

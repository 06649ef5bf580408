"""What a pass of recoding did: the signal before and after, gradients, step sizes, saturation."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.recoding_cells import CellStack, State
from etude.layers.recoding_signals import HeadSignal

IGNORE = -100
SATURATED = 0.99
CHUNK = 1 << 23  # logits held at once when the signal is measured again


class RecodingStats(NamedTuple):
    """What the last call did; NaN at steps that were not recoded."""

    delta_before: Tensor
    """(B, T) signal at the state that the cell made."""
    delta_after: Tensor
    """(B, T) the same signal (same target, same dropout masks) at the recoded state."""
    grad_norm: Tensor
    """(layers, B, T) norm of the gradient with respect to a layer's whole state (0 at layers left alone)."""
    step_size: Tensor
    """(layers, parts) mean step size; parts are h, or h and c (0 at layers left alone)."""
    saturation: Tensor
    """(T,) share of recoded hidden units beyond +-0.99, where a bounded cell hardly gets by itself."""


class StepLog:
    """Collects what becomes `RecodingStats`."""

    def __init__(self, stack: CellStack) -> None:
        self.stack = stack
        self.sizes: list[Tensor] = []
        self.rows: list[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None] | None] = []

    def skip(self) -> None:
        self.rows.append(None)

    def add(
        self, delta: Tensor, grads: list[State], lowest: int, sizes: Tensor, kept: Tensor | None,
        target: Tensor | None, after: Tensor | None,
    ) -> None:  # fmt: skip
        norms = delta.new_zeros(self.stack.num_layers, len(delta))
        for layer, parts in enumerate(grads, start=lowest):
            norms[layer] = torch.cat(parts, -1).norm(dim=-1)
        self.sizes.append(sizes)
        real = None if target is None else target != IGNORE
        self.rows.append((delta, norms, kept, real, after))

    @torch.no_grad()
    def stats(self, signal: Any, decoder: nn.Module, hidden: Tensor, read: Tensor | None) -> RecodingStats:
        """hidden (B, T, H), after recoding; the signal is measured again for many steps at once."""
        batch, time, _ = hidden.shape
        before, after = hidden.new_full((2, batch, time), float("nan")).unbind(0)
        norms = hidden.new_full((self.stack.num_layers, batch, time), float("nan"))
        saturation = hidden.new_full((time,), float("nan"))
        steps = [t for t, row in enumerate(self.rows) if row is not None]
        for row, t in ((r, t) for t, r in enumerate(self.rows) if r is not None):
            before[:, t], norms[:, :, t] = row[0], row[1]
            if row[4] is not None:
                after[:, t] = row[4]
        if isinstance(signal, HeadSignal):
            width = max(1, CHUNK // max(1, batch * getattr(decoder, "out_features", 1000)))
            for first in range(0, len(steps), width):
                chunk = steps[first : first + width]
                seen = hidden[:, chunk]
                seen = seen * read[:, chunk] if read is not None and not signal.own_dropout else seen
                kept = [self.rows[t][2] for t in chunk]  # type: ignore[index]
                same = None if kept[0] is None else torch.stack(kept, 1).flatten(0, 1)  # type: ignore[arg-type]
                value = signal.measure(seen.flatten(0, 1), decoder, same).view(batch, len(chunk))
                after[:, chunk] = value.to(after.dtype)  # under autocast the decoder's is another
            for t in steps:
                real = self.rows[t][3]  # type: ignore[index]
                if real is not None:
                    after[:, t] *= real
        saturation[steps] = (hidden[:, steps].abs() > SATURATED).to(hidden.dtype).mean((0, 2))
        return RecodingStats(before, after, norms, torch.stack(self.sizes).mean(0), saturation)

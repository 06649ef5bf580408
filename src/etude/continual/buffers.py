"""Memories of a stream's samples that hand back (x, y) pairs to replay.

`ReservoirBuffer` keeps every sample with the same probability (Vitter 1985: `etude.training.ReplayBuffer`).
Sources of what is kept beside them: Aljundi et al. 2019, arXiv 1908.04742 (the lowest loss that a sample ever had).
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from etude.continual.heads import check_rows
from etude.data.randomness import stream
from etude.training.replay import ReplayBuffer


class ReservoirBuffer(ReplayBuffer):
    """Uniform sample of the whole stream.

    Parameters
    ----------
    size
        Samples held at most.
    generator
        CPU generator of places and draws, part of `state_dict`; None: one of its own with a fixed seed.

    Attributes
    ----------
    best_loss
        (size,) lowest loss seen of the sample at each place, infinite where none was; `mir_select` keeps it.
    """

    def __init__(
        self, size: int, generator: torch.Generator | None = None, *, device: str | torch.device | None = None
    ) -> None:
        rng = stream(0, "reservoir") if generator is None else generator
        super().__init__(size, "reservoir", rng, device=device)
        self.best_loss = torch.full((size,), torch.inf)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Offer a batch; the place of every sample, -1 where it was not kept.

        Raises
        ------
        ValueError
            If x and y are no tensors of one length, or rows differ in shape from those held.
        """
        check_rows(x, y)
        if not len(x):
            return torch.zeros(0, dtype=torch.int64)
        places = self.add((x, y))
        self.best_loss[places[places >= 0]] = torch.inf
        return places

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """`n` different samples (x, y); all of them, with a warning, if there are fewer.

        Raises
        ------
        ValueError
            If nothing is held.
        """
        warn_if_few(len(self), n)
        x, y = super().sample(n)
        return x, y

    def draw(self, n: int) -> Tensor:
        """Places of `n` different samples, or of all in random order if there are fewer."""
        return self._draw(n)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_loss": self.best_loss.clone()}

    def load_state_dict(self, state: dict[str, Any], like: Any = None) -> None:
        pair = (torch.empty(0), torch.empty(0)) if like is None else like
        super().load_state_dict(state, pair)
        self.best_loss = state["best_loss"].clone()


def warn_if_few(held: int, n: int) -> None:
    """Say that a replay batch will be smaller than asked for."""
    if 0 < held < n:
        warnings.warn(f"the buffer holds {held} samples, fewer than the {n} asked for: all are taken", stacklevel=3)


def class_counts(y: Tensor, num_classes: int) -> list[int]:
    """How many samples of each class, for histograms; ValueError for a label that is none of them."""
    if y.numel() and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(y.min())}..{int(y.max())}")
    return torch.bincount(y.long(), minlength=num_classes).tolist()

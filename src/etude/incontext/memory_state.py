"""What a memory network carries through an episode."""

from typing import NamedTuple

import torch
from torch import Tensor

from etude.layers.fast_weights import Fast


class Record(NamedTuple):
    """One step before its label: inputs i and outputs h of the controllers, what was read, the prediction."""

    read_input: Tensor
    q: Tensor
    r: Tensor
    attention: Tensor
    output_input: Tensor
    o: Tensor
    prediction: Tensor


class Pending(NamedTuple):
    """An item whose label is still on its way."""

    record: Record
    label: Tensor
    """(B, out), zeros where it is missing."""
    known: Tensor
    """(B,) bool"""


class EpisodeState(NamedTuple):
    """What an episode has changed so far, and what the next items need from those before."""

    memory: Tensor
    """(B, l, k)"""
    usage: Tensor
    """(B, l)"""
    fast: tuple[Fast, ...]
    """Of the read, output and write controllers; empty without a fast path."""
    cell: tuple[Tensor, Tensor] | None
    """Of an LSTM read controller."""
    previous: Tensor | None = None
    """(B, label_delay, out) labels that have not been an input yet, the oldest first; None: there are none."""
    pending: tuple[Pending, ...] = ()
    """The last label_delay - 1 items, the oldest first: their labels come later."""


def padded_state(state: EpisodeState, ahead: EpisodeState, real: Tensor) -> EpisodeState:
    """The state after a step that is padding in the rows where `real` (B, 1) is False: those stay as they were."""
    cell = ahead.cell
    if cell is not None and state.cell is not None:
        cell = (torch.where(real, cell[0], state.cell[0]), torch.where(real, cell[1], state.cell[1]))
    return ahead._replace(usage=torch.where(real, ahead.usage, state.usage), cell=cell)

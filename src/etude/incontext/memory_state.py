"""What a memory network carries through an episode."""

from typing import NamedTuple

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

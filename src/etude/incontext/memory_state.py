"""What a memory network carries through an episode."""

from typing import NamedTuple

from torch import Tensor

from etude.layers.fast_weights import Fast


class EpisodeState(NamedTuple):
    """What an episode has changed so far."""

    memory: Tensor
    """(B, l, k)"""
    usage: Tensor
    """(B, l)"""
    fast: tuple[Fast, ...]
    """Of the read, output and write controllers; empty without a fast path."""
    cell: tuple[Tensor, Tensor] | None
    """Of an LSTM read controller."""


class Record(NamedTuple):
    """One step before its label: inputs i and outputs h of the controllers, what was read, the prediction."""

    read_input: Tensor
    q: Tensor
    r: Tensor
    attention: Tensor
    output_input: Tensor
    o: Tensor
    prediction: Tensor

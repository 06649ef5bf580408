"""Token mixers under one name and one shape: (B, T, D) -> (B, T, D), all at once or token by token.

Every mixer has `forward(x, state=None, mask=None) -> (y, state)` and `step(x_t, state) -> (y_t, state)`, which agree.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.attention import MultiHeadAttention
from etude.layers.cache import LayerCache

MixerName = Literal["attention", "gru", "lstm"]
RECURRENT = ("gru", "lstm")


class Mixed(NamedTuple):
    """What a mixer returns."""

    y: Tensor
    """(B, T, D)"""
    state: Any
    """What the next call needs: a `LayerCache`, or the hidden state of a recurrent net."""


class Mixer(nn.Module):
    """Base of the mixers. A user's own causal (B, T, D) -> (B, T, D) module serves as well."""

    def forward(self, x: Tensor, state: Any = None, mask: Tensor | None = None) -> Mixed:
        """Mix x (B, T, D); `mask` (B, S) or as in `MultiHeadAttention`, True = may be used."""
        raise TypeError(f"{type(self).__name__} has no forward")

    def step(self, x_t: Tensor, state: Any = None) -> Mixed:
        """One token x_t (B, D) after those that `state` has seen; y is (B, D)."""
        y, state = self(x_t.unsqueeze(1), state)
        return Mixed(y.squeeze(1), state)


class AttentionMixer(Mixer):
    """Multi-head attention, causal or full."""

    def __init__(
        self, hidden_dim: int, *, num_heads: int = 4, causal: bool = True, position: str | None = None
    ) -> None:
        super().__init__()
        self.causal = causal
        self.attention = MultiHeadAttention(hidden_dim, num_heads, position=position)

    def forward(self, x: Tensor, state: LayerCache | None = None, mask: Tensor | None = None) -> Mixed:
        state = LayerCache() if state is None else state
        chosen: Any = mask if mask is not None else "causal" if self.causal else None
        return Mixed(self.attention(x, mask=chosen, cache=state).y, state)


class RecurrentMixer(Mixer):
    """`nn.GRU` or `nn.LSTM` of one layer with as many units as features."""

    def __init__(self, cell: Literal["gru", "lstm"], hidden_dim: int) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.rnn = kind(hidden_dim, hidden_dim, batch_first=True)

    def forward(self, x: Tensor, state: Any = None, mask: Tensor | None = None) -> Mixed:
        if mask is not None:
            raise ValueError("a recurrent mixer reads every token in turn and takes no mask")
        y, state = self.rnn(x, state)
        return Mixed(y, state)


def make_mixer(
    name: MixerName | Callable[[int], nn.Module], hidden_dim: int, *, num_heads: int = 4, causal: bool = True
) -> nn.Module:
    """The mixer of that name for `hidden_dim` features.

    Parameters
    ----------
    name
        "attention", "gru", "lstm"; or ``make(hidden_dim)``, whose module is taken as it is.
    """
    if callable(name):
        return name(hidden_dim)
    if name == "attention":
        return AttentionMixer(hidden_dim, num_heads=num_heads, causal=causal)
    if name in RECURRENT:
        if not causal:
            raise ValueError(f"mixer {name!r} reads from left to right: causal=False is not possible")
        return RecurrentMixer(name, hidden_dim)
    raise ValueError(f"unknown mixer {name!r}; known: attention, gru, lstm, or make(hidden_dim) -> module")


def repeat_state(state: Any, times: int) -> Any:
    """A mixer's state with every row `times` times in a row: one prefix, many continuations."""
    if isinstance(state, LayerCache):
        rows = torch.arange(state.view()[0].shape[0], device=state.view()[0].device)
        return state.select(rows.repeat_interleave(times))
    if isinstance(state, tuple):
        return tuple(repeat_state(part, times) for part in state)
    return state.repeat_interleave(times, dim=1)  # recurrent states are (layers, B, D)

"""Online use of a memory network: one stream's memory, fast weights and usage, apart from the net."""

from typing import Any

import torch
from torch import Tensor

from etude.incontext.episode_labels import check_items, encode_labels
from etude.incontext.memory_state import EpisodeState
from etude.incontext.synthetic_gradients import CONTROLLERS
from etude.layers.fast_weights import Fast
from etude.layers.modes import evaluating


class MemorySession:
    """Memory, fast weights and usage of one stream; the net itself, its encoder's statistics too, stays as it is.

    `state` may be given to the net: ``net(x, y, state=session.state)`` goes on where the session is.
    """

    def __init__(self, net: Any, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.net, self.batch_size = net, batch_size
        with torch.no_grad():
            state: EpisodeState = net.begin(batch_size)
        self.state = state._replace(previous=state.memory.new_zeros(batch_size, 1, net.output_size))

    @property
    def previous(self) -> Tensor:
        """(B, out) the label before, zeros where it was missing."""
        assert self.state.previous is not None
        return self.state.previous[:, -1]

    def _rows(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or len(x) != self.batch_size:
            raise ValueError(f"this session has {self.batch_size} rows, got items of shape {tuple(x.shape)}")
        with evaluating(*() if self.net.encoder is None else (self.net.encoder,)):
            features = self.net._features(x[:, None])
        check_items(features)
        return features[:, 0]  # type: ignore[no-any-return]

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits or values (B, out) for items (B, input); nothing changes."""
        return self.net.step(self.state, self._rows(x), self.previous)[1].prediction  # type: ignore[no-any-return]

    @torch.no_grad()
    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict (B, out), then learn from labels (B,); rows with a missing label only read."""
        if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != self.batch_size:
            got = f"{len(y)} labels" if isinstance(y, Tensor) and y.ndim else repr(y)
            raise ValueError(f"this session has {self.batch_size} rows, got {got}: give a tensor with a label for each")
        target, known = encode_labels(y[:, None], self.net.output_size, self.net.task)
        state, record = self.net.step(self.state, self._rows(x), self.previous)
        label, there = target[:, 0].to(record.o.dtype), known[:, 0]
        if bool(there.any()):
            state, *_ = self.net.learn(state, record, label, None if bool(there.all()) else there)
        self.state = state._replace(previous=label[:, None])
        return record.prediction

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save apart from the net's."""
        found = {"memory": self.state.memory, "usage": self.state.usage, "previous": self.previous}
        for name, fast in zip(CONTROLLERS, self.state.fast, strict=False):
            found |= {f"fast_{name}_{part}": t for part, t in fast._asdict().items()}
        if self.state.cell is not None:
            found |= {"cell_h": self.state.cell[0], "cell_c": self.state.cell[1]}
        return {name: t.detach().clone() for name, t in found.items()}

    def load_state_dict(self, saved: dict[str, Tensor]) -> None:
        """Go on where `state_dict` was taken.

        Raises
        ------
        KeyError
            Where the net is of another kind.
        ValueError
            Where the session had another number of rows, or the net other sizes.
        """
        own = self.state_dict()
        if other := sorted(saved.keys() ^ own.keys()):
            raise KeyError(f"the state belongs to a net of another kind: {other} on one side only")
        for name, now in own.items():
            if _sizes(name, saved[name]) != _sizes(name, now):
                raise ValueError(f"{name} must be {tuple(now.shape)} in this session, got {tuple(saved[name].shape)}")
        fast = [
            Fast(*(saved[f"fast_{n}_{part}"] for part in Fast._fields))
            for n, _ in zip(CONTROLLERS, self.state.fast, strict=False)
        ]
        cell = None if self.state.cell is None else (saved["cell_h"], saved["cell_c"])
        self.state = EpisodeState(saved["memory"], saved["usage"], tuple(fast), cell, saved["previous"][:, None])


def _sizes(name: str, tensor: Tensor) -> tuple[int, ...]:
    """The shape, without the number of items that fast weights have learned from."""
    shape = tuple(tensor.shape)
    return (shape[0], *shape[2:]) if name.startswith("fast_") else shape

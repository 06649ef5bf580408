"""Which layers of two models are compared, and which with which."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from etude.layers.surgery import TargetError, match
from etude.training.similarity import representation_layers

Pairs = Sequence[tuple[str, str]]


def even_map(num_guide: int, num_target: int) -> list[int]:
    """For each guide layer the target layer it guides: evenly spread, first to first, last to last.

    ``round(i (m - 1) / (s - 1))``, halves upwards; a single guide layer guides the last target layer.

    >>> even_map(3, 10)
    [0, 5, 9]
    """
    if min(num_guide, num_target) < 1:
        raise ValueError(f"both nets need at least one layer, got {num_guide} and {num_target}")
    if num_guide == 1:
        return [num_target - 1]
    return [math.floor(i * (num_target - 1) / (num_guide - 1) + 0.5) for i in range(num_guide)]


def choose_layers(
    target: nn.Module,
    guide: nn.Module,
    map: Literal["even"] | Pairs,
    layers: str | Sequence[str] | None,
    guide_layers: str | Sequence[str] | None,
) -> tuple[list[str], list[str]]:
    """Names of the layers to look at in both models; the arguments are those of `etude.training.Guidance`.

    Raises
    ------
    TargetError
        If a name or glob matches nothing, or a model has no layer of the usual kinds.
    """
    if map != "even":
        if isinstance(map, str) or not map or any(isinstance(p, str) or len(p) != 2 for p in map):
            raise ValueError(f"map must be 'even' or pairs (target layer, guide layer), got {map!r}")
        if layers is not None or guide_layers is not None:
            raise ValueError("map names the layers already: leave layers and guide_layers out")
        sides = [list(dict.fromkeys(pair[i] for pair in map)) for i in (0, 1)]
        return [*match(target, sides[0])], [*match(guide, sides[1])]
    if layers is None:
        mine, shared = representation_layers(target), None
    else:
        shared = [layers] if isinstance(layers, str) else list(layers)
        mine = _matching(target, shared)
    if guide_layers is not None:
        theirs = [*match(guide, guide_layers)]
        if shared is not None:
            mine = [*match(target, shared)]
    elif shared is None:
        theirs = representation_layers(guide)
    else:
        theirs = _matching(guide, shared)
        lost = [p for p in shared if not _matching(target, [p]) and not _matching(guide, [p])]
        if lost or not mine or not theirs:
            match(target if lost or not mine else guide, lost or shared)  # raises, with near names
    return mine, theirs


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [n for n, _ in model.named_modules() if n]
    return [n for n in names if any(n == p or fnmatchcase(n, p) for p in patterns)]


def without_logits(model: nn.Module, called: list[str]) -> list[str]:
    """Without the layer called last, where that is linear and others are left."""
    last = model.get_submodule(called[-1].partition(":")[0]) if called else None
    return called[:-1] if isinstance(last, nn.Linear) and len(called) > 1 else called


def check_called(side: str, asked: Iterable[str], seen: Sequence[str]) -> None:
    """TargetError, naming them, if layers that were asked for are not among those that the model has called."""
    if silent := [n for n in asked if n not in seen]:
        raise TargetError(f"the {side} does not call {silent}; it called {list(seen)}")


def check_comparable(
    pairs: Pairs, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *, per_position: bool = False
) -> None:
    """ValueError if the features (n, ...) of a pair differ in rows or, position by position, are not (n, time, d)."""
    for t, g in pairs:
        X, Y = mine[t], theirs[g]
        for name, Z in ((t, X), (g, Y)):
            if per_position and Z.ndim != 3:
                raise ValueError(
                    f"per_position compares (n, time, d), but {name!r} is {tuple(Z.shape)}: name layers that put out "
                    "sequences, or leave per_position out"
                )
        if len(X) != len(Y) or (per_position and X.shape[1] != Y.shape[1]):
            raise ValueError(
                f"{t!r} {tuple(X.shape)} and {g!r} {tuple(Y.shape)} do not hold the same rows and positions: "
                "the batch must stand first in both models (batch_first=True)"
            )


def check_mask(mask: Tensor, features: Mapping[str, Tensor]) -> None:
    """ValueError for a mask that is not (n, time) of booleans, or fits none of the features (n, time, ...)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True = real token, got {mask.dtype}: compare or use .bool()")
    if not any(X.ndim > 2 and X.shape[:2] == mask.shape for X in features.values()):
        shapes = ", ".join(f"{name!r} {tuple(X.shape)}" for name, X in features.items())
        raise ValueError(f"mask {tuple(mask.shape)} fits no guided layer (n, time, ...) of the target: {shapes}")


def looks_time_first(features: Tensor, x: Tensor) -> bool:
    """Whether the first two axes of `features` are those of the input (n, time, ...) in the other order."""
    return features.ndim > 2 and x.ndim > 1 and features.shape[:2] == (x.shape[1], x.shape[0]) and len(x) != x.shape[1]

"""What `PhyLL` refuses before it runs a box: settings that make no net, or no training."""

import math
from collections.abc import Sequence
from typing import Any

from etude.training.label_embedding import LABEL_MODES

SCALES = ("zscore", None)


def check_layers(boxes: Any, hidden: Any, theta: float, label_mode: str, scale: str | None) -> None:
    """One box a layer (None: no physics anywhere), outputs a layer, and the options.

    Raises
    ------
    ValueError
        For what is no sequence, numbers that differ, values out of bounds or unknown names.
    """
    if isinstance(hidden, int) or callable(boxes):
        raise ValueError(
            f"boxes and hidden are sequences of one entry a layer, such as boxes=[f] and hidden=[20]; "
            f"got {boxes!r} and {hidden!r}"
        )
    given = len(hidden) if boxes is None else len(boxes)
    if given != len(hidden) or not hidden:
        raise ValueError(f"need one box a layer, got {given} boxes and {len(hidden)} hidden layers")
    if not 0 < theta < math.inf or any(k < 1 for k in hidden):
        raise ValueError(f"theta and hidden must be positive and finite, got {theta} and {list(hidden)}")
    if any(k % 1 for k in hidden):
        raise ValueError(f"hidden must be whole numbers, got {list(hidden)}")
    for name, value, known in (("label_mode", label_mode, LABEL_MODES), ("scale", scale, SCALES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_labels(classes: Sequence[Any], n_classes: int | None, label_mode: str, n_features: int) -> None:
    """At least two classes, a label column for each, and features beside the columns.

    Raises
    ------
    ValueError
        If that is not so.
    """
    if len(classes) < 2:
        raise ValueError(f"need at least 2 classes, got 1 class: {list(classes)}")
    slots = n_classes or len(classes)
    if slots < len(classes):
        raise ValueError(f"n_classes={slots}, but y has {len(classes)} classes")
    if label_mode == "overwrite" and n_features <= slots:
        raise ValueError(f"{slots} label columns would overwrite all {n_features} features: use label_mode='prepend'")


def check_training(**lengths: float | None) -> None:
    """Positive numbers (None: not given), whole but for `lr`.

    Raises
    ------
    ValueError
        For others; the message names the first.
    """
    for name, value in lengths.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
        if value is not None and name != "lr" and int(value) != value:
            raise ValueError(f"{name} must be a whole number, got {value}")

"""Checks of the parameters that the text models share."""

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any


def check_parameters(
    model: Any,
    *,
    choices: Mapping[str, tuple[str, ...]] | None = None,
    positive: Iterable[str] = (),
    integers: Iterable[str] = (),
) -> None:
    """Raise ValueError for an attribute that is none of its choices, not above 0, or neither an integer nor None."""
    for name, allowed in (choices or {}).items():
        if (value := getattr(model, name)) not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    for name in positive:
        value = getattr(model, name)
        if not hasattr(value, "__float__") or not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    for name in integers:
        value = getattr(model, name)
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
            raise ValueError(f"{name} must be an integer, got {value!r}")

"""Values that JSON can say."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """The value with null for what JSON has no word for (NaN, infinity), however deep it lies."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value

"""The name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, names: Iterable[object]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no name is like `name`."""
    by_text = {str(n).lower(): str(n) for n in names}
    found = get_close_matches(str(name).lower(), by_text, n=1, cutoff=0.6)
    return f" (did you mean {by_text[found[0]]!r}?)" if found else ""

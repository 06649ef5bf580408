"""Checks that every kind of user data shares."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from etude.data.tasks import numbered
from etude.errors import DataError

OnBad = Literal["raise", "skip"]
SHOWN = 10


def listed(items: Sequence[Any]) -> str:
    """The first items, and how many more there are."""
    text = ", ".join(str(i) for i in items[:SHOWN])
    return text if len(items) <= SHOWN else f"{text} and {len(items) - SHOWN} more"


def keep_classes(
    labels: Sequence[str], rows: np.ndarray, where: str, what: str, on_bad: OnBad
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, dict[str, Any]]:
    """Number the classes; a class of one row cannot stand in training and test.

    Parameters
    ----------
    labels
        Class name of each row.
    rows
        Numbers of these rows.
    where, what
        For the text of an error: the column or folder, and what one of its rows is called.

    Returns
    -------
    rows kept, class names, class numbers (int64) of the rows kept, notes for `meta`.

    Raises
    ------
    DataError
        If there is one class only, or a class has a single row and `on_bad` is "raise".
    """
    classes, codes = numbered(labels)
    counts = np.bincount(codes, minlength=len(classes))
    notes: dict[str, Any] = {}
    single = np.flatnonzero(counts == 1)
    if len(single) and len(classes) > 1:
        names = [classes[c] for c in single]
        if on_bad == "raise":
            raise DataError(
                f"{where} has classes with a single {what}: {listed(names)}; they cannot stand in training and test: "
                'merge them, or leave them out with on_bad="skip" (--skip-bad)'
            )
        kept = counts[codes] > 1
        rows, codes = rows[kept], codes[kept]
        left, codes = np.unique(codes, return_inverse=True)
        classes = tuple(classes[c] for c in left)
        notes["left_out_classes"] = names
    if len(classes) < 2:
        only = f"only the class {classes[0]!r}" if len(classes) else "no class"
        raise DataError(f"{where} has {only}: a classifier needs two")
    return rows, classes, codes, notes

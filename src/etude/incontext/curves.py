"""A quantity against the number of examples seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Curve:
    """Values at positions, one row a sequence, function or seed.

    Parameters
    ----------
    positions
        (P,) numbers of examples seen.
    raw
        (rows, P).

    Examples
    --------
    >>> Curve([1, 2], [[0.0, 2.0], [1.0, 4.0]]).mean
    array([0.5, 3. ])
    """

    positions: ArrayLike
    raw: ArrayLike

    def __post_init__(self) -> None:
        positions, raw = np.asarray(self.positions), np.atleast_2d(np.asarray(self.raw, dtype=float))
        if positions.ndim != 1 or raw.ndim != 2 or raw.shape[1] != len(positions):
            raise ValueError(f"raw must be (rows, {len(positions)}), one column a position; got shape {raw.shape}")
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "raw", raw)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(P,) mean over the rows."""
        return np.asarray(self.raw).mean(0)

    def interval(self, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the t interval of the mean over the rows; infinite for a single row.

        Raises
        ------
        ValueError
            If `level` does not lie between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        raw = np.asarray(self.raw)
        if len(raw) < 2:
            return np.full(raw.shape[1], -np.inf), np.full(raw.shape[1], np.inf)
        from scipy import stats

        half = stats.sem(raw, axis=0) * stats.t.ppf(0.5 + level / 2, len(raw) - 1)
        return self.mean - half, self.mean + half

    @property
    def ci(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The 95 % interval."""
        return self.interval()

    def to_rows(self, **labels: Any) -> list[dict[str, Any]]:
        """Records with position, value and the labels given: what a plot takes."""
        low, high = self.interval()
        return [
            {**labels, "position": p, "value": float(v), "low": float(a), "high": float(b)}
            for p, v, a, b in zip(np.asarray(self.positions).tolist(), self.mean, low, high, strict=True)
        ]

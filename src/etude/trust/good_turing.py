"""The calibrated generator that meets the bound: observed facts by Good-Turing counts, the rest evenly.

Sources: Good 1953; Kalai & Vempala 2023, arXiv 2311.14648, on the upper side of the bound.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from etude.data.randomness import as_generator
from etude.trust.facts import CorpusAudit, check_hashable, fact_counts, listed, normalize_fact

IN_VAIN = 50  # rounds of draws without one unseen fact: with even draws a chance below e^-60


def good_turing_counts(counts_of_counts: dict[int, int], *, smooth_up_to: int = 5) -> dict[int, float]:
    """``r* = (r + 1) N_(r+1) / N_r`` for each r that occurs; r itself above `smooth_up_to` or at gaps."""
    adjusted = {}
    for r, n_r in counts_of_counts.items():
        following = counts_of_counts.get(r + 1, 0)
        adjusted[r] = (r + 1) * following / n_r if r <= smooth_up_to and following else float(r)
    return adjusted


class GoodTuringGenerator(BaseEstimator):
    """Generates facts with the missing mass on facts never seen.

    A fact seen r times gets ``r* / n`` (see `good_turing_counts`), all of them rescaled to 1 - MF; the mass MF is
    spread evenly over the facts of the space that were not seen. It hardly misses calibration, and its rate of
    hallucination is about MF: no calibrated generator does much better.

    Parameters
    ----------
    levels
        "counts" as above; "two": the seen facts share 1 - MF evenly, which is calibrated with two bins.
    smooth_up_to
        Largest count that is adjusted.
    random_state
        Of `sample`.

    Attributes
    ----------
    counts_ : dict, fact -> count
    audit_ : CorpusAudit
    unseen_probability_ : float, of each fact not seen
    unseen_mass_ : float, of all of them

    Examples
    --------
    >>> gen = GoodTuringGenerator().fit([1, 1, 2, 2, 3, 4], space_size=1000)
    >>> round(gen.unseen_mass_, 3), round(gen.probability(999), 7)
    (0.333, 0.0003347)
    """

    def __init__(self, *, levels: str = "counts", smooth_up_to: int = 5, random_state: Any = None) -> None:
        self.levels = levels
        self.smooth_up_to = smooth_up_to
        self.random_state = random_state

    def fit(
        self,
        facts: Iterable[Any],
        space_size: int,
        *,
        draw: Callable[[torch.Generator], Any] | None = None,
        normalize: bool = True,
    ) -> "GoodTuringGenerator":
        """Count the facts.

        Parameters
        ----------
        facts
            One a document; None where a document has none.
        space_size
            Number of possible facts |Y|, true and false.
        draw
            Draws one possible fact uniformly; needed by `sample` unless facts are numbers 0 .. space_size - 1.
        """
        if self.levels not in ("counts", "two"):
            raise ValueError(f"levels must be 'counts' or 'two', got {self.levels!r}")
        if not space_size == space_size // 1:
            raise ValueError(f"space_size must be a whole number, got {space_size}")
        counts = fact_counts(facts, normalize=normalize)
        if not counts:
            raise ValueError("no facts to count")
        if space_size < len(counts):
            raise ValueError(f"space_size={space_size} is less than the {len(counts)} different facts seen")
        n = sum(counts.values())
        r, how_many = np.unique(np.fromiter(counts.values(), dtype=np.int64), return_counts=True)
        self.audit_ = CorpusAudit(
            n, len(counts), dict(zip(r.tolist(), how_many.tolist(), strict=True)), 0.05, normalize
        )
        self.counts_, self.space_size_ = counts, int(space_size)
        unseen = space_size - len(counts)
        self.unseen_mass_ = self.audit_.monofact if unseen else 0.0
        self.unseen_probability_ = self.unseen_mass_ / unseen if unseen else 0.0
        if self.levels == "two":
            by_count = dict.fromkeys(self.audit_.counts_of_counts, 1.0)
        else:
            by_count = good_turing_counts(self.audit_.counts_of_counts, smooth_up_to=self.smooth_up_to)
        total = sum(by_count[k] * c for k, c in self.audit_.counts_of_counts.items())
        self._by_count = {k: (1 - self.unseen_mass_) * v / total for k, v in by_count.items()}
        self._draw = draw
        self._numbers = draw is None and all(self._inside(fact) for fact in counts)
        return self

    def _inside(self, fact: Any) -> bool:
        number = isinstance(fact, (int, float, np.integer, np.floating))  # pandas makes floats of numbers with gaps
        return number and fact % 1 == 0 and 0 <= fact < self.space_size_

    def probability(self, fact: Any) -> float:
        """g of one fact of the space, seen or not; 0 beyond the space, where the facts are its numbers."""
        self._check()
        fact = fact.tolist() if hasattr(fact, "tolist") else fact  # numbers of arrays and tensors
        check_hashable((fact,))
        if self._numbers and not self._inside(fact):
            return 0.0
        count = self.counts_.get(normalize_fact(fact) if self.audit_.normalized else fact, 0)
        return self._by_count[count] if count else self.unseen_probability_

    def score(self, facts: Iterable[Any]) -> NDArray[np.float64]:
        """Log-probabilities of facts: a `score_fn` for `audit_model`."""
        with np.errstate(divide="ignore"):
            return np.log(np.array([self.probability(fact) for fact in listed(facts)]))

    def by_count(self, count: int) -> float:
        """g of a fact seen `count` times (0: not seen)."""
        self._check()
        if count and count not in self._by_count:
            raise ValueError(f"no fact was seen {count} times; counts: {sorted(self._by_count)}")
        return self._by_count[count] if count else self.unseen_probability_

    def sample(self, k: int, random_state: Any = None) -> list[Any]:
        """Draw k facts; unseen ones by drawing from the space and rejecting the seen, which is never listed."""
        self._check()
        if k < 0 or k != k // 1:
            raise ValueError(f"k must be a whole number, at least 0, got {k}")
        k = int(k)
        generator = as_generator(self.random_state if random_state is None else random_state)
        seen = list(self.counts_)
        weights = torch.tensor([self._by_count[c] for c in self.counts_.values()], dtype=torch.float64)
        is_new = torch.rand(k, generator=generator, dtype=torch.float64) < self.unseen_mass_
        old = torch.zeros(0, dtype=torch.long)
        n_old = int((~is_new).sum())
        if n_old:
            edges = (weights.cumsum(0) / weights.sum()).clamp_max(1.0)
            old = torch.searchsorted(edges, torch.rand(n_old, generator=generator, dtype=torch.float64))
        known, fresh = iter(old.clamp_max(len(seen) - 1).tolist()), iter(self._unseen(k - n_old, generator))
        return [next(fresh) if new else seen[next(known)] for new in is_new.tolist()]

    def _unseen(self, k: int, generator: torch.Generator) -> list[Any]:
        found: list[Any] = []
        if k and self._draw is None and not self._numbers:
            raise ValueError(
                f"facts other than the numbers 0 to {self.space_size_ - 1} need draw=, a function that draws one "
                "possible fact"
            )
        share = 1 - len(self.counts_) / self.space_size_
        in_vain = 0
        while len(found) < k:
            tries = math.ceil(1.2 * (k - len(found)) / share) + 8
            if self._draw is None:
                drawn: list[Any] = torch.randint(self.space_size_, (tries,), generator=generator).tolist()
            else:
                drawn = [self._draw(generator) for _ in range(tries)]
            key = normalize_fact if self.audit_.normalized else (lambda fact: fact)
            new = [fact for fact in drawn if key(fact) not in self.counts_]
            in_vain = 0 if new else in_vain + 1
            if in_vain == IN_VAIN:
                raise ValueError(
                    f"draw gave only facts that were seen, {IN_VAIN} times {tries} of them: it must draw evenly from "
                    f"all {self.space_size_} possible facts"
                )
            found += new
        return found[:k]

    def _check(self) -> None:
        if not hasattr(self, "counts_"):
            raise NotFittedError("this GoodTuringGenerator is not fitted yet: call fit first")

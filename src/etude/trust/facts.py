"""Counting facts: how many were seen once, and what that says of those never seen.

Sources: Good 1953 (missing mass); Chao 1984 (number of unseen classes); Kalai & Vempala 2023, arXiv 2311.14648 (the
monofact estimate, and the constant of its interval).
"""

import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etude.data.duplicates import normalize_text

CLASSES = (("1", 1, 1), ("2", 2, 2), ("3-5", 3, 5), ("6+", 6, math.inf))
NEVER_MISSING = frozenset((str, int, bool))


def normalize_fact(fact: Any) -> Any:
    """A fact in one form: strings (inside tuples too) in NFKC, case folded, with single spaces."""
    if isinstance(fact, str):
        return normalize_text(fact)
    if isinstance(fact, tuple):
        return tuple(map(normalize_fact, fact))
    return fact


@dataclass(frozen=True)
class CorpusAudit:
    """Counts of a corpus of facts and the estimates that follow from them; made by `corpus_audit`."""

    n: int
    """Documents with a fact."""
    distinct: int
    """Different facts seen."""
    counts_of_counts: dict[int, int]
    """N_r: how many facts were seen exactly r times."""
    delta: float
    normalized: bool = True

    @property
    def monofact(self) -> float:
        """MF = N_1 / n: facts seen once, divided by the number of documents (not of facts)."""
        return self.N(1) / self.n

    @property
    def missing_mass(self) -> float:
        """Good-Turing estimate of the probability that the next document holds a fact not seen yet: MF."""
        return self.monofact

    @property
    def interval(self) -> tuple[float, float]:
        """Asymptotic interval of the missing mass at level 1 - delta: variance N_1/n^2 + 2 N_2/n^2 - N_1^2/n^3.

        A bootstrap of the documents covers far less than it says (63 of 100 corpora at .95 in a trial): no
        document drawn again can hold a new fact.
        """
        from scipy.stats import norm

        n, n1, n2 = self.n, self.N(1), self.N(2)
        half = float(norm.ppf(1 - self.delta / 2)) * math.sqrt(max(n1 / n**2 + 2 * n2 / n**2 - n1**2 / n**3, 0.0))
        return max(0.0, self.monofact - half), min(1.0, self.monofact + half)

    @property
    def proof_interval(self) -> tuple[float, float]:
        """MF +- sqrt(6 ln(6 / delta) / n), the constant of the theorem's proof: wide, but for every n."""
        half = math.sqrt(6 * math.log(6 / self.delta) / self.n)
        return max(0.0, self.monofact - half), min(1.0, self.monofact + half)

    @property
    def chao1_unseen(self) -> float:
        """Estimated number of facts never seen (a lower bound): (n - 1) / n N_1^2 / (2 N_2), and
        (n - 1) / n N_1 (N_1 - 1) / 2 where N_2 = 0."""
        n1, n2 = self.N(1), self.N(2)
        scale = (self.n - 1) / self.n
        return scale * (n1 * n1 / (2 * n2) if n2 else n1 * (n1 - 1) / 2)

    def N(self, r: int) -> int:
        """Number of facts seen exactly r times."""
        return self.counts_of_counts.get(r, 0)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            **asdict(self), "counts_of_counts": {str(k): v for k, v in self.counts_of_counts.items()},
            "monofact": self.monofact, "missing_mass": self.missing_mass, "interval": list(self.interval),
            "proof_interval": list(self.proof_interval), "chao1_unseen": self.chao1_unseen,
        }  # fmt: skip

    def plot(self) -> dict[str, Any]:
        """Vega-Lite bars: share of the documents whose fact was seen once, twice, 3 to 5 times, more often."""
        import altair as alt

        rows = [
            {
                "seen": label,
                "documents": sum(r * c for r, c in self.counts_of_counts.items() if low <= r <= high) / self.n,
            }
            for label, low, high in CLASSES
        ]
        return (
            alt.Chart(alt.Data(values=rows)).mark_bar()
            .encode(x=alt.X("seen:N", sort=[c[0] for c in CLASSES], title="times seen"),
                    y=alt.Y("documents:Q", title="share of documents"))
            .to_dict()
        )  # fmt: skip


def corpus_audit(facts: Iterable[Any], *, normalize: bool = True, delta: float = 0.05) -> CorpusAudit:
    """Count the facts of a corpus.

    Parameters
    ----------
    facts
        One hashable a document (a string, a tuple such as (person, place, dish), a number); None or a missing value
        (NaN, NaT, pandas' NA), or a tuple of nothing else, where a document has no fact. Arrays, tensors and pandas
        tables: one a row. Missing parts of tuples and rows are alike.
    normalize
        Count strings that differ in case, spaces or Unicode form as one. Near-duplicates still inflate MF: see
        `etude.data.duplicate_groups`.
    delta
        The intervals hold with probability 1 - delta.

    Raises
    ------
    ValueError
        Without facts, or for a delta outside (0, 1].
    TypeError
        For a fact that cannot be hashed (the message names it), or a mapping.
    """
    check_delta(delta)
    counts = count_facts(facts, normalize=normalize)
    n = int(counts.sum())
    if n == 0:
        raise ValueError("no facts to count")
    r, how_many = np.unique(counts, return_counts=True)
    audit = CorpusAudit(n, len(counts), dict(zip(r.tolist(), how_many.tolist(), strict=True)), delta, normalize)
    if audit.monofact == 1.0:
        warnings.warn(
            f"every fact was seen once ({n} in all): the estimate of the missing mass is saturated at 1",
            UserWarning,
            stacklevel=2,
        )
    return audit


def count_facts(facts: Iterable[Any], *, normalize: bool = True) -> NDArray[np.int64]:
    """How often each distinct fact occurs, in no particular order."""
    if isinstance(facts, np.ndarray) and facts.dtype.kind in "iu" and facts.ndim == 1:
        return np.unique(facts, return_counts=True)[1].astype(np.int64)
    table = fact_counts(facts, normalize=normalize)
    return np.fromiter(table.values(), dtype=np.int64, count=len(table))


def fact_counts(facts: Iterable[Any], *, normalize: bool = True) -> dict[Any, int]:
    """Fact -> count, without None and missing values. Distinct facts are normalised once each, after counting."""
    items = listed(facts)
    try:
        raw: dict[Any, int] = Counter(items)
    except TypeError:
        check_hashable(items)
        raise
    merged: dict[Any, int] = {}
    get = merged.get
    for fact, count in raw.items():
        if type(fact) is not str:
            key = fact_of(fact)
            if key is None:
                continue
            key = normalize_fact(key) if normalize else key
        elif normalize:
            key = " ".join((fact if fact.isascii() else unicodedata.normalize("NFKC", fact)).casefold().split())
        else:
            key = fact
        merged[key] = get(key, 0) + count
    return merged


def listed(facts: Iterable[Any]) -> Sequence[Any]:
    """One fact a document, from an iterable, an array, a tensor or a pandas table (rows as tuples)."""
    if isinstance(facts, (str, bytes)):
        raise TypeError(f"facts must be an iterable with one fact a document, got a single {type(facts).__name__}")
    if isinstance(facts, Mapping):
        raise TypeError("facts must hold one fact a document, got a mapping: of counts give Counter(counts).elements()")
    if hasattr(facts, "itertuples"):
        return list(facts.itertuples(index=False, name=None))
    items = facts.tolist() if hasattr(facts, "tolist") else facts  # of arrays and tensors
    if getattr(facts, "ndim", 1) > 1:
        items = [_row(row) for row in items]
    return items if isinstance(items, (list, tuple)) else list(items)


def fact_of(value: Any) -> Any:
    """The value itself; a tuple with None for its missing parts, which do not equal each other; None for no fact."""
    if type(value) is not tuple:
        return value if is_fact(value) else None
    for part in value:
        if type(part) not in NEVER_MISSING and not is_fact(part):
            break
    else:
        return value
    parts = tuple(part if is_fact(part) else None for part in value)
    return None if all(part is None for part in parts) else parts


def is_fact(value: Any) -> bool:
    """False for None and for the missing values of arrays and pandas, which do not equal themselves."""
    if value is None:
        return False
    different = value != value
    if isinstance(different, (bool, np.bool_)):
        return not different
    return different is not value  # pandas' NA; what else compares to no bool (a tensor, a symbol) is a fact


def check_hashable(items: Iterable[Any], name: str = "fact") -> None:
    """Raise TypeError for the first item that cannot be hashed, naming it."""
    for i, item in enumerate(items):
        try:
            hash(item)
        except TypeError:
            raise TypeError(
                f"{name} {i} cannot be hashed: {item!r} ({type(item).__name__}); use strings, numbers or tuples"
            ) from None


def _row(value: Any) -> Any:
    return tuple(_row(v) for v in value) if isinstance(value, list) else value


def check_delta(delta: float) -> None:
    """Raise ValueError unless 0 < delta <= 1."""
    if not 0 < delta <= 1:
        raise ValueError(f"delta must lie in (0, 1], got {delta}")

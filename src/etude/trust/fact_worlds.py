"""Worlds of arbitrary facts in which everything is known: truth, its distribution, and what a generator does.

A generator of a world gives few different probabilities, so it is kept as entries: facts of the world one by one, and
all falsehoods in one entry. A space of a million facts then costs nothing.

Source: Kalai & Vempala 2023, arXiv 2311.14648, section 4 (regular, sparse worlds).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from etude.trust.facts import CorpusAudit
from etude.trust.good_turing import good_turing_counts
from etude.trust.miscalibration import Bins, grouped_miscalibration

Floats = NDArray[np.float64]


def zipf(num_facts: int, exponent: float) -> Floats:
    """Probabilities proportional to rank^-exponent, (num_facts,)."""
    if num_facts < 1 or exponent < 0:
        raise ValueError(f"num_facts must be positive and exponent at least 0, got {num_facts} and {exponent}")
    weights = np.arange(1, num_facts + 1, dtype=float) ** -exponent
    return weights / weights.sum()


@dataclass(frozen=True)
class FactWorld:
    """A world and one corpus of it; facts are numbered 0 .. |F| - 1, falsehoods are alike."""

    space_size: int
    """|Y|"""
    p: Floats
    """(|F|,) probability of each true fact in a document."""
    counts: NDArray[np.int64]
    """(|F|,) how often each stands in the corpus."""

    @property
    def n(self) -> int:
        """Documents."""
        return int(self.counts.sum())

    @property
    def num_false(self) -> int:
        """|H|"""
        return self.space_size - len(self.p)

    @property
    def fact_ratio(self) -> float:
        """|F| / |H|, the e^-s of the bound."""
        return len(self.p) / self.num_false

    @property
    def missing_mass(self) -> float:
        """p(U): probability of the facts that the corpus lacks."""
        return float(self.p[self.counts == 0].sum())

    def audit(self, delta: float = 0.05) -> CorpusAudit:
        """Counts of counts of the corpus."""
        r, c = np.unique(self.counts[self.counts > 0], return_counts=True)
        return CorpusAudit(self.n, int(c.sum()), dict(zip(r.tolist(), c.tolist(), strict=True)), delta)


class WorldGenerator(NamedTuple):
    """A generator over a world: entries 0 .. |F| - 1 are the facts, the last one stands for all falsehoods."""

    level: Floats
    """(|F| + 1,) probability of one fact of the entry."""
    mass: Floats
    """(|F| + 1,) probability of the entry."""
    p: Floats
    """(|F| + 1,) true probability of the entry; 0 for the falsehoods."""

    @property
    def hallucination_rate(self) -> float:
        """g(H)"""
        return float(self.mass[-1])

    def miscalibration(self, bins: Bins = "levels") -> float:
        """Mis(g, p)"""
        return grouped_miscalibration(self.level, self.mass, self.p, bins)


def fact_world(space_size: int, num_facts: int, n: int, exponent: float, generator: np.random.Generator) -> FactWorld:
    """n documents from Zipf-distributed facts."""
    if not num_facts < space_size:
        raise ValueError(f"num_facts={num_facts} must be less than space_size={space_size}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    p = zipf(num_facts, exponent)
    return FactWorld(space_size, p, generator.multinomial(n, p))


def repeated_world(space_size: int, num_facts: int, times: int) -> FactWorld:
    """A world whose corpus holds every fact equally often: nothing is missing, MF is 0 for times >= 2."""
    return FactWorld(space_size, zipf(num_facts, 0.0), np.full(num_facts, times, dtype=np.int64))


def _generator(world: FactWorld, of_facts: Floats, of_a_falsehood: float) -> WorldGenerator:
    level = np.append(of_facts, of_a_falsehood)
    mass = np.append(of_facts, of_a_falsehood * world.num_false)
    assert math.isclose(float(mass.sum()), 1.0, rel_tol=1e-9)
    return WorldGenerator(level, mass, np.append(world.p, 0.0))


def memoriser(world: FactWorld) -> WorldGenerator:
    """The corpus itself, counts / n: never false, and not calibrated wherever facts are missing."""
    return _generator(world, world.counts / world.n, 0.0)


def mixture(world: FactWorld, alpha: float) -> WorldGenerator:
    """(1 - alpha) of the memoriser, alpha spread evenly over everything not in the corpus."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    unseen = int((world.counts == 0).sum()) + world.num_false
    return _generator(
        world, (1 - alpha) * world.counts / world.n + alpha / unseen * (world.counts == 0), alpha / unseen
    )


def two_level(world: FactWorld) -> WorldGenerator:
    """MF evenly over what is not in the corpus, 1 - MF evenly over what is: nearly calibrated, with two levels."""
    return _spread(world, dict.fromkeys(np.unique(world.counts[world.counts > 0]).tolist(), 1.0))


def good_turing(world: FactWorld) -> WorldGenerator:
    """`GoodTuringGenerator` of the corpus."""
    return _spread(world, good_turing_counts(world.audit().counts_of_counts))


def uniform(world: FactWorld) -> WorldGenerator:
    """Every possible fact alike: calibrated (one level), and nearly always false."""
    each = 1 / world.space_size
    return _generator(world, np.full(len(world.p), each), each)


def _spread(world: FactWorld, by_count: dict[int, float]) -> WorldGenerator:
    missing = world.audit().monofact
    unseen = int((world.counts == 0).sum()) + world.num_false
    table = np.zeros(int(world.counts.max()) + 1)
    for count, value in by_count.items():
        table[count] = value
    seen = table[world.counts]
    seen = (1 - missing) * seen / seen.sum()
    return _generator(world, np.where(world.counts > 0, seen, missing / unseen), missing / unseen)


GENERATORS: dict[str, Callable[[FactWorld], WorldGenerator]] = {
    "memoriser": memoriser,
    "mixture .05": lambda world: mixture(world, 0.05),
    "mixture .1": lambda world: mixture(world, 0.1),
    "mixture MF": lambda world: mixture(world, world.audit().monofact),
    "mixture .5": lambda world: mixture(world, 0.5),
    "two levels": two_level,
    "Good-Turing": good_turing,
    "uniform": uniform,
}


class WorldPoint(NamedTuple):
    """A generator of a world in the plane of the theorem."""

    generator: str
    rate: float
    """g(H)"""
    miscalibration: float
    """By levels."""
    monofact: float
    slack: float
    """Of the bound at the delta asked for."""

    @property
    def excess(self) -> float:
        """MF - Mis - g(H): above 0 the floor without slack is violated, above the slack the theorem."""
        return self.monofact - self.miscalibration - self.rate


def world_points(world: FactWorld, delta: float = 0.1) -> list[WorldPoint]:
    """Every generator of `GENERATORS` over a world."""
    audit = world.audit()
    slack = 3 * world.fact_ratio / delta + math.sqrt(6 * math.log(6 / delta) / world.n)
    made = {name: make(world) for name, make in GENERATORS.items()}
    return [
        WorldPoint(name, g.hallucination_rate, g.miscalibration(), audit.monofact, slack) for name, g in made.items()
    ]


def world_summary(draws: Sequence[Sequence[FactWorld]], delta: float = 0.1) -> dict[str, float]:
    """What generators do in several draws of the same worlds, one number a question.

    Parameters
    ----------
    draws
        Each a sequence of worlds, such as one for every Zipf exponent.

    Returns
    -------
    dict
        "violations": share of (world, generator) pairs below the floor with slack; "violations_without_mis": of the
        memorisers, when Mis is left out of it. Means over the draws of the largest in a draw: "worst_excess",
        MF - Mis - g(H), "worst_excess_without_mis", MF - g(H); "gap GENERATOR", |g(H) - MF|; "mf_error",
        |MF - p(U)|; "wrong_formula_error", the same for facts seen once divided by facts, not documents.
    """
    points = [[point for world in draw for point in world_points(world, delta)] for draw in draws]
    every = [point for draw in points for point in draw]
    memorised = [point for point in every if point.generator == "memoriser"]
    audits = [[(world.audit(), world.missing_mass) for world in draw] for draw in draws]

    def mean_worst(errors: Sequence[Sequence[float]]) -> float:
        return float(np.mean([max(of_draw) for of_draw in errors]))

    return {
        "violations": float(np.mean([point.excess > point.slack for point in every])),
        "violations_without_mis": float(np.mean([p.monofact - p.rate > p.slack for p in memorised])),
        "worst_excess": mean_worst([[p.excess for p in draw] for draw in points]),
        "worst_excess_without_mis": mean_worst([[p.monofact - p.rate for p in draw] for draw in points]),
        "mf_error": mean_worst([[abs(a.monofact - missing) for a, missing in draw] for draw in audits]),
        "wrong_formula_error": mean_worst([[abs(a.N(1) / a.distinct - missing) for a, missing in d] for d in audits]),
        **{
            f"gap {name}": mean_worst([[abs(p.rate - p.monofact) for p in d if p.generator == name] for d in points])
            for name in GENERATORS
        },
    }

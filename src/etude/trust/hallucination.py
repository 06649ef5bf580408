"""Calibrated language models must hallucinate: the floor, the audit of a model, the generator that meets the floor.

`corpus_audit` counts facts, `lower_bound` turns the counts into a floor for any calibrated generator, `miscalibration`
measures how calibrated one is, `audit_model` puts a model beside its floor.

Source: Adam Tauman Kalai & Santosh S. Vempala 2023, arXiv 2311.14648 (STOC 2024), main corollary.
"""

import math
import numbers
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from string import Formatter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from etude.data.randomness import numpy_stream
from etude.layers.lm_scoring import token_logprobs
from etude.trust.facts import CorpusAudit, check_delta, check_hashable, corpus_audit, fact_of, listed, normalize_fact
from etude.trust.good_turing import GoodTuringGenerator
from etude.trust.miscalibration import Bins, check_masses, heldout_miscalibration, masses, miscalibration

Truth = Container[Any] | Callable[[Any], bool]
UNDERFLOW = -600.0  # log-probabilities all below it are taken relative to the largest


@dataclass(frozen=True)
class Bound:
    """A floor for the rate of hallucination; `float(bound)` is its value."""

    monofact: float
    miscalibration: float
    sparsity: float
    """3 e^-s / delta, with e^-s = |F| / |H|."""
    sampling: float
    """sqrt(6 ln(6 / delta) / n)"""
    delta: float

    @property
    def raw(self) -> float:
        """MF - Mis - both slack terms; below 0 it says nothing."""
        return self.monofact - self.miscalibration - self.sparsity - self.sampling

    @property
    def value(self) -> float:
        """The floor, at least 0."""
        return max(0.0, self.raw)

    @property
    def vacuous(self) -> bool:
        """Whether the floor says nothing: the slack is larger than what it is taken from."""
        return self.raw <= 0

    def __float__(self) -> float:
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; None where a number is infinite (no false fact: no sparsity)."""
        found = {**asdict(self), "raw": self.raw, "value": self.value, "vacuous": self.vacuous}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def plot(self, hallucination_rate: float | None = None, name: str = "model") -> dict[str, Any]:
        """Vega-Lite: the line MF - Mis with its slack band, and a generator's point where its rate is given."""
        points = []
        if hallucination_rate is not None:
            points = [{"name": name, "mis": self.miscalibration, "rate": hallucination_rate}]
        return floor_plot(points, self.monofact, self.sparsity + self.sampling)


def floor_plot(points: Sequence[dict[str, Any]], monofact: float, slack: float) -> dict[str, Any]:
    """Vega-Lite scatter of points (name, mis, rate) over the line ``MF - Mis`` and the band of the slack below it."""
    import altair as alt

    top = max([monofact, *(p["mis"] for p in points)]) * 1.05
    line = [
        {"mis": m, "floor": max(0.0, monofact - m), "low": max(0.0, monofact - m - slack)} for m in (0.0, monofact, top)
    ]
    x = alt.X("mis:Q", title="miscalibration")
    base = alt.Chart(alt.Data(values=line)).encode(x=x)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title="hallucination rate"), y2="floor:Q")
    dots = alt.Chart(alt.Data(values=list(points))).mark_point(filled=True, size=45).encode(
        x=x, y="rate:Q", color=alt.Color("name:N", title=None)
    )  # fmt: skip
    return (band + base.mark_line(strokeDash=[4, 3]).encode(y="floor:Q") + dots).to_dict()


def lower_bound(audit: CorpusAudit, miscalibration: float = 0.0, fact_ratio: float = 0.0, delta: float = 0.05) -> Bound:
    """Floor for the rate of hallucination of any generator with this miscalibration.

    With probability 1 - delta over world and corpus, for facts without a pattern ("regular" ones):
    ``g(H) >= MF - Mis(g, p) - 3 e^-s / delta - sqrt(6 ln(6 / delta) / n)``. Facts that follow a rule, and facts seen
    more than once, force no error.

    Parameters
    ----------
    audit
        From `corpus_audit`.
    miscalibration
        In [0, 1]; 0 is the floor of a calibrated generator.
    fact_ratio
        |F| / |H|: how many possible facts are true for one that is false.
    delta
        The floor may fail with this probability; in (0, 1].

    Notes
    -----
    Constants: as recalled from the paper, consistent with its corollary at delta = .01 (300 |F|/|H| and 7 / sqrt(n)).
    """
    check_delta(delta)
    if not isinstance(audit, CorpusAudit):
        raise TypeError(f"audit must come from corpus_audit, got {type(audit).__name__}")
    if not 0 <= miscalibration <= 1:
        raise ValueError(f"miscalibration must lie in [0, 1], got {miscalibration}")
    if isinstance(fact_ratio, torch.Tensor) and fact_ratio.numel() == 1:
        fact_ratio = fact_ratio.item()
    if not (isinstance(fact_ratio, numbers.Real) and fact_ratio >= 0):
        raise ValueError(f"fact_ratio = |F| / |H| must be at least 0, got {fact_ratio}")
    sampling = math.sqrt(6 * math.log(6 / delta) / audit.n)
    return Bound(audit.monofact, float(miscalibration), 3 * float(fact_ratio) / delta, sampling, delta)


@dataclass(frozen=True)
class ModelReport:
    """What `audit_model` found."""

    hallucination_rate: float
    """g(H): probability of a false candidate, given that a candidate is generated."""
    miscalibration: float
    miscalibration_interval: tuple[float, float]
    bound: Bound
    audit: CorpusAudit
    candidates: int
    candidate_mass: float
    """Probability that the model generates a candidate at all."""
    new_truth_mass: float
    """Probability of true candidates that the training facts lack."""

    @property
    def floor(self) -> float:
        """The bound's value."""
        return self.bound.value

    @property
    def verdict(self) -> str:
        """ "vacuous": the floor says nothing; "above the floor", as a model of facts without pattern must be; or
        "below the floor"."""
        if self.bound.vacuous:
            return "vacuous"
        return "above the floor" if self.hallucination_rate >= self.bound.value else "below the floor"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {
            "hallucination_rate": self.hallucination_rate, "miscalibration": self.miscalibration,
            "miscalibration_interval": list(self.miscalibration_interval), "floor": self.floor,
            "verdict": self.verdict, "bound": self.bound.to_dict(), "audit": self.audit.to_dict(),
            "candidates": self.candidates, "candidate_mass": self.candidate_mass,
            "new_truth_mass": self.new_truth_mass,
        }  # fmt: skip

    def plot(self) -> dict[str, Any]:
        """Vega-Lite: the model's point and the floor."""
        return self.bound.plot(self.hallucination_rate)


def audit_model(
    score_fn: Callable[[list[Any]], Any],
    candidates: Iterable[Any],
    train_facts: Iterable[Any],
    heldout_facts: Iterable[Any],
    truth: Truth,
    *,
    bins: Bins = 10,
    delta: float = 0.05,
    normalize: bool = True,
    generator: np.random.Generator | None = None,
) -> ModelReport:
    """Rate of hallucination and miscalibration of a model, beside the floor of its training facts.

    Parameters
    ----------
    score_fn
        Facts -> log-probabilities; -inf is allowed, NaN is not.
    candidates
        The possible facts, true and false (all, for an exact rate). Probabilities are taken given a candidate. None
        and missing values are left out. Arrays, tensors and pandas tables: one a row, as in `corpus_audit`; so are
        the facts and a `truth` that lists them.
    train_facts, heldout_facts
        One a document; the held-out ones stand for the true distribution p.
    truth
        A container of true facts, a mapping fact -> bool, or a function fact -> bool, which gets facts as the
        candidates have them (of forms that count as one, the first).
    bins
        As in `miscalibration`; few, as p is estimated.
    generator
        Of the bootstrap.

    Raises
    ------
    ValueError
        For scores of the wrong number, NaN, or probabilities that sum to more than 1.
    TypeError
        For a candidate or fact that cannot be hashed; the message names it.
    """
    check_hashable(items := listed(candidates), "candidate")
    items = [fact for fact in dict.fromkeys(map(fact_of, items)) if fact is not None]
    if not items:
        raise ValueError("no candidates")
    scores = score_fn(items)
    scores = scores.detach().cpu().double().numpy() if isinstance(scores, torch.Tensor) else np.asarray(scores, float)
    if scores.shape != (len(items),):
        raise ValueError(f"score_fn must return {len(items)} log-probabilities, got shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"score_fn returned NaN for candidate {items[int(np.flatnonzero(np.isnan(scores))[0])]!r}")
    form = normalize_fact if normalize else (lambda fact: fact)
    top = float(scores.max())
    shift = top if -math.inf < top < UNDERFLOW else 0.0
    g: dict[Any, float] = {}
    original: dict[Any, Any] = {}
    for fact, value in zip(items, np.exp(scores - shift).tolist(), strict=True):
        original.setdefault(form(fact), fact)
        g[form(fact)] = g.get(form(fact), 0.0) + value
    total = sum(g.values())
    mass = total * math.exp(shift)
    if not 0 < total <= 1 + 1e-6 and shift == 0:
        raise ValueError(f"the candidates' probabilities must sum to a number in (0, 1], their sum is {mass:.8g}")
    g = {fact: value / total for fact, value in g.items()}
    audit = corpus_audit(train := listed(train_facts), normalize=normalize, delta=delta)
    if callable(truth):
        true = {fact: bool(truth(original[fact])) for fact in g}
    else:
        true = dict(zip(g, map(_contains(truth, form), g), strict=True))
    false_count = sum(not t for t in true.values())
    rate = sum(value for fact, value in g.items() if not true[fact])
    seen = {form(fact) for fact in map(fact_of, train) if fact is not None}
    new = sum(value for fact, value in g.items() if true[fact] and fact not in seen)
    heldout = [form(fact) for fact in map(fact_of, listed(heldout_facts)) if fact is not None]
    generator = numpy_stream(0, "audit_model") if generator is None else generator
    mis = heldout_miscalibration(g, heldout, bins, generator=generator, delta=delta)
    ratio = (len(g) - false_count) / false_count if false_count else math.inf
    bound = lower_bound(audit, min(mis.value, 1.0), ratio, delta)
    return ModelReport(rate, mis.value, (mis.low, mis.high), bound, audit, len(g), mass, new)


def sampled_rate(samples: Iterable[Any], truth: Truth, *, delta: float = 0.05) -> tuple[float, float, float]:
    """Rate of hallucination among generated facts with its exact binomial interval, where enumeration is out of reach.

    Samples that are None or a missing value (no fact) are left out; tables are read as by `audit_model`.
    """
    from scipy.stats import beta

    check_delta(delta)
    facts = [fact for fact in map(fact_of, listed(samples)) if fact is not None]
    if not facts:
        raise ValueError("no facts among the samples")
    if not callable(truth):
        check_hashable(facts, "sample")
    is_true = truth if callable(truth) else _contains(truth, normalize_fact)
    wrong, n = sum(not is_true(fact) for fact in facts), len(facts)
    low = float(beta.ppf(delta / 2, wrong, n - wrong + 1)) if wrong else 0.0
    high = float(beta.ppf(1 - delta / 2, wrong + 1, n - wrong)) if wrong < n else 1.0
    return wrong / n, low, high


def refuse_below(g: Any, confidence: float) -> NDArray[np.float64]:
    """g given that the model answers, when it refuses every fact less probable than `confidence`.

    An array in g's order, which may be a mapping fact -> probability.
    """
    check_masses(values := masses(g), "g")
    kept = np.where(values >= confidence, values, 0.0)
    if kept.sum() == 0:
        raise ValueError(f"no fact is as probable as {confidence}: the model would never answer")
    return kept / kept.sum()


def top_p(g: Any, p: float) -> NDArray[np.float64]:
    """g cut to the most probable facts whose mass first reaches p (facts of equal probability together).

    An array in g's order, which may be a mapping fact -> probability.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1], got {p}")
    check_masses(values := masses(g), "g")
    ordered = np.sort(values, axis=None)[::-1]
    last = min(int(np.searchsorted(np.cumsum(ordered), p * values.sum() * (1 - 1e-12))), len(ordered) - 1)
    kept = np.where(values >= ordered[last], values, 0.0)
    return kept / kept.sum()


def hf_scorer(
    model: Any, tokenizer: Any, template: str = "{}", *, batch_size: int = 64
) -> Callable[[list[Any]], NDArray[np.float64]]:
    """A `score_fn` from a `transformers` causal language model.

    Parameters
    ----------
    model, tokenizer
        From `transformers`.
    template
        Sentence of a fact, such as "{} ate {} in {}." for tuples or "{}" for strings. The log-probability of all
        its tokens counts, its own words included; they cancel where probabilities are taken given a candidate.

    Raises
    ------
    ValueError
        Without a start or end token, or (when it scores) for a fact with more or fewer parts than the template has
        places: a part without a place would make two facts one sentence.

    Notes
    -----
    The model scores in eval mode; afterwards its modes are what they were.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError("the tokenizer has neither a start nor an end token to begin sentences with")

    def score(facts: list[Any]) -> NDArray[np.float64]:
        texts = [_sentence(template, fact) for fact in facts]
        out = np.empty(len(texts))
        rows = [[start, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        device = next(model.parameters()).device
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            longest = len(rows[part[-1]])
            ids = torch.tensor([rows[i] + [start] * (longest - len(rows[i])) for i in part], device=device)
            lengths = torch.tensor([len(rows[i]) for i in part], device=device)
            mask = torch.arange(longest, device=device) < lengths[:, None]
            out[part] = token_logprobs(model, ids, mask).double().sum(1).cpu().numpy()
        return out

    return score


def _sentence(template: str, fact: Any) -> str:
    parts = fact if isinstance(fact, tuple) else (fact,)
    marks = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    places = {field.split(".")[0].split("[")[0] or str(i) for i, field in enumerate(marks)}
    if places != set(map(str, range(len(parts)))):
        raise ValueError(
            f"template {template!r} must have a place {{}} for each of the {len(parts)} parts of the fact {fact!r}, "
            f"it has {len(marks)}"
        )
    return template.format(*parts)


def _contains(truth: Container[Any], form: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Whether a fact is true; `form` is applied to facts on both sides."""
    if isinstance(truth, Mapping):
        truth = [fact for fact, is_true in truth.items() if is_true]
    known = {form(fact) for fact in map(fact_of, listed(truth))} if isinstance(truth, Iterable) else truth
    return lambda fact: form(fact) in known


__all__ = [
    "Bound",
    "CorpusAudit",
    "GoodTuringGenerator",
    "ModelReport",
    "audit_model",
    "corpus_audit",
    "floor_plot",
    "heldout_miscalibration",
    "hf_scorer",
    "lower_bound",
    "miscalibration",
    "refuse_below",
    "sampled_rate",
    "top_p",
]

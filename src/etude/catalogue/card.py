"""The typed card: everything that is known of a paper and of its claims. One TOML file a paper."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Room = Literal[
    "layers", "training", "hypernetworks", "kernels", "continual", "incontext", "selection", "text",
    "compression", "generative", "trust", "decision", "reasoning",
]  # fmt: skip
Tier = Literal["quick", "laptop", "gpu"]
TIERS: tuple[Tier, ...] = ("quick", "laptop", "gpu")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Metric(_Model):
    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """Name under which the study yields the measurement."""
    unit: str = "1"
    """Unit of the value: "1", "points" (of 100), "seconds" ..."""
    better: Literal["higher", "lower"]
    """Which direction is good."""


class Control(_Model):
    arm: str
    """The arm that must lose, as "arm" or "arm@metric"."""
    loses_to: str | None = None
    """None: put in the method's place, the control must not make the claim hold.
    Else: the control must be clearly worse than this arm on the claim's metric."""


class Arms(_Model):
    method: str
    """The arm the claim is about, as "arm" or "arm@metric" when it has a metric of its own."""
    baseline: str | float
    """What it is compared with: an arm, "arm@metric", or a constant (chance, a bound, a published figure)."""
    control: Control | None = None
    """The arm that must lose; absent only where the card names none."""


class PaperFigure(_Model):
    value: float | str | None = None
    """The paper's own figure, copied from the paper and never from a run."""
    text: str | None = None
    """The figure as the paper prints it, where one number does not say it."""
    source: str
    """Where it stands: abstract, table, official code, recalled."""
    difference: float | None = None
    """The same figure in the unit of the claim's effect (method - baseline), where that can be said."""


class Claim(_Model):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9]+$")]
    """Identifier inside the paper, as in its card ("T1a")."""
    statement: str
    """The claim in a sentence."""
    status: Literal["tested", "not_testable"] = "tested"
    """Whether a study can test it at our sizes."""
    reason: str | None = None
    """Why it cannot be tested (required with status "not_testable")."""
    metric: Metric | None = None
    arms: Arms | None = None
    relation: Literal["greater", "less", "within"] | None = None
    """Of method - baseline: greater than the margin, less than the margin, or within +-margin."""
    margin: float | None = None
    """Signed, in the metric's unit, fixed before the first run. A negative margin with "greater" states
    non-inferiority; "less" with margin -0.1 states "lower by at least 0.1"."""
    tier: Tier = "laptop"
    """The smallest tier whose verdict counts; a smaller tier shows the direction only."""
    protocols: tuple[str, ...] = ()
    """Data protocols it is judged under, "user" being the user's own data; empty: every protocol for which the study
    yields its arms."""
    paper: PaperFigure | None = None
    expects: Literal["holds", "fails", "open"] = "open"
    """What we expect, said before the run, so that a surprise is seen as one."""
    notes: str | None = None
    """What was found: budget, scale, our bug, or the paper."""

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if self.status == "not_testable":
            if not self.reason:
                raise ValueError(f"claim {self.id}: status not_testable needs a reason")
            return self
        missing = [n for n in ("metric", "arms", "relation", "margin") if getattr(self, n) is None]
        if missing:
            raise ValueError(f"claim {self.id}: a tested claim needs {', '.join(missing)}")
        if self.relation == "within" and (self.margin or 0.0) < 0:
            raise ValueError(f"claim {self.id}: relation within needs a margin of at least 0")
        return self


class ChecklistItem(_Model):
    """One box of a survey's checklist."""

    box: str
    status: Literal["implemented", "integrated", "out_of_reach", "planned"]
    where: str | None = None
    """Dotted path below `etude`, or the library that carries it."""
    reason: str | None = None
    """Why it is out of reach."""


class Paper(_Model):
    slug: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    title: str
    authors: str
    year: Annotated[int, Field(ge=1950, le=2100)]
    """Year of first publication."""
    arxiv: str | None = None
    doi: str | None = None
    url: str | None = None
    venue: str | None = None
    official_code: str | None = None
    """Repository of the authors ("owner/name"), or None."""
    kind: Literal["method", "finding", "survey", "system"]
    room: Room
    tags: tuple[str, ...]
    summary: Annotated[str, Field(min_length=200)]
    """60-120 words in our own words, for a practitioner."""
    entry: tuple[str, ...] = ()
    """Public names as dotted paths below `etude` ("trust.PrototypeClassifier")."""
    usage: str | None = None
    """The code of at most ten lines that applies the method; run as a test."""
    claims: tuple[Claim, ...]
    checklist: tuple[ChecklistItem, ...] = ()
    notes: str | None = None
    """Deviations from the paper, and how unclear points were decided."""

    @model_validator(mode="after")
    def _unique(self) -> "Paper":
        ids = [c.id for c in self.claims]
        doubled = sorted({i for i in ids if ids.count(i) > 1})
        if doubled:
            raise ValueError(f"claim ids stand twice: {doubled}")
        return self

"""The study contract: what a paper's study declares and yields. It knows no method and no storage."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

FIRST_SEED = 1000  # pilots used lower seeds; a verdict never does


class Measurement(NamedTuple):
    """One number: `metric` of `arm` with `seed`, in `unit`; `step` for a point of a curve."""

    arm: str
    seed: int
    metric: str
    value: float
    unit: str = "1"
    step: float | None = None


class Artifact(NamedTuple):
    """Something a plot needs that is not one number (images of prototypes, a matrix): JSON values only."""

    arm: str
    seed: int
    name: str
    value: JsonValue


class Plot(NamedTuple):
    """A Vega-Lite specification with its caption."""

    name: str
    spec: dict[str, Any]
    caption: str


@dataclass(frozen=True)
class Arm:
    """One competitor. `stacked`: the engine gains by training many seeds of it in one call.
    `derived`: has no job of its own, its measurements come out of another arm's job.
    `own_data`: also runs on data that the user brings."""

    description: str
    role: Literal["method", "baseline", "ablation", "control", "reference"] = "method"
    stacked: bool = False
    derived: bool = False
    protocols: tuple[str, ...] = ()  # empty: all of the study's
    own_data: bool = True


class StudyConfig(BaseModel):
    """Base of every study's configuration: the command line's options, the web form and the digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    n_seeds: Annotated[int, Field(ge=3)] = 5
    """Paired repetitions, numbered from 1000; the interval is computed over these."""
    protocols: tuple[str, ...] = ("default",)
    """Data protocols to run, each with its own verdicts."""

    @field_validator("protocols")
    @classmethod
    def _some_and_different(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"name at least one protocol, each once; got {list(value)}")
        return value

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(FIRST_SEED, FIRST_SEED + self.n_seeds))

    def digest(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """What `Study.measure` is asked for: one arm under one protocol, for some seeds.

    A seed's result must not depend on which other seeds stand in the same job: the runner groups
    them as the machine allows (one seed a worker process on CPU, all seeds in one call on a GPU or
    where the arm is `stacked`). The worker has set the number of threads already.
    """

    protocol: str
    arm: str
    seeds: tuple[int, ...]
    config: Any
    task: Any
    device: str = "cpu"


class Results:
    """The measurements and artifacts of a run, for `Study.plots`."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], artifacts: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rows = [dict(r) for r in rows]  # protocol, arm, seed, metric, value, unit, step
        self._artifacts = [dict(a) for a in artifacts]  # protocol, arm, seed, name, value

    def select(self, metric: str, *, protocol: str | None = None, arms: Iterable[str] | None = None) -> list[dict]:
        """Rows of one metric, as records that a plot takes."""
        wanted = None if arms is None else set(arms)
        return [
            r for r in self.rows
            if r["metric"] == metric and protocol in (None, r["protocol"]) and (wanted is None or r["arm"] in wanted)
        ]  # fmt: skip

    def artifacts(self, name: str, *, protocol: str | None = None, arm: str | None = None) -> list[dict]:
        return [
            a for a in self._artifacts
            if a["name"] == name and protocol in (None, a["protocol"]) and arm in (None, a["arm"])
        ]  # fmt: skip

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(r["protocol"] for r in self.rows))


@dataclass
class Study:
    """Base of every study; a paper's study subclasses it in `studies/<slug>.py` and is found by existing.

    A subclass sets the class attributes and writes `task` and `measure`. It trains nothing by hand,
    computes no statistic, prints nothing, writes no file and never loops over seeds to train.
    """

    configs: ClassVar[Mapping[str, StudyConfig]]
    """One configuration a tier: "quick", "laptop", "gpu". All of one class."""
    arms: ClassVar[Mapping[str, Arm]]
    kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of user data that `--data` may bring (the `kind` of `etude.data.load_user`); empty: none."""
    slug: str = field(init=False)

    def __post_init__(self) -> None:
        self.slug = type(self).__module__.rsplit(".", 1)[-1].replace("_", "-")

    def task(self, protocol: str, config: Any) -> Any:
        """The data of a protocol, loaded once a process (splits are drawn per seed in `measure`).
        A `provenance` attribute (records with name, version, sha256, license) goes into the run's record."""
        raise LookupError(f"{self.slug} has no protocol {protocol!r}")

    def user_task(self, data: Any, config: Any) -> Any:
        """What `measure` gets as `job.task` when the user brings data (protocol "user")."""
        return data

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Yield what `job.arm` scores for each of `job.seeds`, as it comes."""
        raise LookupError(f"{self.slug} has no arm {job.arm!r}")

    def plots(self, results: Results) -> list[Plot]:
        """The card's plots, from everything that a run measured."""
        return []

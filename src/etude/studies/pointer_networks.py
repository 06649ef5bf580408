"""Pointer Networks: do nets that point at their input beat nets with an output layer of fixed size?

Uniform points in the unit square; labels are exact hulls, triangulations and tours, new ones in every batch.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from etude.data import planar
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import PointerNetwork, RecurrentSeq2Seq
from etude.studies._pointer_plots import pointer_plots
from etude.training import TrainConfig, train

HULLS = ("hull", "hull_long", "delaunay")
TOURS = ("tsp", "tsp_range", "tsp_teacher")  # few cities; 5 to 20, tested at 25; 50, labelled by a weak rule


class PointerConfig(StudyConfig):
    """Sizes of the nets, the problems and the runs. The paper's own recipe: optimizer sgd, lr 1.0, init uniform."""

    protocols: tuple[str, ...] = ("hull", "hull_long", "tsp")
    hidden_size: PositiveInt = 64
    batch_size: PositiveInt = 128
    n: PositiveInt = 10
    """Points of a hull; `ptr_range` trains on n_low to n."""
    n_low: PositiveInt = 5
    n_small: int = Field(5, ge=2)
    """Points of a triangulation and cities of a tour (protocols "delaunay" and "tsp")."""
    steps: PositiveInt = 1500
    """Updates; protocol "hull_long", arm `ptr_range` and its rival `lstm` have twice as many."""
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat = 1e-2
    """Best of 2e-3, 5e-3 and 1e-2 on a pilot seed for every trained arm: the same one."""
    init: Literal["scaled", "orthogonal", "uniform"] = "scaled"
    test_rows: PositiveInt = 1000
    precision: Literal["fp32", "bf16", "auto"] = "fp32"

    @model_validator(mode="after")
    def _in_order(self) -> "PointerConfig":
        if self.n_low > self.n:
            raise ValueError(f"n_low must be at most n (the sizes of `ptr_range`), got {self.n_low} and {self.n}")
        if "delaunay" in self.protocols and self.n_small < 3:
            raise ValueError(f"n_small must be at least 3 for protocol delaunay, a triangle, got {self.n_small}")
        return self


class PointerStudy(Study):
    """Arms share the batches of a seed: the stream of data does not know the arm."""

    configs: ClassVar = {
        "quick": PointerConfig(
            n_seeds=3, protocols=("hull", "tsp"), n=5, n_low=4, n_small=4, hidden_size=32, batch_size=64, steps=300
        ),
        "laptop": PointerConfig(),
        "gpu": PointerConfig(
            n_seeds=3, protocols=("hull", "delaunay", *TOURS), hidden_size=256, n=50, batch_size=256, steps=5000,
            lr=2e-3, precision="bf16",
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "ptr": Arm("pointer network"),
        "ptr_range": Arm("pointer network trained on mixed sizes", protocols=("hull",)),
        "attention": Arm("sequence-to-sequence with attention", role="baseline", protocols=HULLS),
        "lstm": Arm("sequence-to-sequence without attention", role="baseline", protocols=("hull",)),
        "weak": Arm("cheapest insertion, a weak teacher", role="reference", protocols=("tsp_range", "tsp_teacher")),
        "untrained": Arm("pointer network, not trained", role="control", protocols=HULLS),
        "random": Arm("random tours", role="control", protocols=TOURS),
    }

    def task(self, protocol: str, config: PointerConfig) -> dict[int, Split] | None:
        """A labelled pool where labels are dear, else nothing: instances are drawn as they are needed."""
        if protocol == "tsp_range":
            return planar.labelled_pool("tsp", 4096, (5, 20), seed=0, restarts=5)
        if protocol == "tsp_teacher":
            return planar.labelled_pool("tsp", 8 * 4096, (50, 50), seed=0, method="insertion")
        return None

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the arm and score what it writes for new instances of the seed."""
        c, problem = job.config, job.protocol.split("_")[0]
        top = {"tsp_range": 25, "tsp_teacher": 50}.get(job.protocol, c.n if problem == "hull" else c.n_small)
        labels: Any = "auto" if job.protocol == "tsp" else "insertion"  # long tours are compared with weak ones
        several = {c.n_low, (c.n_low + c.n) // 2, c.n, 3 * c.n // 2, 2 * c.n}
        sizes = sorted(several) if job.protocol == "hull" and job.arm in ("ptr_range", "untrained") else [top]
        nets = [None] * len(job.seeds) if job.arm in ("weak", "random") else _nets(job, problem)
        for seed, net in zip(job.seeds, nets, strict=True):
            for n in sizes:
                test = planar.planar_problem(problem, c.test_rows, n, stream(seed, "test", n), method=labels)
                found = test.y if job.arm == "weak" else _answer(job, test, net, seed)
                for name, value in planar.planar_scores(problem, test, found).items():
                    unit = "1" if name in ("area", "tour_ratio", "tour_length") else "points"
                    value = value if unit == "1" else 100 * value
                    if len(sizes) > 1:
                        yield Measurement(job.arm, seed, f"{name}_by_n", value, unit, step=n)
                    if n in (top, 2 * top):
                        yield Measurement(job.arm, seed, name if n == top else f"{name}_far", value, unit)
                if job.arm == "ptr" and seed == c.seeds[0]:
                    yield Artifact(job.arm, seed, "answers", planar.outline_rows(test, found))
                    weights = net(test.x[:1].to(job.device), found[:1].to(job.device)).logits[0].softmax(-1)
                    yield Artifact(job.arm, seed, "weights", planar.cell_rows(weights))

    def plots(self, results: Results) -> list[Plot]:
        """Scores against the number of points, answers beside the truth, and where the first answer points."""
        return pointer_plots(results)


def _nets(job: Job, problem: Any) -> list[Any]:
    c, size = job.config, job.config.n if problem == "hull" else job.config.n_small

    def build(seed: int) -> PointerNetwork | RecurrentSeq2Seq:
        if job.arm in ("attention", "lstm"):
            return RecurrentSeq2Seq(2, c.hidden_size, max_length=size, attention=job.arm == "attention", init=c.init)
        return PointerNetwork(2, c.hidden_size, init=c.init)

    if job.arm == "untrained":
        return [seeded_build(partial(build, s), stream(s, "init")).to(job.device).eval() for s in job.seeds]
    low = c.n_low if job.arm == "ptr_range" else size
    data = planar.fresh_batches(problem, c.batch_size, (low, size))
    data = data if job.task is None else planar.pool_batches(job.task, c.batch_size)
    settings: dict[str, Any] = {"clip_norm": 2.0, "schedule": "cosine", "warmup_steps": min(50, c.steps // 10)}
    steps = c.steps * (2 if job.protocol == "hull_long" or job.arm in ("ptr_range", "lstm") else 1)
    config = TrainConfig(steps=steps, optimizer=c.optimizer, lr=c.lr, precision=c.precision, **settings)
    done = train(build, data, loss=lambda m, b: m(b.x, b.y).loss, config=config, seeds=job.seeds, device=job.device)
    return [t.module for t in done]


def _answer(job: Job, test: Split, net: Any, seed: int) -> Tensor:
    if job.arm == "random":
        return torch.rand(test.x.shape[:2], generator=stream(seed, "random")).argsort(1)
    mask = "permutation" if job.protocol in TOURS else "none"
    return net.generate(test.x.to(job.device), mask=mask).sequences.cpu()

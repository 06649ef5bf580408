"""Streams, generators and rivals of the study of dependency-preserving hypernetworks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from etude import continual
from etude.continual import ContinualHypernet, Growth, StreamResult, TaskHeads, evaluate_stream
from etude.continual.online_learning import cross_entropy
from etude.data import class_stream, stream
from etude.data.randomness import seeded_build
from etude.data.streams import Segment, joint
from etude.data.tasks import Task
from etude.layers import mlp
from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_conditions import TaskCondition
from etude.layers.hypernetwork_recurrent import RecurrentHyperNetwork
from etude.studies._continual_problems import pairs_of
from etude.training import TrainConfig, train

TASK_DIM, CHUNK_DIM, CHUNK = 16, 8, 150
HIDDEN, SMALL = 24, 20  # units of the recurrent generator, and where the growing one starts
# An embedding alone brings a new pixel order no further than 2.3 to 2.6 (ln 10 = 2.3), so 1.5 times the mean of earlier
# tasks is never reached. It grows above that mean, three times at most to stay below the target's size.
GROWTH = Growth(step=4, trigger=1.0, max_times=3)
CHUNKED_HIDDEN, CHUNKED_CHUNK = 40, 160  # both layers, and weights a chunk, of the baseline


def split_classes(task: Task, seed: int) -> list[Segment]:
    """Two classes a task, numbered 0 and 1, a head each; an odd last class joins the last task."""
    n = task.num_classes
    return class_stream(task, pairs_of(n), seed=seed, order=range(n), relabel=True)


def target(sizes: Sequence[int]) -> nn.Module:
    """The net whose weights are generated."""
    return mlp(tuple(sizes))


def generator(arm: str, sizes: Sequence[int], seed: int, scale: float = 1.0) -> HyperNetwork:
    """The arm's generator; `scale` multiplies chunk and hidden sizes for larger targets."""
    wide = lambda n: max(2, round(scale * n))  # noqa: E731

    def build() -> HyperNetwork:
        net = target(sizes)
        if arm == "chunked":
            size = sum(p.numel() for p in net.parameters())
            hidden = (wide(CHUNKED_HIDDEN),) * 2
            return HyperNetwork(
                net, TaskCondition(1, TASK_DIM), strategy="chunk", hidden=hidden, chunk_dim=CHUNK_DIM,
                num_chunks=-(-size // wide(CHUNKED_CHUNK)), init="gain", activation="relu",
            )  # fmt: skip
        if arm == "all_at_once":
            hidden = (wide(CHUNKED_HIDDEN),) * 2
            return HyperNetwork(net, TaskCondition(1, TASK_DIM), strategy="all", hidden=hidden, init="gain")
        units = wide(SMALL if arm in ("rnn_small", "rnn_growth") else HIDDEN)
        return RecurrentHyperNetwork(net, task_dim=TASK_DIM, chunk_size=wide(CHUNK), hidden=units, chunk_dim=CHUNK_DIM)

    return seeded_build(build, stream(seed, "init"))


def learn(
    arm: str, segments: Sequence[Segment], sizes: Sequence[int], config: TrainConfig, beta: float, seed: int,
    device: str, scale: float = 1.0,
) -> tuple[StreamResult, ContinualHypernet]:  # fmt: skip
    """Learn the stream with a generator; the accuracy matrix and the learner."""
    hyper = generator(arm, sizes, seed, scale).to(device)
    growth = GROWTH if arm == "rnn_growth" else None
    cl = ContinualHypernet(
        hyper, 0.0 if arm == "fine_tune" else beta, importance="mas" if arm == "rnn_importance" else None,
        growth=growth, generator=stream(seed, "tasks"),
    )  # fmt: skip

    def before(segment: Segment) -> None:
        rows = segment.classes if segment.relabel else None
        cl.begin_task(segment.number, segment.train if growth is not None else None, outputs=rows)

    def after(segment: Segment) -> None:
        cl.end_task(segment.train.x[:1000] if arm == "rnn_importance" else None)

    found = continual.learn_tasks(
        cl, segments, config=config, penalty=lambda _: cl.penalty(), before=before, after=after, by_task=True,
        seed=seed, device=device,
    )  # fmt: skip
    return found, cl


def rival(
    arm: str, segments: Sequence[Segment], sizes: Sequence[int], config: TrainConfig, seed: int, device: str
) -> StreamResult:
    """The target itself: EWC or MAS on its weights with a head a task, or trained on all tasks' rows together."""
    if arm == "joint":
        assert config.steps is not None
        whole = replace(config, steps=config.steps * len(segments))
        net = train(
            lambda _: target(sizes), joint(segments), loss=cross_entropy, config=whole, seeds=(seed,), device=device,
            plan="sequential",
        )[0].module  # fmt: skip
        return evaluate_stream(net, segments)
    width = sizes[-2]
    trunk = seeded_build(lambda: nn.Sequential(*mlp(tuple(sizes[:-1])), nn.ReLU()), stream(seed, "init"))
    model = TaskHeads(trunk, width).to(device)
    keep: Any = continual.EWC(model, 10.0) if arm == "ewc" else continual.MAS(model, 0.03)
    return continual.learn_tasks(
        model, segments, config=config, penalty=keep.penalty, after=lambda s: keep.update(s.train.x[:1000]), seed=seed,
        device=device,
    )  # fmt: skip


def parameter_ratio(hyper: HyperNetwork, tasks: int) -> float:
    """Parameters of the generator with the embeddings of all tasks (ended ones are frozen), over the target's own."""
    report = hyper.parameter_report()
    own = sum(p.numel() for n, p in hyper.named_parameters() if not n.startswith("condition."))
    return (own + tasks * TASK_DIM) / (report.generated + report.direct)

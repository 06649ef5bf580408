"""Two settings of the study of continual-learning tools: streams with a memory, and a stream without borders."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from etude import continual
from etude.continual import GSSBuffer, Replay, ReservoirBuffer, TaskFreeMAS, class_counts
from etude.data import stream
from etude.lab.study import Artifact, Job, Measurement
from etude.studies import _continual_problems as problems
from etude.training import TrainConfig

STREAMS = {  # which segment is large, and times the memory
    "first_task_large": ("first", 1), "third_task_large": ("third", 1), "balanced_100": ("balanced", 1),
           "balanced_300": ("balanced", 3)}  # fmt: skip


def memory_accuracy(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    c, arm, kept = job.config, job.arm, {}
    task = problems.flat_task(job.task, seed, c.rows, job.device)
    for name, (which, times) in STREAMS.items():
        segments = problems.disjoint(task, seed, c.large, c.large // 10, which)
        model = problems.online_net(task.train.x.shape[1], 100, task.num_classes, seed).to(job.device)
        size, rng, replay = times * c.memory, stream(seed, "memory"), None
        if arm == "gss_greedy":
            replay = Replay(GSSBuffer(size, model, F.cross_entropy, generator=rng))
        elif arm != "single":
            replay = Replay(ReservoirBuffer(size, rng), choose="interfered" if arm == "mir" else "random")
        config = TrainConfig(optimizer="sgd", lr=0.05)
        found = continual.learn_online(
            model, segments, config=config, iterations=c.iterations, replay=replay, seed=seed
        )
        yield Measurement(arm, seed, f"accuracy_{name}", 100 * found.class_average, "points")
        if replay is not None:
            kept[name] = class_counts(replay.buffer.rows()[1], task.num_classes)
    if kept:
        yield Artifact(arm, seed, "memory", kept)  # type: ignore[arg-type]


def border_free_accuracy(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    c, arm = job.config, job.arm
    task = problems.flat_task(job.task, seed, c.rows, job.device)
    segments = problems.disjoint(task, seed, c.large, c.large // 10, "balanced")
    ends = torch.tensor([-(-s.train.n // 10) for s in segments]).cumsum(0)
    at = {int(e) - 1 for e in ends}
    if arm == "random_detector":
        at = set(torch.randperm(int(ends[-1]), generator=stream(seed, "detector"))[: len(at)].tolist())
    model = problems.online_net(task.train.x.shape[1], 100, task.num_classes, seed).to(job.device)
    detect: Any = None if arm in ("task_free_mas", "online") else lambda number, loss: number in at
    free = TaskFreeMAS(model, 0.0 if arm == "online" else c.free_weight, detect=detect)
    found = continual.learn_online(
        model, segments, config=TrainConfig(optimizer="sgd", lr=0.05), iterations=c.iterations, task_free=free,
        seed=seed,
    )  # fmt: skip
    yield Measurement(arm, seed, "stream_average_accuracy", 100 * found.average, "points")
    yield Measurement(arm, seed, "importance_updates", len(free.plateaus))
    value: Any = {"plateaus": free.plateaus, "borders": [int(e) for e in ends[:-1]]}
    yield Artifact(arm, seed, "plateaus", value)

"""Two settings of the study of continual-learning tools: the user's subset, and the gate."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from etude import continual
from etude.continual import MAS, ExpertGate, importance, shuffled
from etude.continual.online_learning import cross_entropy
from etude.data import permuted_stream, stream
from etude.data.tasks import Split, Task
from etude.lab.study import Job, Measurement
from etude.layers import mlp
from etude.studies import _continual_problems as problems
from etude.training import TrainConfig, accuracy, train


def subset_accuracy(job: Job, seed: int) -> Iterator[Measurement]:
    """Two permuted tasks; the user meets two classes of the first, whose rows bring no labels."""
    c, arm = job.config, job.arm
    task = problems.flat_task(job.task, seed, c.rows, job.device)
    segments = permuted_stream(task, 2, seed=seed)
    classes = torch.randperm(task.num_classes, generator=stream(seed, "user"))[:2]
    model = problems.headed_net(task.train.x.shape[1], c.width, seed).to(job.device)
    mas = MAS(model, c.subset_weight)
    data = segments[0].train
    rows = data.x if arm == "mas_all_data" else data.x[torch.isin(data.y, classes)]

    def after(segment: Any) -> None:
        if segment.number == 0:
            found = importance(model, rows[: c.importance_rows])
            mixed = arm == "mas_subset_shuffled"
            mas.consolidate(shuffled(found, stream(seed, "shuffle")) if mixed else found)

    found = continual.learn_tasks(
        model, segments, config=TrainConfig(epochs=c.epochs), penalty=mas.penalty, after=after, seed=seed,
        device=job.device,
    )  # fmt: skip
    test = segments[0].test
    mine = test.take(torch.isin(test.y, classes))
    with torch.no_grad():
        score = accuracy(model(mine.x.to(job.device), 0), mine.y)
    yield Measurement(arm, seed, "subset_accuracy", 100 * score, "points")
    yield Measurement(arm, seed, "first_task_accuracy", 100 * float(found.R[-1, 0]), "points")
    yield Measurement(arm, seed, "second_task_accuracy", 100 * float(found.R[-1, 1]), "points")


def gate_scores(job: Job, seed: int) -> Iterator[Measurement]:
    """Which of six domains a row comes from, and what the expert of that domain says."""
    c, arm = job.config, job.arm
    made = problems.domains(job.task, seed, c.gate_rows)
    said = _classified(made, c, seed) if arm == "classifier_gate" else _routed(made, c, seed, arm)
    experts = [_expert(t, c, seed) for t in made]
    right, whole = [], []
    for number, (task, chosen) in enumerate(zip(made, said)):
        assert task.test is not None
        right.append((chosen == number).float())
        with torch.no_grad():
            answer = torch.stack([expert(task.test.x).argmax(1) for expert in experts])
        good = answer[chosen, torch.arange(len(chosen))] == task.test.y
        whole.append((good & (chosen == number)).float())
        yield Measurement(arm, seed, "gate_accuracy_by_domain", 100 * float(right[-1].mean()), "points", step=number)
    yield Measurement(arm, seed, "gate_accuracy", 100 * float(torch.cat(right).mean()), "points")
    yield Measurement(arm, seed, "gate_and_expert_accuracy", 100 * float(torch.cat(whole).mean()), "points")


def _routed(made: list[Task], c: Any, seed: int, arm: str) -> list[Tensor]:
    gate = ExpertGate(code_dim=10, config=TrainConfig(epochs=c.gate_epochs, batch_size=64), seed=seed)
    rows = [t.train.x for t in made]
    if arm == "gate_shuffled_tasks":
        every = torch.cat(rows)
        order = torch.randperm(len(every), generator=stream(seed, "shuffle"))
        rows = list(every[order].split([len(r) for r in rows]))
    for x in rows:
        gate.add_task(x)
    return [gate.route(t.test.x)[:, 0] for t in made if t.test is not None]


def _classified(made: list[Task], c: Any, seed: int) -> list[Tensor]:
    x = torch.cat([t.train.x for t in made])
    y = torch.cat([torch.full((t.train.n,), number) for number, t in enumerate(made)])
    config = TrainConfig(epochs=c.gate_epochs, batch_size=64)
    net = train(
        lambda _: mlp((x.shape[1], 100, len(made))), Split(x, y), loss=cross_entropy,
        config=config, seeds=(seed,), plan="sequential",
    )[0].module  # fmt: skip
    with torch.no_grad():
        return [net(t.test.x).argmax(1) for t in made if t.test is not None]


def _expert(task: Task, c: Any, seed: int) -> Any:
    config = TrainConfig(epochs=c.gate_epochs, batch_size=64)
    return train(
        lambda _: mlp((task.train.x.shape[1], 64, task.num_classes)), task.train,
        loss=cross_entropy, config=config, seeds=(seed,), plan="sequential",
    )[0].module  # fmt: skip

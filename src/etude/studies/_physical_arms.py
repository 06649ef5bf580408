"""What the study of physical local learning shares over its arms, and how it trains local learning on one box."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from etude.data.randomness import stream
from etude.data.tasks import Split, Task
from etude.lab.study import Measurement
from etude.training.phyll import PhyLL
from etude.training.physical_boxes import PhysicalBox

Curve = list[tuple[float, float, float]]  # physical runs, digital MACs, accuracy in percent


class Outcome(NamedTuple):
    """What an arm reached on one box; accuracies in percent."""

    accuracy: float
    curve: Curve = []
    before_drift: float = math.nan
    after_drift: float = math.nan


def boxes_of(kind: str, task: Task, config: Any, seed: int, *, label_slots: int) -> list[PhysicalBox]:
    """The seed's boxes of a kind, of the widths that the net needs."""
    generator = stream(seed, "boxes", kind)
    inputs = [task.train.x.shape[1] + label_slots, *config.hidden[:-1]]
    sizes = [(m, config.box_width or m) for m in inputs]
    return [PhysicalBox(kind, m, p, generator=generator) for m, p in sizes]  # type: ignore[arg-type]


def scaled(task: Task) -> Task:
    """Columns z-scored by the training rows and shifted so that the least is 0."""
    assert task.test is not None
    mean, spread = task.train.x.mean(0), task.train.x.std(0, unbiased=False)
    span = torch.where(spread > 0, spread, 1.0)
    least = ((task.train.x - mean) / span).min()

    def change(part: Split) -> Split:
        return part._replace(x=(part.x - mean) / span - least)

    return Task(task.name, task.kind, change(task.train), test=change(task.test), num_classes=task.num_classes)


def local_learning(
    task: Task, kind: str | None, config: Any, seed: int, *, drift: bool, gradual: bool = False
) -> Outcome:
    """PhyLL on one box (None: no physics); with `drift` the boxes turn by 90 degrees after training."""
    x, y, test = task.train.x.numpy(), task.train.y.numpy(), task.test
    assert test is not None
    layers = len(config.hidden)
    boxes: Any = [None] * layers
    if kind is not None:
        boxes = boxes_of(kind, task, config, seed, label_slots=task.num_classes)
    net = PhyLL(
        boxes, config.hidden, task.num_classes, bypass=config.bypass, theta=config.theta, scale=None, random_state=seed
    )  # fmt: skip
    curve: Curve = []

    def score() -> float:
        return 100 * float(net.score(test.x.numpy(), test.y.numpy()))

    def watch(epoch: int, _: PhyLL) -> None:
        if gradual:
            share = (epoch + 1 - config.epochs / 4) / (config.epochs / 2)  # from a quarter to three quarters
            net.replace_boxes([b.rotated(90 * min(max(share, 0.0), 1.0)) for b in boxes])
        if (epoch + 1) % config.curve_every == 0 or epoch + 1 == config.epochs:
            costs = net.cost_report()
            curve.append((costs["physical_runs_training"], costs["digital_macs_training"], score()))

    options: Any = {"inner_steps": config.inner_steps, "lr": config.lr, "batch_size": config.batch_size}
    net.fit(x, y, epochs=config.epochs, callback=watch, **options)
    reached = score()
    if not drift or kind is None:
        return Outcome(reached, curve)
    net.replace_boxes([b.rotated(90) for b in boxes]).partial_fit(x, y, epochs=config.recovery_epochs, **options)
    return Outcome(reached, curve, reached, score())


def by_layers(task: Task, config: Any, seed: int) -> Iterator[Measurement]:
    """Accuracy of PhyLL, the mean over the boxes, with other numbers of layers."""
    for count in config.layers:
        deeper = config.model_copy(update={"hidden": config.hidden[-1:] * count})
        found = [local_learning(task, kind, deeper, seed, drift=False).accuracy for kind in config.boxes]
        yield Measurement("layers", seed, "accuracy_by_layers", sum(found) / len(found), "points", step=count)

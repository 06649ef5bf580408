"""How the study of physical local learning trains the rivals on one box: back-propagation and its kin, read-outs."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split, Task
from etude.studies._physical_arms import Curve, Outcome, boxes_of
from etude.training import TrainConfig, train
from etude.training.physical_baselines import TWIN_HIDDEN, PhysicalNet, PhysicsAware, fit_twin, read_out_only, spsa_step
from etude.training.physical_boxes import PhysicalBox
from etude.training.physical_costs import backprop_macs

TwinMaker = Callable[[PhysicalBox, int, Any], nn.Module]


def twin_maker() -> TwinMaker:
    """`fit_twin` that fits each box of a seed once: the arms that need it share it."""
    known: dict[Any, nn.Module] = {}

    def make(box: PhysicalBox, seed: int, config: Any) -> nn.Module:
        key = (box.kind, box.scatter.cpu().numpy().tobytes(), seed, config.twin_steps, config.twin_pairs)
        if key not in known:
            steps, pairs = config.twin_steps, config.twin_pairs
            known[key] = fit_twin(box, box.in_features, seed=seed, steps=steps, pairs=pairs)
        return known[key]

    return make


def back_propagation(
    task: Task, kind: str, config: Any, seed: int, *, how: str, drift: bool, twin: TwinMaker
) -> Outcome:
    """`how`: "ideal" through the simulator, "in_silico" through a twin, "pat" the box forwards and the twin backwards,
    "spsa" without gradients; as many updates as local learning makes on a layer.

    Nothing trainable lies before the first box, so the backward pass does not go through it: there "pat" has no twin.
    """
    boxes = boxes_of(kind, task, config, seed, label_slots=0)
    modelled = {"in_silico": boxes, "pat": boxes[1:]}.get(how, [])
    twins = [twin(b, seed, config) for b in modelled]
    inside: dict[str, list[Any]] = {
        "ideal": boxes, "spsa": boxes, "in_silico": twins,
        "pat": [*boxes[:1], *map(PhysicsAware, boxes[1:], twins)],
    }  # fmt: skip
    net = _net(task, inside[how], [b.out_features for b in boxes], config, seed)
    batch = min(config.batch_size or task.train.n, task.train.n)
    assert task.test is not None
    steps = config.epochs * config.inner_steps * -(-task.train.n // batch)
    per_step = len(boxes) * batch * (3 if how == "spsa" else 1)
    fitting, per_update = digital_macs(how, boxes, net.linear_widths, batch, config)
    curve: Curve = []

    def metric(trained: Any, part: Split) -> float:
        return _score(trained.on(boxes), part)

    every = 2 * task.train.n * len(boxes) * config.curve_every // per_step  # at least as fine in runs as PhyLL's curve
    eval_every = max(1, min(every, steps // 25))
    config_ = TrainConfig(steps=steps, batch_size=batch, lr=config.bp_lr, eval_every=eval_every)
    more: Any = {"step": spsa_step(_loss)} if how == "spsa" else {"loss": _loss}
    options: Any = {"val": task.test, "metric": metric, "plan": "sequential"} | more
    (done,) = train(net, task.train, config=config_, seeds=(seed,), **options)
    best: Any = done.module
    for point in done.curve:
        runs = config.twin_pairs * len(twins) + (0 if how == "in_silico" else per_step) * point["step"]
        curve.append((runs, fitting + per_update * point["step"], point["metric"]))
    reached = _score(best.on(boxes), task.test)
    turned = [b.rotated(90) for b in boxes]
    after = _score(best.on(turned), task.test) if drift else math.nan
    return Outcome(reached, curve, reached, after)


def digital_macs(
    how: str, boxes: list[PhysicalBox], linear: list[tuple[int, int]], batch: int, config: Any
) -> tuple[int, int]:
    """MACs of fitting the twins that `how` needs, and of one update of the net on `batch` rows.

    An update of the linear layers is forwards, to the weights and, but for the first layer, to the inputs; "spsa" is
    three times forwards. A twin is run forwards, and backwards to its inputs but for the first box's.
    """
    shapes = [[b.in_features, *TWIN_HIDDEN, b.out_features] for b in boxes]
    first = 0 if how == "spsa" else linear[0][0] * linear[0][1]
    update = 3 * sum(k * q for k, q in linear) - first
    used = {"in_silico": shapes, "pat": shapes[1:]}.get(how, [])
    update += sum(2 * _macs(shape) for shape in shapes[1:]) if used else 0
    update += _macs(shapes[0]) if how == "in_silico" else 0
    rows = min(128, config.twin_pairs)
    return sum(config.twin_steps * backprop_macs(rows, shape) for shape in used), batch * update


def reservoir(task: Task, kind: str, config: Any, seed: int) -> Outcome:
    """Random layers on the box, a ridge read-out."""
    boxes = boxes_of(kind, task, config, seed, label_slots=0)
    net = _net(task, boxes, [b.out_features for b in boxes], config, seed)
    predict = read_out_only(net, task.train.x, task.train.y)
    assert task.test is not None
    return Outcome(100 * float((predict(task.test.x) == task.test.y).float().mean()))


def ridge(task: Task) -> Outcome:
    """Ridge regression on the raw features."""
    assert task.test is not None
    model = RidgeClassifier().fit(task.train.x.numpy(), task.train.y.numpy())
    return Outcome(100 * float(model.score(task.test.x.numpy(), task.test.y.numpy())))


def _net(task: Task, boxes: list[Any], widths: list[int], config: Any, seed: int) -> PhysicalNet:
    def build() -> nn.Module:
        return PhysicalNet(
            task.train.x.shape[1], config.hidden, task.num_classes, boxes, widths, bypass=config.bypass
        )  # fmt: skip

    return seeded_build(build, stream(seed, "init"))  # type: ignore[return-value]


def _loss(net: Any, batch: Split) -> Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


@torch.no_grad()
def _score(net: nn.Module, part: Split) -> float:
    return 100 * float((net(part.x).argmax(1) == part.y).float().mean())


def _macs(widths: list[int]) -> int:
    return sum(a * b for a, b in itertools.pairwise(widths))

"""What the study of continual-learning tools trains: nets, streams, methods between tasks, six domains for the gate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude import continual
from etude.continual import MAS, SLNID, TaskHeads, importance, shuffled
from etude.continual.online_learning import cross_entropy
from etude.data import class_stream, load_images, mnist1d, stream
from etude.data.images import ImageSet, resize
from etude.data.randomness import seeded_build
from etude.data.streams import Segment
from etude.data.tasks import Split, Task
from etude.data.transforms import affine
from etude.layers import mlp
from etude.training import TrainConfig

SIDE = 14
DOMAINS = ("first half of the classes", "second half", "digits of another set", "turned", "inverted", "signals")


def small(images: ImageSet, pool: int = 2) -> ImageSet:
    """One channel; images of 28 x 28 averaged over blocks of `pool` x `pool`, other large ones brought to 14 x 14."""

    def shaped(x: Tensor) -> Tensor:
        x = x.float().mean(1, keepdim=True)
        if x.shape[-2:] == (28, 28):
            return F.avg_pool2d(x, pool)
        return x if max(x.shape[-2:]) <= SIDE else resize(x, SIDE)

    test = None if images.test is None else images.test._replace(x=shaped(images.test.x))
    return replace(images, x=shaped(images.x), test=test)


def check_enough(images: ImageSet) -> None:
    """ValueError for images too few to stand in a training and a test part of every setting."""
    held = torch.bincount(images.y, minlength=len(images.classes))
    least = int(held.argmin())
    if int(held[least]) < 3 or len(images.y) < 5 * len(images.classes):
        raise ValueError(
            f"{len(images.y)} images of {len(held)} classes, {int(held[least])} of {images.classes[least]!r}, "
            "are too few: bring at least 5 a class on average and 3 of each"
        )


def flat_task(images: ImageSet, seed: int, sizes: tuple[int, int], device: str = "cpu") -> Task:
    """Training and test rows (n, pixels), drawn by class; the official test part where there is one."""
    share = min(1.0, len(images.y) / sum(sizes)) if images.test is None else 1.0
    train, test = (int(share * s) for s in sizes)
    task = images.task(seed, (min(train, len(images.y)), 0) if images.test is not None else (train, 0, test))
    assert task.test is not None
    flat = lambda part: part._replace(x=part.x.flatten(1)).to(device)  # noqa: E731
    return replace(task, train=flat(task.train), test=flat(task.test))


def headed_net(pixels: int, width: int, seed: int) -> TaskHeads:
    """pixels - width - width, and a head for each task to come."""
    trunk = seeded_build(lambda: nn.Sequential(*mlp((pixels, width, width)), nn.ReLU()), stream(seed, "init"))
    return TaskHeads(trunk, width)


def online_net(pixels: int, width: int, classes: int, seed: int) -> nn.Module:
    """pixels - width - width - classes from He's start: torch's own smaller one learns little in so few updates."""

    def build() -> nn.Module:
        net = mlp((pixels, width, width, classes))
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        return net

    return seeded_build(build, stream(seed, "init"))


def pairs_of(classes: int) -> tuple[int, ...]:
    """Two classes a segment, three in the last of an odd number; one each of fewer than four."""
    return (2,) * (classes // 2 - 1) + (2 + classes % 2,) if classes > 3 else (1,) * classes


def disjoint(task: Task, seed: int, large: int, small: int, which: str) -> list[Segment]:
    """The classes a pair at a time. `which`: "balanced" (every segment large), or the one that is: "first", "third".

    A class that has fewer rows than its share of a segment gives all that it has.
    """
    cut = pairs_of(task.num_classes)
    big = {"first": 0, "third": min(2, len(cut) - 1)}
    held = torch.bincount(task.train.y, minlength=task.num_classes).tolist()
    sizes: dict[int, int] = {}
    for t, count in enumerate(cut):
        base, more = divmod(large if which == "balanced" or t == big[which] else small, count)
        for i in range(count):
            c = len(sizes)
            sizes[c] = min(max(1, base + (i < more)), held[c])
    return class_stream(task, cut, seed=seed, sizes=sizes, order=range(task.num_classes))


@dataclass
class Between:
    """What a method adds to task-incremental training: arguments of `learn_tasks`."""

    penalty: Callable[[nn.Module], Tensor] | None = None
    before: Callable[[Segment], Any] | None = None
    after: Callable[[Segment], Any] | None = None
    loss: Any = cross_entropy
    callbacks: tuple[Any, ...] = ()


def method(arm: str, model: TaskHeads, weights: Sequence[float], rows: int, seed: int) -> Between:
    """`weights`: of the penalty, and of SLNID's or EBLL's own term; importance is taken on `rows` training rows."""
    if arm == "fine_tune":
        return Between()
    lam = weights[0]
    if arm in ("lwf", "ebll"):
        narrow = min(16, model.feature_dim // 2)
        old = continual.LwF(model, lam)
        if arm == "ebll":
            old = continual.EBLL(model, lam, code_dim=narrow, alpha=weights[1])

        def close(segment: Segment) -> None:
            if isinstance(old, continual.EBLL):
                old.end_task(segment.train, TrainConfig(epochs=3), seed=seed)
            old.begin_task()  # the net as it is now answers for all tasks so far

        return Between(after=close, loss=old.loss)
    kinds = {"l2": continual.L2, "ewc": continual.EWC, "si": continual.SynapticIntelligence}
    keep = kinds[arm](model, lam) if arm in kinds else MAS(model, lam, per_sample=arm != "mas_batch")
    if isinstance(keep, continual.SynapticIntelligence):
        return Between(keep.penalty, lambda s: keep.begin_task(), lambda s: keep.update(), callbacks=(keep,))
    inhibit = SLNID(model, weights[1]) if arm == "mas_slnid" else None

    def after(segment: Segment) -> None:
        x = segment.train.x[:rows]
        if arm == "mas_shuffled":
            keep.consolidate(shuffled(importance(model, x), stream(seed, "shuffle", segment.number)))
        else:
            keep.update(list(x.split(50)) if arm == "mas_batch" else x)  # type: ignore[attr-defined]
        if inhibit is not None:
            inhibit.update(x)

    def penalty(net: nn.Module) -> Tensor:
        return keep.penalty(net) + (0.0 if inhibit is None else inhibit.penalty(net))

    return Between(penalty, None, after)


def domains(images: ImageSet, seed: int, rows: tuple[int, int]) -> list[Task]:
    """Six data sets of flat images that a gate has to tell apart, each with its own classes."""
    images = replace(images, x=resize(images.x, SIDE)) if images.x.shape[-1] != SIDE else images
    own = images.task(seed, (0.8, 0.0, 0.2) if images.test is None else (1.0, 0.0))
    half = own.num_classes // 2
    other = load_images("digits").task(seed, (rows[0], 0, rows[1]))
    signals = mnist1d(rows[0], rows[1], seed)

    def low(part: Split) -> Split:
        return part.take(part.y < half)

    def high(part: Split) -> Split:
        rest = part.take(part.y >= half)
        return rest._replace(y=rest.y - half)

    def tall(part: Split) -> Split:
        return part._replace(x=resize(part.x, SIDE))

    def drawn(part: Split) -> Split:
        x = part.x.view(-1, 1, 5, 8)
        span = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
        return part._replace(x=resize((x - x.amin((1, 2, 3), keepdim=True)) / span.clamp_min(1e-6), SIDE))

    changes: list[tuple[Task, Callable[[Split], Split]]] = [
        (own, low), (own, high), (other, tall), (own, lambda p: p._replace(x=affine(p.x, degrees=90.0))),
        (own, lambda p: p._replace(x=1 - p.x)), (signals, drawn),
    ]  # fmt: skip
    made = []
    for number, (task, change) in enumerate(changes):
        parts = []
        for part, count in ((task.train, rows[0]), (task.test, rows[1])):
            assert part is not None
            mixed = part.take(torch.randperm(part.n, generator=stream(seed, "domain", number)))
            ready = change(mixed)
            parts.append(Split(ready.x.flatten(1)[:count].float(), ready.y[:count]))
        classes = 1 + int(max(p.y.max() for p in parts))
        made.append(Task(DOMAINS[number], "images", parts[0], None, parts[1], classes))
    return made

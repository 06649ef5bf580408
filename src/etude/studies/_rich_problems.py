"""Source and target tasks of the study of rich representations, and how a representation is scored on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etude.data.mnist1d import mnist1d
from etude.data.randomness import stream
from etude.data.tasks import Split, Task
from etude.errors import DataError
from etude.layers.prototypes import class_means, mean_logits
from etude.training import LinearProbe, effective_rank

Representation = Callable[[Tensor], Tensor]
IMAGES = (
    "mnist_5k",
    "digits",
    "omniglot",
    "cifar10_full",
)  # every arm; elsewhere those of the claims about shifts and features
BLOCKS, WIDTH, AGREE, REPLACED = 6, 5, 0.92, 4


@dataclass(frozen=True)
class Transfer:
    """Rows (n, d) of the source task, of the target task with few labels, and of the source task under a shift; `shape`
    (channels, height, width) is what a row was before it was flattened."""

    source: Split
    source_test: Split
    target: Split | None = None
    target_test: Split | None = None
    shifted: Split | None = None
    shape: tuple[int, int, int] = (1, 1, BLOCKS * WIDTH)

    @property
    def classes(self) -> int:
        return int(self.source.y.max()) + 1


def transfer(protocol: str, task: Any, seed: int, config: Any) -> Transfer:
    """The rows of one seed."""
    if protocol == "blocks":
        return _blocks(seed, config)
    if protocol == "mnist1d":
        return _signals(seed, config)
    return _classes(task.task(seed, (0.8, 0.0, 0.2)), seed, config)


def _classes(made: Task, seed: int, config: Any, shift: Callable[[Tensor], Tensor] | None = None) -> Transfer:
    """The first half of the classes is the source, the other half the target; of more classes than are asked for, some
    are drawn."""
    if made.num_classes < 4:
        raise DataError(
            f"{made.name} has {made.num_classes} classes: four are needed, two to train on and two to move to"
        )
    train, test, count = made.train, made.test, made.num_classes
    assert test is not None
    if config.classes is not None and config.classes < count:
        drawn = torch.randperm(count, generator=stream(seed, "classes"))[: config.classes]
        number = torch.full((count,), -1).index_copy(0, drawn, torch.arange(config.classes))
        train, test = (p._replace(y=number[p.y]).take(number[p.y] >= 0) for p in (train, test))
        count = config.classes
    half, shape = count // 2, train.x.shape[1:]
    parts = [p._replace(x=p.x.flatten(1).float()) for p in (train, test)]
    source = [p.take(p.y < half) for p in parts]
    target = [p.take(p.y >= half) for p in parts]
    target = [p._replace(y=p.y - half) for p in target]
    few, rest = _few(target[0], config.labels, stream(seed, "labels"))
    tested = Split(torch.cat([target[1].x, rest.x]), torch.cat([target[1].y, rest.y]))
    shifted = None if shift is None else source[1]._replace(x=shift(source[1].x))
    a, b, c = (Split(p.x, p.y) for p in (*source, few))
    form = tuple(shape) if len(shape) == 3 else (1, 1, shape.numel())
    return Transfer(a, b, c, tested, None if shifted is None else Split(shifted.x, shifted.y), form)


def _few(rows: Split, labels: int, generator: torch.Generator) -> tuple[Split, Split]:
    """`labels` rows of each class (at most half of them), and the others."""
    order = torch.randperm(rows.n, generator=generator)
    rank = torch.zeros(rows.n, dtype=torch.long)
    most = torch.zeros(rows.n, dtype=torch.long)
    for c in rows.y.unique():
        mine = order[rows.y[order] == c]
        rank[mine] = torch.arange(len(mine))
        most[mine] = min(labels, len(mine) // 2)
    chosen = rank < most
    return rows.take(order[chosen[order]]), rows.take(~chosen)


def _signals(seed: int, config: Any) -> Transfer:
    """MNIST-1D; the shift is a roll by up to 3 samples and white noise."""
    made = mnist1d(config.signal_rows, 1000, seed)

    def shift(x: Tensor) -> Tensor:
        g = stream(seed, "shift")
        steps = torch.randint(-3, 4, (len(x), 1), generator=g)
        rolled = x.gather(1, (torch.arange(x.shape[1]) + steps) % x.shape[1])
        return rolled + 0.3 * torch.randn(x.shape, generator=g)

    return _classes(made, seed, config, shift)


def _blocks(seed: int, config: Any) -> Transfer:
    """Six blocks of five Gaussians; the sign of the product of a block's first two is the class with probability
    0.92, so that one block is enough and six are redundant. The shift replaces four blocks of each row by noise."""

    def rows(n: int, part: str, replaced: int) -> Split:
        g = stream(seed, "blocks", part)
        y = torch.randint(2, (n,), generator=g)
        z = torch.randn(n, BLOCKS, WIDTH, generator=g)
        agree = torch.rand(n, BLOCKS, generator=g) < AGREE
        sign = (2 * y - 1)[:, None] * (2 * agree.long() - 1)
        z[:, :, 1] = z[:, :, 1].abs() * z[:, :, 0].sign() * sign
        lost = torch.rand(n, BLOCKS, generator=g).argsort(1) < replaced
        z = torch.where(lost[:, :, None], torch.randn(n, BLOCKS, WIDTH, generator=g), z)
        return Split(z.flatten(1), y)

    return Transfer(rows(config.block_rows, "train", 0), rows(2000, "test", 0), shifted=rows(2000, "shifted", REPLACED))


def scores(rep: Representation, data: Transfer, seed: int, config: Any) -> dict[str, float]:
    """What linear read-outs of a frozen representation reach; all but the ranks in points of 100."""
    source = LinearProbe("ridge", folds=3).fit(rep(data.source.x), data.source.y)
    found = {"source_accuracy": 100 * source.score(rep(data.source_test.x), data.source_test.y)}
    if data.shifted is not None:
        found["shifted_accuracy"] = 100 * source.score(rep(data.shifted.x), data.shifted.y)
        few, rest = _few(data.shifted, config.labels, stream(seed, "shifted labels"))
        found["shifted_probe_accuracy"] = ridge_probe(rep(few.x), few.y, rep(rest.x), rest.y)
    if data.target is None or data.target_test is None:
        return found
    x, test = rep(data.target.x), rep(data.target_test.x)
    found["target_probe_accuracy"] = probe(x, data.target.y, test, data.target_test.y, config.strengths)
    for labels, name in ((10, "ten"), (5, "five")):
        some, _ = _few(Split(x, data.target.y), labels, stream(seed, name))
        found[f"target_probe_{labels}"] = ridge_probe(some.x, some.y, test, data.target_test.y)
    ways = min(5, len(groups_of(data.target_test.y)))
    found[f"accuracy_{ways}_way_5_shot"] = five_shot(test, data.target_test.y, stream(seed, "episodes"))
    alive = bool((test != test[0]).any())  # weight decay may have put out every feature of a small net
    found["effective_rank"] = float(effective_rank(test, centred=True)) if alive else 0.0
    return found


def probe(few: Tensor, y: Tensor, test: Tensor, y_test: Tensor, strengths: tuple[float, ...]) -> float:
    """Accuracy in points of logistic regression, its strength by three folds."""
    return 100 * LinearProbe("logistic", strengths, folds=3).fit(few, y).score(test, y_test)


def ridge_probe(few: Tensor, y: Tensor, test: Tensor, y_test: Tensor) -> float:
    """The same by least squares, in closed form: for curves and contrasts."""
    return 100 * LinearProbe("ridge", folds=3).fit(few, y).score(test, y_test)


def five_shot(rows: Tensor, y: Tensor, generator: torch.Generator, *, episodes: int = 100, queries: int = 15) -> float:
    """Mean accuracy of a cosine head whose weights are the means of five normalised examples of each of five classes,
    drawn for each episode where there are more."""
    unit, groups = torch.nn.functional.normalize(rows, dim=1), groups_of(y)
    if len(groups) <= 5:
        return _episodes(unit, groups, episodes, queries, generator)
    each = []
    for _ in range(episodes):
        chosen = torch.randperm(len(groups), generator=generator)[:5].tolist()
        each.append(_episodes(unit, [groups[c] for c in chosen], 1, queries, generator))
    return sum(each) / episodes


def groups_of(y: Tensor) -> list[Tensor]:
    """Row numbers of each class that has enough of them for an episode: five examples and one to ask for.

    Raises
    ------
    DataError
        If fewer than two classes have.
    """
    found = [mine for c in range(int(y.max()) + 1) if len(mine := (y == c).nonzero()[:, 0]) > 5]
    if len(found) < 2:
        raise DataError(
            f"{len(found)} of the {int(y.max()) + 1} classes of the target have six rows to draw five-shot episodes "
            "from, and two are needed: bring more rows a class"
        )
    return found


def _episodes(unit: Tensor, groups: list[Tensor], episodes: int, queries: int, generator: torch.Generator) -> float:
    """Accuracy in points over `episodes` of the classes whose rows are `groups`."""
    picks = [
        mine[torch.rand(episodes, len(mine), generator=generator).argsort(1)[:, : min(5 + queries, len(mine))]]
        for mine in groups
    ]
    right, asked = 0.0, 0
    support = torch.cat([unit[p[:, :5]] for p in picks], 1)
    labels = torch.arange(len(groups)).repeat_interleave(5).expand(episodes, -1)
    means = class_means(support, labels, len(groups))
    for c, p in enumerate(picks):
        named = mean_logits(unit[p[:, 5:]], means, metric="cosine").argmax(-1)
        right, asked = right + float((named == c).sum()), asked + named.numel()
    return 100 * right / asked


def reduced(few: Tensor, test: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Both sets of features on the `dims` main directions of the training rows `few`, the test rows unseen."""
    mean = few.mean(0)
    directions = torch.linalg.svd(few - mean, full_matrices=False).Vh[:dims].T
    return (few - mean) @ directions, (test - mean) @ directions

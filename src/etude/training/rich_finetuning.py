"""What to do with several representations: tune them and join them, or put them into one net.

Source: Zhang & Bottou 2022, arXiv 2212.07346, section 4 (two-stage fine-tuning, Distill_n, snapshots).
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace as with_changes
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.progress import track
from etude.data.randomness import seeded_build, stream
from etude.layers.surgery import replace
from etude.training.config import TrainConfig
from etude.training.distillation import DistillationLoss, distill
from etude.training.engine import train
from etude.training.representations import CatRepresentation, last_linear
from etude.training.run import Build, State


def with_new_head(net: nn.Module, num_outputs: int) -> nn.Module:
    """A copy of `net` whose last linear layer is a new one with `num_outputs` (torch's initialisation)."""
    made = copy.deepcopy(net)

    def new(old: nn.Module) -> nn.Module:
        assert isinstance(old, nn.Linear)
        return nn.Linear(old.in_features, num_outputs).to(old.weight.device, old.weight.dtype)

    replace(made, last_linear(made), new)
    return made


class CatClassifier(nn.Module):
    """Several nets' representations and one linear head: (N, ...) -> (N, classes).

    Parameters
    ----------
    nets
        As in `CatRepresentation`, with the representation before each net's last linear layer.
    num_classes
        A new head of this width, started at 0. None: the nets' own heads joined, ``[W_1 ... W_n] / n``, whose output
        is the mean of the nets' logits.
    """

    def __init__(self, nets: Sequence[nn.Module], num_classes: int | None = None) -> None:
        super().__init__()
        self.body = CatRepresentation(nets, normalize=None)
        heads = [net.get_submodule(last_linear(net)) for net in nets]
        weights = [h.weight.detach() for h in heads if isinstance(h, nn.Linear)]
        width = sum(w.shape[1] for w in weights)
        classes = weights[0].shape[0] if num_classes is None else num_classes
        if num_classes is None and any(len(w) != classes for w in weights):
            raise ValueError(f"heads differ in their classes: {[len(w) for w in weights]}")
        with torch.device(weights[0].device):
            self.head = nn.utils.skip_init(nn.Linear, width, classes, dtype=weights[0].dtype)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()
            if num_classes is None:
                self.head.weight.copy_(torch.cat(weights, 1) / len(nets))
                biases = [h.bias.detach() for h in heads if isinstance(h, nn.Linear) and h.bias is not None]
                if biases:
                    self.head.bias.copy_(torch.stack(biases).sum(0) / len(nets))

    def forward(self, x: Any) -> Tensor:
        """Logits (N, classes)."""
        return self.head(self.body(x))


def cross_entropy(net: Any, batch: Any) -> Tensor:
    """The plain loss of a batch (x, y)."""
    return F.cross_entropy(net(batch[0]), batch[1])


def two_stage_finetune(
    nets: Sequence[nn.Module],
    data: Any,
    num_classes: int | None = None,
    *,
    epochs: tuple[float, float] = (10, 2),
    config: TrainConfig | None = None,
    second: TrainConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> CatClassifier:
    """Tune each net on the new task by itself, join them, and train the joint head shortly.

    Tuned jointly from the start, the strongest net takes the gradient and the others are not used.

    Parameters
    ----------
    data
        What `train` takes: a split, (x, y), or batches (a loader draws them anew each epoch).
    num_classes
        Outputs of the new heads; None: one more than the largest label in `data`. Labels of -100 take no part.
    epochs
        Of both stages; left out where a configuration brings its own length.
    config, second
        Settings of the stages. None: SGD with momentum 0.9 at 0.01 on a cosine; Adam at 1e-3 for the head.

    Raises
    ------
    ValueError
        Without nets or labels, and for labels that are no numbers of classes.
    """
    if not nets:
        raise ValueError("there are no nets to tune: give at least one")
    if num_classes is None and isinstance(data, Iterator):  # gives its batches once only
        data = list(data)
    if num_classes is None or isinstance(data, tuple):
        labels = [data[1]] if isinstance(data, tuple) else [batch[1] for batch in data]
        num_classes = _checked_classes(labels, num_classes)
    first = config or TrainConfig(optimizer="sgd", momentum=0.9, lr=0.01, schedule="cosine")
    last = second or TrainConfig(lr=1e-3)
    first, last = (c if c.steps or c.seconds else with_changes(c, epochs=e) for c, e in zip((first, last), epochs))
    started = [
        seeded_build(lambda net=net: with_new_head(net, num_classes), stream(seed, "head", i))  # type: ignore[misc]
        for i, net in enumerate(nets)
    ]
    tuned = []
    for i, net in enumerate(track(started, "fine-tuning one by one")):
        (done,) = train(net, data, loss=cross_entropy, config=first, seeds=(seed + i,), device=device)
        tuned.append(done.module)
    joined = CatClassifier(tuned)
    for p in joined.body.parameters():
        p.requires_grad_(False)
    train(joined, data, loss=_head_only, config=last, seeds=(seed,), device=device)
    for p in joined.body.parameters():
        p.requires_grad_(True)
    return joined.eval()


def _checked_classes(labels: Sequence[Any], num_classes: int | None) -> int:
    """How many classes there are, at least as many as the labels name; rows of probabilities need `num_classes`."""
    parts = [torch.as_tensor(y) for y in labels if y is not None]
    if not sum(y.numel() for y in parts):
        raise ValueError("there are no labels to tune on: give (x, y) with at least one row")
    if any(y.is_floating_point() for y in parts):
        if num_classes is None or any(y.ndim != 2 or y.shape[1] != num_classes for y in parts):
            kinds = sorted({f"{y.dtype} {tuple(y.shape[1:])}" for y in parts})
            raise ValueError(f"labels must be numbers of classes, got {', '.join(kinds)}: make them integers")
        return num_classes
    known = torch.cat([y[y != -100].flatten().long().cpu() for y in parts])
    low, high = (int(known.min()), int(known.max())) if len(known) else (0, 0)
    classes = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= classes:
        raise ValueError(f"label {low if low < 0 else high} lies outside 0..{classes - 1}: number the classes from 0")
    return classes


def _head_only(net: Any, batch: Any) -> Tensor:
    net.body.eval()
    return cross_entropy(net, batch)


class MultiHead(nn.Module):
    """A net with `num_heads` heads on one representation: (N, ...) -> (N, heads, classes). `net` is the whole net."""

    def __init__(self, net: nn.Module, num_heads: int, num_classes: int) -> None:
        super().__init__()
        self.net = with_new_head(net, num_heads * num_classes)
        self.shape = (num_heads, num_classes)

    def forward(self, x: Any) -> Tensor:
        """Logits of every head."""
        return self.net(x).unflatten(-1, self.shape)


class _Teachers(nn.Module):
    """All teachers' logits: (N, teachers, classes), or (N, 1, classes) averaged."""

    def __init__(self, nets: Sequence[nn.Module], average: bool) -> None:
        super().__init__()
        self.nets, self.average = nn.ModuleList(nets), average

    def forward(self, x: Any) -> Tensor:
        logits = [net(x) for net in self.nets]
        if len({made.shape for made in logits}) > 1:
            raise ValueError(f"teachers differ in what they put out: {[tuple(made.shape) for made in logits]}")
        made = torch.stack(logits, 1)
        return made.mean(1, keepdim=True) if self.average else made


def distill_representations(
    nets: Sequence[nn.Module],
    make_student: Build,
    loader: Any,
    *,
    heads: Literal["separate", "average"] = "separate",
    temperature: float = 10.0,
    config: TrainConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> MultiHead:
    """One student that must match every teacher with a head of its own, so that it keeps the features of all.

    Minimises ``sum_i T^2 KL(teacher_i / T || head_i / T)``, without labels. The representation is
    ``CatRepresentation([student.net])``.

    Parameters
    ----------
    make_student
        A net or ``build(seed)``; its last linear layer is replaced by the heads.
    loader
        What `train` takes; targets are not looked at.
    heads
        "average": one head against the teachers' mean logits, another method (it keeps less).

    Raises
    ------
    ValueError
        Without teachers, with teachers of different classes, or with an unknown `heads`.
    """
    if not nets:
        raise ValueError("there are no teachers: give at least one net")
    if heads not in ("separate", "average"):
        raise ValueError(f"heads must be 'separate' or 'average', got {heads!r}")
    average = heads == "average"
    count = 1 if average else len(nets)
    classes = nets[0].get_submodule(last_linear(nets[0])).out_features

    def build(s: int) -> nn.Module:
        made = make_student if isinstance(make_student, nn.Module) else make_student(s)
        return MultiHead(made, count, int(classes))  # type: ignore[arg-type]

    losses = DistillationLoss({"logits": float(count)}, temperature=temperature)
    settings = config or TrainConfig(epochs=10)
    teachers = _Teachers(nets, average)
    done = distill(teachers, build, loader, losses=losses, config=settings, seed=seed, device=device)
    return done.module


class Snapshots:
    """A callback of `train` that keeps copies of the net at given updates: a cheap stand-in for several runs.

    ``snapshots.nets`` holds them in order; the run needs a high, constant or cyclic learning rate, so that they differ.

    Raises
    ------
    ValueError
        For updates below 1, and where a second seed is trained: its nets would mix with the first one's.

    Warns
    -----
    UserWarning
        Where the run ends before an update that was to be kept.
    """

    one_seed = True

    def __init__(self, steps: Sequence[int]) -> None:
        if not steps or min(steps) < 1:
            raise ValueError(f"give the updates to keep, each at least 1, got {tuple(steps)}")
        self.steps = frozenset(steps)
        self.nets: list[nn.Module] = []
        self._seed: int | None = None

    def on_step(self, state: State) -> None:
        """Keep a copy where it is due."""
        if state.step in self.steps:
            if self._seed is None:
                self._seed = state.seed
            if state.seed != self._seed:
                raise ValueError(
                    f"these snapshots are of seed {self._seed}: give seed {state.seed} a Snapshots of its own"
                )
            self.nets.append(copy.deepcopy(state.model).eval())

    def on_end(self, state: State) -> None:
        """Say which copies there are not."""
        missed = sorted(step for step in self.steps if step > state.step)
        if missed:
            warnings.warn(f"the run ended after {state.step} updates: no snapshot of {missed}", stacklevel=2)

"""Distillation: a student learns to answer, or to represent, as one or more teachers do.

Sources: Hinton, Vinyals & Dean 2015, arXiv 1503.02531 (logits, the factor T^2); Romero et al. 2014, arXiv 1412.6550
(hidden layers); Jiao et al. 2019, arXiv 1909.10351, eq. 7 and 8 (attention and hidden states); Park et al. 2019,
arXiv 1904.05068, eq. 4 (distances between rows).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.modes import evaluating
from etude.layers.surgery import Record
from etude.training.config import TrainConfig
from etude.training.engine import train
from etude.training.feed import make_feed
from etude.training.run import Build, Trained
from etude.training.similarity import model_inputs

TERMS = ("logits", "hidden", "attention", "relation")
LayerMap = Sequence[tuple[str, str]]


def distillation_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) of softened outputs: summed over classes, mean over rows, times the temperature squared.

    Parameters
    ----------
    student, teacher
        (..., classes) logits; all axes but the last are rows. No gradient flows into the teacher. A class that the
        teacher rules out by -inf adds nothing.
    temperature
        Divides both sides' logits; the factor T^2 keeps the gradient's size.
    top_k
        Compare on the teacher's `top_k` classes of each row only, both sides renormalised on them.
    mask
        Rows that count, (...), True = counts.

    Raises
    ------
    ValueError
        For different shapes, no rows, a temperature that is not positive, a `top_k` out of range, or a mask without
        True.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not student.numel():
        raise ValueError(f"there are no rows to compare: the logits have shape {tuple(student.shape)}")
    teacher = teacher.detach()
    student, teacher = _single(student), _single(teacher)
    if top_k is not None:
        if not 1 <= top_k <= teacher.shape[-1]:
            raise ValueError(f"top_k must lie in 1..{teacher.shape[-1]}, got {top_k}")
        teacher, chosen = teacher.topk(top_k, dim=-1)
        student = student.gather(-1, chosen)
    log_q = (student / temperature).log_softmax(-1)
    log_p = (teacher / temperature).log_softmax(-1)
    parts = F.kl_div(log_q, log_p, reduction="none", log_target=True)
    rows = parts.masked_fill(log_p.isneginf(), 0.0).sum(-1)  # 0 log 0
    if mask is not None:
        if mask.shape != rows.shape or not bool(mask.any()):
            raise ValueError(f"mask must be {tuple(rows.shape)} with at least one True, got {tuple(mask.shape)}")
        rows = rows[mask]
    return rows.mean() * temperature**2


def _single(logits: Tensor) -> Tensor:
    """In single precision at least: half loses the difference of two logarithms that are nearly alike."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the rows' distances, each side divided by its mean distance. (n, ...) and (n, ...)."""
    if len(student) != len(teacher) or len(student) < 2:
        raise ValueError(f"relations need the same rows, at least 2, got {len(student)} and {len(teacher)}")
    sides = []
    for X in (student, teacher.detach()):
        X = X.flatten(1)
        d = torch.pdist(X)
        sides.append(d / d.mean().clamp_min(1e-12))
    return F.smooth_l1_loss(sides[0], sides[1])


class Outputs(NamedTuple):
    """What a model gave on a batch: logits, and the recorded layers by name."""

    logits: Tensor
    features: Mapping[str, Tensor] = {}


class DistillationLoss(nn.Module):
    """Weighted terms between a student's and a teacher's outputs.

    Parameters
    ----------
    terms
        Weight of each term: "logits" (`distillation_kl`), "hidden" (mean squared error of paired layers),
        "attention" (the same of layers that put out attention weights), "relation" (`relation_loss` of paired
        layers). A sequence of names: weight 1 each.
    layer_map
        (student layer, teacher layer) pairs for "hidden" and "relation".
    attention_map
        The same for "attention".
    temperature, top_k
        Of "logits".
    project
        Learn a linear map from each student layer to its teacher layer ("hidden" only), needed where their widths
        differ. Its weights are made by `prepare` and belong to this module: each call of `distill` makes them anew,
        and its optimiser takes them along.
    item
        Part of a tuple output that a layer's feature is; `attention_item` likewise.

    Raises
    ------
    ValueError
        For an unknown term, no term, or a term that lacks its pairs.
    """

    def __init__(
        self,
        terms: Mapping[str, float] | Sequence[str] = ("logits",),
        *,
        layer_map: LayerMap = (),
        attention_map: LayerMap = (),
        temperature: float = 1.0,
        top_k: int | None = None,
        project: bool = False,
        item: int | str = 0,
        attention_item: int | str = 1,
    ) -> None:
        super().__init__()
        weights = dict(terms) if isinstance(terms, Mapping) else dict.fromkeys(terms, 1.0)
        unknown = sorted(set(weights) - set(TERMS))
        if unknown or not weights:
            raise ValueError(f"terms must be some of {', '.join(TERMS)}, got {unknown or 'none'}")
        for term, pairs, name in (
            ("hidden", layer_map, "layer_map"), ("relation", layer_map, "layer_map"),
            ("attention", attention_map, "attention_map"),
        ):  # fmt: skip
            if term in weights and not pairs:
                raise ValueError(f"the term {term!r} needs {name}=: pairs of (student layer, teacher layer)")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.weights, self.temperature, self.top_k = weights, temperature, top_k
        self.layer_map = tuple(layer_map) if {"hidden", "relation"} & set(weights) else ()
        self.attention_map = tuple(attention_map) if "attention" in weights else ()
        self.item, self.attention_item = item, attention_item
        self.project = project
        self.maps = nn.ModuleList()

    def forward(self, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Weighted terms by name; their sum is the loss."""
        made: dict[str, Tensor] = {}
        if "logits" in self.weights:
            made["logits"] = distillation_kl(
                student.logits, teacher.logits, temperature=self.temperature, top_k=self.top_k
            )
        pairs = [(student.features[s], teacher.features[t].detach()) for s, t in self.layer_map]
        if "hidden" in self.weights:
            made["hidden"] = torch.stack([self._hidden(i, s, t) for i, (s, t) in enumerate(pairs)]).mean()
        if "relation" in self.weights:
            made["relation"] = torch.stack([relation_loss(s, t) for s, t in pairs]).mean()
        if "attention" in self.weights:
            both = [(student.features[s], teacher.features[t].detach()) for s, t in self.attention_map]
            made["attention"] = torch.stack([F.mse_loss(s, t) for s, t in both]).mean()
        return {name: self.weights[name] * value for name, value in made.items()}

    def _hidden(self, i: int, student: Tensor, teacher: Tensor) -> Tensor:
        if self.project:
            student = self.maps[i](student)
        if student.shape != teacher.shape:
            names = self.layer_map[i]
            raise ValueError(
                f"{names[0]!r} {tuple(student.shape)} and {names[1]!r} {tuple(teacher.shape)} differ: set project=True"
            )
        return F.mse_loss(student, teacher)

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Make the projections for layers of these widths (under torch's global generator, like any layer)."""
        if self.project and not self.maps:
            for s, t in self.layer_map:
                a, b = student.features[s], teacher.features[t]
                self.maps.append(nn.Linear(a.shape[-1], b.shape[-1], bias=False).to(a.device, a.dtype))

    def run(self, model: nn.Module, batch: Any, *, teacher: bool) -> Outputs:
        """`model` on a batch, with the layers recorded that its side of the maps names."""
        side = 1 if teacher else 0
        args, kwargs = model_inputs(batch)
        with ExitStack() as stack:
            records = [
                stack.enter_context(Record(model, list(dict.fromkeys(p[side] for p in pairs)), item=item))
                for pairs, item in ((self.layer_map, self.item), (self.attention_map, self.attention_item))
                if pairs
            ]
            out = model(*args, **kwargs)
            features = {name: value for record in records for name, value in record.features.items()}
        return Outputs(logits_of(out), features)


def logits_of(out: Any) -> Tensor:
    """The logits in a model's output: a tensor, something with `.logits`, or the first entry."""
    if isinstance(out, Tensor):
        return out
    if hasattr(out, "logits"):
        return out.logits
    if isinstance(out, Mapping) and "logits" in out:
        return out["logits"]
    if isinstance(out, (tuple, list)) and out and isinstance(out[0], Tensor):
        return out[0]
    raise ValueError(f"no logits in {type(out).__name__}: wrap the model so that it returns a tensor")


def frozen_outputs(teacher: nn.Module, losses: DistillationLoss, batch: Any) -> Outputs:
    """A teacher's outputs in eval mode, without gradient; its modes are left as they were."""
    return _frozen(teacher, losses, batch, teacher=True)


@torch.no_grad()
def _frozen(model: nn.Module, losses: DistillationLoss, batch: Any, *, teacher: bool) -> Outputs:
    with evaluating(model):
        return losses.run(model, batch, teacher=teacher)


def distillation_objective(
    teacher: nn.Module | Callable[[Any], nn.Module],
    losses: DistillationLoss | None = None,
    *,
    task_loss: Callable[[Tensor, Any], Tensor] | None = None,
    task_weight: float = 1.0,
) -> Callable[[Any, Any], dict[str, Tensor]]:
    """``loss(model, batch)`` for `etude.training.train`: the terms of `losses`, and the task's own.

    Parameters
    ----------
    teacher
        A model, or a function from the student to its teacher (each seed its own).
    losses
        None: logits at temperature 1.
    task_loss
        ``task_loss(logits, batch.y)``, weighted with `task_weight`. None: no ground truth.

    Raises
    ------
    ValueError
        If the losses have projections to learn that no optimiser would reach: use `distill`.
    """
    terms = DistillationLoss() if losses is None else losses
    if terms.project and not terms.maps:
        raise ValueError("project=True has maps to train beside the student: use distill, or call prepare() first")

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        net = teacher if isinstance(teacher, nn.Module) else teacher(model)
        student = terms.run(model, batch, teacher=False)
        made = terms(student, frozen_outputs(net, terms, batch))
        if task_loss is not None:
            made["task"] = task_weight * task_loss(student.logits, _target(batch))
        return made

    return loss


def _target(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return next(batch[k] for k in ("labels", "label", "y") if k in batch)
    return batch[1]


def distill(
    teacher: nn.Module,
    student: Build,
    loader: Any,
    *,
    losses: DistillationLoss | None = None,
    config: TrainConfig,
    task_loss: Callable[[Tensor, Any], Tensor] | None = None,
    task_weight: float = 1.0,
    seed: int = 0,
    val: Any = None,
    metric: Callable[[nn.Module, Any], float] | None = None,
    callbacks: Sequence[Any] = (),
    device: str | torch.device = "cpu",
) -> Trained:
    """Train one student on a teacher's outputs; for many seeds give `distillation_objective` to `train`.

    Parameters
    ----------
    teacher
        Frozen, in eval mode while it is asked, left in the mode it was in.
    student
        A module, trained in place, or ``build(seed)``.
    loader
        What `train` takes as data.
    losses
        None: logits at temperature 1. With ``project=True`` its maps are made anew and trained along.

    Raises
    ------
    ValueError
        If student and teacher do not fit each other, or a layer is not there (`TargetError`).
    """
    terms = DistillationLoss() if losses is None else losses
    teacher = teacher.to(device)
    build: Build = student
    if terms.project:

        def build(s: int) -> nn.Module:
            net = student if isinstance(student, nn.Module) else student(s)
            return _WithMaps(net.to(device), terms, teacher, _first(loader, s, config, device))

    def loss(model: Any, batch: Any) -> dict[str, Tensor]:
        objective = distillation_objective(teacher, terms, task_loss=task_loss, task_weight=task_weight)
        return objective(model.student if terms.project else model, batch)

    (done,) = train(
        build, loader, loss=loss, config=config, seeds=(seed,), val=val, metric=metric, callbacks=callbacks,
        plan="sequential", device=device,
    )  # fmt: skip
    if terms.project:
        done.module = done.module.student
    return done


class _WithMaps(nn.Module):
    """A student beside the projections that are trained with it."""

    def __init__(self, student: nn.Module, losses: DistillationLoss, teacher: nn.Module, batch: Any) -> None:
        super().__init__()
        self.student = student
        losses.maps = nn.ModuleList()  # those of an earlier call are trained: the result would not be the seed's alone
        losses.prepare(_frozen(student, losses, batch, teacher=False), frozen_outputs(teacher, losses, batch))
        self.maps = losses.maps

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)


def _first(loader: Any, seed: int, config: TrainConfig, device: str | torch.device) -> Any:
    where = torch.device(device)
    return make_feed(loader, seed, batch_size=config.batch_size, drop_last=config.drop_last, device=where).next()

"""What a pruned model holds, how it recovers, and what each amount of pruning costs.

Source: Darji 2021, arXiv 2407.20601.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from etude.compression.graphs import graph_properties as graph_properties
from etude.compression.pruning import prepared, refuse_tied
from etude.data.progress import track
from etude.layers.masks import Scope, apply_masks, check_amount, current_masks, weight_names
from etude.layers.masks import make_permanent as make_permanent
from etude.layers.surgery import TargetError

PARTS: Mapping[str, tuple[str, ...]] = {
    "both": ("weight_ih", "weight_hh"), "input": ("weight_ih",), "recurrent": ("weight_hh",),
}  # fmt: skip


class TensorSparsity(NamedTuple):
    """One weight, or the sum of all under the name "total"."""

    name: str
    entries: int
    nonzeros: int
    share: float
    """Share of zeros."""
    dense_bytes: int
    compressed_bytes: int
    """The values that are left and one bit an entry that says where they stand; never more than dense."""


def report(model: nn.Module) -> list[TensorSparsity]:
    """Zeros of every weight and of all together, and the bytes that they would take on disk.

    Storage only: dense kernels multiply zeros like other numbers, so nothing here says that a model runs faster.
    """
    rows = []
    for name in weight_names(model):
        path, _, own = name.rpartition(".")
        weight = getattr(model.get_submodule(path), own).detach()
        n, left, size = weight.numel(), int((weight != 0).sum()), weight.element_size()
        rows.append(TensorSparsity(name, n, left, _share(n, left), n * size, min(n * size, left * size + -(-n // 8))))
    if not rows:
        raise TargetError(f"{type(model).__name__} has no weights")
    entries, left = sum(r.entries for r in rows), sum(r.nonzeros for r in rows)
    dense, compressed = sum(r.dense_bytes for r in rows), sum(r.compressed_bytes for r in rows)
    return [*rows, TensorSparsity("total", entries, left, _share(entries, left), dense, compressed)]


def _share(entries: int, nonzeros: int) -> float:
    return 1 - nonzeros / entries if entries else 0.0


def recover(
    model: nn.Module, fit_fn: Callable[[nn.Module], Any], epochs: int = 3, *, metric: Callable[[nn.Module], float]
) -> list[float]:
    """Train a pruned model on, with its masks as they are.

    Parameters
    ----------
    fit_fn
        Trains the model in place for one epoch, with an optimiser of its own making.
    metric
        A number of the model, such as accuracy.

    Returns
    -------
    list of float
        The metric before retraining and after each epoch: ``epochs + 1`` numbers.

    Raises
    ------
    TargetError
        If the model has no mask: every weight would grow back.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if not current_masks(model):
        raise TargetError(f"{type(model).__name__} has no masked weight: prune it first")
    history = [float(metric(model))]
    for _ in track(range(epochs), "retraining"):
        fit_fn(model)
        history.append(float(metric(model)))
    return history


class SweepRow(NamedTuple):
    """One measurement of a sweep; ``pandas.DataFrame(rows)`` makes a table of them."""

    part: str
    amount: float
    epoch: int
    """Epochs of retraining; 0 = right after pruning."""
    value: float
    drop: float
    """Value of the dense model minus this one."""


def sweep(
    model: nn.Module,
    amounts: Sequence[float],
    eval_fn: Callable[[nn.Module], float],
    fit_fn: Callable[[nn.Module], Any] | None = None,
    *,
    parts: Mapping[str, str | Sequence[str]] = PARTS,
    epochs: int = 1,
    scope: Scope = "global",
) -> list[SweepRow]:
    """Prune copies of a trained model by every amount, and see what is left.

    The dense model is evaluated once and every part is sorted once, whatever the number of amounts; an amount of 0
    is the dense model. The model itself is not changed.

    Parameters
    ----------
    amounts
        Shares removed, in [0, 1].
    eval_fn
        A number of a model, such as accuracy.
    fit_fn
        Trains a model in place for one epoch: then every pruned copy is retrained for `epochs`.
    parts
        Targets of `prune` by name.
    """
    for amount in amounts:
        check_amount(amount)
    rows, dense = [], float(eval_fn(model))
    for part, targets in parts.items():
        refuse_tied(model, targets)
        ranked = prepared(model, targets, scope=scope)
        masked = copy.deepcopy(model)
        apply_masks(masked, ranked.masks(0.0))
        before = {name: mask.clone() for name, mask in current_masks(masked).items()}
        for amount in track(list(amounts), f"pruning {part}"):
            pruned = masked if fit_fn is None else copy.deepcopy(masked)
            live = current_masks(pruned)
            for name, mask in ranked.masks(amount).items():
                torch.logical_and(before[name], mask, out=live[name])
            history = [dense if amount == 0 else float(eval_fn(pruned))]
            if fit_fn is not None:
                for _ in range(epochs):
                    fit_fn(pruned)
                    history.append(float(eval_fn(pruned)))
            rows += [SweepRow(part, amount, i, value, dense - value) for i, value in enumerate(history)]
    return rows

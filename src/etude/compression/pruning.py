"""Magnitude pruning of any model's weights, recurrent ones in particular.

Source: Darji 2021, arXiv 2407.20601, section on pruning; torch's gate orders (GRU: reset, update, new; LSTM: input,
forget, cell, output) name single gates.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from etude.layers.masks import (
    Scope,
    apply_masks,
    check_amount,
    current_masks,
    mask_by_rank,
    rank_scores,
    weight_names,
)
from etude.layers.recurrent_cells import PeepholeLSTM
from etude.layers.surgery import SurgeryReport, TargetError

GATES: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.GRU, ("reset", "update", "new")),
    (nn.GRUCell, ("reset", "update", "new")),
    (nn.LSTM, ("input", "forget", "cell", "output")),
    (nn.LSTMCell, ("input", "forget", "cell", "output")),
    (PeepholeLSTM, ("input", "forget", "cell", "output")),
)
RECURRENT = ("weight_ih", "weight_hh")
_LAYER = re.compile(r"_l\d+(_reverse)?$")


def prune(
    model: nn.Module,
    amount: float,
    targets: str | Sequence[str] = RECURRENT,
    *,
    scope: Scope = "global",
    scores: Mapping[str, Tensor] | None = None,
) -> SurgeryReport:
    """Remove the smallest weights of a model, in place: masks that stay through any training afterwards.

    Parameters
    ----------
    amount
        Share removed, in [0, 1]: exactly ``round(amount * N)`` of the N entries that `targets` means. 1 leaves none
        (the official code's strict comparison leaves its largest weight).
    targets
        Names of weights: a dotted name or glob ("rnn.weight_hh_l0", "*.weight"), or the name inside its module; either
        with or without the layer ("weight_hh" means all of weight_hh_l0, weight_hh_l1 ... of every module,
        "rnn.weight_hh" those of one), or one gate of these ("weight_hh.update").
    scope
        "global" compares the entries of all tensors with each other, as the official code does; "layer" removes the
        same share of every tensor, as the thesis' text says.
    scores
        What to prune by, tensors in the weights' shapes by dotted name; None: magnitudes.

    Returns
    -------
    SurgeryReport
        Its `replaced` names the weights that have a mask now.

    Raises
    ------
    ValueError
        For an amount outside [0, 1], weights that are not finite, or scores that are NaN or of another shape.
    TargetError
        For no target, one that means no weight of the model, or one that is tied to another place (a mask acts where
        it is put, so the other place would go on with the whole weight).

    Notes
    -----
    Pruning twice composes: what is masked stays masked and counts as removed, so ``amount`` is always a share of all
    weights (`torch.nn.utils.prune` takes it of those that are left). Sparse weights are not faster in dense kernels.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.GRU(8, 16)
    >>> report = prune(net, 0.75, "weight_hh")
    >>> int((net.weight_hh_l0 != 0).sum()), report.replaced
    (192, ('weight_hh_l0',))
    """
    check_amount(amount)
    refuse_tied(model, targets)
    return apply_masks(model, prepared(model, targets, scope=scope, scores=scores).masks(amount))


def refuse_tied(model: nn.Module, targets: str | Sequence[str]) -> None:
    """Raise if a weight that `targets` means is the parameter of two modules."""
    places: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for own, p in module._parameters.items():
            if p is not None:
                places.setdefault(id(p), []).append(f"{path}.{own}".lstrip("."))
    wanted = {name for name, _ in match_weights(model, targets).values()}
    for names in places.values():
        plain = [n.replace("parametrizations.", "").removesuffix(".original") for n in names]
        if len(plain) > 1 and wanted & set(plain):
            raise TargetError(f"{' and '.join(map(repr, plain))} are one tied weight: give each its own copy first")


class Prepared:
    """The entries that `targets` means, ranked once: `masks` of any amount are then comparisons only."""

    def __init__(self, whole: dict[str, torch.Size], rows: dict[str, tuple[str, slice]], ranks: dict[str, Tensor],
                 scope: Scope) -> None:  # fmt: skip
        self.whole, self.rows, self.ranks, self.scope = whole, rows, ranks, scope

    def masks(self, amount: float) -> dict[str, Tensor]:
        """Masks by name of weight; rows of gates that are not meant are kept."""
        out: dict[str, Tensor] = {}
        for key, part in mask_by_rank(self.ranks, amount, self.scope).items():
            name, rows = self.rows[key]
            if name not in out:
                out[name] = torch.ones(self.whole[name], dtype=torch.bool, device=part.device)
            out[name][rows] = part
        return out


def prepared(
    model: nn.Module,
    targets: str | Sequence[str] = RECURRENT,
    *,
    scope: Scope = "global",
    scores: Mapping[str, Tensor] | None = None,
) -> Prepared:
    """Find and rank the weights that `prune` would choose from; arguments as there."""
    rows = match_weights(model, targets)
    masks, chosen = current_masks(model), {}
    for key, (name, part) in rows.items():
        weight = _weight(model, name).detach()
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{name!r} holds {int((~weight.isfinite()).sum())} entries that are not finite")
        if scores is not None and name not in scores:
            raise TargetError(f"scores has no {name!r}; it has {', '.join(scores)}")
        score = weight.abs() if scores is None else scores[name].detach().to(weight.device)
        if score.shape != weight.shape:
            raise ValueError(f"{name!r} has shape {tuple(weight.shape)}, but its scores {tuple(score.shape)}")
        score = score if score.is_floating_point() else score.double()  # ranked in their own precision
        if name in masks:
            score = score.masked_fill(~masks[name], -torch.inf)  # removed before: counted first
        chosen[key] = score[part]
    whole = {name: _weight(model, name).shape for name, _ in rows.values()}
    return Prepared(whole, rows, rank_scores(chosen, scope), scope)


def _weight(model: nn.Module, name: str) -> Tensor:
    path, _, own = name.rpartition(".")
    return getattr(model.get_submodule(path), own)


def match_weights(model: nn.Module, targets: str | Sequence[str]) -> dict[str, tuple[str, slice]]:
    """What `targets` means: name of the weight and rows of it, by a key that tells gates apart.

    Raises
    ------
    TargetError
        If a target means nothing, or there is none; the message lists the names and the gates that there are.
    """
    wanted = [targets] if isinstance(targets, str) else list(targets)
    names = weight_names(model)
    if not wanted:
        raise TargetError(f"targets is empty: name a weight of {type(model).__name__}; it has {', '.join(names[:16])}")
    out: dict[str, tuple[str, slice]] = {}
    for target in wanted:
        found = {n: (n, slice(None)) for n in names if _means(target, n)}
        if not found and "." in target:
            stem, gate = target.rsplit(".", 1)
            found = {f"{n}.{gate}": (n, r) for n in names if _means(stem, n) and (r := _gate(model, n, gate))}
        if not found:
            raise TargetError(
                f"no weight {target!r} in {type(model).__name__}; it has {', '.join(names[:16])}; gates of a GRU are "
                f"{', '.join(GATES[0][1])}, of an LSTM {', '.join(GATES[2][1])}"
            )
        out.update(found)
    whole = {name for name, rows in out.values() if rows == slice(None)}
    return {key: value for key, value in out.items() if value[0] not in whole or key == value[0]}


def _means(target: str, name: str) -> bool:
    own = name.rpartition(".")[2]
    return fnmatchcase(name, target) or target in (own, _LAYER.sub("", own), _LAYER.sub("", name))


def _gate(model: nn.Module, name: str, gate: str) -> slice | None:
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    gates = next((g for kind, g in GATES if isinstance(module, kind)), ())
    if isinstance(module, PeepholeLSTM):  # the form of 1997 has no forget gate, and peepholes do not reach the cell
        absent = ["forget"] * (not module.forget_gate) + ["cell"] * own.startswith("weight_ch")
        gates = tuple(g for g in gates if g not in absent)
    if gate not in gates:
        return None
    size, i = getattr(module, own).shape[0] // len(gates), gates.index(gate)
    return slice(i * size, (i + 1) * size)

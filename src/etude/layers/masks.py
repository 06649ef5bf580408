"""Weight masks: choose entries by a score, keep them at zero in every forward pass, make that permanent.

Source: Han, Pool, Tran & Dally 2015, arXiv 1506.02626 (masks by magnitude, fixed while training goes on).
A mask is a torch parametrization: the model's `state_dict` holds the mask and the weights under it, an optimiser
keeps training the weights, and `nn.LSTM` and its kin keep their kernels (the product is taken once a forward pass,
never once a time step).
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from etude.layers.surgery import SurgeryReport, TargetError

Scope = Literal["global", "layer"]


class Mask(nn.Module):
    """Multiplies a weight by a fixed mask of its shape (True = kept)."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is set anew is kept whole; its masked entries come out as zero."""
        return weight


def rank_scores(scores: Mapping[str, Tensor], scope: Scope = "global") -> dict[str, Tensor]:
    """Rank of every entry, 0 = lowest score; equal scores by their order. One sort serves every amount.

    Parameters
    ----------
    scores
        Tensors of any shape by name.
    scope
        "global" ranks all entries together, "layer" every tensor by itself.

    Returns
    -------
    dict of int64 tensors in the shapes of `scores`.

    Raises
    ------
    ValueError
        For no scores, NaN (minus and plus infinity are fine: always first, always last) or an unknown scope.
    """
    if not scores:
        raise ValueError("no scores to rank: give at least one tensor by name")
    if scope not in ("global", "layer"):
        raise ValueError(f'scope must be "global" or "layer", got {scope!r}')
    for name, s in scores.items():
        if bool(s.isnan().any()):
            raise ValueError(
                f"{name!r} has {int(s.isnan().sum())} NaN scores: the model has diverged, or the score has"
            )
    if scope == "layer":
        return {name: _ranks(s.flatten()).view(s.shape) for name, s in scores.items()}
    flat = _ranks(torch.cat([s.detach().flatten() for s in scores.values()]))
    parts = flat.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for part, (name, s) in zip(parts, scores.items())}


def _ranks(flat: Tensor) -> Tensor:
    order = flat.detach().argsort(stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def mask_by_rank(ranks: Mapping[str, Tensor], amount: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Masks (True = kept) that drop exactly ``round(amount * N)`` entries, N those of all tensors or of each one."""
    check_amount(amount)
    if scope == "layer":
        return {name: r >= round(amount * r.numel()) for name, r in ranks.items()}
    drop = round(amount * sum(r.numel() for r in ranks.values()))
    return {name: r >= drop for name, r in ranks.items()}


def mask_by_score(scores: Mapping[str, Tensor], amount: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Masks that drop the share `amount` with the lowest scores.

    Parameters
    ----------
    scores
        Tensors by name; the magnitudes ``w.abs()`` give magnitude pruning.
    amount
        Share removed, in [0, 1]. Exactly ``round(amount * N)`` entries go; of equal scores the earlier ones.
    scope
        "global" compares all tensors with each other, "layer" removes the same share of each.

    Returns
    -------
    dict of bool tensors, True = kept. Equal to those of `torch.nn.utils.prune` wherever no scores are tied.

    Raises
    ------
    ValueError
        For an amount outside [0, 1], NaN scores, no scores.
    """
    check_amount(amount)
    return mask_by_rank(rank_scores(scores, scope), amount, scope)


def check_amount(amount: float) -> None:
    """Raise unless `amount` is a share in [0, 1]."""
    if not (isinstance(amount, numbers.Real) and math.isfinite(amount) and 0 <= amount <= 1):
        hint = f": for {amount:g} % write {amount / 100:g}" if isinstance(amount, numbers.Real) and amount > 1 else ""
        raise ValueError(f"amount is the share removed and lies in [0, 1], got {amount!r}{hint}")


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> SurgeryReport:
    """Keep entries of the model's weights at zero, in place.

    Parameters
    ----------
    masks
        Bool (or 0/1) tensors by the dotted name of a parameter, True = kept. A weight that has a mask already keeps
        the entries that both masks keep.

    Returns
    -------
    SurgeryReport
        `replaced` names the weights; `parameters_after` leaves out what is masked.

    Raises
    ------
    TargetError
        For names that are no parameter of the model; nothing is changed then.
    ValueError
        For a mask of another shape.

    Notes
    -----
    A copy is loaded in two steps: `apply_masks` with masks of ones, then ``load_state_dict``. To train, make the
    optimiser afterwards: momentum of an older one would not move masked entries out of zero (the mask acts in the
    forward pass), but its parameters may be others.
    """
    places = {name: _find(model, name) for name in masks}
    for name, (module, own) in places.items():
        shape = getattr(module, own).shape
        if masks[name].shape != shape:
            raise ValueError(f"the mask of {name!r} has shape {tuple(masks[name].shape)}, the weight {tuple(shape)}")
    before = sum(p.numel() for p in model.parameters())
    for name, (module, own) in places.items():
        mask = masks[name].to(getattr(module, own).device).bool()
        if (old := mask_of(module, own)) is not None:
            old.mask &= mask
            continue
        parametrize.register_parametrization(module, own, Mask(mask.clone()), unsafe=True)
        if isinstance(module, nn.RNNBase) and _release not in module._forward_hooks.values():
            module.register_forward_hook(_release)
    dropped = sum(int((~m).sum()) for m in current_masks(model).values())
    return SurgeryReport(tuple(places), before, before - dropped)


def _own_class(module: nn.Module) -> None:
    """Copies of a module share the class that torch made for it, and taking a mask off edits that class."""
    kind = type(module)
    if not parametrize.is_parametrized(module):
        return
    members = {k: v for k, v in kind.__dict__.items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)


def _release(module: Any, args: Any, output: Any) -> None:
    """Drop the graph that an RNN's list of weights holds on to, so that the module can be copied."""
    module.__dict__["_flat_weights"] = [None if w is None else w.detach() for w in module._flat_weights]


def _find(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, own = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or (module._parameters.get(own) is None and not parametrize.is_parametrized(module, own)):
        known = ", ".join(weight_names(model)[:12])
        raise TargetError(f"{type(model).__name__} has no parameter {name!r}; it has {known}")
    return module, own


def mask_of(module: nn.Module, own: str) -> Mask | None:
    """The mask on a weight of `module`, None where there is none."""
    if not parametrize.is_parametrized(module, own):
        return None
    return next((m for m in module.parametrizations[own] if isinstance(m, Mask)), None)  # type: ignore[union-attr,index]


def weight_names(model: nn.Module) -> list[str]:
    """Dotted names of all parameters, masked ones under the name that they had before."""
    return [n.replace("parametrizations.", "").removesuffix(".original") for n, _ in model.named_parameters()]


def current_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that act in a model, by the names of its weights."""
    out = {}
    for name in weight_names(model):
        path, _, own = name.rpartition(".")
        if (found := mask_of(model.get_submodule(path), own)) is not None:
            out[name] = found.mask
    return out


def make_permanent(model: nn.Module) -> SurgeryReport:
    """Write the zeros into the weights and take the masks off, in place.

    Raises
    ------
    TargetError
        If the model has no mask.
    """
    names = tuple(current_masks(model))
    if not names:
        raise TargetError(f"{type(model).__name__} has no masked weight: prune it first")
    before = sum(p.numel() for p in model.parameters())
    left = before - sum(int((~m).sum()) for m in current_masks(model).values())
    for name in names:
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        _own_class(module)
        parametrize.remove_parametrizations(module, own, leave_parametrized=True)
    for module in model.modules():
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            for key in [k for k, hook in module._forward_hooks.items() if hook is _release]:
                del module._forward_hooks[key]
            module._init_flat_weights()  # one block of memory again, for cuDNN
    return SurgeryReport(names, before, left)

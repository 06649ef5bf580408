"""Which parameters of a target are generated, and what a target must be like."""

import fnmatch
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from etude.layers.surgery import TargetError


def select_targets(target: nn.Module, targets: Sequence[str] | str | None) -> dict[str, nn.Parameter]:
    """Parameters by name, a tied one under all its names; None: all.

    Raises
    ------
    TargetError
        If a glob, or all of them together, match nothing.
    ValueError
        For a lazy module, whose weights have no shape yet.
    """
    named = dict(target.named_parameters(remove_duplicate=False))
    for name, p in named.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise ValueError(f"{name!r} has no shape yet: run the target on a batch before it is given here")
    globs = ["*"] if targets is None else [targets] if isinstance(targets, str) else list(targets)
    if not globs:
        raise TargetError("targets is empty: give globs of what is generated, or None for all")
    for glob in globs:
        if not any(fnmatch.fnmatch(n, glob) or n.startswith(glob + ".") for n in named):
            raise TargetError(f"{glob!r} matches none of the target's parameters: {', '.join(named) or 'it has none'}")
    hit = {id(p) for n, p in named.items() if any(fnmatch.fnmatch(n, g) or n.startswith(g + ".") for g in globs)}
    return {n: p for n, p in named.items() if id(p) in hit}


def check_target(target: nn.Module, chosen: Iterable[str]) -> None:
    """Refuse a target that cannot run with the `chosen` weights given.

    Raises
    ------
    ValueError
        If a module of a chosen weight reads its own weights alone or gives sparse gradients, if one keeps its weight
        outside the parameters (the older weight and spectral norms), or parameters have different types.
    """
    owners = {name.rpartition(".")[0] for name in chosen}
    for name, module in target.named_modules(remove_duplicate=False):
        place, kind = name or "the target", type(module).__name__
        if name in owners and isinstance(module, nn.RNNBase | torch.jit.ScriptModule):
            raise ValueError(
                f"{place} is a {kind}, which ignores given weights: leave it out of targets, or write it with cells"
            )
        if name in owners and isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise ValueError(f"{place} gives sparse gradients, which end at its own weight: build it with sparse=False")
        if any(isinstance(hook, WeightNorm | SpectralNorm) for hook in module._forward_pre_hooks.values()):
            raise ValueError(
                f"{place} holds a weight that is no parameter: take the norm from torch.nn.utils.parametrizations"
            )
    kinds = {p.dtype: n for n, p in target.named_parameters()}
    if len(kinds) > 1:
        each = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise ValueError(f"the target mixes types ({each}): bring it to one first, such as by target.float()")

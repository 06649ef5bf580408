"""Which parameters of a target are generated, and what a target must be like."""

import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

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


def check_target(target: nn.Module) -> None:
    """Refuse a target that cannot run with given weights.

    Raises
    ------
    ValueError
        If a module reads its own weights alone, or parameters have different types.
    """
    for name, module in target.named_modules():
        if isinstance(module, nn.RNNBase | torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the target'} is a {type(module).__name__}, which ignores given weights")
    kinds = {p.dtype: n for n, p in target.named_parameters()}
    if len(kinds) > 1:
        each = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise ValueError(f"the target mixes types ({each}): bring it to one first, such as by target.float()")

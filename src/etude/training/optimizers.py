"""Optimisers by name, and the parameter groups that keep weight decay off norms and biases."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
SETTINGS: dict[str, tuple[str, ...]] = {
    "momentum": ("rmsprop", "sgd"),
    "nesterov": ("sgd",),
    "betas": ("adam", "adamw"),
    "eps": ("adagrad", "adam", "adamw", "rmsprop"),
}
"""Which optimisers a setting of `TrainConfig` acts in."""
SPARED = ("Norm", "Quantizer", "Codebook")


def parameter_groups(
    model: nn.Module, weight_decay: float, no_decay: Sequence[str] = (), *, decay: str = "weights"
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with `weight_decay` and without.

    No decay falls on parameters of fewer than two axes (biases, norms' scales), on those of modules whose
    class name holds "Norm", "Quantizer" or "Codebook", and on names that match a glob of `no_decay`.

    Raises
    ------
    ValueError
        If nothing is trainable, or a glob of `no_decay` matches no parameter.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
    for pattern in no_decay:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise ValueError(f"no_decay {pattern!r} matches no parameter of {type(model).__name__}")
    owners = dict(model.named_modules())

    def spared(name: str, p: nn.Parameter) -> bool:
        kind = type(owners[name.rpartition(".")[0]]).__name__
        special = p.ndim < 2 or any(word in kind for word in SPARED)
        return (special and decay != "all") or any(fnmatchcase(name, pattern) for pattern in no_decay)

    if weight_decay == 0:
        return [{"params": list(trainable.values()), "weight_decay": 0.0}]
    groups = [
        {"params": [p for n, p in trainable.items() if not spared(n, p)], "weight_decay": weight_decay},
        {"params": [p for n, p in trainable.items() if spared(n, p)], "weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def make_optimizer(groups: Iterable[Mapping[str, Any]], config: Any, lr: float | None = None) -> torch.optim.Optimizer:
    """The optimiser that a `TrainConfig` names; fused where torch has that for the parameters' device.

    A callable gets the groups with the configuration's `lr` in them, where that was set to something.
    """
    rate = config.lr if lr is None else lr
    groups = [dict(g) for g in groups]
    if not isinstance(config.optimizer, str):
        if lr is not None or rate != type(config).lr:
            groups = [{**g, "lr": rate} for g in groups]
        made = config.optimizer(groups)
        for group in made.param_groups:
            group.setdefault("lr", rate)
        return made
    options: dict[str, Any] = {"lr": rate}
    for name, optimizers in SETTINGS.items():
        value = getattr(config, name)
        if config.optimizer in optimizers and value is not None:
            options[name] = tuple(value) if name == "betas" else value
    if config.optimizer != "rmsprop" and _can_fuse(groups):
        options["fused"] = True
    return OPTIMIZERS[config.optimizer](groups, **options)


def _can_fuse(groups: Iterable[Mapping[str, Any]]) -> bool:
    return all(
        p.device.type in ("cpu", "cuda") and p.is_floating_point() and p.layout == torch.strided
        for g in groups
        for p in g["params"]
    )

"""Where codebooks sit in a network: places by name, how wide the activations are there, and the hooks.

A place is a module and a side of it: what it puts out, or, named with ":in", what goes in.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.modes import evaluating
from etude.layers.surgery import TargetError, match
from etude.trust.codebook_layer import CodebookLayer

INPUT = ":in"
Place = tuple[nn.Module, bool]  # a module, and whether its input is meant
Places = Mapping[str, Place]


def attach(module: nn.Module, at_input: bool, layer: CodebookLayer) -> Any:
    """Put a codebook on a place; the handle that takes it off."""
    if at_input:
        return module.register_forward_pre_hook(layer.on_input, with_kwargs=True)
    return module.register_forward_hook(layer.on_output)


def run(model: nn.Module, batch: Any) -> Any:
    """The model on a batch: a mapping of keywords, a tuple of arguments, or one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def find_places(model: nn.Module, targets: Sequence[str]) -> dict[str, Place]:
    """Places by name or glob, with ":in" at the end for what goes in; `TargetError` where one matches nothing."""
    places: dict[str, Place] = {}
    if not targets:
        match(model, [])  # raises, and says what there is
    for target in targets:
        at_input = target.endswith(INPUT)
        for name, module in match(model, target.removesuffix(INPUT)).items():
            places[name + INPUT * at_input] = (module, at_input)
    return places


def carries(module: nn.Module) -> bool:
    """Whether a codebook is on the module already."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(isinstance(getattr(hook, "__self__", None), CodebookLayer) for hook in hooks)


def by_name(value: int | Mapping[str, int] | None, name: str, default: int) -> int:
    """An option's value at a place: one number for all, or that of the first pattern that names it."""
    if isinstance(value, Mapping):
        return next((v for p, v in value.items() if _matches(p, name)), default)
    return default if value is None else value


def _matches(pattern: str, name: str) -> bool:
    """Whether the pattern names the place, with or without its ":in"."""
    return any(pattern == n or fnmatchcase(n, pattern) for n in {name, name.removesuffix(INPUT)})


def all_match(option: str, value: int | Mapping[str, int] | None, places: Iterable[str]) -> None:
    """`TargetError` for a pattern of an option that names no place."""
    for pattern in value if isinstance(value, Mapping) else ():
        if not any(_matches(pattern, name) for name in places):
            raise TargetError(f"{option}: {pattern!r} matches none of the places {', '.join(places)}")


def widths_of(model: nn.Module, places: Places, dim: Any, example: Any) -> dict[str, int]:
    """Width of the activations at each place: given, else seen in one run on `example`, else told by the weights.

    Raises
    ------
    ValueError
        Naming the place whose width cannot be told.
    """
    found = {name: width for name in places if (width := by_name(dim, name, 0))}
    if example is not None:
        found = _measured(model, places, example) | found
    for name, (module, at_input) in places.items():
        if name not in found:
            found[name] = _told(model, module, at_input)
        if not found[name]:
            raise ValueError(f"the width of {name!r} cannot be told from its weights: give dim= or example=")
    return found


def _measured(model: nn.Module, places: Places, example: Any) -> dict[str, int]:
    """Widths seen in one run of the model."""
    seen: dict[str, int] = {}

    class Probe(CodebookLayer):
        def forward(self, a: Tensor) -> Tensor:
            seen[self.name] = a.shape[-1]
            return a

    unused = torch.Generator()  # else the global one would be drawn from
    handles = [attach(*place, Probe(1, 1, name=name, generator=unused)) for name, place in places.items()]
    try:
        with torch.no_grad(), evaluating(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _told(model: nn.Module, module: nn.Module, at_input: bool) -> int:
    """The width by the module's weights: its last linear map (its own for ":in"); else the model's hidden size."""
    sizes = [size for m in module.modules() if (size := _linear(m)) is not None]
    if sizes:
        return sizes[0][0] if at_input else sizes[-1][1]
    if any(True for _ in module.parameters()):
        return 0
    config = getattr(model, "config", None)
    return int(next((v for n in ("hidden_size", "hidden_dim") if (v := getattr(config, n, None))), 0))


def _linear(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # transformers: weight (in, out)
        return int(module.weight.shape[0]), int(module.nf)  # type: ignore[union-attr,index,arg-type]
    return None

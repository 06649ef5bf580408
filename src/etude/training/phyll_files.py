"""What a `PhyLL` net keeps on disk: all that its predictions need but the boxes, which are hardware."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

KINDS = ("weights", "biases", "directions")


class SavedNet(NamedTuple):
    """One entry a layer in `weights` (k, q), `biases` (k,) and `directions` (k,); `shift` and `span` (d,) scale the
    features, `rng` is the state of the generator; `settings` are those without which weights mean nothing, `columns`
    the names of the features where they have some."""

    weights: list[Tensor]
    biases: list[Tensor]
    directions: list[Tensor]
    shift: Tensor
    span: Tensor
    rng: Tensor
    classes: NDArray[Any]
    settings: Mapping[str, Any]
    columns: Sequence[str] = ()


def write_net(path: str | Path, net: SavedNet) -> None:
    """As one safetensors file."""
    state = {f"{kind}.{i}": t for kind in KINDS for i, t in enumerate(getattr(net, kind))}
    state |= {"shift": net.shift, "span": net.span, "rng": net.rng}
    known = {"classes": net.classes.tolist(), "settings": dict(net.settings), "columns": list(net.columns)}
    about = {name: json.dumps(value) for name, value in known.items()}
    save_file({k: v.cpu().contiguous() for k, v in state.items()}, path, about)


def read_net(path: str | Path, device: str) -> SavedNet:
    """What `write_net` wrote, on `device`."""
    with safe_open(path, "pt") as file:
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        about = file.metadata()
    count = sum(k.startswith("weights.") for k in state)
    layers = {kind: [state[f"{kind}.{i}"].to(device) for i in range(count)] for kind in KINDS}
    shift, span = state["shift"].to(device), state["span"].to(device)
    known = {name: json.loads(text) for name, text in about.items()}
    classes, settings, columns = np.array(known["classes"]), known.get("settings", {}), known.get("columns", ())
    return SavedNet(**layers, shift=shift, span=span, rng=state["rng"], classes=classes, settings=settings,
                    columns=columns)  # fmt: skip


def check_fits(
    path: str | Path, saved: SavedNet, settings: Mapping[str, Any], hidden: Sequence[int], linears: Sequence[nn.Linear]
) -> None:
    """Whether a net of these settings, outputs a layer and, from a module, linear layers can take a file's state.

    Raises
    ------
    ValueError
        For another setting, another number of layers or outputs, weights of another shape.
    """
    for name, value in saved.settings.items():
        if settings[name] != value:
            raise ValueError(f"{path} was saved with {name}={value!r}, this net has {name}={settings[name]!r}")
    if len(saved.weights) != len(hidden):
        raise ValueError(f"{path} holds {len(saved.weights)} layers, this net has {len(hidden)}")
    widths = [len(weight) for weight in saved.weights]
    if widths != list(hidden):
        raise ValueError(f"{path} holds layers of {widths} units, this net has hidden={list(hidden)}")
    for i, (linear, weight) in enumerate(zip(linears, saved.weights)):
        if linear.weight.shape != weight.shape:
            shapes = f"{tuple(linear.weight.shape)}, {path} holds {tuple(weight.shape)}"
            raise ValueError(f"linear layer {i} has weights {shapes}")


def put_into(linears: Sequence[nn.Linear], weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    """The linear layers take weights and, where they have one, biases; the tensors are shared, not copied."""
    for linear, weight, bias in zip(linears, weights, biases):
        linear.weight.data = weight
        if linear.bias is not None:
            linear.bias.data = bias

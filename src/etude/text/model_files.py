"""Fitted text models as safetensors files: tensors, and all else as JSON in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_model(path: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and what JSON can hold; numpy's numbers and tensors of one number become plain ones."""
    save_file(dict(tensors), str(path), {"etude": json.dumps(state, default=lambda value: value.item())})


def read_model(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a file whose state says that its class is `kind`.

    Raises
    ------
    ValueError
        If it holds something else.
    """
    with safe_open(str(path), framework="pt") as file:
        state = json.loads((file.metadata() or {}).get("etude", "null"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if state is None:
        raise ValueError(f"{path} does not hold a {kind}: it was not written by its save()")
    if state["class"] != kind:
        raise ValueError(f"{path} holds a {state['class']}, not a {kind}")
    return tensors, state

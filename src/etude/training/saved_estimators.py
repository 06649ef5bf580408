"""Keeping fitted estimators: one safetensors file with parameters, tensors and everything else that was learned."""

import inspect
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from etude.data.randomness import seeded_build, stream

FORMAT = 1


class SavedEstimator(BaseEstimator, ABC):
    """`save` and `load` of an estimator whose learned attributes end in an underscore."""

    module_: nn.Module
    input_shape_: tuple[int, ...]

    @abstractmethod
    def _made(self, X: Tensor, y: Tensor | None) -> nn.Module:
        """A new module for rows like `X`."""

    @abstractmethod
    def _device(self) -> torch.device:
        """Where the module belongs."""

    def save(self, path: str | Path) -> None:
        """Write parameters and everything learned to one safetensors file.

        Parameters that are no plain values (modules, functions) are left out: give them to `load` again.
        """
        check_is_fitted(self)
        tensors = {f"module.{name}": t.detach().cpu().contiguous() for name, t in self.module_.state_dict().items()}
        learned: dict[str, Any] = {}
        for name, value in vars(self).items():
            if not name.endswith("_") or name.startswith("_") or name == "module_":
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                tensors[f"array.{name}"] = torch.from_numpy(np.array(value, order="C"))
            elif isinstance(value, np.ndarray):
                learned[name] = {"array": value.tolist(), "dtype": "object" if value.dtype == object else "str"}
            else:
                learned[name] = {"value": value}
        params = {k: v for k, v in self.get_params(deep=False).items() if plain(v)}
        unsaved = sorted(set(self.get_params(deep=False)) - set(params))
        record = {"format": FORMAT, "class": type(self).__name__, "params": params, "unsaved": unsaved}
        text = {"etude": json.dumps(record), "learned": json.dumps(learned)}
        save_file({k: v.clone() for k, v in tensors.items()}, str(path), metadata=text)

    @classmethod
    def load(cls, path: str | Path, **params: Any) -> Self:
        """The estimator that `save` wrote. `params` take the place of stored ones (modules must be given again).

        Raises
        ------
        ValueError
            If the file holds another class's state or no estimator, or a parameter that could not be stored is
            missing.
        """
        with safe_open(str(path), framework="pt") as file:
            text = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if "etude" not in text:
            raise ValueError(f"{path} holds no estimator")
        record = json.loads(text["etude"])
        if record["class"] != cls.__name__:
            raise ValueError(f"{path} holds a {record['class']}, not a {cls.__name__}")
        missing = sorted(set(record["unsaved"]) - set(params))
        if missing:
            raise ValueError(f"{path} was saved without the parameters {missing}: give them to load()")
        made = cls(**_known(cls, record["params"] | params))
        for name, entry in json.loads(text["learned"]).items():
            value = np.array(entry["array"], dtype=entry["dtype"]) if "array" in entry else entry["value"]
            setattr(made, name, tuple(value) if name == "input_shape_" else value)
        for name, tensor in tensors.items():
            if name.startswith("array."):
                setattr(made, name.removeprefix("array."), tensor.numpy())
        example = torch.zeros(1, *made.input_shape_, dtype=torch.float32)
        module = seeded_build(lambda: made._made(example, torch.zeros(1, dtype=torch.long)), stream(0, "init"))
        module.load_state_dict({k.removeprefix("module."): t for k, t in tensors.items() if k.startswith("module.")})
        made.module_ = module.to(made._device()).eval()
        return made


def plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _known(cls: type, params: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(params) - set(inspect.signature(cls).parameters))
    if unknown:
        raise ValueError(f"{cls.__name__} has no parameter {unknown[0]!r}")
    return params

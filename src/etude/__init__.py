"""Etude: papers you can run.

>>> import etude
>>> result = etude.run("train-longer", tier="quick")  # doctest: +SKIP

Rooms hold the methods (`from etude.training import GhostBatchNorm1d`); they are imported on first use, so
``import etude`` itself is light.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

ROOMS = (
    "layers", "training", "hypernetworks", "kernels", "continual", "incontext", "selection", "text",
    "compression", "generative", "trust", "decision", "reasoning",
)  # fmt: skip
_SUBPACKAGES = (*ROOMS, "data", "catalogue", "lab", "errors")
_FUNCTIONS = {
    "run": "etude.lab.api",
    "verdicts": "etude.lab.api",
    "papers": "etude.catalogue",
    "load": "etude.catalogue",
}

__all__ = ["__version__", "ROOMS", *_FUNCTIONS, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"etude.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'etude' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

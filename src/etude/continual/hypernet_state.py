"""What a `ContinualHypernet` keeps beside its parameters, as tensors by name, and an object brought to it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from etude.continual.hypernet_growth import Growth, grow
from etude.data.randomness import stream

if TYPE_CHECKING:
    from etude.continual.hypernet import ContinualHypernet

NAMES = ("task", "done", "warm_losses", "growth_history")


def held_state(cl: "ContinualHypernet") -> dict[str, Tensor]:
    """Tasks, importances, heads and the history of growth."""
    return {
        "task": torch.tensor(-1 if cl.task is None else cl.task),
        "done": torch.tensor(cl.done, dtype=torch.int64),
        "warm_losses": torch.tensor(cl.warm_losses, dtype=torch.float64),
        "growth_history": torch.tensor(cl.growth_history, dtype=torch.int64).view(-1, 2),
        **{f"omega.{t}": v.clone() for t, v in cl.omega.items()},
        **{f"outputs.{t}": torch.tensor(v) for t, v in cl.outputs.items()},
    }


def take_state(cl: "ContinualHypernet", state: dict[str, Any], prefix: str) -> tuple[list[str], dict[str, Tensor]]:
    """Take what is ours out of `state`, and make room for the parameters in it: as many tasks, as wide a generator.

    Returns the names that are missing (nothing is changed but the number of tasks then), and what the last `grow` gave.
    """
    rows = [int(n.rsplit(".", 1)[1]) for n in state if n.startswith(f"{prefix}hyper.condition.rows.")]
    if rows and max(rows) >= cl.condition.num_tasks:
        cl.hyper.add_condition(max(rows) + 1 - cl.condition.num_tasks)
    own = {n: state.pop(prefix + n) for n in NAMES if prefix + n in state}
    omega, outputs = (_by_task(state, f"{prefix}{kind}.") for kind in ("omega", "outputs"))
    masks: dict[str, Tensor] = {}
    missing = [prefix + n for n in NAMES if n not in own]
    if missing:
        return missing, masks
    history = [(int(t), int(n)) for t, n in own["growth_history"].tolist()]
    growth = cl.growth or Growth()
    for task, n in history[len(cl.growth_history) :]:  # what is drawn here is overwritten
        masks = grow(cl.hyper, replace(growth, step=n), stream(task, "growth"))
    cl.growth_history, cl.done = history, own["done"].tolist()
    cl.task = None if int(own["task"]) < 0 else int(own["task"])
    cl.warm_losses = own["warm_losses"].tolist()
    cl.omega = {t: v.clone() for t, v in omega.items()}
    cl.outputs = {t: tuple(v.tolist()) for t, v in outputs.items()}
    return missing, masks


def _by_task(state: dict[str, Any], start: str) -> dict[int, Tensor]:
    return {int(n.removeprefix(start)): state.pop(n) for n in [n for n in state if n.startswith(start)]}

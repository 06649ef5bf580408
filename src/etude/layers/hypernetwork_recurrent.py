"""A hypernetwork whose chunks depend on each other: the recurrent strategy with a table of tasks that grows.

Source: Dupati et al. 2022, arXiv 2209.07712.
"""

import math
from typing import Any, Literal

from torch import nn

from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_conditions import TaskCondition
from etude.layers.hypernetwork_targets import select_targets
from etude.layers.parameters import layout_of


class RecurrentHyperNetwork(HyperNetwork):
    """`HyperNetwork` with strategy "rnn" over chunks of at most `chunk_size` weights, conditioned on tasks.

    Parameters
    ----------
    num_tasks
        None: one to start with; `add_condition` brings the next ones.
    task_dim, chunk_dim
        Sizes of the embeddings of tasks and of chunks.
    chunk_size
        Weights a chunk at most: there are as few equal chunks as that allows.
    hidden, num_layers
        Units of each recurrent layer. Its first state is a learned function of the task.
    target, cell, init, options
        As for `HyperNetwork`: ``unit="layer"`` for one step a layer of the target (chunk_size then has no effect),
        ``feed_previous=True`` for steps that read the weights before them.

    Raises
    ------
    ValueError
        If chunk_size is below 1 or above the target's number of weights.
    """

    def __init__(
        self,
        target: nn.Module,
        num_tasks: int | None = None,
        task_dim: int = 16,
        chunk_size: int = 300,
        hidden: int = 32,
        cell: Literal["lstm", "gru", "elman", "rnn"] = "lstm",
        *,
        chunk_dim: int = 8,
        num_layers: int = 1,
        init: Literal["gain", "default"] = "gain",
        **options: Any,
    ) -> None:
        size = layout_of(select_targets(target, options.get("targets"))).size
        if not 1 <= chunk_size <= size:
            raise ValueError(f"chunk_size={chunk_size} must lie between 1 and the target's {size} weights")
        super().__init__(
            target, TaskCondition(1 if num_tasks is None else num_tasks, task_dim), strategy="rnn", cell=cell,
            hidden=(hidden,) * num_layers, num_chunks=math.ceil(size / chunk_size), chunk_dim=chunk_dim, init=init,
            **options,
        )  # fmt: skip

"""Batch norm's running statistics, measured anew where the weights stand."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, x: Tensor | Iterable[Any], *, batch_size: int = 1000) -> int:
    """Replace running means and variances by plain averages over one pass through the data.

    Running averages of a short run have not left their start (0.9^12 leaves 28 % of it), and those of averaged
    weights belong to no weights at all. Ghost batch norms take their statistics over whole batches here, as
    evaluation does.

    Parameters
    ----------
    x
        Inputs (n, ...), cut into batches of about `batch_size`; or batches that `model` is called with (of a
        tuple its first entry).

    Returns
    -------
    The number of batch norms that were changed. Modes, momenta and weights are left as they were.

    Raises
    ------
    ValueError
        If no batch norm keeps running statistics, or there are no data.

    Whatever is raised on the way, the statistics are then those of before.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm with running statistics")
    if isinstance(x, Tensor):
        if len(x) == 0 or batch_size < 1:
            raise ValueError(f"need rows and a batch_size of at least 1, got {len(x)} rows and {batch_size}")
        x = x.tensor_split(max(1, round(len(x) / batch_size)))
    batches = iter(x)
    first = next(batches, None)
    if first is None:  # before the statistics that there are are thrown away
        raise ValueError("there are no batches to take statistics from")
    modes = [(m, m.training) for m in model.modules()]
    kept = [(buffer, buffer.clone()) for m in norms for buffer in m.buffers(recurse=False)]
    settings = [(m, m.momentum, getattr(m, "ghost_size", None)) for m in norms]
    try:
        model.eval()
        for m in norms:
            m.reset_running_stats()
            m.train()
            m.momentum = None
            if hasattr(m, "ghost_size"):
                setattr(m, "ghost_size", 2**62)  # noqa: B010
        for batch in chain([first], batches):
            model(batch if isinstance(batch, Tensor) else batch[0])
    except BaseException:
        for buffer, value in kept:
            buffer.copy_(value)
        raise
    finally:
        for m, momentum, ghost_size in settings:
            m.momentum = momentum
            if ghost_size is not None:
                setattr(m, "ghost_size", ghost_size)  # noqa: B010
        for module, mode in modes:
            module.training = mode
    return len(norms)

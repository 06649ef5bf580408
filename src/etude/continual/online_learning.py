"""One pass over a stream in small batches: a few updates on each batch, beside samples from a memory.

Sources: Aljundi et al. 2019, arXiv 1903.08671 (updates on the batch and on replayed samples in turn) and 1908.04742
(both in one update); Aljundi 2019, arXiv 1910.02718.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.buffers import ReservoirBuffer
from etude.continual.evaluate import StreamResult, evaluate_stream
from etude.continual.gss import GSSBuffer
from etude.continual.heads import check_labels
from etude.continual.mir import mir_select
from etude.continual.task_free import TaskFreeMAS
from etude.data.streams import Segment, online
from etude.data.tasks import Split
from etude.training.config import TrainConfig
from etude.training.updater import Updater

Buffer = ReservoirBuffer | GSSBuffer


@dataclass(frozen=True)
class Replay:
    """How a memory is used.

    Parameters
    ----------
    buffer
        Offered every batch after its updates.
    size
        Samples replayed beside each update on the batch.
    choose
        "random", or "interfered": `mir_select` of `candidates`.
    together
        One update on both; otherwise one on the batch and then one on the replayed samples.
    """

    buffer: Buffer
    size: int = 10
    choose: Literal["random", "interfered"] = "random"
    candidates: int = 50
    together: bool = False

    def __post_init__(self) -> None:
        if self.choose not in ("random", "interfered"):
            raise ValueError(f'choose must be "random" or "interfered", got {self.choose!r}')
        if min(self.size, self.candidates) < 1:
            raise ValueError(f"size and candidates must be at least 1, got {self.size} and {self.candidates}")


def learn_online(
    model: nn.Module,
    segments: Sequence[Segment],
    *,
    config: TrainConfig,
    batch_size: int = 10,
    iterations: int = 1,
    replay: Replay | None = None,
    task_free: TaskFreeMAS | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    on_batch: Callable[[int, Split], None] | None = None,
    seed: int = 0,
) -> StreamResult:
    """Train `model` in place on the stream, one pass, and evaluate it after every segment.

    Parameters
    ----------
    config
        Optimiser and rate; one optimiser goes through the whole stream. Its rate is the virtual step's, too.
    iterations
        Rounds of updates on each batch.
    replay
        A memory; None: none.
    task_free
        Its loss (with hard samples) and penalty replace the plain ones, and it observes every batch.
    penalty
        Added to the loss.
    on_batch
        Called with each batch's number and the batch, after its updates.

    Raises
    ------
    ValueError
        For a label outside the net's outputs, replay together with `task_free`, a `GSSBuffer` or `task_free` of another
        model than this one, or replay of interfered samples where the rate is not one number.
    """
    if replay is not None and task_free is not None:
        raise ValueError("give replay or task_free: each brings samples of its own")
    held = task_free if replay is None else replay.buffer
    if isinstance(held, TaskFreeMAS | GSSBuffer) and held.model is not model:
        raise ValueError(f"the {type(held).__name__} holds another model than the one that learns: make it of this one")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if replay is not None and replay.choose == "interfered" and not isinstance(config.lr, float | int):
        raise ValueError(f'choose="interfered" takes a virtual step and needs one rate, got lr={config.lr!r}')
    warn_of_batchnorm(model, config)
    loss = cross_entropy if task_free is None else task_free.loss
    updater = Updater(model, loss, config, seed=seed, penalty=penalty if task_free is None else task_free.penalty)
    number = 0

    def learn(segment: Segment) -> None:
        nonlocal number
        for _, batch in online([segment], batch_size):
            for _ in range(iterations):
                _round(updater, batch, replay)
            if replay is not None:
                replay.buffer.observe(batch.x, batch.y)
            if task_free is not None:
                task_free.observe(batch.x, batch.y)
            if on_batch is not None:
                on_batch(number, batch)
            number += 1

    return evaluate_stream(model, segments, learn=learn)


def _round(updater: Updater, batch: Split, replay: Replay | None) -> None:
    if replay is None or not len(replay.buffer):
        updater.update(Split(batch.x, batch.y))
        return
    n = min(replay.size, len(replay.buffer))
    if replay.choose == "random":
        x, y = replay.buffer.sample(n)
    else:
        lr = updater.config.lr
        assert isinstance(lr, float | int)
        picked = mir_select(updater.model, batch.x, batch.y, replay.buffer, n, lr=lr, candidates=replay.candidates)
        x, y = picked.x, picked.y
    if replay.together:
        updater.update(Split(torch.cat([batch.x, x]), torch.cat([batch.y, y])))
    else:
        updater.update(Split(batch.x, batch.y))
        updater.update(Split(x, y))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a batch (x, y); ValueError for a label outside the outputs."""
    out = model(batch[0])
    check_labels(out, batch[1])
    return F.cross_entropy(out, batch[1])


def warn_of_batchnorm(model: nn.Module, config: TrainConfig) -> None:
    """Batch norm's statistics follow the newest classes, and spoil what was learned before them."""
    kept = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if kept and not config.freeze_batchnorm:
        warnings.warn(
            f"{kept[0]} takes its statistics from the newest part of the stream: use GroupNorm, or freeze_batchnorm",
            stacklevel=3,
        )

"""What a learner knows after each segment of a stream, and which of its weights a segment moved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.continual.evaluate import evaluate_stream
from etude.continual.key_value import KeyValueBottleneck
from etude.data.streams import Segment, in_turn
from etude.training.config import TrainConfig
from etude.training.engine import train


@dataclass
class StreamRecord:
    """One seed's stream.

    by_class
        One row a segment: accuracy on each class after it, shares in [0, 1].
    touched
        Share of the parts of the table that each segment may move: cells that it fetched (bottleneck), or rows of
        the last layer that belong to its classes.
    change
        Largest change of any number of any other part while a segment was learned.
    regions
        Labels said for a grid of points after each segment, where one was given.
    """

    segments: Sequence[Segment]
    by_class: list[list[float]] = field(default_factory=list)
    touched: list[float] = field(default_factory=list)
    change: float = 0.0
    regions: list[list[int]] = field(default_factory=list)

    @property
    def class_accuracy(self) -> float:
        """Mean over classes at the end."""
        return float(np.nanmean(self.by_class[-1]))

    @property
    def by_arrival(self) -> list[list[float]]:
        """`by_class` with the classes in the order in which they came."""
        order = [c for s in self.segments for c in s.classes]
        return [[row[c] for c in order] for row in self.by_class]


class StreamRecorder:
    """Callback of `train` over `in_turn(segments, steps)`; needs ``eval_every=steps``.

    Parameters
    ----------
    segments
        Seed to its segments, with the inputs that `predict` takes.
    steps
        Updates a segment.
    predict
        ``predict(model, x)`` gives labels or scores.
    grid
        Points whose labels are recorded after each segment (a plane to be drawn).
    """

    def __init__(
        self,
        segments: Mapping[int, Sequence[Segment]],
        steps: int,
        predict: Callable[[Any, Any], Any],
        *,
        grid: Tensor | None = None,
    ) -> None:
        self.segments, self.steps, self.predict, self.grid = segments, steps, predict, grid
        self.records = {seed: StreamRecord(stretch) for seed, stretch in segments.items()}
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}

    def on_start(self, state: Any) -> None:
        self._before[state.seed] = _table(state.model)

    def on_eval(self, state: Any) -> None:
        if state.step % self.steps:
            return
        record = self.records[state.seed]
        t = len(record.by_class)
        found = evaluate_stream(lambda x: self.predict(state.model, x), record.segments)
        record.by_class.append(found.by_class[0].tolist())
        if self.grid is not None:
            record.regions.append(self.predict(state.model, self.grid).argmax(-1).tolist())
        now, counts = _table(state.model)
        before, old_counts = self._before[state.seed]
        if counts is not None and old_counts is not None:
            touched = counts > old_counts
        else:
            touched = torch.zeros(len(now), dtype=torch.bool)
            touched[list(record.segments[t].classes)] = True
        rest = (now - before)[~touched.to(now.device)].abs()
        record.touched.append(float(touched.float().mean()))
        record.change = max(record.change, float(rest.max()) if rest.numel() else 0.0)
        self._before[state.seed] = now, counts


def learn_stream(
    build: Any,
    segments: Mapping[int, Sequence[Segment]],
    *,
    loss: Callable[[Any, Any], Any],
    predict: Callable[[Any, Any], Any],
    config: TrainConfig,
    shown: Mapping[int, Sequence[Segment]] | None = None,
    whole_segments: bool = False,
    grid: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> dict[int, StreamRecord]:
    """Train one model a seed on its stream, `config.steps` updates a segment, and record it.

    Parameters
    ----------
    build, loss, config
        As for `train`. One optimiser goes through the whole stream; batches of `config.batch_size` rows are
        drawn from the segment with replacement.
    segments
        Seed to its segments, equally many for each seed.
    predict
        ``predict(model, x)`` gives labels or scores.
    shown
        The segments to evaluate on, where `predict` takes other inputs than `loss` does.
    whole_segments
        A batch is the whole segment.
    grid
        See `StreamRecorder`.

    Raises
    ------
    ValueError
        If the seeds have different numbers of segments, or `config` has no steps.
    """
    lengths = {len(stretch) for stretch in segments.values()}
    if len(lengths) != 1 or config.steps is None:
        raise ValueError(f"need steps a segment and one number of segments, got {config.steps} and {sorted(lengths)}")
    steps = config.steps
    recorder = StreamRecorder(segments if shown is None else shown, steps, predict, grid=grid)
    size = None if whole_segments else config.batch_size
    train(
        build,
        lambda seed: in_turn(segments[seed], steps, batch_size=size, device=device),
        loss=loss,
        config=replace(config, steps=steps * lengths.pop(), eval_every=steps),
        seeds=tuple(segments),
        callbacks=(recorder,),
        plan="sequential",
        device=device,
    )
    return recorder.records


def learn_key_values(
    bottlenecks: Mapping[int, KeyValueBottleneck],
    segments: Mapping[int, Sequence[Segment]],
    *,
    config: TrainConfig,
    label_smoothing: float = 0.1,
    device: str | torch.device = "cpu",
) -> dict[int, StreamRecord]:
    """`learn_stream` for bottlenecks whose keys are frozen: the cells of all rows are looked up once.

    Parameters
    ----------
    bottlenecks
        Seed to its bottleneck, trained in place.
    segments
        Seed to segments of embeddings.
    """
    kept = {}
    for seed, stretch in segments.items():
        if not bool(bottlenecks[seed].frozen):
            raise ValueError("the keys may still move: call freeze_keys first")
        task = stretch[0].task
        cells = bottlenecks[seed].to(device).cells(task.train.x, visited_only=False)
        task = replace(task, train=task.train._replace(x=cells))
        kept[seed] = [replace(s, task=task) for s in stretch]
    return learn_stream(
        lambda seed: bottlenecks[seed],
        kept,
        loss=lambda kv, batch: kv.loss(batch.x, batch.y, label_smoothing=label_smoothing),
        predict=lambda kv, x: kv.vote(x),
        config=config,
        shown=segments,
        device=device,
    )


def _table(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A copy of what holds the knowledge, one row a part, and how often each part was fetched."""
    if isinstance(model, KeyValueBottleneck):
        return model.values.detach().flatten(0, 1).clone(), model.counts.flatten().clone()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    columns = [last.weight] if last.bias is None else [last.weight, last.bias[:, None]]
    return torch.cat(columns, 1).detach().clone(), None

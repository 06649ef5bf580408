"""The accuracy matrix of a stream, and what is read off it.

R[t, j] is the accuracy on segment j after learning segments 0..t.
Sources: Lopez-Paz & Ranzato 2017, arXiv 1706.08840 (matrix, backward and forward transfer); Chaudhry et al. 2018,
arXiv 1801.10112 (forgetting: from the best accuracy that a segment ever had to its last; intransigence); Rebuffi et al.
2017, arXiv 1611.07725 (average incremental accuracy).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from etude.data.randomness import fork_global, stream
from etude.data.streams import Segment
from etude.layers.modes import evaluating
from etude.training.metrics.classification import accuracy, class_accuracy

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class StreamResult:
    """What `evaluate_stream` found; accuracies are shares in [0, 1].

    R
        (T, T), or (1, T) where only the end was evaluated. NaN: not evaluated, as that segment had no head yet.
    by_class
        The same rows, (.., C): accuracy on each class over all segments; NaN for a class without rows.
    """

    R: FloatArray
    by_class: FloatArray

    @property
    def average(self) -> float:
        """Mean over segments of the accuracy at the end."""
        return float(self.R[-1].mean())

    @property
    def class_average(self) -> float:
        """Mean over classes of the accuracy at the end."""
        return float(np.nanmean(self.by_class[-1]))

    @property
    def learned(self) -> float:
        """Mean accuracy on each segment right after it was learned."""
        return float(np.diag(self._whole()).mean())

    @property
    def forgetting(self) -> float:
        """Mean over all segments but the last of best accuracy so far minus accuracy at the end; 0 for one segment."""
        R = self._whole()
        return float(self.forgetting_by_segment[:-1].mean()) if len(R) > 1 else 0.0

    @property
    def forgetting_by_segment(self) -> FloatArray:
        """(T,) best accuracy so far minus accuracy at the end, of every segment."""
        R = self._whole()
        return np.asarray(np.nanmax(R, 0) - R[-1])

    @property
    def bwt(self) -> float:
        """Backward transfer: mean over all segments but the last of accuracy at the end minus right after learning."""
        R = self._whole()
        return float((R[-1] - np.diag(R))[:-1].mean()) if len(R) > 1 else 0.0

    @property
    def incremental(self) -> float:
        """Average incremental accuracy: mean over t of the mean accuracy on segments 0..t after segment t."""
        R = self._whole()
        return float(np.mean([R[t, : t + 1].mean() for t in range(len(R))]))

    def last(self, k: int) -> float:
        """Mean accuracy at the end on the last `k` segments."""
        if not 1 <= k <= self.R.shape[1]:
            raise ValueError(f"k must lie in 1..{self.R.shape[1]}, got {k}")
        return float(self.R[-1, -k:].mean())

    def fwt(self, untrained: Sequence[float]) -> float:
        """Forward transfer: mean over all segments but the first of accuracy right before learning it, minus that of
        the `untrained` learner (T,)."""
        R, start = self._whole(), self._fits(untrained)
        return float((np.diag(R, 1) - start[1:]).mean()) if len(R) > 1 else 0.0

    def intransigence(self, reference: Sequence[float]) -> float:
        """How much less is learned than by a learner without a stream: mean of `reference` (T,) minus the diagonal."""
        return float((self._fits(reference) - np.diag(self._whole())).mean())

    def _fits(self, values: Sequence[float]) -> FloatArray:
        out = np.asarray(values, dtype=np.float64)
        if out.shape != (self.R.shape[1],):
            raise ValueError(f"need one accuracy a segment ({self.R.shape[1]}), got shape {out.shape}")
        return out

    def _whole(self) -> FloatArray:
        if self.R.shape[0] != self.R.shape[1]:
            raise ValueError("only the end of the stream was evaluated: give evaluate_stream a learn function")
        return self.R


def evaluate_stream(
    predict: Any,
    segments: Sequence[Segment],
    *,
    learn: Callable[[Segment], Any] | None = None,
    part: str = "test",
    by_task: bool = False,
) -> StreamResult:
    """Accuracy on every segment, after every segment that `learn` is called with.

    Parameters
    ----------
    predict
        A function from inputs to labels (n,) or scores (n, C), a module (evaluated in eval mode without
        gradient, its mode is restored), or an estimator with `predict`. Or a sequence of T of these: the learner as it
        was after each segment.
    learn
        Called with each segment in turn, before all segments are evaluated. None with a single `predict`: only
        the end is evaluated.
    by_task
        The task is known at test time: predictors are called with ``(x, number of the segment)``, and with `learn`
        only for the segments learned so far; the rest of R is NaN.

    Returns
    -------
    StreamResult
        Evaluating draws no random number of the caller's and changes no module.

    Raises
    ------
    ValueError
        If there are no segments, a sequence of predictors has another length, or what a predictor says is neither
        class numbers nor scores of the classes.
    """
    if not segments:
        raise ValueError("there are no segments to evaluate")
    data = [s.split(part) for s in segments]
    states = list(predict) if isinstance(predict, list | tuple) else None
    if states is not None and (learn is not None or len(states) != len(segments)):
        raise ValueError(f"give one predictor a segment ({len(segments)}) and no learn, or a single predictor")
    rounds = 1 if states is None and learn is None else len(segments)
    classes = max(s.task.num_classes for s in segments)
    R = np.empty((rounds, len(segments)))
    by_class = np.empty((rounds, classes))
    for t in range(rounds):
        if learn is not None:
            learn(segments[t])
        one = predict if states is None else states[t]
        with _untouched(one) as call, fork_global(stream(0, "evaluate", t)):
            known = data[: t + 1] if by_task and learn is not None else data
            said = [_labels(call(d.x, s.number) if by_task else call(d.x), s) for d, s in zip(known, segments)]
        R[t] = [accuracy(p, d.y) for p, d in zip(said, known)] + [np.nan] * (len(data) - len(known))
        y = np.concatenate([_array(d.y) for d in known])
        by_class[t] = class_accuracy(np.concatenate(said), y, max(classes, *(int(p.max()) + 1 for p in said)))[:classes]
    return StreamResult(R, by_class)


@contextmanager
def _untouched(predict: Any) -> Iterator[Callable[..., Any]]:
    """The predictor as a function, in eval mode and without gradient; modes are put back."""
    nets = [predict] if isinstance(predict, nn.Module) else []
    with evaluating(*nets), torch.no_grad():
        yield predict.predict if not nets and hasattr(predict, "predict") else predict


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _labels(said: Any, segment: Segment) -> NDArray[Any]:
    labels = _array(said)
    if labels.dtype.kind not in "iubf":
        raise ValueError(f"predictions must be class numbers or scores, got {labels.dtype}")
    if labels.ndim == 2:
        classes = len(segment.classes) if segment.relabel else segment.task.num_classes
        if labels.shape[1] == 1 < classes:
            raise ValueError(
                f"predictions of shape {labels.shape} score one of {classes} classes: give labels (n,) or scores (n, C)"
            )
        if np.isnan(labels).any():
            raise ValueError("scores hold NaN: the model diverged")
        labels = labels.argmax(1)
    return labels

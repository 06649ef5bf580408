"""Averages of weights: of one model over time, of several models once.

Source: Wortsman et al. 2022, arXiv 2203.05482 (soups; the greedy one is its recipe 1).
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import safe_open
from torch import Tensor, nn

Source = nn.Module | Mapping[str, Tensor] | str | Path


class EMA:
    """Exponential moving average of a model's parameters; buffers are copied as they are.

    Parameters
    ----------
    decay
        Weight of the old value, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is the weight of the old value and lies in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`: ``average = decay * average + (1 - decay) * value``."""
        mine: list[Tensor] = [p.detach() for p in self.module.parameters()]
        if mine:
            torch._foreach_lerp_(mine, [p.detach() for p in model.parameters()], 1 - self.decay)
        for a, b in zip(self.module.buffers(), model.buffers()):
            a.copy_(b)

    def state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.module.load_state_dict(state)


class _Weights:
    """Named tensors of a module, a state dictionary or a safetensors file, read one by one."""

    def __init__(self, source: Source) -> None:
        self._file: Any = None
        if isinstance(source, (str, Path)):
            self._file = safe_open(str(source), framework="pt")
            self.shapes = {k: tuple(self._file.get_slice(k).get_shape()) for k in self._file.keys()}  # noqa: SIM118
        else:
            self._state = dict(source.state_dict() if isinstance(source, nn.Module) else source)
            self.shapes = {k: tuple(t.shape) for k, t in self._state.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name) if self._file is not None else self._state[name].detach()


def _opened(models: Sequence[Source]) -> list[_Weights]:
    """All sources, checked to hold the same tensors."""
    if not models:
        raise ValueError("there are no models to average")
    opened = [_Weights(m) for m in models]
    first = opened[0].shapes
    for i, other in enumerate(opened[1:], 1):
        if missing := sorted(set(first) ^ set(other.shapes)):
            raise ValueError(f"model {i} has other tensors than model 0: {', '.join(missing[:3])}")
        wrong = [f"{k} {other.shapes[k]} instead of {shape}" for k, shape in first.items() if other.shapes[k] != shape]
        if wrong:
            raise ValueError(f"model {i} has other shapes than model 0: {'; '.join(wrong[:3])}")
    return opened


@torch.no_grad()
def model_soup(models: Sequence[Source], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of the weights of models that were trained from one start.

    Sums are taken in float32 (float64 for such) tensor by tensor, so files are never all in memory; the result has
    the first model's types. Integer buffers are the first model's. Running statistics of batch norm are averaged too,
    but fit no net: measure them anew with `reestimate_batchnorm`.

    Parameters
    ----------
    models
        Modules, state dictionaries or paths of safetensors files, of one architecture.
    weights
        One a model, divided by their sum; None: equal.

    Returns
    -------
    A state dictionary.

    Raises
    ------
    ValueError
        If names or shapes differ (the first three are named), or the weights do not fit.
    """
    opened = _opened(models)
    shares = [1.0] * len(opened) if weights is None else [float(w) for w in weights]
    if len(shares) != len(opened) or not all(map(math.isfinite, shares)) or sum(shares) == 0:
        raise ValueError(f"need {len(opened)} finite weights with a sum other than 0, got {weights}")
    total = sum(shares)
    made = {}
    for name in opened[0].shapes:
        first = opened[0][name]
        if not first.is_floating_point():
            made[name] = first.clone()
            continue
        acc = first.to(_wide(first)) * (shares[0] / total)
        for source, share in zip(opened[1:], shares[1:]):
            acc.add_(source[name].to(acc), alpha=share / total)
        made[name] = acc.to(first.dtype)
    return made


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


class GreedySoup:
    """Average the models that help: best first, each kept if the mean with it scores no lower.

    Parameters
    ----------
    score_fn
        ``score_fn(module) -> float`` on validation data (never on test data), higher is better.
    template
        A module that takes the weights; needed where the models are no modules.
    prepare
        Called with each average before it is scored, for example to measure batch-norm statistics anew.

    Attributes
    ----------
    model_
        The souped module, in eval mode.
    kept_
        Numbers of the models in it, in the order they were taken.
    scores_
        Score of each single model, in the order given; NaN for one that was left out because of it.
    score_
        Score of the soup.
    """

    def __init__(
        self,
        score_fn: Callable[[nn.Module], float],
        *,
        template: nn.Module | None = None,
        prepare: Callable[[nn.Module], Any] | None = None,
    ) -> None:
        self.score_fn, self.template, self.prepare = score_fn, template, prepare

    def fit(self, models: Sequence[Source]) -> Self:
        """Score every model, then the averages; the models are left as they are."""
        opened = _opened(models)
        made = self.template if self.template is not None else models[0]
        if not isinstance(made, nn.Module):
            raise ValueError("give template=, a module that the weights fit, as the models are no modules")
        self.model_ = copy.deepcopy(made).eval()
        self.scores_ = [self._score({k: o[k] for k in o.shapes}, alone=True) for o in opened]
        for i, score in enumerate(self.scores_):
            if math.isnan(score):
                warnings.warn(f"model {i} scores NaN and is left out", UserWarning, stacklevel=2)
        order = sorted((i for i, s in enumerate(self.scores_) if not math.isnan(s)), key=lambda i: -self.scores_[i])
        if not order:
            raise ValueError("every model scores NaN")
        self.kept_, self.score_ = [order[0]], self.scores_[order[0]]
        state = {k: opened[order[0]][k].clone() for k in opened[0].shapes}
        total = {k: t.to(_wide(t)) for k, t in state.items() if t.is_floating_point()}
        for i in order[1:]:
            count = len(self.kept_) + 1
            tried = {k: t + opened[i][k].to(t) for k, t in total.items()}
            mean = {k: (tried[k] / count).to(t.dtype) if k in tried else t for k, t in state.items()}
            score = self._score(mean)
            if score >= self.score_:
                self.kept_.append(i)
                self.score_, total, state = score, tried, mean
        self._fill(state, alone=len(self.kept_) == 1)
        return self

    def _fill(self, state: Mapping[str, Tensor], *, alone: bool) -> None:
        self.model_.load_state_dict(state)
        if self.prepare is not None and not alone:
            self.prepare(self.model_)
        self.model_.eval()

    def _score(self, state: Mapping[str, Tensor], *, alone: bool = False) -> float:
        self._fill(state, alone=alone)
        with torch.no_grad():
            return float(self.score_fn(self.model_))

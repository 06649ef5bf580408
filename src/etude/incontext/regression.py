"""Prompts of random linear functions, and learners of every make called in one way."""

import inspect
import math
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from etude.incontext.references import Reference
from etude.layers.modes import evaluating


class RegressionPrompts(NamedTuple):
    """Pairs of linear functions."""

    x: Tensor
    """(B, n, d)"""
    y: Tensor
    """(B, n)"""
    w: Tensor
    """(B, d), the functions"""


def check_task(dim: int, noise: float, prior_scale: float = 1.0) -> None:
    """Raise ValueError for a dimension that is no number of at least 1, or deviations that are negative or infinite."""
    if not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"dim must be a whole number of at least 1, got {dim}")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is a standard deviation and must be finite and at least 0, got {noise}")
    if not 0 < prior_scale < math.inf:
        raise ValueError(f"prior_scale must be positive and finite, got {prior_scale}")


def regression_prompts(
    n_prompts: int,
    n_points: int,
    dim: int,
    *,
    noise: float = 0.0,
    prior_scale: float = 1.0,
    weights: Tensor | None = None,
    generator: torch.Generator,
) -> RegressionPrompts:
    """Draw ``w ~ N(0, prior_scale^2 I)``, ``x ~ N(0, I)``, ``y = w.x + N(0, noise^2)``.

    Parameters
    ----------
    noise
        Standard deviation of the noise.
    weights
        (d,): one fixed function for all prompts, in place of a drawn one.
    """
    check_task(dim, noise, prior_scale)
    device = generator.device
    w = torch.randn(n_prompts, dim, generator=generator, device=device) * prior_scale
    x = torch.randn(n_prompts, n_points, dim, generator=generator, device=device)
    e = torch.randn(n_prompts, n_points, generator=generator, device=device)
    if weights is not None:
        if weights.shape != (dim,):
            raise ValueError(f"weights must have shape ({dim},), got {tuple(weights.shape)}")
        w = weights.to(w).expand(n_prompts, dim)
    return RegressionPrompts(x, (x * w.unsqueeze(1)).sum(-1) + noise * e, w)


class Adapted:
    """A learner as ``predict(X (B, n, d), y (B, n), Xq (B, m, d)) -> (B, m)``, with its answer checked.

    Parameters
    ----------
    learner
        - a reference, or a module with ``predict(X, y, Xq)`` or ``forward(X, y, Xq)``;
        - a scikit-learn regressor: cloned and fitted anew on every data set;
        - any callable ``(X, y, Xq) -> yq``, on batches or on single data sets (n, d), (n,), (m, d), on tensors or
          on arrays. Which of these it takes is found out in the first call: the batched form counts only
          if it agrees with the single one where both run.

        It gets copies: what it writes into them, nobody else sees.
    """

    def __init__(self, learner: Any) -> None:
        self.learner = learner
        self._how: tuple[bool, bool] | None = None  # (batched, numpy)
        if isinstance(learner, type):
            raise ValueError(f"give an instance, not the class {learner.__name__}")
        if isinstance(learner, nn.Module):
            self._call = self._module
        elif hasattr(learner, "fit") and hasattr(learner, "predict"):
            self._call = self._estimator
        elif isinstance(learner, Reference):
            self._call = learner.__call__
        elif callable(learner):
            self._call = self._function
        else:
            raise ValueError(
                "a learner is a callable (X, y, Xq) -> yq, a module or a scikit-learn regressor; got "
                f"{type(learner).__name__}"
            )

    def __call__(self, X: Tensor, y: Tensor, Xq: Tensor) -> Tensor:
        out = self._call(X.clone(), y.clone(), Xq.clone())
        return _checked(out, Xq, self.learner)

    def _module(self, X: Tensor, y: Tensor, Xq: Tensor) -> Any:
        module = self.learner
        call = module.predict if hasattr(module, "predict") else module
        dtype = next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), X)
        with evaluating(module), torch.no_grad():
            out = call(X.to(dtype), y.to(dtype), Xq.to(dtype))
        return out.to(X) if isinstance(out, Tensor) else out

    def _estimator(self, X: Tensor, y: Tensor, Xq: Tensor) -> Any:
        from sklearn.base import clone

        rows = zip(X.double().cpu().numpy(), y.double().cpu().numpy(), Xq.double().cpu().numpy(), strict=True)
        return torch.as_tensor(np.stack([clone(self.learner).fit(a, b).predict(c) for a, b, c in rows])).to(X)

    def _function(self, X: Tensor, y: Tensor, Xq: Tensor) -> Any:
        if self._how is None:
            self._how = self._find_out(X, y, Xq)
        return self._run(self._how, X, y, Xq)

    def _run(self, how: tuple[bool, bool], X: Tensor, y: Tensor, Xq: Tensor) -> Any:
        batched, as_numpy = how
        parts = [t.double().cpu().numpy() for t in (X, y, Xq)] if as_numpy else [X, y, Xq]
        with torch.no_grad():
            if batched:
                out = self.learner(*parts)
                return torch.as_tensor(out).to(X) if _is_array(out) else out
            rows = [self.learner(*(p[i] for p in parts)) for i in range(len(X))]
        if not all(_is_array(r) for r in rows):
            return rows[0]
        return torch.stack([torch.as_tensor(r).to(X) for r in rows])

    def _find_out(self, X: Tensor, y: Tensor, Xq: Tensor) -> tuple[bool, bool]:
        _check_signature(self.learner)
        two = [t[: min(2, len(t))] for t in (X, y, Xq)]
        wanted = two[2].shape[:-1]
        answers: dict[tuple[bool, bool], Tensor] = {}
        errors: list[Exception] = []
        wrong: list[Any] = []
        for how in ((True, False), (False, False), (True, True), (False, True)):
            try:
                out = self._run(how, *(t.clone() for t in two))
            except Exception as error:  # any failure only says that this is not the way to call it
                errors.append(error)
                continue
            if isinstance(out, Tensor) and out.shape == wanted:
                answers[how] = out
            else:
                wrong.append(out)
        for as_numpy in (False, True):
            batched, single = answers.get((True, as_numpy)), answers.get((False, as_numpy))
            if batched is not None and (single is None or _close(batched, single)):
                return True, as_numpy
            if single is not None:
                return False, as_numpy
        if wrong:
            _checked(wrong[0], two[2], self.learner)
        raise ValueError(f"{_name(self.learner)} failed on (X, y, Xq): {errors[0]!r}") from errors[0]


def _close(a: Tensor, b: Tensor) -> bool:
    scale = b.abs().max().clamp_min(1e-12)
    return bool(((a - b).abs() <= 1e-3 * scale).all()) or not bool(b.isfinite().all())


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray, list, tuple)) and not isinstance(value, str)


def _name(learner: Any) -> str:
    return getattr(learner, "__name__", type(learner).__name__)


def _check_signature(learner: Any) -> None:
    try:
        inspect.signature(learner).bind(None, None, None)
    except TypeError as error:
        raise ValueError(f"{_name(learner)} must take (X, y, Xq): {error}") from None
    except ValueError:  # no signature to be had, as for built-in functions
        return


def _checked(out: Any, Xq: Tensor, learner: Any) -> Tensor:
    wanted = tuple(Xq.shape[:-1])
    shape = tuple(out.shape) if isinstance(out, (Tensor, np.ndarray)) else type(out).__name__
    if shape != wanted:
        raise ValueError(f"{_name(learner)} must return one prediction a query, shape {wanted}; got {shape}")
    out = torch.as_tensor(out)
    if not bool(out.isfinite().all()):
        raise ValueError(f"{_name(learner)} returned NaN or infinite predictions")
    return out

"""Which textbook estimator does a learner equal? Squared prediction and implied-weight distances.

Source: Akyurek et al. 2022, arXiv 2211.15661, section 4.1.
Differs from the paper: SPD is divided by d, so that the zero predictor stands near 1 at every dimension.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.randomness import stream
from etude.incontext.references import Reference, check_pairs, ols_weights, reference
from etude.incontext.regression import Adapted, check_task, regression_prompts


@dataclass(frozen=True)
class Report:
    """What `identify` found. Tables are ``table[name][n]``, n the number of pairs in the prompt.

    `spd` is E (A(D)(x') - B(D)(x'))^2 / d, `ilwd` is E |w_A(D) - w_B(D)|^2, `mse` the error on noiseless targets
    divided by d (the learner's own under "learner"), `r2` the share of the learner's variance that its implied weights
    explain (below 0 where a constant would say more). NaN: the quantity has no finite mean (least squares under noise
    with n within one of d).
    """

    dim: int
    noise: float
    n_context: tuple[int, ...]
    spd: dict[str, dict[int, float]]
    ilwd: dict[str, dict[int, float]]
    mse: dict[str, dict[int, float]]
    r2: dict[int, float]
    rates: dict[str, dict[int, float]]
    """The rate chosen for references that leave it open."""

    def nearest(self, by: str = "spd") -> dict[int, str]:
        """The name of the nearest reference for each n; the first of several that are equally near.

        References without a finite mean at this n are left out: under noise, with n within one of `dim`, a learner
        that is least squares itself goes by another's name.
        """
        if by not in ("spd", "ilwd"):
            raise ValueError(f"by must be 'spd' or 'ilwd', got {by!r}")
        table: dict[str, dict[int, float]] = getattr(self, by)
        finite = {n: [k for k in table if not math.isnan(table[k][n])] for n in self.n_context}
        return {n: min(finite[n], key=lambda name: table[name][n]) for n in self.n_context}

    def mean_spd(self, name: str, n_context: Iterable[int] | None = None) -> float:
        """Mean SPD to a reference over these n (None: all), those without a finite mean left out."""
        values = [self.spd[name][n] for n in (self.n_context if n_context is None else n_context)]
        finite = [v for v in values if not math.isnan(v)]
        return sum(finite) / len(finite) if finite else math.nan

    def best(self, names: Iterable[str], n_context: Iterable[int] | None = None) -> str:
        """The one of these references with the smallest mean SPD."""
        span = None if n_context is None else tuple(n_context)
        return min(names, key=lambda name: self.mean_spd(name, span))

    def to_rows(self) -> list[dict[str, Any]]:
        """Records (reference, n, spd, ilwd, mse) for a table or a plot."""
        return [
            {"reference": k, "n": n, "spd": self.spd[k][n], "ilwd": self.ilwd[k][n], "mse": self.mse[k][n]}
            for k in self.spd
            for n in self.n_context
        ]


def placement(
    report: Report, *, penalties: Sequence[float], simple: Sequence[str], n_context: Iterable[int] | None = None
) -> dict[str, float]:
    """Where a learner stands among the textbook ones, in one number a question.

    Parameters
    ----------
    report
        With the references "ridge:PENALTY" for all `penalties`, and those named in `simple`.
    simple
        The learners to be told apart from least squares, such as one gradient step.
    n_context
        Numbers of pairs averaged over.

    Returns
    -------
    dict
        "spd_NAME" for every reference but ridge ("gd:1" is spd_gd1), "spd_best_ridge", "spd_best_simple",
        "ridge_index" (place of the best penalty, from 1), "mse" after the most pairs. What has no finite mean is
        left out.
    """
    span = report.n_context if n_context is None else tuple(n_context)
    ridges = [f"ridge:{v!r}" for v in penalties]
    mean = {name: report.mean_spd(name, span) for name in report.spd}
    ridge = report.best(ridges, span)
    found = {"spd_" + name.replace(":", ""): v for name, v in mean.items() if name not in ridges and math.isfinite(v)}
    found |= {"spd_best_simple": mean[report.best(simple, span)], "spd_best_ridge": mean[ridge]}
    return found | {"ridge_index": 1.0 + ridges.index(ridge), "mse": report.mse["learner"][span[-1]]}


def implied_weights(
    predictor: Any,
    X: Tensor,
    y: Tensor,
    *,
    num_queries: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The linear function nearest to what a learner predicts after the pairs (X, y).

    Parameters
    ----------
    predictor
        Whatever `identify` takes.
    X, y
        (n, d) and (n,), or batched (B, n, d) and (B, n).
    num_queries
        Fresh points N(0, I) asked for; at least 2 d. None: 4 d, at least 16.

    Returns
    -------
    W, r2
        (d,) and (), or (B, d) and (B,): the least-squares weights of the predictions and the share of their
        variance that the linear function explains (1 where the predictions are constantly 0, 0 where they are
        another constant).

    Raises
    ------
    ValueError
        If X and y do not fit each other, are not finite, or X is not floating point.
    """
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    single = X.ndim == 2
    if single:
        X, y = X.unsqueeze(0), y.unsqueeze(0)
    if X.ndim != 3 or y.shape != X.shape[:2]:
        raise ValueError(f"X must be (n, d) or (B, n, d) and y fit it, got {tuple(X.shape)} and {tuple(y.shape)}")
    check_pairs(X, y)
    d = X.shape[-1]
    m = max(4 * d, 16) if num_queries is None else num_queries
    check_queries(m, d)
    generator = stream(0, "implied_weights") if generator is None else generator
    Xq = torch.randn(X.shape[0], m, d, generator=generator, dtype=X.dtype)
    w, r2 = fit_weights(Xq, Adapted(predictor)(X, y, Xq))
    return (w[0], r2[0]) if single else (w, r2)


def check_queries(num_queries: int, dim: int) -> None:
    """Raise ValueError for fewer than 2 d queries, too few for implied weights, or no whole number of them."""
    if not isinstance(num_queries, Integral):
        raise ValueError(f"num_queries must be a whole number, got {num_queries}")
    if num_queries < 2 * dim:
        raise ValueError(f"implied weights need at least 2 d = {2 * dim} queries, got {num_queries}")


def fit_weights(Xq: Tensor, predictions: Tensor, *, pooled: bool = False) -> tuple[Tensor, Tensor]:
    """Least-squares weights (..., d) of predictions (..., m) at Xq (..., m, d), and their R^2 about the mean.

    R^2 is one a data set (...), or with `pooled` the share of the variance of all of them together (): where a learner
    is almost constant on one data set, that one's R^2 may be any negative number.
    """
    w = ols_weights(Xq, predictions)
    left = (predictions - (Xq @ w.unsqueeze(-1)).squeeze(-1)).square().sum(-1)
    total = (predictions - predictions.mean(-1, keepdim=True)).square().sum(-1)
    # what the rounding of the mean may leave of a constant
    rounding = (Xq.shape[-2] * torch.finfo(total.dtype).eps) ** 2 * predictions.square().sum(-1)
    if pooled:
        left, total, rounding = left.sum(), total.sum(), rounding.sum()
    r2 = torch.where(total > rounding, 1 - left / total.clamp_min(1e-300), (left == 0).to(left.dtype))
    return w, r2


def identify(
    predictor: Any,
    refs: Mapping[str, Any] | Iterable[str],
    *,
    dim: int,
    n_context: Iterable[int] | None = None,
    noise: float = 0.0,
    prior_scale: float = 1.0,
    num_tasks: int = 128,
    num_queries: int | None = None,
    generator: torch.Generator | None = None,
) -> Report:
    """Compare a learner with known ones on random linear functions.

    Parameters
    ----------
    predictor
        A callable (X, y, Xq) -> yq on batched or single data sets, a module, a scikit-learn regressor.
    refs
        From `references` (a mapping may hold learners of your own too), or names. The zero predictor is always
        added: a learner that learned nothing is it.
    dim, noise, prior_scale
        The task: x in R^dim, standard deviation of the noise, of the weights.
    n_context
        Numbers of pairs in the prompt; None: 1 .. 2 dim.
    num_tasks, num_queries
        Functions drawn, and queries a function (at least 2 dim; None: 4 dim, at least 16).

    Notes
    -----
    A reference with an open rate gets, for each n, the rate that brings it nearest to the learner.
    """
    check_task(dim, noise, prior_scale)
    if isinstance(refs, str):
        raise ValueError(f"refs must be a mapping from `references` or a list of names, got the string {refs!r}")
    given = dict(refs) if isinstance(refs, Mapping) else {name: reference(name) for name in refs}
    named = {k: v if isinstance(v, Reference) else Adapted(v) for k, v in given.items()}
    named.setdefault("zero", reference("zero"))
    if isinstance(n_context, Real):
        raise ValueError(f"n_context must be a list of numbers of pairs, got {n_context}: use [{n_context}]")
    counts = tuple(range(1, 2 * dim + 1) if n_context is None else n_context)
    counts = tuple(n.item() if isinstance(n, (Tensor, np.generic)) else n for n in counts)
    if not counts or not all(isinstance(n, Integral) and n >= 1 for n in counts):
        raise ValueError(f"n_context must be numbers of pairs of at least 1, got {counts}")
    if not isinstance(num_tasks, Integral) or num_tasks < 1:
        raise ValueError(f"num_tasks must be a whole number of at least 1, got {num_tasks}")
    m = max(4 * dim, 16) if num_queries is None else num_queries
    check_queries(m, dim)
    generator = stream(0, "identify") if generator is None else generator
    learner = Adapted(predictor)
    spd: dict[str, dict[int, float]] = {k: {} for k in named}
    ilwd: dict[str, dict[int, float]] = {k: {} for k in named}
    mse: dict[str, dict[int, float]] = {"learner": {}, **{k: {} for k in named}}
    rates: dict[str, dict[int, float]] = {}
    r2: dict[int, float] = {}
    prompts = regression_prompts(num_tasks, max(counts), dim, noise=noise, prior_scale=prior_scale, generator=generator)
    Xq = torch.randn(num_tasks, m, dim, generator=generator)
    truth = (Xq @ prompts.w.unsqueeze(-1)).squeeze(-1)
    for n in counts:
        X, y = prompts.x[:, :n], prompts.y[:, :n]
        own = learner(X, y, Xq)
        w, fit = fit_weights(Xq, own, pooled=True)
        r2[n] = float(fit)
        mse["learner"][n] = float((own - truth).square().mean()) / dim
        for name, ref in named.items():
            variants: list[Any] = ref.variants() if isinstance(ref, Reference) else [ref]
            tried = [(v, v(X, y, Xq)) for v in variants]
            distances = [float((own - out).square().mean()) / dim for _, out in tried]
            best = min(range(len(tried)), key=distances.__getitem__)
            chosen, out = tried[best]
            if len(tried) > 1:
                rates.setdefault(name, {})[n] = chosen.lr
            heavy = getattr(ref, "kind", "") == "ols" and noise > 0 and abs(n - dim) <= 1
            spd[name][n] = math.nan if heavy else distances[best]
            ilwd[name][n] = math.nan if heavy else float((w - fit_weights(Xq, out)[0]).square().sum(-1).mean())
            mse[name][n] = math.nan if heavy else float((out - truth).square().mean()) / dim
    return Report(dim, noise, counts, spd, ilwd, mse, r2, rates)

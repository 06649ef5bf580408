"""Linear probes on frozen features: all strengths, folds and fold seeds in one batched solve.

Sources: linear probes, Alain & Bengio 2016, arXiv 1610.01644; control tasks and selectivity, Hewitt & Liang 2019,
arXiv 1909.03368.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import ClassifierTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d
from torch import Tensor

from etude.data.randomness import as_generator, stream
from etude.training.linear_solvers import logistic_solutions, ridge_solutions

STRENGTHS = tuple(10.0**p for p in range(-4, 5))


def _gives_probabilities(probe: "LinearProbe") -> bool:
    if probe.kind != "logistic":
        raise AttributeError("least squares gives no probabilities: use kind='logistic'")
    return True


class LinearProbe(BaseEstimator):
    """A linear read-out of frozen features, with its strength chosen by cross-validation.

    Parameters
    ----------
    kind
        "logistic": classes, scikit-learn's `LogisticRegression`. "ridge": least squares with penalty 1 / C on
        numbers (vectors too), or on +-1 codes of integer classes. A fit that does not converge warns.
    C
        Inverse strength; a sequence or "cv" (10^-4 .. 10^4): the best by cross-validation.
    folds, seeds
        Folds, and different divisions into folds that are averaged.
    random_state
        Of the folds.

    Attributes
    ----------
    C_ : float
    cv_scores_ : (C,) mean held-out accuracy, or minus the relative error; None with a fixed C.
    coef_, intercept_ : (k, d), (k,)
    classes_ : the classes, where `y` are classes.

    Examples
    --------
    >>> probe = LinearProbe().fit([[0.0], [1.0], [2.0], [3.0]] * 5, [0, 0, 1, 1] * 5)
    >>> probe.score([[0.0], [3.0]], [0, 1])
    1.0
    """

    def __init__(
        self,
        kind: Literal["logistic", "ridge"] = "logistic",
        C: float | Sequence[float] | Literal["cv"] = "cv",
        *,
        folds: int = 5,
        seeds: int = 1,
        random_state: Any = 0,
    ) -> None:
        self.kind = kind
        self.C = C
        self.folds = folds
        self.seeds = seeds
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        if self.kind == "logistic":  # "ridge" takes numbers and classes, and so is neither for scikit-learn
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        return tags

    def fit(self, Z: Any, y: Any) -> "LinearProbe":
        """Z (n, d) features; y (n,) classes or numbers, or (n, k) numbers for "ridge"."""
        if self.kind not in ("logistic", "ridge"):
            raise ValueError(f"kind must be 'logistic' or 'ridge', got {self.kind!r}")
        if y is None:
            raise ValueError("LinearProbe requires y to be passed, but the target y is None")
        Z = _features(Z)
        y = _targets(y)
        if len(y) != len(Z):
            raise ValueError(f"{len(Z)} rows of features and {len(y)} targets")
        if isinstance(self.C, str) and self.C != "cv":
            raise ValueError(f"C must be a number, a sequence or 'cv', got {self.C!r}")
        several = isinstance(self.C, str) or not np.isscalar(self.C)
        strengths = STRENGTHS if isinstance(self.C, str) else tuple(np.atleast_1d(np.asarray(self.C, dtype=float)))
        if not strengths or not all(0 < c < math.inf for c in strengths):
            raise ValueError(f"C must be positive and finite, got {self.C}")
        self.classes_ = None
        if self.kind == "logistic":
            check_classification_targets(y)
            y = column_or_1d(y, warn=True)
        if self.kind == "logistic" or (y.ndim == 1 and y.dtype.kind in "iubOUS"):
            self.classes_, codes = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(f"a probe of classes needs at least two, got 1 class: {self.classes_.tolist()}")
            y = codes
        target = torch.as_tensor(y, device=Z.device)
        if self.classes_ is None:
            if not np.isfinite(y).all():
                raise ValueError(f"target {int(np.argwhere(~np.isfinite(y))[0][0])} is not finite")
            target = target.to(Z.dtype).reshape(len(Z), -1)
        C = torch.tensor(strengths, dtype=Z.dtype, device=Z.device)
        self.cv_scores_ = None
        if several and len(strengths) > 1:
            self.cv_scores_ = self._cross_validate(Z, target, C).cpu().numpy()
            C = C[int(np.argmax(self.cv_scores_))].reshape(1)
        W, b = self._solve(Z, target, C[:1], torch.ones(1, len(Z), dtype=Z.dtype, device=Z.device))
        self.C_ = float(C[0])
        self.W_, self.b_ = W[0], b[0]
        self.coef_, self.intercept_ = self.W_.T.cpu().numpy(), self.b_.cpu().numpy()
        self.n_features_in_ = Z.shape[1]
        return self

    def decision_function(self, Z: Any) -> np.ndarray:
        """Scores (n, k), linear in the features; (n,) for two classes and "logistic", as scikit-learn has it."""
        scores = self._scores(Z)
        if self.kind == "logistic" and scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        return scores.cpu().numpy()

    def predict(self, Z: Any) -> np.ndarray:
        """Classes (n,), or numbers (n,) or (n, k)."""
        scores = self._scores(Z)
        if self.classes_ is not None:
            return self.classes_[scores.argmax(-1).cpu().numpy()]
        return scores.squeeze(-1).cpu().numpy() if scores.shape[-1] == 1 else scores.cpu().numpy()

    @available_if(_gives_probabilities)
    def predict_proba(self, Z: Any) -> np.ndarray:
        """Probabilities (n, classes); logistic only: least squares gives none, and then there is no such method."""
        return self._scores(Z).softmax(-1).cpu().numpy()

    def score(self, Z: Any, y: Any) -> float:
        """Accuracy for classes, R^2 (uniform mean over the targets) for numbers; ValueError unless `y` has the rows."""
        predicted, y = self._compared(Z, y)
        if self.classes_ is not None:
            return float((predicted == y).mean())
        predicted, y = predicted.reshape(len(y), -1), y.reshape(len(y), -1)
        left = np.square(y - predicted).sum(0)
        found = 1 - left / np.maximum(np.square(y - y.mean(0)).sum(0), 1e-300)
        constant = (y == y[0]).all(0)  # nothing to explain: 1 if it is met but for rounding, else 0
        return float(np.mean(np.where(constant, left <= 1e-20 * np.square(y).sum(0), found)))

    def relative_error(self, Z: Any, y: Any) -> float:
        """``sum |y - prediction|^2 / sum |y|^2`` of a probe of numbers."""
        predicted, y = self._compared(Z, y)
        left = np.square(y - predicted).sum()
        return float(left / max(np.square(y).sum(), 1e-300))

    def _compared(self, Z: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predictions, and the targets in their shape: a column of labels would be compared with every row."""
        predicted, y = self.predict(Z), _targets(y)
        if y.shape[:1] != predicted.shape[:1] or y.size != predicted.size:
            raise ValueError(f"targets {y.shape} do not fit the predictions {predicted.shape}: give one a row")
        return predicted, y.reshape(predicted.shape)

    def _scores(self, Z: Any) -> Tensor:
        check_is_fitted(self)
        Z = _features(Z)
        if Z.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {Z.shape[1]} features, but LinearProbe is expecting {self.n_features_in_} features as input"
            )
        return Z @ self.W_ + self.b_

    def _solve(self, Z: Tensor, y: Tensor, C: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """One problem for every pair of a C and a row of weights: (C * F, d, k), C outermost."""
        F = len(weights)
        if self.kind == "ridge":
            Y = y
            if self.classes_ is not None:
                Y = 2.0 * torch.nn.functional.one_hot(y, len(self.classes_)).to(Z.dtype) - 1.0
            W, b = ridge_solutions(Z, Y, 1 / C, weights)
            return W.transpose(0, 1).flatten(0, 1), b.transpose(0, 1).flatten(0, 1)
        assert self.classes_ is not None
        return logistic_solutions(Z, y, len(self.classes_), C.repeat_interleave(F), weights.repeat(len(C), 1))

    def _cross_validate(self, Z: Tensor, y: Tensor, C: Tensor) -> Tensor:
        for name, value in (("folds", self.folds), ("seeds", self.seeds)):
            if int(value) != value:
                raise ValueError(f"{name} must be a whole number, got {value}")
        n, folds = len(Z), min(int(self.folds), len(Z))
        if folds < 2 or self.seeds < 1:
            raise ValueError(f"cross-validation needs 2 folds and rows, and 1 seed; got {folds} and {self.seeds}")
        held = []
        generator = as_generator(self.random_state)
        for _ in range(int(self.seeds)):
            order = torch.randperm(n, generator=generator).to(Z.device)
            if self.classes_ is not None:  # every class spread over the folds
                order = order[torch.argsort(y[order], stable=True)]
            fold_of = torch.empty(n, dtype=torch.long, device=Z.device)
            fold_of[order] = torch.arange(n, device=Z.device) % folds
            held.append(torch.nn.functional.one_hot(fold_of, folds).T.to(Z.dtype))
        out = torch.cat(held)  # (F, n)
        W, b = self._solve(Z, y, C, 1 - out)
        scores = torch.einsum("nd,pdk->pnk", Z, W) + b.unsqueeze(1)
        if self.classes_ is not None:
            good = (scores.argmax(-1) == y).to(Z.dtype)
        else:
            good = -(scores - y).square().sum(-1) / y.square().sum(-1).mean().clamp_min(1e-300)
        return (good.reshape(len(C), len(out), n) * out).sum((1, 2)) / out.sum()


@dataclass(frozen=True)
class ProbeTable:
    """What `probe_layers` found, one row a layer: layer, score, error, control, selectivity."""

    rows: tuple[dict[str, Any], ...]

    def best(self, by: str = "score") -> dict[str, Any]:
        """The row with the highest score ("error": the lowest)."""
        sign = -1 if by == "error" else 1
        return max(self.rows, key=lambda row: sign * row[by])

    def __getitem__(self, layer: str) -> dict[str, Any]:
        for row in self.rows:
            if row["layer"] == layer:
                return row
        raise KeyError(f"no layer {layer!r}; probed: {[row['layer'] for row in self.rows]}")

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def probe_layers(
    features: Mapping[str, Tensor],
    y: Any,
    *,
    control: bool = True,
    kind: Literal["logistic", "ridge"] | None = None,
    C: float | Sequence[float] | Literal["cv"] = "cv",
    test_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> ProbeTable:
    """Fit one probe a layer and score it on rows it has not seen.

    Parameters
    ----------
    features
        Layer name -> (n, d), such as `etude.layers.Record.features`; further axes are flattened.
    y
        (n,) classes or numbers, or (n, k) numbers.
    control
        Fit a second probe on permuted targets: what the features give away of targets that mean nothing.
    kind
        None: "logistic" for integer or string targets, "ridge" for others.

    Returns
    -------
    ProbeTable
        `score` is accuracy or R^2, `error` 1 - accuracy or the relative error, `control` the control's score,
        `selectivity` their difference.
    """
    if not features:
        raise ValueError("no layers to probe")
    y = _targets(y)
    n = len(y)
    if kind is None:
        kind = "logistic" if y.ndim == 1 and y.dtype.kind in "iubOUS" else "ridge"
    generator = stream(0, "probe_layers") if generator is None else generator
    fit, test = (rows.numpy() for rows in held_out(n, test_size, generator))
    shuffled = y[torch.randperm(n, generator=generator).numpy()]
    rows = []
    for layer, Z in features.items():
        if len(Z) != n:
            raise ValueError(f"layer {layer!r} has {len(Z)} rows, there are {n} targets")
        Z = torch.as_tensor(Z).detach().reshape(n, -1)
        probe = LinearProbe(kind, C).fit(Z[fit], y[fit])
        score = probe.score(Z[test], y[test])
        error = 1 - score if probe.classes_ is not None else probe.relative_error(Z[test], y[test])
        row: dict[str, Any] = {"layer": layer, "score": score, "error": error, "C": probe.C_}
        if control:
            row["control"] = LinearProbe(kind, C).fit(Z[fit], shuffled[fit]).score(Z[test], shuffled[test])
            row["selectivity"] = score - row["control"]
        rows.append(row)
    return ProbeTable(tuple(rows))


def held_out(n: int, test_size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers to fit on and to test on; ValueError where one of both would be empty."""
    held = max(1, round(test_size * n))
    if not 0 < test_size < 1 or held >= n:
        raise ValueError(f"test_size={test_size} of {n} rows leaves nothing to fit or to test")
    order = torch.randperm(n, generator=generator)
    return order[held:], order[:held]


def _targets(y: Any) -> np.ndarray:
    if not isinstance(y, Tensor):
        return np.asarray(y)
    y = y.detach().cpu()
    return (y.float() if y.dtype == torch.bfloat16 else y).numpy()  # NumPy has no bfloat16


def _features(Z: Any) -> Tensor:
    if not isinstance(Z, Tensor):  # scikit-learn's own words on what is sparse, complex, empty or not numbers
        Z = torch.from_numpy(check_array(Z, dtype=np.float64, ensure_all_finite=False, copy=True))
    Z = Z.detach().to(torch.float64)
    if Z.ndim != 2 or Z.shape[0] == 0 or Z.shape[1] == 0:
        raise ValueError(f"features must be (n, d) with at least one row and column, got {tuple(Z.shape)}")
    if not bool(Z.isfinite().all()):
        row, column = (~Z.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"feature {column} of row {row} is not finite: it is {float(Z[row, column])} (NaN or inf)")
    return Z

"""Linear probes on frozen features: all strengths, folds and fold seeds in one batched solve.

Sources: linear probes, Alain & Bengio 2016, arXiv 1610.01644; control tasks and selectivity, Hewitt & Liang 2019,
arXiv 1909.03368.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array
from torch import Tensor

from etude.data.randomness import as_generator, stream

STRENGTHS = tuple(10.0**p for p in range(-4, 5))


def ridge_solutions(Z: Tensor, Y: Tensor, penalties: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ridge regression with an intercept for every penalty and every row weighting at once.

    One eigendecomposition a weighting serves all penalties.

    Parameters
    ----------
    Z, Y
        (n, d) features and (n, k) targets.
    penalties
        (P,), of ``sum_i m_i |Y_i - Z_i W - b|^2 + penalty |W|^2``.
    weights
        (F, n) row weights m, such as 0 for a fold's held-out rows. None: all rows.

    Returns
    -------
    W, b
        (F, P, d, k) and (F, P, k).
    """
    m = torch.ones(1, len(Z), dtype=Z.dtype, device=Z.device) if weights is None else weights.to(Z.dtype)
    total = m.sum(1, keepdim=True)
    z_mean, y_mean = m @ Z / total, m @ Y / total
    G = torch.einsum("fn,nd,ne->fde", m, Z, Z) - total.unsqueeze(-1) * z_mean.unsqueeze(-1) * z_mean.unsqueeze(-2)
    c = torch.einsum("fn,nd,nk->fdk", m, Z, Y) - total.unsqueeze(-1) * z_mean.unsqueeze(-1) * y_mean.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(G)
    scaled = (vectors.mT @ c).unsqueeze(1) / (values.clamp_min(0)[:, None, :, None] + penalties[None, :, None, None])
    W = vectors.unsqueeze(1) @ scaled
    b = y_mean.unsqueeze(1) - torch.einsum("fd,fpdk->fpk", z_mean, W)
    return W, b


def logistic_solutions(
    Z: Tensor,
    y: Tensor,
    num_classes: int,
    strengths: Tensor,
    weights: Tensor,
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
) -> tuple[Tensor, Tensor]:
    """Penalised logistic regression for P problems at once, by batched L-BFGS.

    Problem p minimises ``C_p sum_i m_pi loss_i + |W|^2 / 2``, scikit-learn's objective: softmax for three classes
    and more, one logit for two.

    Parameters
    ----------
    Z, y
        (n, d) and (n,) class numbers.
    strengths, weights
        (P,) the C of each problem and (P, n) its row weights.

    Returns
    -------
    W, b
        (P, d, K) and (P, K); for two classes the first column is 0.
    """
    d, P, K = Z.shape[1], len(strengths), num_classes
    free = 1 if K == 2 else K
    one_hot = torch.nn.functional.one_hot(y, K).to(Z.dtype)
    scale = (strengths[:, None] * weights).to(Z.dtype)
    total = scale.sum(1).clamp_min(1e-12)

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        W, b = theta[:, :-1], theta[:, -1]  # (P, d, free), (P, free)
        logits = torch.einsum("nd,pdk->pnk", Z, W) + b.unsqueeze(1)
        if K == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        log_p = logits.log_softmax(-1)
        value = -(scale * (log_p * one_hot).sum(-1)).sum(-1) + 0.5 * W.square().sum((1, 2))
        error = scale.unsqueeze(-1) * (log_p.exp() - one_hot)[..., K - free :]
        grad = torch.cat([torch.einsum("nd,pnk->pdk", Z, error) + W, error.sum(1, keepdim=True)], 1)
        return value / total, grad / total[:, None, None]

    theta = _lbfgs(objective, Z.new_zeros(P, d + 1, free), tol=tol, max_iter=max_iter)
    W, b = theta[:, :-1], theta[:, -1]
    if K == 2:
        W, b = torch.cat([torch.zeros_like(W), W], -1), torch.cat([torch.zeros_like(b), b], -1)
    return W, b


def _lbfgs(objective: Any, theta: Tensor, *, tol: float, max_iter: int, memory: int = 10) -> Tensor:
    """Minimise P separate convex functions; theta (P, ...). Each problem has its own step length."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    def wide(a: Tensor) -> Tensor:
        return a[:, None, None]

    value, grad = objective(theta)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_iter):
        if float(grad.abs().max()) < tol:
            break
        q, alphas = grad.clone(), []
        for s, t, rho in reversed(pairs):
            alphas.append(rho * dot(s, q))
            q = q - wide(alphas[-1]) * t
        if pairs:
            s, t, rho = pairs[-1]
            q = q * wide(torch.where(rho > 0, dot(s, t) / dot(t, t).clamp_min(1e-300), torch.ones_like(rho)))
        else:
            q = q / wide(grad.flatten(1).norm(dim=1).clamp_min(1.0))
        for (s, t, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            q = q + wide(alpha - rho * dot(t, q)) * s
        slope = -dot(grad, q)
        uphill = slope >= 0
        q = torch.where(wide(uphill), grad, q)
        slope = torch.where(uphill, -dot(grad, grad), slope)
        length = torch.ones_like(value)
        for _ in range(30):
            new_theta = theta - wide(length) * q
            new_value, new_grad = objective(new_theta)
            bad = ~(new_value <= value + 1e-4 * length * slope + 1e-14 * value.abs())
            if not bool(bad.any()):
                break
            length = torch.where(bad, length * 0.5, length)
        stay = wide(bad)
        new_theta = torch.where(stay, theta, new_theta)
        new_grad, new_value = torch.where(stay, grad, new_grad), torch.where(bad, value, new_value)
        s, t = new_theta - theta, new_grad - grad
        curvature = dot(s, t)
        pairs.append((s, t, torch.where(curvature > 1e-300, 1 / curvature.clamp_min(1e-300), 0.0)))
        pairs = pairs[-memory:]
        theta, value, grad = new_theta, new_value, new_grad
        if bool(bad.all()):
            break
    return theta


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
        numbers (vectors too), or on +-1 codes of integer classes.
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

    def fit(self, Z: Any, y: Any) -> "LinearProbe":
        """Z (n, d) features; y (n,) classes or numbers, or (n, k) numbers for "ridge"."""
        if self.kind not in ("logistic", "ridge"):
            raise ValueError(f"kind must be 'logistic' or 'ridge', got {self.kind!r}")
        Z = _features(Z)
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if len(y) != len(Z):
            raise ValueError(f"{len(Z)} rows of features and {len(y)} targets")
        if isinstance(self.C, str) and self.C != "cv":
            raise ValueError(f"C must be a number, a sequence or 'cv', got {self.C!r}")
        several = isinstance(self.C, str) or not np.isscalar(self.C)
        strengths = STRENGTHS if isinstance(self.C, str) else tuple(np.atleast_1d(np.asarray(self.C, dtype=float)))
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"C must be positive, got {self.C}")
        self.classes_ = None
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
        """Scores (n, k), linear in the features."""
        return self._scores(Z).cpu().numpy()

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
        """Accuracy for classes; R^2 (uniform mean over the targets) for numbers."""
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        if self.classes_ is not None:
            return float((self.predict(Z) == y).mean())
        y = y.reshape(len(y), -1)
        left = np.square(y - self.predict(Z).reshape(y.shape)).sum(0)
        return float(np.mean(1 - left / np.maximum(np.square(y - y.mean(0)).sum(0), 1e-300)))

    def relative_error(self, Z: Any, y: Any) -> float:
        """``sum |y - prediction|^2 / sum |y|^2`` of a probe of numbers."""
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
        left = np.square(y - self.predict(Z).reshape(y.shape)).sum()
        return float(left / max(np.square(y).sum(), 1e-300))

    def _scores(self, Z: Any) -> Tensor:
        if not hasattr(self, "W_"):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this LinearProbe is not fitted yet: call fit first")
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
        n, folds = len(Z), min(self.folds, len(Z))
        if folds < 2 or self.seeds < 1:
            raise ValueError(f"cross-validation needs 2 folds and rows, and 1 seed; got {folds} and {self.seeds}")
        held = []
        generator = as_generator(self.random_state)
        for _ in range(self.seeds):
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
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
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

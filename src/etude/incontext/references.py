"""Textbook estimators as in-context learners: what they predict after every prefix of every sequence, at once.

Conventions: data sets are batched, X (..., n, d), y (..., n), queries Xq (..., m, d). The loss of gradient descent
is the plain sum of squares, so a step is ``w <- w + 2 lr X'(y - X w)``; `lr` means this everywhere.

Sources: Akyurek et al. 2022, arXiv 2211.15661, section 4; rank-deficient least squares is the minimum-norm one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

RATES = tuple(0.004 * 1.6**i for i in range(13))  # 0.004 .. 1.1: rates tried where a name leaves the rate open


class Predictor(Protocol):
    """A learner: reads pairs, predicts queries."""

    def __call__(self, X: Tensor, y: Tensor, Xq: Tensor) -> Tensor:
        """X (..., n, d), y (..., n), Xq (..., m, d) -> (..., m)."""
        ...


def check_pairs(X: Tensor, y: Tensor) -> None:
    """Raise ValueError unless X is (..., n, d) of floats and y (..., n), both finite."""
    if not X.is_floating_point():
        raise ValueError(f"X must be floating point, got {X.dtype}: use X.float()")
    if X.ndim < 2 or y.shape != X.shape[:-1]:
        raise ValueError(f"X must be (..., n, d) and y (..., n), got {tuple(X.shape)} and {tuple(y.shape)}")
    for name, values in (("X", X), ("y", y)):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinities: leave such pairs out")


def _check_queries(X: Tensor, Xq: Tensor) -> None:
    """Raise ValueError unless Xq is (..., m, d) of X's type, and finite."""
    if Xq.ndim < 2 or Xq.shape[-1] != X.shape[-1]:
        raise ValueError(f"Xq must be (..., m, {X.shape[-1]}), got {tuple(Xq.shape)}")
    if Xq.dtype != X.dtype:
        raise ValueError(f"Xq must be {X.dtype} as X is, got {Xq.dtype}: use Xq.to(X)")
    if not bool(Xq.isfinite().all()):
        raise ValueError("Xq holds NaN or infinities: leave such queries out")


class Moments(NamedTuple):
    """What least squares needs to know of a data set, or of every prefix of it."""

    G: Tensor
    """X'X, (..., d, d)"""
    b: Tensor
    """X'y, (..., d)"""
    n: Tensor
    """number of pairs, (...,)"""


def moments(X: Tensor, y: Tensor) -> Moments:
    """Moments of all pairs of each data set."""
    n = torch.full(X.shape[:-2], float(X.shape[-2]), dtype=X.dtype, device=X.device)
    return Moments(X.mT @ X, (X.mT @ y.unsqueeze(-1)).squeeze(-1), n)


def prefix_moments(X: Tensor, y: Tensor) -> Moments:
    """Moments of the first 0, 1, ..., n pairs by cumulative sums: (..., n + 1, d, d), (..., n + 1, d), (n + 1,)."""
    outer = X.unsqueeze(-1) * X.unsqueeze(-2)
    G = torch.cat([torch.zeros_like(outer[..., :1, :, :]), outer], -3).cumsum(-3)
    cross = X * y.unsqueeze(-1)
    b = torch.cat([torch.zeros_like(cross[..., :1, :]), cross], -2).cumsum(-2)
    return Moments(G, b, torch.arange(X.shape[-2] + 1, dtype=X.dtype, device=X.device))


def ols_weights(X: Tensor, y: Tensor) -> Tensor:
    """Least squares of minimum norm, (..., d); right for n < d and for repeated rows too."""
    if X.shape[-2] == 0:
        return X.new_zeros(*X.shape[:-2], X.shape[-1])
    X64, y64 = X.double(), y.double().unsqueeze(-1)
    if X.device.type == "cpu":
        w = torch.linalg.lstsq(X64, y64, driver="gelsd").solution
    else:
        w = torch.linalg.pinv(X64) @ y64
    return w.squeeze(-1).to(X.dtype)


def ols_prefix_weights(X: Tensor, y: Tensor) -> Tensor:
    """Minimum-norm least squares of the first 0, 1, ..., n pairs, (..., n + 1, d).

    Up to d pairs by orthogonalisation: the part c of a new x outside the span of the earlier ones moves the
    solution by ``c (y - x.w) / |c|^2``. From d + 1 pairs on by the normal equations of all prefixes in one
    batched solve. Data sets whose first d inputs are (nearly) dependent go through `ols_weights`.
    """
    n, d = X.shape[-2:]
    shape = X.shape[:-2]
    X64, y64 = X.double().reshape(math.prod(shape), n, d), y.double().reshape(math.prod(shape), n)
    first = min(n, d)
    w = X64.new_zeros(len(X64), n + 1, d)
    basis = X64.new_zeros(len(X64), first, d)
    safe = torch.ones(len(X64), dtype=torch.bool, device=X.device)
    for i in range(first):
        x, q = X64[:, i], basis[:, :i]
        c = x
        for _ in range(2):  # a second pass restores what rounding took from orthogonality
            c = c - (q.mT @ (q @ c.unsqueeze(-1))).squeeze(-1)
        length = c.norm(dim=-1, keepdim=True)
        safe &= (length > 1e-5 * x.norm(dim=-1, keepdim=True)).squeeze(-1)
        unit = c / length.clamp_min(1e-300)
        basis[:, i] = unit
        error = y64[:, i : i + 1] - (x * w[:, i]).sum(-1, keepdim=True)
        w[:, i + 1] = w[:, i] + unit * (error / length.clamp_min(1e-300))
    if n > d:
        G, b, _ = prefix_moments(X64, y64)
        eye = torch.eye(d, dtype=G.dtype, device=G.device)
        late = G[:, d + 1 :] + torch.where(safe, 0.0, 1.0)[:, None, None, None] * eye  # unsafe rows are redone
        factor, failed = torch.linalg.cholesky_ex(late)
        w[:, d + 1 :] = torch.cholesky_solve(b[:, d + 1 :].unsqueeze(-1), factor).squeeze(-1)
        safe &= (failed == 0).all(-1)
    for row in (~safe).nonzero().flatten().tolist():
        for i in range(1, n + 1):
            w[row, i] = ols_weights(X64[row, :i], y64[row, :i])
    return w.reshape(*shape, n + 1, d).to(X.dtype)


def ridge_weights(moment: Moments, penalty: float) -> Tensor:
    """``(X'X + penalty I)^-1 X'y``; Bayes-optimal at ``penalty = noise variance / prior variance of w``."""
    G, b, _ = moment
    if penalty <= 0:
        raise ValueError(f"ridge needs a penalty above 0, got {penalty}; 'ols' is its limit")
    A = G.double() + penalty * torch.eye(G.shape[-1], dtype=torch.float64, device=G.device)
    factor, failed = torch.linalg.cholesky_ex(A)
    w = torch.cholesky_solve(b.double().unsqueeze(-1), factor).squeeze(-1)
    if bool((bad := failed > 0).any()):  # a penalty below the rounding of X'X: its limit, least squares of minimum norm
        w = torch.where(bad[..., None], (torch.linalg.pinv(A, hermitian=True) @ b.double().unsqueeze(-1))[..., 0], w)
    return w.to(b.dtype)


def online_ridge_weights(X: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Ridge of the first 0, 1, ..., n pairs by rank-one updates of the inverse (Sherman-Morrison), (..., n + 1, d).

    ``P <- P - P x x'P / (1 + x'P x)`` from ``P = I / penalty``, and ``w <- w + P x (y - x.w)`` with the new P.
    """
    if penalty <= 0:
        raise ValueError(f"ridge needs a penalty above 0, got {penalty}; 'ols' is its limit")
    n, d = X.shape[-2:]
    X64, y64 = X.double(), y.double()
    P = torch.eye(d, dtype=torch.float64, device=X.device).expand(*X.shape[:-2], d, d) / penalty
    w = [X64.new_zeros(*X.shape[:-2], d)]
    for i in range(n):
        x = X64[..., i, :]
        Px = (P @ x.unsqueeze(-1)).squeeze(-1)
        gain = Px / (1 + (x * Px).sum(-1, keepdim=True))  # = new P times x
        w.append(w[-1] + gain * (y64[..., i : i + 1] - (x * w[-1]).sum(-1, keepdim=True)))
        P = P - gain.unsqueeze(-1) * Px.unsqueeze(-2)
    return torch.stack(w, -2).to(X.dtype)


def gradient_descent_weights(moment: Moments, steps: int, lr: float | Tensor | None = None) -> Tensor:
    """`steps` full-batch steps from 0. lr None: 1 / (2 largest eigenvalue of X'X) of each data set."""
    G, b, _ = moment
    if steps < 1:
        raise ValueError(f"gradient descent needs at least 1 step, got {steps}")
    if lr is None:
        least = max(1e-12, torch.finfo(b.dtype).tiny)  # in half precision 1e-12 is 0
        rate = 0.5 / torch.linalg.eigvalsh(G.double())[..., -1:].clamp_min(least).to(b.dtype)
    else:
        rate = torch.as_tensor(lr, dtype=b.dtype, device=b.device)
    w = 2 * rate * b
    for _ in range(steps - 1):
        w = w + 2 * rate * (b - (G @ w.unsqueeze(-1)).squeeze(-1))
    return w


def sgd_prefix_weights(X: Tensor, y: Tensor, lr: float, decay: float = 0.0) -> Tensor:
    """One pass, ``w <- w - 2 lr ((w.x - y) x + decay w)`` pair by pair; after 0, ..., n pairs, (..., n + 1, d)."""
    w = [torch.zeros_like(X[..., :1, :].sum(-2))]
    for i in range(X.shape[-2]):
        x = X[..., i, :]
        error = (w[-1] * x).sum(-1, keepdim=True) - y[..., i : i + 1]
        w.append(w[-1] - 2 * lr * (error * x + decay * w[-1]))
    return torch.stack(w, -2)


def neighbours(
    distances: Tensor, y: Tensor, k: int, allowed: Tensor | None = None, *, weighted: bool = False
) -> Tensor:
    """Mean of `y` over the k nearest; fewer where fewer are allowed, 0 where none is.

    Parameters
    ----------
    distances
        (..., m, n).
    y
        (..., n).
    allowed
        (m, n), True = may be a neighbour.
    weighted
        Weigh by 1 / distance; where a distance is 0, only such neighbours count.
    """
    if k < 1:
        raise ValueError(f"k-NN needs k of at least 1, got {k}")
    n = distances.shape[-1]
    if n == 0:
        return distances.new_zeros(distances.shape[:-1])
    if allowed is not None:
        distances = distances.masked_fill(~allowed, torch.inf)
    near, index = distances.topk(min(k, n), dim=-1, largest=False)
    values = y.unsqueeze(-2).expand(*distances.shape).gather(-1, index)
    real = near.isfinite()
    weight = real.to(y.dtype)
    if weighted:
        zero = (near == 0) & real
        inverse = weight / near.clamp_min(torch.finfo(near.dtype).tiny)
        weight = torch.where(zero.any(-1, keepdim=True), zero.to(y.dtype), inverse)
        weight = torch.where(real, weight, 0.0)
    total = weight.sum(-1)
    return torch.where(total > 0, (weight * values).sum(-1) / torch.where(total > 0, total, 1.0), 0.0)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (..., m, n); not by a matrix product, which gives coincident points a distance."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class Reference:
    """A named textbook learner; see `references` for the names."""

    name: str
    kind: str
    value: float = 0.0
    """Penalty of ridge, number of steps, or of neighbours."""
    lr: float | None = None
    weighted: bool = False

    @property
    def linear(self) -> bool:
        """Whether its predictions are ``w . x`` with a w that depends on the pairs only."""
        return self.kind != "knn"

    def weights(self, X: Tensor, y: Tensor) -> Tensor:
        """w (..., d) from the pairs X (..., n, d), y (..., n); ValueError where these do not fit or are not finite."""
        check_pairs(X, y)
        if self.kind == "ols":
            return ols_weights(X, y)
        if self.kind == "sgd":
            return sgd_prefix_weights(X, y.to(X.dtype), self._sgd_rate(X))[..., -1, :]
        if self.kind == "ridge":  # small penalties need all digits of the moments
            return self._from_moments(moments(X.double(), y.double())).to(X.dtype)
        return self._from_moments(moments(X, y.to(X.dtype)))

    def prefix_weights(self, X: Tensor, y: Tensor) -> Tensor:
        """w after the first 0, 1, ..., n pairs, (..., n + 1, d); raises as `weights`."""
        check_pairs(X, y)
        if self.kind == "ols":
            return ols_prefix_weights(X, y)
        if self.kind == "sgd":
            return sgd_prefix_weights(X, y.to(X.dtype), self._sgd_rate(X))
        if self.kind == "ridge":
            return self._from_moments(prefix_moments(X.double(), y.double())).to(X.dtype)
        return self._from_moments(prefix_moments(X, y.to(X.dtype)))

    def __call__(self, X: Tensor, y: Tensor, Xq: Tensor) -> Tensor:
        """Predictions (..., m) for Xq (..., m, d) from the pairs X (..., n, d), y (..., n).

        Raises as `weights`, and ValueError for an Xq that does not fit X or is not finite.
        """
        _check_queries(X, Xq)
        if self.kind == "knn":
            return self._neighbours(Xq, X, y)
        return (Xq @ self.weights(X, y).unsqueeze(-1)).squeeze(-1)

    def prefixes(self, X: Tensor, y: Tensor) -> Tensor:
        """Prediction of every y_i from the pairs before it, (..., n): all prefixes of all sequences at once."""
        if self.kind == "knn":
            n = X.shape[-2]
            earlier = torch.ones(n, n, dtype=torch.bool, device=X.device).tril(-1)
            return self._neighbours(X, X, y, earlier)
        return (self.prefix_weights(X, y)[..., :-1, :] * X).sum(-1)

    def variants(self) -> list["Reference"]:
        """Itself, or with every rate of `RATES` where the name leaves the rate open."""
        if self.kind not in ("gd", "sgd") or self.lr is not None:
            return [self]
        return [replace(self, lr=rate) for rate in RATES]

    def _neighbours(self, Xq: Tensor, X: Tensor, y: Tensor, allowed: Tensor | None = None) -> Tensor:
        check_pairs(X, y)
        if X.dtype in (torch.float16, torch.bfloat16):  # of which cdist knows nothing
            return self._neighbours(Xq.float(), X.float(), y.float(), allowed).to(X.dtype)
        return neighbours(_distances(Xq, X), y.to(X.dtype), int(self.value), allowed, weighted=self.weighted)

    def _from_moments(self, moment: Moments) -> Tensor:
        if self.kind == "ridge":
            return ridge_weights(moment, self.value)
        if self.kind == "gd":
            return gradient_descent_weights(moment, int(self.value), self.lr)
        if self.kind == "average":
            return moment.b / moment.n.clamp_min(1.0).unsqueeze(-1)
        assert self.kind == "zero"
        return torch.zeros_like(moment.b)

    def _sgd_rate(self, X: Tensor) -> float:
        return self.lr if self.lr is not None else 0.5 / (X.shape[-1] + 2)  # 1 / E |x|^4 along an axis, halved


_USE = "use ols, ridge:PENALTY, gd:STEPS[:LR], sgd[:LR], knn:K[:distance], average or zero"


def reference(name: str) -> Reference:
    """The learner of that name; see `references`."""
    if not isinstance(name, str):
        raise ValueError(f"no reference {name!r}: {_USE}")
    kind, *values = name.split(":")
    most = {
        "ols": (0, 0),
        "ridge": (1, 1),
        "gd": (1, 2),
        "sgd": (0, 1),
        "knn": (1, 2),
        "average": (0, 0),
        "zero": (0, 0),
    }
    if kind not in most or not most[kind][0] <= len(values) <= most[kind][1]:
        raise ValueError(f"no reference {name!r}: {_USE}")
    weighted = kind == "knn" and len(values) == 2
    if weighted and values.pop() != "distance":
        raise ValueError(f"no reference {name!r}: {_USE}")
    try:
        numbers = [float(v) for v in values]
    except ValueError:
        raise ValueError(f"no reference {name!r}: {_USE}") from None
    if kind == "ridge" and numbers[0] == 0:
        return Reference(name, "ols")
    if any(not 0 < v < math.inf for v in numbers) or (kind in ("gd", "knn") and numbers[0] != int(numbers[0])):
        raise ValueError(f"reference {name!r}: numbers must be positive and finite, steps and neighbours whole")
    if kind == "sgd":
        return Reference(name, kind, lr=numbers[0] if numbers else None)
    lr = numbers[1] if kind == "gd" and len(numbers) == 2 else None
    return Reference(name, kind, numbers[0] if numbers else 0.0, lr, weighted)


def references(names: Iterable[str]) -> dict[str, Reference]:
    """Textbook learners by name.

    Parameters
    ----------
    names
        "ols" (minimum norm), "ridge:PENALTY", "gd:STEPS[:LR]" (full batch from 0), "sgd[:LR]" (one pass),
        "knn:K[:distance]" (uniform, or weighted by inverse distance), "average" (``X'y / n``), "zero".
        Without LR gradient descent takes 1 / (2 largest eigenvalue), and `identify` the best of a grid for
        each number of pairs, in the reference's favour.

    Examples
    --------
    >>> refs = references(["ols", "ridge:0.25"])
    >>> X, y = torch.eye(2), torch.tensor([1.0, 2.0])
    >>> refs["ols"](X, y, torch.tensor([[1.0, 1.0]]))
    tensor([3.])
    """
    if isinstance(names, str):
        raise ValueError(f"names must be a list of names, got the string {names!r}")
    return {name: reference(name) for name in names}

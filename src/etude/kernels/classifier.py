"""A scikit-learn classifier that is an infinitely wide net of finite or infinite depth.

Source: Radhakrishnan, Belkin & Uhler 2022, arXiv 2204.14126. At infinite depth there is no linear system: the diagonal
of the kernel outgrows everything else, so the prediction is the kernel-weighted vote of the training points.
"""

import json
import math
import numbers
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from etude.data.randomness import stream
from etude.kernels.deep import KNOTS, Kind, LimitKernel, deep_kernel, solve_kernel
from etude.kernels.dual import DualActivation, PowerDual, dual_activation, name_of, within_float64
from etude.kernels.votes import CHUNK_PAIRS, nearest_weights
from etude.layers.distances import squared_distances
from etude.training.estimators import as_array

ORTHOGONAL = 1e-15  # inner products so small are rounding: such a point is far from every training point
_TUNING_ROWS = 1000  # rows that `dim="auto"` looks at


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(X: Any) -> bool:
    return np.issubdtype(getattr(X, "dtype", None) or object, np.integer)


def _scaled(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows divided by a power of two near their largest entry, which rounds nothing, and the exponents: no square in a
    row's length then leaves float64's range."""
    exponents = np.frexp(np.abs(X).max(axis=1))[1]
    return np.ldexp(X, -exponents[:, None]), exponents


def _lengths(X: np.ndarray) -> np.ndarray:
    scaled, exponents = _scaled(X)
    with np.errstate(over="ignore"):  # infinite only where the length itself is beyond float64
        return np.ldexp(np.linalg.norm(scaled, axis=1), exponents)


class DeepKernelClassifier(ClassifierMixin, BaseEstimator):
    """The classifier that an infinitely wide, deep net of a given activation becomes. Nothing is trained.

    Parameters
    ----------
    activation : str, sequence, module or function, default="optimal"
        "optimal": the activation whose infinite net is consistent on the sphere of dimension `dim`; "sine": the sine of
        the same order; otherwise what `etude.kernels.dual_activation` takes.
    dim : "auto", "ambient" or number, default="auto"
        Dimension of the sphere that the data fill. "ambient": columns less one (after `lift`). "auto": of the powers of
        two up to that that float64 can hold, the one with the best leave-one-out accuracy on at most 1000 training rows
        (at finite depth: "ambient").
    depth : int or None, default=None
        Hidden layers. None: infinitely many.
    kind : {"ntk", "nngp"}, default="ntk"
        A fully trained net, or one of which only the last layer is trained. At infinite depth they agree.
    ridge : float, default=0.0
        Added to the kernel's diagonal at finite depth.
    normalize : bool, default=True
        Divide every row by its length. If False, rows must have length 1 already.
    lift : bool, default=False
        Append a constant coordinate as large as the longest training row before normalising, so that inner products are
        not negative and the length of a row still counts.
    device : str, default="cpu"
        Where the kernels are computed (in float64).

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
    dim_ : float
        The dimension used (of "optimal" and "sine").
    limit_ : str
        "singular", "1-nn", "majority" or "linear": what infinite depth makes of the activation.
    n_features_in_ : int

    Notes
    -----
    The theory speaks of inner products in [0, 1). Negative ones are computed and warned of; `lift=True` avoids them.
    Points that coincide with training points get the mean of these points' labels. A zero row is an error; only in a
    matrix of integer type, where it is an empty count, it is taken as equal counts, with a warning.
    """

    def __init__(
        self,
        activation: Any = "optimal",
        *,
        dim: Literal["auto", "ambient"] | float = "auto",
        depth: int | None = None,
        kind: Kind = "ntk",
        ridge: float = 0.0,
        normalize: bool = True,
        lift: bool = False,
        device: str = "cpu",
    ) -> None:
        self.activation = activation
        self.dim = dim
        self.depth = depth
        self.kind = kind
        self.ridge = ridge
        self.normalize = normalize
        self.lift = lift
        self.device = device

    def fit(self, X: Any, y: Any) -> "DeepKernelClassifier":
        """Keep the normalised rows; at finite depth also solve for their weights.

        Raises
        ------
        ValueError
            For NaN, rows of length 0 or (with ``normalize=False``) not 1, `dim` below 1 or beyond float64 (the optimal
            activation's from about 960 on, the sine's from about 115), a ridge that is negative or not finite, an
            unknown kind, a depth that is no whole number.
        """
        X, y = as_array(X), as_array(y)
        counts = _is_integer(X)
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        if self.kind not in ("ntk", "nngp"):
            raise ValueError(f'kind must be "ntk" or "nngp", got {self.kind!r}')
        if not (_is_number(self.ridge) and 0 <= self.ridge < math.inf):
            raise ValueError(f"ridge must be a number of at least 0, got {self.ridge!r}")
        if self.depth is not None and not (_is_number(self.depth) and 0 <= self.depth == self.depth // 1):
            raise ValueError(f"depth must be a whole number of at least 0, or None for infinite, got {self.depth!r}")
        if self.dim not in ("auto", "ambient") and not _is_number(self.dim):
            raise ValueError(f'dim must be "auto", "ambient" or a number, got {self.dim!r}')
        if not isinstance(self.dim, str) and not 1 <= self.dim < math.inf:
            raise ValueError(f"dim must be at least 1 (the sphere's own dimension) and finite, got {self.dim}")
        self.classes_, codes = np.unique(y, return_inverse=True)
        longest = min(float(_lengths(X).max()), np.finfo(np.float64).max)
        self.constant_ = (longest if self.normalize else 1.0) if self.lift else 0.0
        self.X_ = self.on_sphere(X, counts)
        self.Y_ = torch.eye(len(self.classes_), dtype=torch.float64)[torch.from_numpy(codes)].to(self.device)
        if len(self.classes_) == 1:
            warnings.warn(f"y has one class only: every prediction is {self.classes_[0]}", stacklevel=2)
        self._prepare(self._find_dim())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the classes: (n,) for two classes, positive for the second; else (n, n_classes).

        At infinite depth they are the classes' shares of the vote (for two classes the difference of the shares); at
        finite depth the kernel regression of the one-hot labels (for two classes of -1 and 1).
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class with the highest score; the first of equals."""
        scores = self._scores(X)
        return self.classes_[scores.argmax(1)]

    def save(self, path: str | Path) -> None:
        """Write normalised rows, labels and coefficients as safetensors; `load` reads them back.

        Raises
        ------
        ValueError
            If the classes are neither numbers nor strings.
        """
        check_is_fitted(self)
        classes = self.classes_
        if classes.dtype.kind == "O" and all(isinstance(c, str) for c in classes):  # labels from pandas
            classes = classes.astype(str)
        if classes.dtype.kind not in "biufU":
            raise ValueError(f"classes of type {classes.dtype} cannot be written; encode them as numbers or strings")
        params = {name: getattr(v, "item", lambda v=v: v)() for name, v in self.get_params().items()
                  if name != "activation"}  # fmt: skip
        params["activation"] = self._activation_by_name()
        meta = {"params": params, "classes": classes.tolist(), "kind": classes.dtype.str, "dim": float(self.dim_)}
        meta["columns"] = getattr(self, "feature_names_in_", np.array([])).tolist()
        tensors = {"X": self.X_, "Y": self.Y_, "constant": torch.tensor(self.constant_, dtype=torch.float64)}
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        save_file(tensors, str(path), {"deep_kernel_classifier": json.dumps(meta)})

    def _activation_by_name(self) -> str | list[float]:
        """The activation as JSON can hold it."""
        if isinstance(self.activation, str):
            return self.activation
        if (name := name_of(self.dual_)) is not None:
            return name
        if isinstance(self.dual_, PowerDual):
            return [w**0.5 for w in self.dual_.weights]
        raise ValueError(f"give the activation by name to save it, not as {self.activation!r}")

    @classmethod
    def load(cls, path: str | Path) -> "DeepKernelClassifier":
        """The classifier that `save` wrote."""
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("deep_kernel_classifier", "null"))
            if meta is None:
                raise ValueError(f"{path} does not hold a DeepKernelClassifier")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        made = cls(**meta["params"])
        made.X_, made.Y_ = tensors["X"].to(made.device), tensors["Y"].to(made.device)
        made.constant_ = float(tensors["constant"])
        made.classes_ = np.array(meta["classes"], dtype=meta["kind"])
        made.n_features_in_ = made.X_.shape[1] - bool(made.lift)
        if columns := meta.get("columns"):  # of the data frame that it was fitted on
            made.feature_names_in_ = np.array(columns, dtype=object)
        made._prepare(meta["dim"])
        return made

    def _prepare(self, dim: float) -> None:
        self.dim_ = dim
        self.dual_ = self._dual(dim)
        self.limit_ = self.dual_.limit
        self.kernel_: LimitKernel | None = None
        self.weights_: Tensor | None = None
        if self.depth is not None:
            train = deep_kernel(self._complement(self.X_), self.dual_, int(self.depth), self.kind)
            self.weights_ = solve_kernel(train, self.Y_, float(self.ridge))
        elif self.limit_ == "singular":
            self.kernel_ = LimitKernel(self.dual_, device=self.device)
        elif self.limit_ == "linear":
            raise ValueError(
                "a linear activation has no limit of its own: every depth is the linear kernel; give depth=0"
            )
        elif self.limit_ == "majority":
            warnings.warn(
                f"with E phi^2 = 1 this activation has E phi = {self.dual_.at_zero**0.5:.3g}, not 0, so infinite depth "
                "is a majority vote: every prediction is the commonest class. activation_report(...).centered() is the "
                "same activation of the singular class",
                stacklevel=3,
            )

    def _dual(self, dim: float) -> DualActivation:
        return dual_activation(self.activation, dim)

    def on_sphere(self, X: np.ndarray, counts: bool = False) -> Tensor:
        """Rows as the fitted classifier sees them: lifted if asked for, length 1, float64. `counts`: see Notes."""
        lengths = _lengths(X)
        if not self.normalize and (off := np.abs(lengths - 1) > 1e-6).any():
            i = int(off.argmax())
            raise ValueError(f"row {i} has length {lengths[i]:.6g}, not 1: normalise the rows or use normalize=True")
        if self.constant_:
            X = np.column_stack([X, np.full(len(X), self.constant_)])
            lengths = _lengths(X)
        if (zero := lengths == 0).any():
            message = f"row {int(zero.argmax())} is zero and has no direction; drop it or use lift=True"
            if not counts:
                raise ValueError(message)
            warnings.warn(f"{message}. As the data are integers it is taken as equal counts", stacklevel=4)
            X = np.where(zero[:, None], 1.0, X)
        X, _ = _scaled(X)
        return torch.from_numpy(X / np.linalg.norm(X, axis=1)[:, None]).to(self.device)

    def _complement(self, rows: Tensor) -> Tensor:
        """1 - z of the given rows to the training rows."""
        u = squared_distances(rows, self.X_, exact=True).div_(2)
        if bool((u > 1 + 1e-12).any()):
            warnings.warn(
                "some inner products are negative, which the theory excludes: odd powers then vote against the class "
                "of a far point. lift=True makes all of them positive",
                stacklevel=4,
            )
        return u

    def _chunks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(max(1, CHUNK_PAIRS // len(self.X_)))

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = as_array(X)
        counts = _is_integer(X)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        parts = []
        for rows in self._chunks(self.on_sphere(X, counts)):  # no comprehension: a frame that warnings would count
            parts.append(self._vote(self._complement(rows)))
        return torch.cat(parts).cpu().numpy()

    def _vote(self, u: Tensor) -> Tensor:
        """Scores (rows, classes) from 1 - z (rows, training points); rows orthogonal to all get the classes' shares."""
        if self.weights_ is not None:
            assert self.depth is not None
            kernel = deep_kernel(u, self.dual_, int(self.depth), self.kind)
            if self.dual_.at_zero == 0 and not bool(kernel.any(1).all()):
                warnings.warn("the kernel underflows at this depth; depth=None is the limit itself", stacklevel=4)
            return kernel @ self.weights_
        if self.limit_ == "majority":
            return self.Y_.mean(0).expand(len(u), -1)
        weights = nearest_weights(u) if self.kernel_ is None else self.kernel_.weights(u)
        scores = (weights @ self.Y_) / weights.abs().sum(1, keepdim=True)
        if self.kernel_ is not None and bool((lost := (1 - u).abs().amax(1) < ORTHOGONAL).any()):
            scores[lost] = self.Y_.mean(0)
        return scores

    def candidate_dims(self) -> list[float]:
        """The dimensions that `dim="auto"` chooses from, for the rows that were fitted."""
        ambient = float(max(1, self.X_.shape[1] - 1))
        candidates = [2.0**k for k in range(12) if 2.0**k < ambient] + [ambient]
        if self.activation == "sine":
            candidates = [c for c in candidates if 1 < c < 1000] or [2.0]
        return [c for c in candidates if within_float64(self.activation, c)]

    def tuning_rows(self) -> tuple[Tensor, Tensor]:
        """The fitted rows (n, columns) and their one-hot labels (n, classes) that `dim="auto"` looks at.

        Of many rows a draw, always the same: every second or third of rows in turns may lack a class.
        """
        if len(self.X_) <= _TUNING_ROWS:
            return self.X_, self.Y_
        drawn = torch.randperm(len(self.X_), generator=stream(0, "tuning_rows"))[:_TUNING_ROWS].sort().values
        drawn = drawn.to(self.X_.device)
        return self.X_[drawn], self.Y_[drawn]

    def _find_dim(self) -> float:
        if not isinstance(self.dim, str):
            return float(self.dim)
        named = isinstance(self.activation, str) and self.activation in ("optimal", "sine")
        if self.dim == "ambient" or self.depth is not None or not named:
            return float(max(1, self.X_.shape[1] - 1))
        candidates = self.candidate_dims()
        rows, labels = self.tuning_rows()
        u = squared_distances(rows, rows, exact=True).div_(2)
        scored = []
        for dim in candidates:
            kernel = LimitKernel(self._dual(dim), knots=KNOTS, device=self.device)  # fine enough for a comparison
            right = 0.0
            for start in range(0, len(rows), 256):
                part = u[start : start + 256].clone()
                own = torch.arange(start, start + len(part), device=part.device)
                here = torch.arange(len(part), device=part.device)
                part[here, own] = 1.0  # z = 0: a point has no vote on itself
                score = kernel.weights(part) @ labels
                right += float(labels[own].gather(1, score.argmax(1, keepdim=True)).sum())
            scored.append(right)
        return candidates[int(np.argmax(scored))]

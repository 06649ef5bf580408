"""scikit-learn shells over the training engine: arrays in, a fitted module and its history out.

A method's estimator subclasses `TorchClassifier`, `TorchRegressor` or `TorchEstimator`, lists its parameters in a
constructor that only stores them, and writes `_build` (and `_loss` where it is not the usual one).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import as_generator, seeded_build, stream
from etude.data.tasks import Split, split
from etude.layers.modes import evaluating, gradients_on
from etude.training.config import TrainConfig
from etude.training.engine import train
from etude.training.saved_estimators import SavedEstimator, plain
from etude.training.updater import Updater

ROWS = 1024  # rows a pass when nothing is learned
BLOCK = 32  # passes are filled up to whole blocks: matrix kernels then treat a row the same wherever it stands


def as_array(value: Any) -> Any:
    """Tensors on any device as NumPy arrays; everything else as it is."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # of which NumPy knows nothing


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto": a CUDA device where there is one, else the CPU.

    Raises
    ------
    ValueError
        If torch knows no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use 'auto', 'cpu', 'cuda', 'cuda:1' or the like") from None


class TorchEstimator(SavedEstimator):
    """Base of estimators whose `fit` is a run of the training engine.

    Parameters
    ----------
    max_epochs, batch_size, lr
        Length, rows a batch and learning rate of the run (Adam).
    patience
        Stop after this many epochs without a lower loss on a tenth of the rows, kept back from training, and go
        back to the best weights. None: train `max_epochs` on all rows.
    device
        ``"auto"``: a CUDA device where there is one, else the CPU.
    random_state
        Seed of initialisation, order and noise; None: a new one at every fit.

    Attributes
    ----------
    module_
        The trained module, in eval mode.
    history_
        One dictionary an epoch: step, loss, val_loss.
    n_features_in_
        Columns (or channels) seen in `fit`.
    input_shape_
        Shape of one row.
    """

    def __init__(
        self,
        *,
        max_epochs: int = 100,
        batch_size: int = 64,
        lr: float = 1e-3,
        patience: int | None = None,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.max_epochs, self.batch_size, self.lr = max_epochs, batch_size, lr
        self.patience, self.device, self.random_state = patience, device, random_state

    # what a method fills in

    @abstractmethod
    def _build(self, X: Tensor, y: Tensor | None) -> nn.Module:
        """A new module for rows like `X`. Only shapes may matter: `load` calls it with one row of zeros."""

    @abstractmethod
    def _loss(self, module: nn.Module, batch: Split) -> Any:
        """The loss of a batch: a scalar, or a dictionary of terms whose sum is minimised."""

    def _config(self, n: int) -> TrainConfig:
        """How the engine trains on `n` rows."""
        return TrainConfig(
            epochs=self.max_epochs, batch_size=self.batch_size, lr=self.lr, patience=self.patience, better="lower"
        )

    def _target(self, y: Any, *, reset: bool) -> Tensor | None:
        """The target as the loss takes it. `reset`: learn its form (classes, scale) anew."""
        return None if y is None else torch.from_numpy(np.array(y, dtype=np.float32))

    def _finish(self, X: Tensor, y: Tensor | None) -> None:
        """Called when the module is trained, before `fit` returns: set what else is learned."""

    def _made(self, X: Tensor, y: Tensor | None) -> nn.Module:
        """`_build`, in the precision of the rows."""
        return self._build(X, y).float()

    # fitting

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train a new module on `X` (n, ...) and `y`; returns self."""
        with gradients_on():
            rows, target = self._rows(X, y, reset=True)
            seed = self._draw_seed()
            device = self._device()
            data, val = Split(rows, target), None
            if self.patience is not None:
                data, val = self._keep_back(data, seed)
            found = train(
                lambda _: self._made(rows[:1], target), data, loss=self._loss, config=self._config(data.n), val=val,
                seeds=(seed,), plan="sequential", device=device,
            )[0]  # fmt: skip
            if found.diverged:
                raise ValueError(
                    f"training diverged after {found.steps} updates: lower lr (it is {self.lr}) or scale the inputs"
                )
            self.module_, self.history_, self._updater = found.module, found.curve, None
            self._finish(rows, target)
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None, classes: ArrayLike | None = None) -> Self:
        """One pass over `X` in batches, going on from where the module stands; returns self.

        The optimiser's averages are kept from call to call; they start anew after `fit`, in a copy or a pickle, and
        when parameters were changed.

        Parameters
        ----------
        classes
            Every class that will ever come (classifiers, at the first call; default: those of `y`).

        Raises
        ------
        ValueError
            For other `classes` than those of before, and when training diverges.
        """
        with gradients_on():
            first = not hasattr(self, "module_")
            if first and classes is not None:
                self._target(np.asarray(as_array(classes)), reset=True)
            elif classes is not None and hasattr(self, "classes_"):
                now = np.unique(as_array(classes))
                if not np.array_equal(now, self.classes_):
                    raise ValueError(f"classes {now.tolist()} are not those of before, {self.classes_.tolist()}")
            rows, target = self._rows(X, y, reset=first, keep_target=first and classes is not None)
            device = self._device()
            if first:
                seed = self._draw_seed()
                build: Callable[[], nn.Module] = lambda: self._made(rows[:1], target)  # noqa: E731
                self.module_, self.history_ = seeded_build(build, stream(seed, "init")).to(device), []
            settings = {k: v for k, v in self.get_params(deep=False).items() if plain(v)}
            if getattr(self, "_updater", None) is None or settings != self._partial_settings:
                self._partial_settings = settings
                self._partial_seed, self._passes = seed if first else self._draw_seed(), 0
                self._updater = Updater(self.module_, self._loss, self._config(len(rows)), seed=self._partial_seed)
            updater = self._updater
            assert updater is not None
            order = torch.randperm(len(rows), generator=stream(self._partial_seed, "order", self._passes))
            self._passes += 1
            updater.train_mode()
            batches = (Split(rows, target).take(part).to(device) for part in self._parts(order))
            losses = [updater.update(batch)["loss"] for batch in batches]
            if not np.isfinite(losses).all():
                self.module_.eval()
                raise ValueError(f"training diverged: lower lr (it is {self.lr}) or scale the inputs")
            self.history_.append({"step": updater.step, "loss": float(np.mean(losses))})
            self.module_.eval()
            self._finish(rows, target)
        return self

    def _parts(self, order: Tensor) -> list[Tensor]:
        parts = list(order.split(self.batch_size))
        drop = self._config(len(order)).drop_last and len(parts) > 1 and len(parts[-1]) < self.batch_size
        return parts[:-1] if drop else parts

    def _rows(self, X: Any, y: Any, *, reset: bool, keep_target: bool = False) -> tuple[Tensor, Tensor | None]:
        """Checked input as tensors; a shape other than the fitted one is refused."""
        X, y = as_array(X), as_array(y)
        needs_y = self.__sklearn_tags__().target_tags.required
        if y is None and not needs_y:
            X = validate_data(self, X, reset=reset, dtype=np.float32, allow_nd=True)
        else:
            X, y = validate_data(
                self, X, y, reset=reset, dtype=np.float32, allow_nd=True, multi_output=self._multi_output,
                y_numeric=self._y_numeric,
            )  # fmt: skip
        target = self._target(y, reset=reset and not keep_target)
        if reset:
            self.input_shape_ = tuple(X.shape[1:])
        self._check_shape(X)
        return torch.from_numpy(np.array(X, dtype=np.float32)), target

    _multi_output = False
    _y_numeric = False

    def _check_shape(self, X: NDArray[Any]) -> None:
        if tuple(X.shape[1:]) != tuple(self.input_shape_):
            raise ValueError(
                f"X has rows of shape {tuple(X.shape[1:])}, but {type(self).__name__} was fitted on rows of shape "
                f"{tuple(self.input_shape_)}"
            )

    def _draw_seed(self) -> int:
        return int(torch.randint(2**31 - 1, (1,), generator=as_generator(self.random_state)))

    def _device(self) -> torch.device:
        return torch_device(self.device)

    def _keep_back(self, data: Split, seed: int) -> tuple[Split, Split]:
        held = max(1, math.ceil(data.n / 10))
        if data.n < 2:
            raise ValueError(f"patience needs rows to keep back, got n_samples={data.n}: set patience=None")
        parts = split(data, (data.n - held, held), seed=seed)
        return parts[0]._replace(index=None), parts[1]._replace(index=None)

    # using

    def _outputs(self, X: Any, call: Callable[[Tensor], Tensor] | None = None) -> NDArray[Any]:
        """`call` (default: the module) on checked rows, some at a time.

        Batches are filled up to whole blocks, so that what a row gets does not hang on the rows beside it.
        """
        check_is_fitted(self)
        X = validate_data(self, as_array(X), reset=False, dtype=np.float32, allow_nd=True)
        self._check_shape(X)
        device = next((t.device for t in (*self.module_.parameters(), *self.module_.buffers())), torch.device("cpu"))
        with evaluating(self.module_), torch.no_grad():
            parts = [
                (call or self.module_)(_filled(part).to(device))[: len(part)].cpu()
                for part in torch.from_numpy(np.array(X, dtype=np.float32)).split(ROWS)
            ]
        return torch.cat(parts).numpy()

    _updater: Updater | None = None
    _partial_settings: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "_updater": None} if "_updater" in state else state


def _filled(rows: Tensor) -> Tensor:
    """Rows with copies of the first behind them, up to whole blocks."""
    missing = -len(rows) % BLOCK
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


class TorchClassifier(ClassifierMixin, TorchEstimator):
    """Base of classifiers: the module returns logits (B, classes), the loss is their cross-entropy.

    Attributes
    ----------
    classes_
        Labels as they were given, sorted; column k of the probabilities belongs to ``classes_[k]``.
    """

    def _target(self, y: Any, *, reset: bool) -> Tensor:
        y = np.asarray(y)
        check_classification_targets(y)
        if reset:
            self.classes_ = np.unique(y)
            if len(self.classes_) < 2:
                raise ValueError(f"y holds one class ({self.classes_.tolist()[0]!r}): a classifier needs at least two")
        codes = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        strange = self.classes_[codes] != y
        if strange.any():
            raise ValueError(f"label {y[strange].tolist()[0]!r} was not among the classes {self.classes_.tolist()}")
        return torch.from_numpy(codes.astype(np.int64))

    def _keep_back(self, data: Split, seed: int) -> tuple[Split, Split]:
        rarest = int(np.bincount(data.y.numpy()).min())
        held = max(len(self.classes_), math.ceil(data.n / 10))
        if rarest < 2 or data.n - held < len(self.classes_):
            return super()._keep_back(data, seed)
        parts = split(data, (data.n - held, held), seed=seed, by="class")
        return parts[0]._replace(index=None), parts[1]._replace(index=None)

    def _loss(self, module: nn.Module, batch: Split) -> Any:
        return F.cross_entropy(module(batch.x), batch.y)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (n, classes), float32."""
        return self._outputs(X, lambda x: self.module_(x).softmax(-1))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of each row."""
        codes = self.predict_proba(X).argmax(1)
        return self.classes_[codes]


class TorchRegressor(RegressorMixin, TorchEstimator):
    """Base of regressors: the module returns (B, outputs) or (B,), the loss is the squared error.

    The target is standardised for training; predictions come back in its own unit.

    Attributes
    ----------
    y_mean_, y_scale_
        Mean and standard deviation of the training target, one a column.
    """

    _multi_output = True
    _y_numeric = True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _target(self, y: Any, *, reset: bool) -> Tensor:
        y = np.asarray(y, dtype=np.float64)
        if reset:
            self.y_mean_ = np.asarray(y.mean(0))
            deviation = np.asarray(y.std(0))
            self.y_scale_ = np.where(deviation > 0, deviation, 1.0)
        return torch.from_numpy(((y - self.y_mean_) / self.y_scale_).astype(np.float32))

    def _loss(self, module: nn.Module, batch: Split) -> Any:
        return F.mse_loss(module(batch.x).reshape(batch.y.shape), batch.y)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predictions in the unit of the training target: (n,) or (n, outputs), as the target was."""
        raw = self._outputs(X)
        return raw.reshape(len(raw), *self.y_mean_.shape) * self.y_scale_ + self.y_mean_

"""`KeyValueClassifier`: the key-value bottleneck as a scikit-learn classifier for streams of labels."""

import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from etude.continual.key_value import KeyValueBottleneck
from etude.continual.key_value_checks import check_step
from etude.data.randomness import seeded_build, stream
from etude.training.config import TrainConfig
from etude.training.estimators import TorchClassifier, as_array


class KeyValueClassifier(TorchClassifier):
    """Classifier whose knowledge lies in cells of small tables, so that learning a new class leaves the others be.

    Rows of `X` are embeddings of a frozen encoder (or any standardised features). Keys are placed once on unlabelled
    rows; labels then come in any order, by `partial_fit`, without task numbers and without a buffer of old rows.

    Parameters
    ----------
    n_codebooks, n_pairs, key_dim
        Number of codebooks, key-value pairs in each, and width of the keys.
    topk
        Keys fetched a codebook.
    projection
        ``"random"``, or ``"chunk"`` (then the rows have n_codebooks * key_dim columns).
    init_epochs
        Passes that place the keys.
    max_epochs
        Passes of `fit`; `partial_fit` makes one.
    lr
        Step size of the votes: a row alone in its cells moves its logits by lr * (target - probability). In
        this unit the paper's rate is 0.3 / (B C) for batches of B and C codebooks; the ranking of the classes
        hardly changes, their probabilities stay near each other.
    label_smoothing
        Share of the target spread over all classes.
    """

    def __init__(
        self,
        n_codebooks: int = 64,
        n_pairs: int = 256,
        *,
        key_dim: int = 8,
        topk: int = 1,
        projection: str = "random",
        init_epochs: int = 10,
        max_epochs: int = 10,
        batch_size: int = 32,
        lr: float = 1.0,
        label_smoothing: float = 0.1,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        super().__init__(max_epochs=max_epochs, batch_size=batch_size, lr=lr, device=device, random_state=random_state)
        self.n_codebooks, self.n_pairs, self.key_dim, self.topk = n_codebooks, n_pairs, key_dim, topk
        self.projection, self.init_epochs, self.label_smoothing = projection, init_epochs, label_smoothing

    def _build(self, X: Tensor, y: Tensor | None) -> nn.Module:
        return KeyValueBottleneck(
            in_features=X.shape[1], num_codebooks=self.n_codebooks, num_pairs=self.n_pairs, key_dim=self.key_dim,
            value_dim=len(getattr(self, "classes_", [0])), topk=self.topk, projection=self.projection,
        )  # fmt: skip

    def _config(self, n: int) -> TrainConfig:
        check_step(label_smoothing=self.label_smoothing)
        return super()._config(n)

    def fit_keys(self, X: ArrayLike, y: None = None) -> Self:
        """Place the keys on unlabelled rows and forget every label; returns self."""
        rows = validate_data(self, as_array(X), reset=True, dtype=np.float32)
        for name in ("classes_", "history_"):
            if hasattr(self, name):
                delattr(self, name)
        self._place(torch.from_numpy(np.array(rows)))
        return self

    def _place(self, rows: Tensor) -> None:
        self._config(len(rows))  # refuses settings that make no run
        self.input_shape_ = tuple(rows.shape[1:])
        self._seed, self._passes, self.history_ = self._draw_seed(), 0, []
        made = seeded_build(lambda: self._build(rows[:1], None), stream(self._seed, "init")).to(self._device())
        assert isinstance(made, KeyValueBottleneck)
        made.initialize_keys(rows, self.init_epochs, generator=stream(self._seed, "keys"))
        self.module_ = made.freeze_keys().eval()

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Start afresh: keys on the rows of `X`, then `max_epochs` passes over `X` and `y`; returns self.

        For keys on other data, call `fit_keys` and then `partial_fit`.
        """
        rows, target = self._rows(X, y, reset=True)
        assert target is not None
        self._place(rows)
        for _ in range(self.max_epochs):
            self._pass(rows, target)
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None, classes: ArrayLike | None = None) -> Self:
        """One pass over `X` and `y` in batches; returns self.

        Parameters
        ----------
        classes
            Every class that may come; default at the first call: those of `y`. A later call may declare more, whose
            columns start at zero.

        Raises
        ------
        ValueError
            If a label was never declared, or `classes` leaves out one that was; nothing is declared or learned then.
        """
        first = not hasattr(self, "module_")
        checked, labels = validate_data(self, as_array(X), as_array(y), reset=first, dtype=np.float32)
        rows = torch.from_numpy(np.array(checked))
        self._config(len(rows))
        known, trial = getattr(self, "classes_", None), clone(self)  # what is refused on the copy leaves no trace
        if known is None:
            trial._target(labels if classes is None else np.asarray(as_array(classes)), reset=True)
        else:
            trial.classes_ = known if classes is None else np.unique(np.asarray(as_array(classes)))
            missing = np.setdiff1d(known, trial.classes_)
            if len(missing):
                raise ValueError(f"classes must hold those declared before: {missing.tolist()} are missing")
        target = trial._target(labels, reset=False)
        if first:
            warnings.warn("the keys are placed on this first batch alone: call fit_keys before", stacklevel=2)
            self._place(rows)
        if known is None:
            self.classes_ = trial.classes_
            self._module.grow_values(len(self.classes_))
        elif classes is not None:
            self._declare(trial.classes_, known)
        self._pass(rows, target)
        return self

    @property
    def _module(self) -> KeyValueBottleneck:
        assert isinstance(self.module_, KeyValueBottleneck)
        return self.module_

    def _declare(self, declared: NDArray[Any], known: NDArray[Any]) -> None:
        module = self._module
        module.grow_values(len(declared))
        # grown columns stand last; put every class in its sorted place
        old = np.searchsorted(declared, known)
        place = np.empty(len(declared), dtype=np.int64)
        place[old] = np.arange(len(known))
        place[np.setdiff1d(np.arange(len(declared)), old)] = np.arange(len(known), len(declared))
        with torch.no_grad():
            module.values.copy_(module.values[..., torch.from_numpy(place).to(module.values.device)])
        self.classes_ = declared

    def _pass(self, rows: Tensor, target: Tensor) -> None:
        module, device = self._module, self._device()
        cells = torch.cat([module.cells(part.to(device), visited_only=False) for part in rows.split(4096)])
        order = torch.randperm(len(rows), generator=stream(self._seed, "order", self._passes))
        self._passes += 1
        losses = []
        for part in order.split(self.batch_size):
            rate = self.lr * module.num_codebooks * len(part)
            batch, labels = cells[part.to(device)], target[part].to(device)
            losses.append(module.learn(batch, labels, lr=rate, label_smoothing=self.label_smoothing, clip_norm=None))
        self.history_.append({"step": len(self.history_) + 1, "loss": float(np.mean(losses))})

    _seed: int = 0
    _passes: int = 0

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Probabilities (n, classes), float32."""
        check_is_fitted(self, ["module_", "classes_"])
        return self._outputs(X, lambda x: self._module.vote(x).softmax(-1))

"""Physical local learning: trainable layers between black boxes, each trained by itself, without back-propagation.

Right and wrong label enter with the input; every layer turns its output towards a fixed random direction for the right
one and away from it for the wrong one. No gradient crosses a box, and no model of the boxes is needed.

Source: Momeni et al. 2023, arXiv 2304.11042 (PhyFF) and Science 382, 1297 (PhyLL). Names: `weights` W_l, `biases` b_l,
`directions` r_l (kept with the state: another draw would give chance accuracy).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from etude.data.progress import track
from etude.data.randomness import as_generator
from etude.training.blackbox import BlackBox
from etude.training.estimators import as_array
from etude.training.label_embedding import LabelMode, embed_label, wrong_labels
from etude.training.local_goodness import Goodness, cosine_goodness, detected, local_gradient
from etude.training.phyll_checks import check_labels, check_layers, check_training
from etude.training.phyll_files import SavedNet, check_fits, put_into, read_net, write_net
from etude.training.phyll_modules import boxes_and_linears
from etude.training.physical_costs import Costs


class PhyLL(ClassifierMixin, BaseEstimator):
    """A classifier of black boxes and trainable linear layers in turn, trained layer by layer.

    Parameters
    ----------
    boxes
        One callable (n, m) -> (n, p) a layer; None in its place: no physics, the layer sees its input itself. None
        for all: no physics anywhere.
    hidden
        Outputs of each trainable layer; as many as boxes.
    n_classes
        Number of classes; None: those of `fit`.
    bypass
        The layer also sees the box's input beside its output.
    goodness
        "cosine-abs" (a detector) or "cosine-gelu" (digital).
    theta
        Steepness of the loss.
    label_mode
        "prepend" the label's columns, or "overwrite" the first features.
    scale
        "zscore": standardise the columns, then shift so that the least is 0 (the paper's vowels); None: as they are.
    repeats
        Runs of a box that are averaged.
    device
        Where the trainable layers live; boxes that are modules get their rows there.
    random_state
        Seed or generator of weights, directions, wrong labels and batches.

    Attributes
    ----------
    weights_, biases_, directions_
        Lists of (k, q), (k,) and (k,) tensors, one a layer.
    history_
        One dictionary an epoch: the local losses before its last step.
    """

    def __init__(
        self,
        boxes: Sequence[Callable[[Any], Any] | None] | None = None,
        hidden: Sequence[int] = (20,),
        n_classes: int | None = None,
        *,
        bypass: bool = True,
        goodness: Goodness = "cosine-abs",
        theta: float = 4.0,
        label_mode: LabelMode = "prepend",
        scale: Literal["zscore"] | None = "zscore",
        repeats: int = 1,
        device: str = "cpu",
        random_state: Any = None,
    ) -> None:
        self.boxes, self.hidden, self.n_classes, self.bypass = boxes, hidden, n_classes, bypass
        self.goodness, self.theta, self.label_mode = goodness, theta, label_mode
        self.scale, self.repeats, self.device, self.random_state = scale, repeats, device, random_state

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's parameters."""
        return {name: vars(self)[name] for name in self._get_param_names()}

    @property
    def goodness(self) -> Callable[[ArrayLike], NDArray[np.float32]]:
        """``goodness(X)``: the goodness of every label at every layer, (n, C, L), in the order of `classes_` (those of
        a larger `n_classes` follow and mean nothing). Costs C runs of every box a row.

        Set, it is the constructor's parameter of that name; `get_params` gives it back.
        """
        return self._label_goodness

    @goodness.setter
    def goodness(self, kind: Goodness) -> None:
        self.__dict__["goodness"] = kind

    @classmethod
    def from_module(cls, module: nn.Sequential, blackbox: Sequence[str], **options: Any) -> "PhyLL":
        """A `PhyLL` whose layers are the linear layers of `module` and whose boxes are what stands before each.

        Sub-modules named in `blackbox` are never differentiated; the `nn.Linear` layers not named are trained (their
        weights are changed in place by `fit`, which starts from those they have), one for each stretch of boxes and
        parameter-free modules before it. A scikit-learn clone is a net of the same form with weights of its own.

        Raises
        ------
        ValueError
            For an unknown name, a trainable module that is not an `nn.Linear`, or modules after the last one.
        TypeError
            If `module` is no `nn.Sequential`, or `blackbox` one string.
        """
        boxes, linears = boxes_and_linears(module, blackbox)
        net = cls(boxes, [layer.out_features for layer in linears], **({"bypass": False} | options))
        net._linears = linears
        return net

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 200,
        inner_steps: int = 10,
        lr: float = 5e-3,
        batch_size: int | None = None,
        callback: Callable[[int, "PhyLL"], None] | None = None,
    ) -> Self:
        """Train from new weights: `epochs` passes in batches (None: all rows at once), `inner_steps` of Adam a layer.

        `callback(epoch, self)` is called after every epoch.

        Raises
        ------
        ValueError
            For one class only, NaN, fewer boxes than layers, or label columns that would swallow all features.
        """
        rows, y = validate_data(self, as_array(X), as_array(y), dtype=np.float32)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self._start(rows)
        return self._train(rows, codes, epochs, inner_steps, lr, batch_size, callback)

    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        *,
        epochs: int = 1,
        inner_steps: int = 10,
        lr: float = 5e-3,
        batch_size: int | None = None,
        callback: Callable[[int, "PhyLL"], None] | None = None,
    ) -> Self:
        """Go on from the weights there are, for instance after the boxes have drifted.

        The first call, if there was no `fit`, needs the `classes`, all that will come, and starts like `fit`.

        Raises
        ------
        NotFittedError
            Without `fit` and `classes`.
        ValueError
            As in `fit`; for new classes.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise NotFittedError("the first partial_fit needs classes=, all labels that will come (or call fit first)")
        rows, y = validate_data(self, as_array(X), as_array(y), dtype=np.float32, reset=first)
        check_classification_targets(y)
        known = self.classes_ if classes is None else np.unique(classes)
        if first:
            self.classes_ = known
        elif not np.array_equal(known, self.classes_):
            raise ValueError(f"classes {known.tolist()} are not those of before, {self.classes_.tolist()}")
        if strange := sorted(set(np.unique(y).tolist()) - set(self.classes_.tolist())):
            raise ValueError(f"class {strange[0]!r} was not there in fit: classes are {self.classes_.tolist()}")
        if first:
            self._start(rows)
        return self._train(rows, np.searchsorted(self.classes_, y), epochs, inner_steps, lr, batch_size, callback)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The label of those that `fit` saw whose summed goodness is largest."""
        found = self.goodness(X).sum(2)
        return self.classes_[found[:, : len(self.classes_)].argmax(1)]

    def representations(self, X: ArrayLike) -> NDArray[np.float32]:
        """``[|h_1| ... |h_L|]`` with no label set, for a cheap linear read-out: (n, sum of hidden)."""
        check_is_fitted(self)
        x = self._scaled(validate_data(self, as_array(X), dtype=np.float32, reset=False))
        h = embed_label(x, torch.zeros(len(x), dtype=torch.long, device=x.device), self._num_classes, self.label_mode)
        h[:, : self._num_classes] = 0
        found = []
        for layer in range(len(self.hidden)):
            h = self._linear(layer, self._features(layer, h))
            found.append(detected(h, self._goodness))
            self.costs_.predict(len(h), *self.weights_[layer].shape)
        return torch.cat(found, 1).cpu().numpy()

    def replace_boxes(self, boxes: Sequence[Callable[[Any], Any] | None]) -> Self:
        """The same layers on other boxes: a drift. Weights stay."""
        check_is_fitted(self)
        self._check_count(boxes)
        self.boxes = boxes
        self._wrap()
        return self

    def cost_report(self) -> dict[str, int]:
        """Rows run through boxes and digital multiply-accumulates so far, of training and of prediction.

        Training counts the two rows a box that `fit` shows it first, to learn its width.
        """
        check_is_fitted(self)
        return self.costs_.report()

    def save(self, path: str | Path) -> None:
        """Weights, directions, scaler and classes as safetensors; the boxes are hardware and stay outside."""
        check_is_fitted(self)
        layers = (self.weights_, self.biases_, self.directions_)
        scaler, rng = (self.shift_, self.span_), self._generator.get_state()
        settings, columns = self._settings(len(self.classes_)), list(getattr(self, "feature_names_in_", ()))
        write_net(path, SavedNet(*layers, *scaler, rng, self.classes_, settings, columns))

    def load(self, path: str | Path) -> Self:
        """Take the state of `save`; the linear layers of a module (`from_module`) take the weights, too.

        Raises
        ------
        ValueError
            If `hidden`, the number of boxes or of classes, `bypass`, `goodness` or `label_mode` of this object do not
            fit it, or the module's layers have other shapes. This object is then as it was.
        """
        saved, linears = read_net(path, self.device), getattr(self, "_linears", [])
        check_fits(path, saved, self._settings(len(saved.classes)), self.hidden, linears)
        self._check_count(self._given_boxes())
        self.classes_ = saved.classes
        self.weights_, self.biases_, self.directions_ = saved.weights, saved.biases, saved.directions
        put_into(linears, saved.weights, saved.biases)
        self.shift_, self.span_ = saved.shift, saved.span
        self._generator = torch.Generator()
        self._generator.set_state(saved.rng)
        self.n_features_in_ = len(self.shift_)
        if saved.columns:
            self.feature_names_in_ = np.array(saved.columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            delattr(self, "feature_names_in_")
        self.history_: list[dict[str, Any]] = []
        self.costs_ = Costs()
        self._wrap()
        return self

    def _label_goodness(self, X: ArrayLike) -> NDArray[np.float32]:
        check_is_fitted(self)
        x = self._scaled(validate_data(self, as_array(X), dtype=np.float32, reset=False))
        n, c = len(x), self._num_classes
        label = torch.arange(c, device=x.device).repeat(n)
        h = embed_label(x.repeat_interleave(c, 0), label, c, self.label_mode)
        found = []
        for layer in range(len(self.hidden)):
            h = self._linear(layer, self._features(layer, h))
            found.append(cosine_goodness(h, self.directions_[layer], self._goodness))
            self.costs_.predict(len(h), *self.weights_[layer].shape)
        return torch.stack(found, -1).view(n, c, -1).cpu().numpy()

    @property
    def _num_classes(self) -> int:
        return self.n_classes or len(self.classes_)

    @property
    def _goodness(self) -> Goodness:
        return vars(self)["goodness"]  # type: ignore[no-any-return]

    def _settings(self, known: int) -> dict[str, Any]:
        """What weights mean nothing without; `known` classes where no number is set."""
        shared = {name: vars(self)[name] for name in ("bypass", "goodness", "label_mode")}
        return shared | {"n_classes": self.n_classes or known}

    def _given_boxes(self) -> Sequence[Callable[[Any], Any] | None]:
        return [None] * len(self.hidden) if self.boxes is None else self.boxes

    def _check_count(self, boxes: Sequence[Any]) -> None:
        if len(boxes) != len(self.hidden):
            raise ValueError(f"{len(self.hidden)} layers need as many boxes, got {len(boxes)}")

    def _wrap(self) -> None:
        self._boxes = [
            None if box is None else box if isinstance(box, BlackBox)
            else BlackBox(box, name=f"box {i}", repeats=self.repeats) for i, box in enumerate(self._given_boxes())
        ]  # fmt: skip

    def _start(self, X: NDArray[np.float32]) -> None:
        check_layers(self.boxes, self.hidden, self.theta, self.label_mode, self.scale)
        check_labels(self.classes_.tolist(), self.n_classes, self.label_mode, X.shape[1])
        c = self._num_classes
        self._generator = as_generator(self.random_state)
        rows = torch.tensor(X, device=self.device)  # a copy: those of a data frame may be read-only
        self.shift_, self.span_ = torch.zeros_like(rows[0]), torch.ones_like(rows[0])
        if self.scale == "zscore":
            spread = rows.std(0, unbiased=False)
            self.span_ = torch.where(spread > 0, spread, 1.0)
            self.shift_ = rows.mean(0) / self.span_ + ((rows - rows.mean(0)) / self.span_).min()
        self.costs_ = Costs()
        self.history_ = []
        self._wrap()
        self.weights_, self.biases_, self.directions_ = [], [], []
        first = self._scaled(X[:1]).expand(2, -1)  # for the widths; with two labels, as one input looks like a dead box
        h = embed_label(first, torch.arange(2, device=first.device), c, self.label_mode)
        for layer, k in enumerate(self.hidden):
            f = self._features(layer, h, training=True)
            weight, bias = self._initial(layer, k, f.shape[1])
            self.weights_.append(weight)
            self.biases_.append(bias)
            r = torch.randn(k, generator=self._generator, dtype=torch.float32)  # as the rows, whatever the default
            self.directions_.append((r / r.norm()).to(self.device))
            h = self._linear(layer, f)

    def _initial(self, layer: int, k: int, q: int) -> tuple[Tensor, Tensor]:
        if linears := getattr(self, "_linears", None):
            if linears[layer].in_features != q:
                raise ValueError(f"linear layer {layer} takes {linears[layer].in_features} inputs, its box gives {q}")
            weight, bias = linears[layer].weight.data, linears[layer].bias
            return weight, weight.new_zeros(k) if bias is None else bias.data
        bound = q**-0.5
        draw = torch.rand(k, q + 1, generator=self._generator, dtype=torch.float32) * 2 * bound - bound
        return draw[:, :q].clone().to(self.device), draw[:, q].clone().to(self.device)

    def _scaled(self, X: NDArray[np.float32]) -> Tensor:
        return torch.tensor(X, device=self.device) / self.span_ - self.shift_

    def _features(self, layer: int, h: Tensor, *, training: bool = False) -> Tensor:
        box = self._boxes[layer]
        if box is None:
            return h
        self.costs_.run(len(h) * box.repeats, training=training)
        f = torch.cat([box(h), h], 1) if self.bypass else box(h)
        if layer < len(self.weights_) and f.shape[1] != self.weights_[layer].shape[1]:
            beside = h.shape[1] if self.bypass else 0
            now, before = f.shape[1] - beside, self.weights_[layer].shape[1] - beside
            raise ValueError(f"{box.name} gives {now} outputs, layer {layer} was made for {before}")
        return f

    def _linear(self, layer: int, f: Tensor) -> Tensor:
        return torch.addmm(self.biases_[layer], f, self.weights_[layer].T)

    def _train(
        self,
        X: NDArray,
        codes: NDArray,
        epochs: int,
        inner_steps: int,
        lr: float,
        batch_size: int | None,
        callback: Any,
    ) -> Self:
        check_training(epochs=epochs, inner_steps=inner_steps, lr=lr, batch_size=batch_size)
        x, y = self._scaled(X), torch.from_numpy(codes.astype(np.int64)).to(self.device)
        linears = getattr(self, "_linears", [None] * len(self.weights_))
        optimizers = [
            torch.optim.Adam([w] if linear is not None and linear.bias is None else [w, b], lr=lr, fused=True)
            for w, b, linear in zip(self.weights_, self.biases_, linears, strict=True)
        ]
        size = batch_size or len(x)
        for epoch in track(range(epochs), "PhyLL", epochs):
            order = torch.randperm(len(x), generator=self._generator) if size < len(x) else torch.arange(len(x))
            losses: list[float] = []
            for rows in order.split(size):
                losses = self._batch(x[rows], y[rows], optimizers, inner_steps)
            self.history_.append({"epoch": len(self.history_), "losses": losses})
            if callback is not None:
                callback(epoch, self)
        return self

    def _batch(self, x: Tensor, y: Tensor, optimizers: list[torch.optim.Adam], inner_steps: int) -> list[float]:
        c, n = self._num_classes, len(x)
        wrong = wrong_labels(y, c, self._generator)
        h = torch.cat([embed_label(x, y, c, self.label_mode), embed_label(x, wrong, c, self.label_mode)])
        losses = []
        for layer, optimizer in enumerate(optimizers):
            f = self._features(layer, h, training=True)  # right and wrong labels in one run; fixed over the inner steps
            weight, bias = self.weights_[layer], self.biases_[layer]
            for _ in range(inner_steps):
                found = local_gradient(f, weight, bias, self.directions_[layer], self.theta, self._goodness)
                weight.grad, bias.grad = found.weight, found.bias
                optimizer.step()
            k, q = weight.shape
            self.costs_.train(2 * n, k, q, inner_steps)
            losses.append(float(found.loss))
            h = self._linear(layer, f)
        return losses

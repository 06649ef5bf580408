"""`PrototypeClassifier`: the prototype network as a scikit-learn classifier and transformer."""

import copy
import math
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from etude.data.tasks import Split
from etude.layers.autoencoders import dry_run
from etude.layers.distances import squared_distances
from etude.training.config import TrainConfig
from etude.training.estimators import TorchClassifier
from etude.trust.prototypes import (
    INITS,
    Explanation,
    Lambdas,
    PrototypeNetwork,
    explanations,
    prototype_loss,
    prototype_network,
)

SCALES = ("auto", "minmax")
PROBES = 32  # codes far out that tell whether a decoder is bounded
DEFORM_FROM = 16  # pixels of the shorter side from which "auto" deforms


class PrototypeClassifier(ClassNamePrefixFeaturesOutMixin, TransformerMixin, TorchClassifier):
    """A classifier whose only evidence is how far an input is from prototypes that it can show.

    Parameters
    ----------
    n_prototypes
        m. Fewer than classes: some classes cannot have one (a warning says so).
    encoder, decoder
        Any modules, both or neither: rows to codes (B, q) and back. They are copied, and trained from the weights
        they have. None: an autoencoder by the shape of the input (see `etude.trust.prototype_network`).
    lambda_class, lambda_ae, lambda_r1, lambda_r2
        Weights of cross-entropy, reconstruction, R1 and R2.
    max_epochs, batch_size, lr, patience, device, random_state
        See `etude.training.TorchEstimator`. R1 is taken over a batch, so keep batches large; a last, smaller
        batch is left out.
    init
        ``"kaiming"`` or ``"paper"``, for the built-in autoencoder.
    scale
        ``"auto"``: bring inputs that leave [0, 1] there (minimum and maximum of the training rows: of each
        feature of vectors, one for all of images) if the decoder's outputs are bound to [0, 1], as a sigmoid's are;
        ``"minmax"``: always; None: never, with a warning if such a decoder cannot reach the inputs.
    deform
        Elastic deformation of every training batch; ``"auto"``: for images of at least 16 pixels a side.

    Attributes
    ----------
    prototypes_
        (m, q) in latent space.
    prototype_inputs_
        (m, *input_shape) decoded, in the unit of the inputs.
    prototype_classes_
        (m,) the label whose probability rises most when an input comes near.
    prototype_cases_
        (m,) training row nearest to each prototype in latent space.
    prototype_usage_
        (m,) number of training rows nearest to each prototype; 0 marks a dead one.

    Notes
    -----
    After `partial_fit` the training rows are those of the last call: `prototype_cases_`, `prototype_usage_` and the
    nearest cases of `explain` speak of these alone.
    """

    def __init__(
        self,
        n_prototypes: int = 15,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        lambda_class: float = 20.0,
        lambda_ae: float = 1.0,
        lambda_r1: float = 1.0,
        lambda_r2: float = 1.0,
        max_epochs: int = 100,
        batch_size: int = 250,
        lr: float = 2e-3,
        patience: int | None = None,
        init: str = "kaiming",
        scale: str | None = "auto",
        deform: bool | str = "auto",
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        super().__init__(
            max_epochs=max_epochs, batch_size=batch_size, lr=lr, patience=patience, device=device,
            random_state=random_state,
        )  # fmt: skip
        self.n_prototypes, self.encoder, self.decoder = n_prototypes, encoder, decoder
        self.lambda_class, self.lambda_ae, self.lambda_r1, self.lambda_r2 = (
            lambda_class,
            lambda_ae,
            lambda_r1,
            lambda_r2,
        )
        self.init, self.scale, self.deform = init, scale, deform

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _build(self, X: Tensor, y: Tensor | None) -> nn.Module:
        shape, count = tuple(X.shape[1:]), len(self.classes_)
        low, span = torch.as_tensor(self.low_), torch.as_tensor(self.span_)
        if self.encoder is None or self.decoder is None:
            return prototype_network(shape, count, self.n_prototypes, init=self.init, low=low, span=span)
        return PrototypeNetwork(
            copy.deepcopy(self.encoder), copy.deepcopy(self.decoder), shape, count, self.n_prototypes, low=low,
            span=span,
        )  # fmt: skip

    def _rows(self, X: Any, y: Any, *, reset: bool, keep_target: bool = False) -> tuple[Tensor, Tensor | None]:
        if reset:
            self._check_parameters()
        rows, target = super()._rows(X, y, reset=reset, keep_target=keep_target)
        if reset:
            if self.deform != "auto" and self.deform and rows.ndim != 4:
                raise ValueError(f"deform=True needs images (n, C, H, W), got rows of shape {tuple(rows.shape[1:])}")
            if self.n_prototypes < len(self.classes_):
                warnings.warn(
                    f"{self.n_prototypes} prototypes for {len(self.classes_)} classes: some class can have none",
                    UserWarning,
                    stacklevel=3,
                )
            self._learn_scale(rows)
        return rows, target

    def _check_parameters(self) -> None:
        if not isinstance(self.n_prototypes, Integral) or isinstance(self.n_prototypes, bool):
            raise ValueError(f"n_prototypes must be a whole number, got {self.n_prototypes!r}")
        if self.n_prototypes < 1:
            raise ValueError(f"n_prototypes must be at least 1, got {self.n_prototypes}")
        if (self.encoder is None) != (self.decoder is None):
            raise ValueError("give both encoder and decoder, or neither")
        if self.init not in INITS:
            raise ValueError(f"unknown init {self.init!r}: choose one of {', '.join(INITS)}")
        if self.scale is not None and self.scale not in SCALES:
            raise ValueError(f"unknown scale {self.scale!r}: choose one of {', '.join(SCALES)} or None")
        if not isinstance(self.deform, bool | np.bool_) and self.deform != "auto":
            raise ValueError(f"deform must be True, False or 'auto', got {self.deform!r}")
        for name in ("lambda_class", "lambda_ae", "lambda_r1", "lambda_r2"):
            value = getattr(self, name)
            if not hasattr(value, "__float__") or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of at least 0 and finite, got {value!r}")
        if self.lambda_class == self.lambda_ae == self.lambda_r1 == self.lambda_r2 == 0:
            raise ValueError("all four lambdas are 0, so there is nothing to learn: set one of them above 0")

    def _learn_scale(self, rows: Tensor) -> None:
        """Minimum and range of the training rows, or 0 and 1 where nothing is scaled."""
        outside = bool((rows < 0).any() or (rows > 1).any())
        bounded = outside and self.scale != "minmax" and self._bounded(tuple(rows.shape[1:]))
        if self.scale is None and bounded:
            warnings.warn(
                f"inputs lie in [{float(rows.min()):.3g}, {float(rows.max()):.3g}], which a sigmoid decoder cannot "
                "reach: use scale='minmax'",
                UserWarning,
                stacklevel=4,
            )
        self.low_, self.span_ = np.zeros((), np.float32), np.ones((), np.float32)
        if self.scale == "minmax" or (self.scale == "auto" and bounded):
            low, high = (rows.amin(0), rows.amax(0)) if rows.ndim == 2 else (rows.min(), rows.max())
            self.low_ = np.asarray(low.numpy())
            self.span_ = np.asarray(torch.where(high > low, high - low, 1.0).numpy())

    def _bounded(self, shape: tuple[int, ...]) -> bool:
        """Whether the decoder's outputs stay within [0, 1] even for codes that lie far out."""
        if self.encoder is None or self.decoder is None:
            return True
        encoder, decoder = copy.deepcopy(self.encoder), copy.deepcopy(self.decoder).eval()
        where = next(decoder.parameters(), torch.zeros(()))
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # own modules may draw: the global stream stays
            codes = torch.randn(PROBES, dry_run(encoder, decoder, shape), generator=torch.Generator().manual_seed(0))
            drawn = decoder((1e4 * codes).to(where))
        return bool(((drawn >= 0) & (drawn <= 1)).all())

    def _config(self, n: int) -> TrainConfig:
        return TrainConfig(
            epochs=self.max_epochs, batch_size=self.batch_size, lr=self.lr, patience=self.patience, better="lower",
            drop_last=n > self.batch_size,
        )  # fmt: skip

    def _loss(self, module: nn.Module, batch: Split) -> Any:
        weights = Lambdas(self.lambda_class, self.lambda_ae, self.lambda_r1, self.lambda_r2)
        deform = self.deform
        if deform == "auto":
            deform = batch.x.ndim == 4 and min(batch.x.shape[2:]) >= DEFORM_FROM
        assert isinstance(module, PrototypeNetwork)
        return prototype_loss(module, batch.x, batch.y, weights, deform=bool(deform) and module.training)

    def _finish(self, X: Tensor, y: Tensor | None) -> None:
        network = self._network()
        with torch.no_grad():
            codes = torch.cat([network.encode(part.to(network.low.device)) for part in X.split(4096)])
            distances = squared_distances(network.layer.prototypes, codes).cpu()
            self.prototypes_ = network.layer.prototypes.detach().cpu().numpy().copy()
        self.prototype_inputs_ = self.decode_prototypes()
        self.prototype_classes_ = self.classes_[network.prototype_classes().cpu().numpy()]
        self.prototype_cases_ = distances.argmin(1).numpy()
        self.prototype_usage_ = distances.argmin(0).bincount(minlength=self.n_prototypes).numpy()

    def _network(self) -> PrototypeNetwork:
        check_is_fitted(self, "module_")
        assert isinstance(self.module_, PrototypeNetwork)
        return self.module_

    @property
    def _n_features_out(self) -> int:
        return len(self.prototypes_)  # of the fit, whatever the parameter says by now

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Squared distances (n, m) to the prototypes, in latent space."""
        return self._distances(X)

    def _distances(self, X: ArrayLike) -> NDArray[np.float32]:
        return self._outputs(X, lambda x: self._network().evidence(x).distances)

    def decode_prototypes(self) -> NDArray[np.float32]:
        """The prototypes drawn in input space, (m, *input_shape)."""
        with torch.no_grad():
            return self._network().decode_prototypes().cpu().numpy()

    def explain(self, x: ArrayLike) -> list[Explanation]:
        """For each row the prototypes by distance, with what each adds to every class's logit.

        The contributions of a row sum to its logits: the explanation is the computation.
        """
        distances = torch.from_numpy(self._distances(x))  # `transform` may be set to give a table
        return explanations(distances, self._network().head.weight, torch.from_numpy(self.prototype_cases_))

"""From real vectors to binary codes after the fact: what learned codes are compared with.

Every class is a scikit-learn transformer from (n, d) vectors to packed codes, uint8 (n, bytes), and centres the
vectors on the mean of the fitted ones first.
"""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from etude.data.randomness import as_generator
from etude.text.parameters import check_parameters


class _Hash(TransformerMixin, BaseEstimator):
    """Centre, project, keep the signs."""

    mean_: NDArray[Any]
    components_: NDArray[Any]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # codes are bytes
        return tags

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Packed codes, (n, bytes): a bit is projection > 0."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.packbits(self._projected(X - self.mean_) > 0, axis=1)

    def _projected(self, X: NDArray[Any]) -> NDArray[Any]:
        """Centred vectors times `components_` (d, B)."""
        product: NDArray[Any] = X @ self.components_
        return product

    def _centred(self, X: Any) -> NDArray[Any]:
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        self.mean_ = X.mean(axis=0)
        return X - self.mean_


class SignHash(_Hash):
    """One bit per coordinate: is it above its mean? The cheapest hash, and often the strongest."""

    def fit(self, X: Any, y: Any = None) -> Self:
        self._centred(X)
        return self

    def _projected(self, X: NDArray[Any]) -> NDArray[Any]:
        return X


class RandomHyperplanes(_Hash):
    """Signs of random projections (Charikar 2002): the angle between vectors becomes the Hamming distance.

    Parameters
    ----------
    n_bits
        Number of hyperplanes.
    random_state
        int, torch.Generator, numpy RandomState or None.
    """

    def __init__(self, n_bits: int = 128, random_state: Any = None) -> None:
        self.n_bits, self.random_state = n_bits, random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        check_parameters(self, positive=("n_bits",), integers=("n_bits",))
        d = self._centred(X).shape[1]
        self.components_ = torch.randn(d, self.n_bits, generator=as_generator(self.random_state)).numpy()
        return self


class IterativeQuantization(_Hash):
    """Principal components, rotated so that they lie as near as can be to the corners of the cube.

    Parameters
    ----------
    n_bits
        At most the number of columns.
    n_iter
        Alternations between the codes of a rotation and the rotation of the codes.
    random_state
        Of the first rotation.

    Attributes
    ----------
    quantization_errors_ : (n_iter,)
        Mean squared distance to the corners after each alternation; it never rises.

    Source: Gong & Lazebnik 2011, "Iterative quantization" (CVPR), section 2.
    """

    def __init__(self, n_bits: int = 128, n_iter: int = 50, random_state: Any = None) -> None:
        self.n_bits, self.n_iter, self.random_state = n_bits, n_iter, random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        check_parameters(self, positive=("n_bits",), integers=("n_bits", "n_iter"))
        if self.n_iter < 0:
            raise ValueError(f"n_iter must be at least 0, got {self.n_iter}")
        X = self._centred(X)
        n, d = X.shape
        if self.n_bits > min(n, d):
            raise ValueError(
                f"n_bits must lie in 1..{min(n, d)} for n_samples = {n} and n_features = {d}, got {self.n_bits}"
            )
        values, vectors = np.linalg.eigh(X.T @ X / n)
        components = vectors[:, np.argsort(-values)[: self.n_bits]]
        projected = X @ components
        generator = as_generator(self.random_state)
        rotation = torch.linalg.qr(torch.randn(self.n_bits, self.n_bits, generator=generator)).Q.numpy()
        rotation = rotation.astype(projected.dtype)
        self.quantization_errors_ = np.empty(self.n_iter)
        for i in range(self.n_iter):
            corners = np.where(projected @ rotation > 0, 1, -1).astype(projected.dtype)
            left, _, right = np.linalg.svd(projected.T @ corners)
            rotation = left @ right
            self.quantization_errors_[i] = ((corners - projected @ rotation) ** 2).mean()
        self.components_ = components @ rotation
        return self

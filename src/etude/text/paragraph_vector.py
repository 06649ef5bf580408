"""Document vectors and binary document codes learned from raw text.

Sources: see `etude.text.paragraph`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from etude.text.count_loss import Precision
from etude.text.paragraph_base import ParagraphEstimator


class BinaryParagraphVector(ParagraphEstimator):
    """Short binary codes of documents, learned from raw text, for search by Hamming distance.

    Parameters
    ----------
    n_bits
        Length of the code; any number, padded to whole bytes.
    architecture
        "dbow": the code alone predicts the document's words. "dm": the code and the words around predict each
        word. "real-binary": a long real vector per document, of which a shared layer makes the short code.
    ngram_range
        Shortest and longest word sequence that is predicted, e.g. (1, 2) for words and bigrams.
    max_features
        Size of the vocabulary, for each length of n-gram.
    min_count
        Occurrences a term needs; None: 5, fewer in collections of less than 1,000 documents.
    subsample
        Terms more frequent than this share are weighed down by sqrt(subsample / share); None: never.
    max_epochs, batch_size, lr, document_lr, optimizer
        Training. `lr` is that of the shared parameters, `document_lr` that of the documents' rows. Too many epochs
        fit each document's own words and make neighbours worse: choose them on held-out documents.
    loss
        "exact" softmax, "sampled" with `n_negatives` words shared by a batch, or "auto": exact up to 20,000 terms,
        but not for "dm".
    window, word_dim, combine
        Only "dm": words on each side, length of their vectors, and whether code and words are concatenated or
        averaged.
    real_dim
        Only "real-binary": length of the real vectors.
    inference_steps
        Steps on the row of a new document.
    handle_unknown
        A new document without any known word: "warn" and return zeros, "ignore", or "error".
    tokenizer
        Function from a document to its words; None: lower-cased runs of at least two word characters.
    precision
        Of the products of the exact softmax: "fp32", "bf16" (several times quicker where the processor has it), or
        "auto", the quicker one here.
    device
        "auto", "cpu", "cuda" ...
    random_state
        int, torch.Generator, numpy RandomState or None.

    Attributes
    ----------
    codes_ : (n, bytes) uint8
        Codes of the training documents.
    bit_entropy_ : (n_bits,)
        Entropy of every bit over the training documents, in bits; 0 is a dead bit.
    real_vectors_ : (n, real_dim)
        Only "real-binary": the long vectors of the training documents.
    history_
        Loss per word and share of flipped bits for every epoch.
    vocabulary_
        The terms.

    Examples
    --------
    >>> texts = ["cats purr and sleep", "cats sleep and purr", "stocks fall and banks fail", "banks and stocks fail"]
    >>> codes = BinaryParagraphVector(n_bits=16, min_count=1, random_state=0).fit_transform(texts)
    >>> codes.shape, codes.dtype
    ((4, 2), dtype('uint8'))
    """

    _integers = (*ParagraphEstimator._integers, "n_bits", "real_dim")

    def __init__(
        self,
        n_bits: int = 128,
        architecture: Literal["dbow", "dm", "real-binary"] = "dbow",
        *,
        ngram_range: tuple[int, int] = (1, 1),
        max_features: int | None = 20_000,
        min_count: int | None = None,
        subsample: float | None = 1e-3,
        max_epochs: int = 10,
        batch_size: int | None = None,
        lr: float = 0.002,
        document_lr: float = 0.03,
        optimizer: Literal["adam", "adagrad"] = "adam",
        loss: Literal["auto", "exact", "sampled"] = "auto",
        n_negatives: int = 64,
        window: int = 4,
        word_dim: int = 64,
        combine: Literal["concat", "mean"] = "concat",
        real_dim: int = 300,
        inference_steps: int = 30,
        handle_unknown: Literal["warn", "error", "ignore"] = "warn",
        tokenizer: Callable[[Any], Sequence[str]] | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_bits, self.architecture, self.ngram_range = n_bits, architecture, ngram_range
        self.max_features, self.min_count, self.subsample = max_features, min_count, subsample
        self.max_epochs, self.batch_size, self.lr, self.document_lr = max_epochs, batch_size, lr, document_lr
        self.optimizer, self.loss, self.n_negatives = optimizer, loss, n_negatives
        self.window, self.word_dim, self.combine, self.real_dim = window, word_dim, combine, real_dim
        self.inference_steps, self.handle_unknown, self.tokenizer = inference_steps, handle_unknown, tokenizer
        self.precision, self.device, self.random_state = precision, device, random_state

    def fit_transform(self, X: Sequence[Any], y: Any = None) -> NDArray[np.uint8]:
        """Codes of the training documents as they were trained, (n, bytes) packed bits."""
        return self.fit(X).codes_

    def transform(self, X: Sequence[Any]) -> NDArray[np.uint8]:
        """Codes of documents under the frozen model, (n, bytes) packed bits; see `infer`."""
        return self._infer(X, stacklevel=5).codes

    def _sizes(self) -> tuple[int | None, int]:
        return self.n_bits, self.real_dim if self.architecture == "real-binary" else self.n_bits

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.architecture not in ("dbow", "dm", "real-binary"):
            raise ValueError(f"architecture must be 'dbow', 'dm' or 'real-binary', got {self.architecture!r}")
        if not self.n_bits > 0 or not self.real_dim > 0:
            raise ValueError(f"n_bits and real_dim must be positive, got {self.n_bits} and {self.real_dim}")

    def _keep(self, documents: Tensor) -> None:
        self.codes_ = self._codes(documents)
        share = np.unpackbits(self.codes_, axis=1)[:, : self.n_bits].mean(axis=0, dtype=np.float64)
        parts = [np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0) for p in (share, 1 - share)]
        self.bit_entropy_ = -(parts[0] + parts[1])
        self.__dict__.pop("real_vectors_", None)  # of a former fit with another architecture
        if self.architecture == "real-binary":
            self.real_vectors_ = documents.cpu().numpy()


class ParagraphVector(ParagraphEstimator):
    """Real paragraph vectors (PV-DBOW, PV-DM) with the exact softmax: what the binary ones are compared with.

    Parameters are those of `BinaryParagraphVector`; `dim` is the length of a vector.

    Attributes
    ----------
    vectors_ : (n, dim) float32
        Vectors of the training documents.
    """

    _integers = (*ParagraphEstimator._integers, "dim")

    def __init__(
        self,
        dim: int = 128,
        architecture: Literal["dbow", "dm"] = "dbow",
        *,
        ngram_range: tuple[int, int] = (1, 1),
        max_features: int | None = 20_000,
        min_count: int | None = None,
        subsample: float | None = 1e-3,
        max_epochs: int = 25,
        batch_size: int | None = None,
        lr: float = 0.002,
        document_lr: float = 0.003,
        optimizer: Literal["adam", "adagrad"] = "adam",
        loss: Literal["auto", "exact", "sampled"] = "auto",
        n_negatives: int = 64,
        window: int = 4,
        word_dim: int = 64,
        combine: Literal["concat", "mean"] = "concat",
        inference_steps: int = 30,
        handle_unknown: Literal["warn", "error", "ignore"] = "warn",
        tokenizer: Callable[[Any], Sequence[str]] | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.dim, self.architecture, self.ngram_range = dim, architecture, ngram_range
        self.max_features, self.min_count, self.subsample = max_features, min_count, subsample
        self.max_epochs, self.batch_size, self.lr, self.document_lr = max_epochs, batch_size, lr, document_lr
        self.optimizer, self.loss, self.n_negatives = optimizer, loss, n_negatives
        self.window, self.word_dim, self.combine = window, word_dim, combine
        self.inference_steps, self.handle_unknown, self.tokenizer = inference_steps, handle_unknown, tokenizer
        self.precision, self.device, self.random_state = precision, device, random_state

    def fit_transform(self, X: Sequence[Any], y: Any = None) -> NDArray[np.float32]:
        """Vectors of the training documents as they were trained, (n, dim)."""
        return self.fit(X).vectors_

    def transform(self, X: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors of documents under the frozen model, (n, dim); see `infer`."""
        return self._infer(X, stacklevel=5).vectors

    def _sizes(self) -> tuple[int | None, int]:
        return None, self.dim

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.architecture not in ("dbow", "dm"):
            raise ValueError(f"architecture must be 'dbow' or 'dm', got {self.architecture!r}")
        if not self.dim > 0:
            raise ValueError(f"dim must be positive, got {self.dim}")

    def _keep(self, documents: Tensor) -> None:
        self.vectors_ = documents.cpu().numpy()

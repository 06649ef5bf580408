"""Semantic hashing: an autoencoder of documents with a binary bottleneck.

Sources: Salakhutdinov & Hinton 2009, "Semantic hashing"; Krizhevsky & Hinton 2011 for rounding the code with
straight-through gradients.
Differs from the paper: no layer-wise pre-training by restricted Boltzmann machines (it is trained end to end), one
hidden layer on each side, tf-idf at the input; the output is the same softmax over words against the word counts.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from etude.data.randomness import as_generator
from etude.data.tasks import Split
from etude.layers.modes import gradients_on
from etude.layers.straight_through import binarize
from etude.text.count_loss import CountRows, Counts, Precision, count_cross_entropy, product_dtype
from etude.text.parameters import check_parameters
from etude.text.vocabulary import Vocabulary, tokenize
from etude.training import TrainConfig, train
from etude.training.estimators import torch_device

CHOICES = {"handle_unknown": ("warn", "error", "ignore"), "precision": ("fp32", "bf16", "auto")}


class CodeAutoencoder(nn.Module):
    """V words -> hidden -> B bits -> hidden -> softmax over V words."""

    def __init__(self, frequencies: Tensor, hidden_dim: int, n_bits: int) -> None:
        super().__init__()
        n_words = len(frequencies)
        self.word = nn.Parameter(torch.randn(n_words, hidden_dim) / hidden_dim**0.5)
        self.word_bias = nn.Parameter(torch.zeros(hidden_dim))
        self.to_code = nn.Linear(hidden_dim, n_bits)
        self.from_code = nn.Linear(n_bits, hidden_dim)
        self.weight = nn.Parameter(0.01 * torch.randn(n_words, hidden_dim))
        self.bias = nn.Parameter(((frequencies + 0.5) / (frequencies + 0.5).sum()).log())

    def encode(self, inputs: Counts, n: int) -> Tensor:
        """Logits of the bits, (n, B), of sparse inputs."""
        starts = torch.searchsorted(inputs.rows, torch.arange(n, device=inputs.rows.device))
        words = nn.functional.embedding_bag(
            inputs.columns, self.word, starts, mode="sum", per_sample_weights=inputs.values
        )
        return self.to_code((words + self.word_bias).relu())

    def forward(self, inputs: Counts, targets: Counts, n: int, product_dtype: torch.dtype | None = None) -> Tensor:
        """Negative log-likelihood of the targets given the code of the inputs, summed over the batch."""
        decoded = self.from_code(binarize(self.encode(inputs, n))).relu()
        return count_cross_entropy(decoded, self.weight, self.bias, targets, product_dtype)


class SemanticHashing(TransformerMixin, BaseEstimator):
    """Binary codes of documents from an autoencoder: the encoder gives the code of a new text in one pass.

    Parameters
    ----------
    n_bits, hidden_dim
        Sizes of the code and of the layers on both sides of it.
    ngram_range, max_features, min_count, tokenizer
        As in `BinaryParagraphVector`.
    max_epochs, batch_size, lr
        Training by Adam.
    handle_unknown
        "warn", "error" or "ignore" a document without any known word.
    precision, device, random_state
        As in `BinaryParagraphVector`.

    Attributes
    ----------
    codes_ : (n, bytes) uint8
        Codes of the training documents; all zero for one without any word of the vocabulary.
    history_
        Losses of training.
    """

    def __init__(
        self,
        n_bits: int = 128,
        *,
        hidden_dim: int = 512,
        ngram_range: tuple[int, int] = (1, 1),
        max_features: int | None = 20_000,
        min_count: int | None = None,
        max_epochs: int = 25,
        batch_size: int = 128,
        lr: float = 1e-3,
        handle_unknown: Literal["warn", "error", "ignore"] = "warn",
        tokenizer: Callable[[Any], Sequence[str]] | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_bits, self.hidden_dim, self.ngram_range = n_bits, hidden_dim, ngram_range
        self.max_features, self.min_count = max_features, min_count
        self.max_epochs, self.batch_size, self.lr = max_epochs, batch_size, lr
        self.handle_unknown, self.tokenizer, self.precision = handle_unknown, tokenizer, precision
        self.device, self.random_state = device, random_state

    def fit(self, X: Sequence[Any], y: Any = None) -> Self:
        """Learn vocabulary, encoder and decoder from raw texts.

        Raises
        ------
        ValueError
            For fewer than two documents, sizes that are no positive integers, a parameter that does not exist; if
            training diverges.
        """
        sizes = ("n_bits", "hidden_dim", "max_epochs", "batch_size")
        check_parameters(self, choices=CHOICES, positive=(*sizes, "lr"), integers=sizes)
        tokens = tokenize(X, self.tokenizer)
        if len(tokens) < 2:
            raise ValueError(f"fit needs at least 2 documents, got {len(tokens)}")
        min_count = min(5, 1 + len(tokens) // 250) if self.min_count is None else self.min_count
        self.vocabulary_ = Vocabulary.build(
            tokens, ngram_range=self.ngram_range, min_count=min_count, max_features=self.max_features
        )
        counts = self.vocabulary_.counts(tokens)
        self._tfidf = TfidfTransformer().fit(counts)
        device = torch_device(self.device)
        with gradients_on():
            inputs, targets = CountRows(self._inputs(counts), device), CountRows(counts, device)
            frequencies = torch.from_numpy(np.asarray(counts.sum(axis=0)).reshape(-1).astype(np.float32))
            seed = int(torch.randint(2**31, (1,), generator=as_generator(self.random_state)))
            dtype = product_dtype(self.precision, device)

            def loss(model: nn.Module, batch: Split) -> Tensor:
                n = len(batch.x)
                value: Tensor = model(inputs.take(batch.x), targets.take(batch.x), n, dtype)
                return value / n

            config = TrainConfig(epochs=self.max_epochs, batch_size=self.batch_size, lr=self.lr)
            (trained,) = train(
                lambda _: CodeAutoencoder(frequencies, self.hidden_dim, self.n_bits).float(),
                Split(torch.arange(len(tokens))), loss=loss, config=config, seeds=(seed,), plan="sequential",
                device=device,
            )  # fmt: skip
            if trained.diverged:
                raise ValueError(f"training diverged after {trained.steps} updates: lower lr (it is {self.lr})")
            self._module: nn.Module = trained.module
            self.history_ = trained.curve
            self.codes_ = self._encode(counts)
        return self

    def fit_transform(self, X: Sequence[Any], y: Any = None) -> NDArray[np.uint8]:
        """Codes of the training documents, (n, bytes)."""
        return self.fit(X).codes_

    def transform(self, X: Sequence[Any]) -> NDArray[np.uint8]:
        """Codes of documents, (n, bytes) packed bits; all zero for a document without any known word."""
        check_is_fitted(self, "vocabulary_")
        counts = self.vocabulary_.counts(tokenize(X, self.tokenizer))
        codes = self._encode(counts)
        empty = np.flatnonzero(np.diff(counts.indptr) == 0)
        if len(empty):
            message = f"document {empty[0]} has no word of the vocabulary ({len(empty)} such documents)"
            if self.handle_unknown == "error":
                raise ValueError(message + ": leave it out, or set handle_unknown='warn'")
            if self.handle_unknown == "warn":
                warnings.warn(message + ": its code is all zero", UserWarning, stacklevel=3)
        return codes

    def _inputs(self, counts: csr_matrix) -> csr_matrix:
        matrix = csr_matrix(self._tfidf.transform(counts))
        matrix.sort_indices()
        return matrix

    def _encode(self, counts: csr_matrix) -> NDArray[np.uint8]:
        if not counts.shape[0]:  # scikit-learn's tf-idf refuses a table without rows
            return np.zeros((0, -(-self.n_bits // 8)), dtype=np.uint8)
        device = next(self._module.parameters()).device
        rows = CountRows(self._inputs(counts), device)
        parts = []
        with torch.no_grad():
            for documents in torch.arange(counts.shape[0], device=device).split(1024):
                logits = self._module.encode(rows.take(documents), len(documents))  # type: ignore[operator]
                parts.append((logits > 0).cpu().numpy())
        known = np.diff(counts.indptr) > 0  # the encoder's offsets alone would say of a text what no word of it says
        return np.packbits(np.concatenate(parts) & known[:, None], axis=1)

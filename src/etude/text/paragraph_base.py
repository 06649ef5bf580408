"""What binary and real paragraph vectors share as scikit-learn transformers: fit, infer, save and load."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from etude.data.randomness import as_generator, stream
from etude.layers.modes import gradients_on
from etude.text.count_loss import CountRows, Precision, product_dtype
from etude.text.model_files import read_model, write_model
from etude.text.paragraph import (
    Objective,
    ParagraphModel,
    Source,
    TokenRows,
    build_model,
    fit_documents,
    infer_documents,
    new_documents,
)
from etude.text.parameters import check_parameters
from etude.text.vocabulary import Tokenizer, Vocabulary, tokenize
from etude.training.estimators import torch_device

EXACT_UP_TO = 20_000  # features, with loss="auto"


class Inferred(NamedTuple):
    """What `infer` returns."""

    codes: NDArray[np.uint8]
    """(n, bytes), packed bits; empty (n, 0) for real paragraph vectors."""
    vectors: NDArray[np.float32]
    """(n, M), the documents' own rows."""


class ParagraphEstimator(TransformerMixin, BaseEstimator, ABC):
    """What binary and real paragraph vectors share. Subclasses list their parameters in `__init__`."""

    ngram_range: tuple[int, int]
    max_features: int | None
    min_count: int | None
    subsample: float | None
    max_epochs: int
    batch_size: int | None
    lr: float
    document_lr: float
    optimizer: Literal["adam", "adagrad"]
    loss: Literal["auto", "exact", "sampled"]
    n_negatives: int
    window: int
    word_dim: int
    combine: Literal["concat", "mean"]
    inference_steps: int
    handle_unknown: Literal["warn", "error", "ignore"]
    tokenizer: Tokenizer | None
    precision: Precision
    device: str
    random_state: Any
    architecture: Any

    _choices: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "optimizer": ("adam", "adagrad"),
        "loss": ("auto", "exact", "sampled"),
        "combine": ("concat", "mean"),
        "handle_unknown": ("warn", "error", "ignore"),
        "precision": ("fp32", "bf16", "auto"),
    }
    _positive = ("max_epochs", "lr", "document_lr", "n_negatives", "window", "word_dim", "inference_steps")
    _integers: ClassVar[tuple[str, ...]] = (
        "max_epochs", "batch_size", "n_negatives", "window", "word_dim", "inference_steps",
    )  # fmt: skip

    # -- to fill in ---------------------------------------------------------------------------------------------

    @abstractmethod
    def _sizes(self) -> tuple[int | None, int]:
        """(bits or None, length of a document's row)."""

    @abstractmethod
    def _keep(self, documents: Tensor) -> None:
        """Keep what the class shows of the training documents, (D, dim)."""

    # -- scikit-learn's interface -------------------------------------------------------------------------------

    def fit(self, X: Sequence[Any], y: Any = None) -> Self:
        """Learn vocabulary, softmax layer and the vectors of the documents `X` (raw texts).

        Raises
        ------
        ValueError
            For fewer than two documents, a document without any word of the vocabulary (its index is named), or
            a parameter that does not exist or does not fit; if training diverges.
        """
        self._check_parameters()
        tokens = tokenize(X, self.tokenizer)
        if len(tokens) < 2:
            raise ValueError(f"fit needs at least 2 documents, got {len(tokens)}")
        for i, words in enumerate(tokens):
            if not len(words):
                raise ValueError(f"document {i} is empty (it has no word): leave it out")
        min_count = min(5, 1 + len(tokens) // 250) if self.min_count is None else self.min_count
        self.vocabulary_ = Vocabulary.build(
            tokens, ngram_range=self.ngram_range, min_count=min_count, max_features=self.max_features
        )
        counts = self.vocabulary_.counts(tokens)
        nothing = np.flatnonzero(np.diff(counts.indptr) == 0)
        if len(nothing):
            raise ValueError(
                f"document {nothing[0]} has no word of the vocabulary of {len(self.vocabulary_)} terms that occur "
                f"at least {min_count} times (so do {len(nothing) - 1} others): leave it out or lower min_count"
            )
        self.seed_ = int(torch.randint(2**31, (1,), generator=as_generator(self.random_state)))
        with gradients_on():
            self._frequencies = torch.from_numpy(np.asarray(counts.sum(axis=0)).reshape(-1).astype(np.float32))
            bits, dim = self._sizes()
            init = stream(self.seed_, "init")
            device = torch_device(self.device)
            self._model = build_model(
                self.architecture, self._frequencies * self._word_weight(), init, bits=bits, dim=dim,
                word_dim=self.word_dim, window=self.window, combine=self.combine,
            )  # fmt: skip
            self._to(device)
            documents = new_documents(len(tokens), dim, init).to(device)
            self.history_ = fit_documents(
                documents, self._source(tokens, counts), self._objective(self.lr), epochs=self.max_epochs,
                batch_size=self._batch_size(), optimizer=self.optimizer, lr=self.document_lr, seed=self.seed_,
                what="paragraph vectors",
            )  # fmt: skip
            self._keep(documents)
        return self

    def infer(self, X: Sequence[Any]) -> Inferred:
        """Codes and vectors of documents under the frozen model; the training documents are inferred anew.

        A document without any word of the vocabulary gets zeros, and a warning, or an error, as
        `handle_unknown` says.
        """
        return self._infer(X, stacklevel=4)

    def _infer(self, X: Sequence[Any], stacklevel: int) -> Inferred:
        """`infer`, whose warning is so many calls below the user's line."""
        check_is_fitted(self, "vocabulary_")
        tokens = tokenize(X, self.tokenizer)
        counts = self.vocabulary_.counts(tokens)
        known = np.flatnonzero(np.diff(counts.indptr))
        if len(known) < len(tokens):
            self._unknown(np.setdiff1d(np.arange(len(tokens)), known), stacklevel)
        vectors = self._model.weight.new_zeros(len(tokens), self._model.dim)
        if len(known):
            with gradients_on():
                start = new_documents(1, self._model.dim, stream(self.seed_, "infer"))[0].to(vectors.device)
                found = infer_documents(
                    self._source([tokens[i] for i in known], counts[known]), len(known), self._objective(None),
                    steps=self.inference_steps, batch_size=2 * self._batch_size(), optimizer=self.optimizer,
                    lr=self.document_lr, start=start, seed=self.seed_, what="inferring documents",
                )  # fmt: skip
            vectors[known] = found
        return Inferred(self._codes(vectors, known), vectors.cpu().numpy())

    # -- saving -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write vocabulary, shared parameters and configuration as safetensors (no documents, no pickle)."""
        check_is_fitted(self, "vocabulary_")
        parameters = {k: v for k, v in self.get_params().items() if k not in ("tokenizer", "random_state")}
        state = {
            "class": type(self).__name__, "parameters": parameters, "words": self.vocabulary_.words,
            "seed": self.seed_, "own_tokenizer": self.tokenizer is not None,
        }  # fmt: skip
        tensors = {k: v.cpu().contiguous() for k, v in self._model.tensors().items()}
        tensors |= {f"grams.{n}": torch.from_numpy(keys) for n, keys in self.vocabulary_.grams.items()}
        write_model(path, tensors | {"frequencies": self._frequencies.cpu()}, state)

    @classmethod
    def load(cls, path: str | Path, *, tokenizer: Tokenizer | None = None) -> Self:
        """Read what `save` wrote, ready to transform. A tokenizer of your own must be given again.

        Raises
        ------
        ValueError
            If the file holds another class, or needs the tokenizer.
        """
        tensors, state = read_model(path, cls.__name__)
        if state["own_tokenizer"] and tokenizer is None:
            raise ValueError("this model was fitted with its own tokenizer: give it again, load(path, tokenizer=...)")
        state["parameters"]["ngram_range"] = tuple(state["parameters"]["ngram_range"])
        self = cls(**state["parameters"], tokenizer=tokenizer, random_state=state["seed"])
        grams = {int(k[6:]): v.numpy() for k, v in sorted(tensors.items()) if k.startswith("grams.")}
        self.vocabulary_ = Vocabulary(tuple(state["words"]), grams)
        self.seed_, self._frequencies = state["seed"], tensors["frequencies"]
        bits, dim = self._sizes()
        self._model = ParagraphModel(
            self.architecture, bits, dim, tensors["weight"], tensors["bias"], tensors.get("projection"),
            tensors.get("offset"), tensors.get("context"), self.window, self.combine,
        )  # fmt: skip
        self._to(torch_device(self.device))
        return self

    # -- helpers ------------------------------------------------------------------------------------------------

    def _check_parameters(self) -> None:
        check_parameters(self, choices=self._choices, positive=self._positive, integers=self._integers)
        if self.batch_size is not None and not self.batch_size > 0:
            raise ValueError(f"batch_size must be positive or None, got {self.batch_size!r}")
        if self.subsample is not None and not self.subsample > 0:
            raise ValueError(f"subsample must be positive or None, got {self.subsample!r}")
        if self.architecture == "dm" and tuple(np.atleast_1d(self.ngram_range)) != (1, 1):
            raise ValueError(f"architecture 'dm' predicts words: ngram_range must be (1, 1), got {self.ngram_range}")

    def _to(self, device: torch.device) -> None:
        for name, tensor in self._model.tensors().items():
            setattr(self._model, name, tensor.to(device))
        self._frequencies = self._frequencies.to(device)

    def _batch_size(self) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return 8 if self.architecture == "dm" else 128

    def _word_weight(self) -> Tensor:
        """min(1, sqrt(t / f)): the expected share of a frequent word that sub-sampling would keep."""
        if self.subsample is None:
            return torch.ones_like(self._frequencies)
        share = self._frequencies / self._frequencies.sum()
        return (self.subsample / share.clamp_min(1e-30)).sqrt().clamp_max(1)

    def _source(self, tokens: Sequence[Sequence[str]], counts: Any) -> Source:
        device, weight = self._model.weight.device, self._word_weight()
        if self.architecture != "dm":
            rows = CountRows(counts, device)
            rows.values *= weight[rows.columns]
            return rows
        flat, bounds = self.vocabulary_.encode(tokens)
        column = np.searchsorted(self.vocabulary_.grams[1], flat)
        last = len(self.vocabulary_) - 1
        keep = (flat >= 0) & (self.vocabulary_.grams[1][np.minimum(column, last)] == flat)
        kept = np.concatenate([[0], np.cumsum(keep)])[bounds]
        return TokenRows(torch.from_numpy(kept).to(device), torch.from_numpy(column[keep]).to(device), weight)

    def _objective(self, lr: float | None) -> Objective:
        exact = self.loss == "exact" or (
            self.loss == "auto" and self.architecture != "dm" and len(self.vocabulary_) <= EXACT_UP_TO
        )
        return Objective(
            self._model, loss="exact" if exact else "sampled", frequencies=self._frequencies,
            n_negatives=self.n_negatives, generator=stream(self.seed_, "negatives"), optimizer=self.optimizer, lr=lr,
            product_dtype=product_dtype(self.precision, self._model.weight.device),
        )  # fmt: skip

    def _unknown(self, rows: NDArray[np.int64], stacklevel: int) -> None:
        message = (
            f"document {rows[0]} has no word of the vocabulary"
            + (f" (nor have {len(rows) - 1} others)" if len(rows) > 1 else "")
        )  # fmt: skip
        if self.handle_unknown == "error":
            raise ValueError(message + ": leave it out, or set handle_unknown='warn'")
        if self.handle_unknown == "warn":
            warnings.warn(message + ": its code is all zero", UserWarning, stacklevel=stacklevel)

    def _codes(self, vectors: Tensor, known: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        if self._model.bits is None:
            return np.zeros((len(vectors), 0), dtype=np.uint8)
        bits = np.zeros((len(vectors), self._model.bits), dtype=bool)
        which = np.arange(len(vectors)) if known is None else known
        bits[which] = self._model.bits_of(vectors[which]).cpu().numpy()
        return np.packbits(bits, axis=1)

"""Word vectors with one vector a sense, learned from running text.

Sources: see `etude.text.senses`.
"""

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from etude.data.randomness import as_generator, stream
from etude.layers.modes import gradients_on
from etude.text.model_files import read_model, write_model
from etude.text.parameters import check_parameters
from etude.text.senses import (
    RUN,
    Corpus,
    SenseModel,
    bands,
    build_senses,
    context_means,
    hard_senses,
    sense_probabilities,
    train_senses,
)
from etude.training.estimators import torch_device


class _SenseVectors(BaseEstimator, ABC):
    """What the soft and the hard kind share."""

    n_senses: int
    dim: int
    window: int
    min_count: int
    subsample: float | None
    n_negatives: int
    shared_negatives: int
    max_epochs: int
    batch_size: int
    lr: float
    prune_below: float
    device: str
    random_state: Any

    _kind: ClassVar[Literal["soft", "hard"]]
    _positive = (
        "n_senses", "dim", "window", "min_count", "n_negatives", "shared_negatives", "max_epochs", "batch_size", "lr",
    )  # fmt: skip

    _integers = ("n_senses", "dim", "window", "shared_negatives", "max_epochs", "batch_size")

    @abstractmethod
    def _training(self) -> tuple[tuple[float, float], float]:
        """(temperatures at start and end, weight of the entropy cost)."""

    def fit(self, X: Sequence[Sequence[str]], y: Any = None) -> Self:
        """Learn from token lists, one a document; windows do not cross documents.

        Raises
        ------
        ValueError
            If a document is a string instead of a list of tokens, no word occurs `min_count` times, a parameter is
            out of range, or training diverges.
        """
        check_parameters(self, positive=self._positive, integers=self._integers)
        if self.subsample is not None and not self.subsample > 0:
            raise ValueError(f"subsample must be positive or None, got {self.subsample!r}")
        if not hasattr(self.prune_below, "__float__") or not 0 <= self.prune_below <= 1:
            raise ValueError(f"prune_below must lie in 0..1, got {self.prune_below!r}")
        temperature, entropy_weight = self._training()
        documents = [tokens if isinstance(tokens, str) else list(tokens) for tokens in X]  # iterators give theirs once
        if isinstance(X, str) or any(isinstance(tokens, str) for tokens in documents):
            raise ValueError("give token lists, one a document, not strings: [text.lower().split() for text in texts]")
        count = Counter(word for tokens in documents for word in tokens)
        words = sorted((w for w, c in count.items() if c >= self.min_count), key=lambda w: (-count[w], w))
        if len(words) < 2:
            raise ValueError(
                f"only {len(words)} words occur at least {self.min_count} times: lower min_count or give more text"
            )
        self.vocabulary_ = tuple(words)
        self._number = {w: i for i, w in enumerate(words)}
        frequency = torch.tensor([count[w] for w in words], dtype=torch.float64)
        share = frequency / frequency.sum()
        keep = torch.ones_like(share) if self.subsample is None else (self.subsample / share).sqrt().clamp_max(1)
        self._keep = keep.float()
        noise = frequency.pow(0.75)
        tokens = [self._number[w] for document in documents for w in document if w in self._number]
        lengths = [sum(w in self._number for w in document) for document in documents]
        device = torch_device(self.device)
        with gradients_on():
            corpus = Corpus(
                torch.tensor(tokens, device=device),
                torch.repeat_interleave(torch.tensor(lengths)).to(device),
                self._keep.to(device),
                (noise / noise.sum()).float(),
            )
            seed = int(torch.randint(2**31, (1,), generator=as_generator(self.random_state)))
            model = build_senses(len(words), self.n_senses, self.dim, stream(seed, "init"))
            self._model = SenseModel(**{k: v.to(device) for k, v in model.tensors().items()})
            self.history_ = train_senses(
                self._model, corpus, kind=self._kind, window=self.window, n_negatives=self.n_negatives,
                shared_negatives=self.shared_negatives, temperature=temperature, entropy_weight=entropy_weight,
                epochs=self.max_epochs, batch_size=self.batch_size, lr=self.lr, seed=seed,
            )  # fmt: skip
            self._prune(self._mean_probabilities(corpus))
        return self

    # -- use ----------------------------------------------------------------------------------------------------

    def predict_sense_proba(self, word: str, context: Sequence[str]) -> NDArray[np.float32]:
        """Probabilities of the senses of a word among the given context words, (n_senses,).

        Unknown context words are ignored; without any known one, the word's prior is returned with a warning.
        """
        return self._proba([word], [context])[0]

    def predict_sense(self, word: str, context: Sequence[str]) -> int:
        """The likeliest sense of a word among the given context words, 0..n_senses-1."""
        return int(self._proba([word], [context])[0].argmax())

    def predict_proba(self, words: Sequence[str], contexts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """`predict_sense_proba` of many words in their contexts, (n, n_senses).

        Raises
        ------
        ValueError
            If a word is not in the vocabulary, a context is a string, or the lengths differ.
        """
        return self._proba(words, contexts)

    def _proba(self, words: Sequence[str], contexts: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """`predict_proba`, called by every method that predicts, so that its warning names the user's line."""
        check_is_fitted(self, "vocabulary_")
        if len(words) != len(contexts):
            raise ValueError(f"got {len(words)} words and {len(contexts)} contexts")
        for i, context in enumerate(contexts):
            if isinstance(context, str):
                raise ValueError(f"context {i} is a string: give a list of tokens, context.split()")
        number = torch.tensor([self._of(word) for word in words], dtype=torch.int64)
        known = [[self._number[w] for w in context if w in self._number] for context in contexts]
        blank = np.array([not k for k in known], dtype=bool)
        if blank.any():
            warnings.warn(
                f"context {int(blank.argmax())} has no known word: the prior of {words[int(blank.argmax())]!r} is used",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        padded = torch.full((len(known), max([len(k) for k in known] + [1])), -1)
        for i, k in enumerate(known):
            padded[i, : len(k)] = torch.tensor(k)
        device = self._model.senses.device
        parts = [
            self._probabilities(n, context_means(self._table(), self._keep.to(device), p))
            for n, p in zip(number.to(device).split(4096), padded.to(device).split(4096), strict=True)
        ]
        p = torch.cat([*parts, self._model.senses.new_empty(0, self.n_senses)]).cpu().numpy()
        p = p * self.active_senses_[number.numpy()]
        total = p.sum(1, keepdims=True)
        prior = self.sense_priors_[number.numpy()]
        return np.where((total > 0) & ~blank[:, None], p / np.where(total > 0, total, 1), prior)

    def sense_vector(self, word: str, context: Sequence[str]) -> NDArray[np.float32]:
        """The vector of a word in a context: that of its likeliest sense, (dim,)."""
        row = self._of(word)
        return self.sense_vectors_[row, self._proba([word], [context])[0].argmax()]

    def sense_neighbors(self, word: str, sense: int, n_neighbors: int = 10) -> list[tuple[str, int, float]]:
        """The nearest senses of other words: (word, sense, cosine), best first."""
        row = self._of(word)
        if not isinstance(n_neighbors, Integral) or n_neighbors < 0:
            raise ValueError(f"n_neighbors must be a whole number of at least 0, got {n_neighbors}")
        if not 0 <= sense < self.n_senses or not self.active_senses_[row, sense]:
            active = np.flatnonzero(self.active_senses_[row]).tolist()
            raise ValueError(f"{word!r} has no sense {sense}; its senses are {active}")
        vectors = self.sense_vectors_
        norms = np.linalg.norm(vectors, axis=2)
        cosine = vectors @ vectors[row, sense] / np.maximum(norms * norms[row, sense], 1e-12)
        cosine[~self.active_senses_] = -np.inf
        cosine[row] = -np.inf
        best = np.argsort(-cosine.reshape(-1), kind="stable")[:n_neighbors]
        found = [(int(i) // self.n_senses, int(i) % self.n_senses) for i in best]
        return [(self.vocabulary_[w], k, float(cosine[w, k])) for w, k in found if np.isfinite(cosine[w, k])]

    # -- saving -------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write vocabulary, vectors, priors and configuration as safetensors (no pickle)."""
        check_is_fitted(self, "vocabulary_")
        parameters = {k: v for k, v in self.get_params().items() if k != "random_state"}
        state = {"class": type(self).__name__, "parameters": parameters, "words": self.vocabulary_}
        tensors = {k: v.cpu().contiguous() for k, v in self._model.tensors().items()}
        tensors |= {"keep": self._keep, "priors": torch.from_numpy(self.sense_priors_)}
        write_model(path, tensors | {"active": torch.from_numpy(self.active_senses_)}, state)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; ValueError for a file of something else."""
        tensors, state = read_model(path, cls.__name__)
        parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in state["parameters"].items()}
        self = cls(**parameters)
        self.vocabulary_ = tuple(state["words"])
        self._number = {w: i for i, w in enumerate(self.vocabulary_)}
        self._keep, self.sense_priors_ = tensors.pop("keep"), tensors.pop("priors").numpy()
        active = tensors.pop("active", None)  # files of earlier versions lack it
        self.active_senses_ = self.sense_priors_ > 0 if active is None else active.numpy()
        self._model = SenseModel(**tensors)
        return self

    # -- attributes ---------------------------------------------------------------------------------------------

    @property
    def sense_vectors_(self) -> NDArray[np.float32]:
        """(V, n_senses, dim)."""
        check_is_fitted(self, "vocabulary_")
        return self._model.senses.cpu().numpy()

    @property
    def output_vectors_(self) -> NDArray[np.float32]:
        """(V, dim), the vectors of context words that senses predict."""
        check_is_fitted(self, "vocabulary_")
        return self._model.output.cpu().numpy()

    @property
    def word_weights_(self) -> Tensor:
        """(V,) share of a word's occurrences that sub-sampling keeps: its weight in a context."""
        check_is_fitted(self, "vocabulary_")
        return self._keep

    # -- helpers ------------------------------------------------------------------------------------------------

    def _of(self, word: str) -> int:
        check_is_fitted(self, "vocabulary_")
        if word not in self._number:
            raise ValueError(f"{word!r} is not among the {len(self.vocabulary_)} words of the vocabulary")
        return self._number[word]

    def _table(self) -> Tensor:
        """The vectors whose mean is a context."""
        return self._model.context if self._kind == "soft" else self._model.output

    def _probabilities(self, number: Tensor, means: Tensor) -> Tensor:
        selector = self._model.selector[number]
        if self._kind == "soft":
            return sense_probabilities(selector, means)
        return torch.nn.functional.one_hot(hard_senses(self._model, selector, means), self.n_senses).float()

    def _mean_probabilities(self, corpus: Corpus) -> Tensor:
        """Mean sense probabilities of each word over the whole corpus, (V, K)."""
        total = self._model.senses.new_zeros(len(self.vocabulary_), self.n_senses)
        words, _ = corpus.runs(self.window, torch.ones_like(corpus.tokens, dtype=torch.bool))
        table, keep = self._table(), corpus.keep
        for part in words.split(max(1, 4096 // RUN)):
            weights = bands(part, self.window) * keep[part.clamp_min(0)][:, None, :]
            means = (weights @ table[part.clamp_min(0)]) / weights.sum(-1, keepdim=True).clamp_min(1e-12)
            centre = part[:, self.window : self.window + RUN]
            known = centre >= 0
            total.index_add_(0, centre[known], self._probabilities(centre[known], means[known]))
        return total / total.sum(1, keepdim=True)

    def _prune(self, probabilities: Tensor) -> None:
        """Senses below the threshold lose their share to the others; the likeliest one always stays."""
        p = probabilities.cpu().numpy()
        active = (p >= self.prune_below) | (p == p.max(1, keepdims=True))
        self.active_senses_ = active
        self.sense_priors_ = p * active / (p * active).sum(1, keepdims=True)


class DisambiguatedSkipGram(_SenseVectors):
    """Several vectors a word, with a classifier of senses inside the network, trained by gradients alone.

    Parameters
    ----------
    n_senses
        Candidates a word; superfluous ones can be pruned. With 1 this is skip-gram with negative sampling.
    dim
        Length of all vectors.
    window
        Words on each side.
    min_count
        Occurrences a word needs.
    subsample
        Words more frequent than this share are dropped at random, as in word2vec; None: never.
    n_negatives, shared_negatives
        Weight of the negatives for each context word, and how many are drawn for a batch.
    max_epochs, batch_size, lr
        Training by Adam with moments for each row; `batch_size` counts centre words.
    temperature
        Of the relaxed draw of a sense, from the first to the last step, linearly.
    entropy_weight
        Cost of a word's spreading over senses (the thesis's granularity); 0 keeps them all.
    prune_below
        After training, senses of a smaller mean probability are dropped.
    device, random_state
        As in `BinaryParagraphVector`.

    Attributes
    ----------
    vocabulary_ : tuple of str
        Words, most frequent first.
    sense_vectors_ : (V, n_senses, dim)
    sense_priors_ : (V, n_senses)
        Mean probability of each sense; 0 where pruned.
    active_senses_ : (V, n_senses) bool
    history_
        Loss per context word of every epoch.

    Examples
    --------
    >>> texts = [["bank", "of", "the", "river"], ["money", "in", "the", "bank"]] * 20
    >>> dsg = DisambiguatedSkipGram(n_senses=2, dim=8, max_epochs=2, random_state=0).fit(texts)
    >>> dsg.predict_sense("bank", ["river"]) in (0, 1)
    True
    """

    _kind = "soft"

    def __init__(
        self,
        n_senses: int = 5,
        dim: int = 100,
        *,
        window: int = 5,
        min_count: int = 5,
        subsample: float | None = 1e-3,
        n_negatives: int = 5,
        shared_negatives: int = 128,
        max_epochs: int = 8,
        batch_size: int = 1024,
        lr: float = 0.01,
        temperature: tuple[float, float] = (1.0, 0.4),
        entropy_weight: float = 0.0,
        prune_below: float = 0.05,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_senses, self.dim, self.window, self.min_count = n_senses, dim, window, min_count
        self.subsample, self.n_negatives, self.shared_negatives = subsample, n_negatives, shared_negatives
        self.max_epochs, self.batch_size, self.lr = max_epochs, batch_size, lr
        self.temperature, self.entropy_weight, self.prune_below = temperature, entropy_weight, prune_below
        self.device, self.random_state = device, random_state

    def _training(self) -> tuple[tuple[float, float], float]:
        if np.shape(self.temperature) != (2,) or not all(t > 0 for t in self.temperature):
            raise ValueError(f"temperature must be two positive numbers (start, end), got {self.temperature!r}")
        if not self.entropy_weight >= 0:
            raise ValueError(f"entropy_weight must be at least 0, got {self.entropy_weight!r}")
        return self.temperature, self.entropy_weight


class MultiSenseSkipGram(_SenseVectors):
    """Several vectors a word, each occurrence assigned to the nearest cluster of contexts: the rival.

    Parameters and attributes are those of `DisambiguatedSkipGram`, without temperature and entropy cost.

    Source: Neelakantan et al. 2014 (arXiv 1504.06654), MSSG with a fixed number of senses.
    Differs from the paper: contexts are centred on the corpus's mean, and older contexts fade after each epoch.
    """

    _kind = "hard"

    def __init__(
        self,
        n_senses: int = 5,
        dim: int = 100,
        *,
        window: int = 5,
        min_count: int = 5,
        subsample: float | None = 1e-3,
        n_negatives: int = 5,
        shared_negatives: int = 128,
        max_epochs: int = 8,
        batch_size: int = 1024,
        lr: float = 0.01,
        prune_below: float = 0.05,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_senses, self.dim, self.window, self.min_count = n_senses, dim, window, min_count
        self.subsample, self.n_negatives, self.shared_negatives = subsample, n_negatives, shared_negatives
        self.max_epochs, self.batch_size, self.lr = max_epochs, batch_size, lr
        self.prune_below, self.device, self.random_state = prune_below, device, random_state

    def _training(self) -> tuple[tuple[float, float], float]:
        return (1.0, 1.0), 0.0

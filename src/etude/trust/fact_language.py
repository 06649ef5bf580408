"""A small language whose sentences are facts: training a language model on it and knowing all it would say.

A sentence is a start token and three words (person, place, dish), each from a vocabulary of its own, so that the
probabilities of all sentences can be listed.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from etude.layers.decoder import DecoderConfig, DecoderLM
from etude.layers.lm_scoring import combine_logits, enumerate_logits
from etude.training.config import TrainConfig
from etude.training.engine import Trained
from etude.training.language_modelling import train_language_model
from etude.training.run import State
from etude.trust.fact_worlds import FactWorld, zipf
from etude.trust.miscalibration import Bins, miscalibration

Rule = Literal["random", "copy"]
START = 0


class FactCorpus(NamedTuple):
    """Sentences of a world, with the truth about every possible sentence."""

    p: NDArray[np.float64]
    """(|Y|,) probability of each sentence in the order of the vocabularies; 0 for falsehoods."""
    train: NDArray[np.int64]
    """(n,) sentences of the corpus, as numbers 0 .. |Y| - 1."""
    heldout: NDArray[np.int64]
    """(n_heldout,) further sentences."""
    sizes: tuple[int, int, int]
    """Words a slot."""

    @property
    def vocabularies(self) -> list[list[int]]:
        """Token ids of each slot; 0 starts a sentence."""
        first = np.cumsum([1, *self.sizes])
        return [list(range(int(a), int(a) + s)) for a, s in zip(first, self.sizes, strict=False)]

    @property
    def vocab_size(self) -> int:
        """Tokens in all."""
        return 1 + sum(self.sizes)

    def ids(self, sentences: NDArray[np.int64]) -> Tensor:
        """Token ids (n, 4) of sentences."""
        slots = np.unravel_index(sentences, self.sizes)
        first = np.cumsum([1, *self.sizes])[:3]
        columns = [np.full(len(sentences), START), *(s + f for s, f in zip(slots, first, strict=True))]
        return torch.as_tensor(np.stack(columns, 1))

    def world(self) -> FactWorld:
        """The same as a `FactWorld`: counts over the true facts."""
        true = np.flatnonzero(self.p)
        counts = np.bincount(self.train, minlength=len(self.p))[true]
        return FactWorld(len(self.p), self.p[true], counts)


def fact_corpus(
    generator: np.random.Generator,
    *,
    rule: Rule = "random",
    sizes: tuple[int, int, int] = (40, 40, 40),
    num_facts: int = 640,
    exponent: float = 1.0,
    n: int = 2000,
    n_heldout: int = 2000,
    times: int | None = None,
) -> FactCorpus:
    """Draw a world and its corpora.

    Parameters
    ----------
    rule
        "random": `num_facts` sentences without a pattern, Zipf-distributed. "copy": the third word is the
        first, all pairs equally likely; a rule that can be learned (needs as many first as third words).
    times
        Every fact exactly so often in the training corpus, all equally likely (then `n` does not count).
    """
    space = int(np.prod(sizes))
    p = np.zeros(space)
    if rule == "copy":
        if sizes[0] != sizes[2]:
            raise ValueError(f"rule 'copy' needs as many first as third words, got {sizes}")
        a, b = np.divmod(np.arange(sizes[0] * sizes[1]), sizes[1])
        true = np.ravel_multi_index((a, b, a), sizes)
        p[true] = 1 / len(true)
    elif rule == "random":
        if not 0 < num_facts < space:
            raise ValueError(f"num_facts must lie between 1 and {space - 1}, got {num_facts}")
        true = generator.choice(space, num_facts, replace=False)
        p[true] = zipf(num_facts, 0.0 if times else exponent)
    else:
        raise ValueError(f"rule must be 'random' or 'copy', got {rule!r}")
    train = np.repeat(true, times) if times else generator.choice(space, n, p=p)
    return FactCorpus(p, train, generator.choice(space, n_heldout, p=p), sizes)


def upweight(
    sentences: NDArray[np.int64], share: float, generator: np.random.Generator, *, times: int = 10
) -> NDArray[np.int64]:
    """The corpus with a random share of its sentences repeated `times` times.

    Training on it breaks calibration on purpose (Miao & Kearns 2025, arXiv 2502.08666).
    """
    if not 0 <= share <= 1 or times < 1:
        raise ValueError(f"share must lie in [0, 1] and times be at least 1, got {share} and {times}")
    chosen = generator.choice(len(sentences), round(share * len(sentences)), replace=False)
    return np.concatenate([sentences, np.repeat(sentences[chosen], times - 1)])


class FactPoint(NamedTuple):
    """A generator in the plane of the theorem."""

    hallucination_rate: float
    miscalibration: float
    new_truth: float
    """Mass on true facts that are not in the corpus."""
    levels: float
    """Miscalibration with one bin a level."""


def fact_point(g: NDArray[np.float64], corpus: FactCorpus, bins: Bins = 10) -> FactPoint:
    """Place probabilities g (|Y|,) of all sentences."""
    g = g / g.sum()
    true = corpus.p > 0
    unseen = np.bincount(corpus.train, minlength=len(g)) == 0
    return FactPoint(
        float(g[~true].sum()), float(miscalibration(g, corpus.p, bins)), float(g[true & unseen].sum()),
        float(miscalibration(g, corpus.p)),
    )  # fmt: skip


def sentence_probabilities(
    model: nn.Module, corpus: FactCorpus, temperatures: Sequence[float] = (1.0,)
) -> list[NDArray[np.float64]]:
    """g (|Y|,) for each temperature, from one walk over the shared prefixes."""
    device = next(model.parameters()).device
    logits = enumerate_logits(model, corpus.vocabularies, prefix=torch.tensor([START], device=device))
    return [
        combine_logits(logits, corpus.vocabularies, temperature=t).exp().flatten().cpu().numpy() for t in temperatures
    ]


def uniform_probabilities(corpus: FactCorpus) -> NDArray[np.float64]:
    """Every sentence alike, (|Y|,)."""
    return np.full(len(corpus.p), 1 / len(corpus.p))


def bigram_probabilities(corpus: FactCorpus) -> NDArray[np.float64]:
    """g (|Y|,) of the bigram model: first word, second given first, third given second, by their counts."""
    counts = np.bincount(corpus.train, minlength=len(corpus.p)).reshape(corpus.sizes).astype(float)
    first_second, second_third = counts.sum(2), counts.sum(0)
    third_given_second = second_third / np.maximum(second_third.sum(1, keepdims=True), 1.0)
    return (first_second[:, :, None] / counts.sum() * third_given_second[None]).ravel()


def model_summary(
    model: nn.Module,
    corpus: FactCorpus,
    training: Sequence[FactPoint] = (),
    temperatures: Sequence[float] = (0.5, 0.7, 1.0, 1.3),
) -> tuple[dict[str, float], list[tuple[str, FactPoint]]]:
    """A trained model at several temperatures, and how far it ever fell below the floor without slack.

    Parameters
    ----------
    training
        Points of its checkpoints.

    Returns
    -------
    numbers
        "hallucination_t07", "mis_t07" and so on for each temperature (1 must be among them); "monofact"; "ratio",
        g(H) / MF at temperature 1 where MF is above 0; "new_truth"; "worst_excess", largest MF - Mis - g(H) of all
        points, and "worst_excess_without_mis".
    points
        All of them with their names.
    """
    mf = corpus.world().audit().monofact
    listed = sentence_probabilities(model, corpus, temperatures)
    final = {f"t{t:g}".replace(".", ""): fact_point(g, corpus) for t, g in zip(temperatures, listed, strict=True)}
    points = [*(("training", point) for point in training), *final.items()]
    found = {f"hallucination_{name}": point.hallucination_rate for name, point in final.items()}
    found |= {f"mis_{name}": point.miscalibration for name, point in final.items()}
    found |= {"monofact": mf, "new_truth": final["t1"].new_truth}
    found |= {"ratio": final["t1"].hallucination_rate / mf} if mf else {}
    found["worst_excess_without_mis"] = max(mf - point.hallucination_rate for _, point in points)
    found["worst_excess"] = max(mf - point.hallucination_rate - point.miscalibration for _, point in points)
    return found, points


def train_fact_model(
    corpora: dict[int, FactCorpus],
    *,
    num_layers: int = 2,
    hidden_dim: int = 64,
    num_heads: int = 4,
    config: TrainConfig,
    train_on: dict[int, NDArray[np.int64]] | None = None,
    callbacks: Sequence[object] = (),
    device: str = "cpu",
) -> list[Trained]:
    """One transformer a seed, on the seed's corpus, watched on its held-out sentences.

    Parameters
    ----------
    corpora
        Seed -> corpus.
    train_on
        Seed -> sentences to train on in place of the corpus (upweighted ones).
    """
    vocab_size = next(iter(corpora.values())).vocab_size

    def build(seed: int) -> DecoderLM:
        return DecoderLM(
            DecoderConfig(
                num_layers=num_layers, hidden_dim=hidden_dim, num_heads=num_heads, vocab_size=vocab_size, max_length=4
            )
        )

    def texts(seed: int) -> Tensor:
        corpus = corpora[seed]
        return corpus.ids(corpus.train if train_on is None else train_on[seed])

    return train_language_model(
        build, texts, config=config, seeds=tuple(corpora), val=lambda seed: corpora[seed].ids(corpora[seed].heldout),
        callbacks=callbacks, device=device,
    )  # fmt: skip


class WatchFacts:
    """Callback of `train_fact_model`: the model's point at every evaluation.

    Attributes
    ----------
    points : dict, seed -> list of (step, FactPoint)
    """

    def __init__(self, corpora: dict[int, FactCorpus], bins: Bins = 10) -> None:
        self.corpora, self.bins = corpora, bins
        self.points: dict[int, list[tuple[int, FactPoint]]] = {seed: [] for seed in corpora}

    def on_eval(self, state: State) -> None:
        """List the model's sentences and note where it stands."""
        corpus = self.corpora[state.seed]
        (g,) = sentence_probabilities(state.model, corpus)
        self.points[state.seed].append((state.step, fact_point(g, corpus, self.bins)))

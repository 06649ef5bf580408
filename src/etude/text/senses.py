"""Skip-gram with several vectors a word: the disambiguated (soft, differentiable) and the hard kind.

Source: Grzegorczyk & Kurdziel 2018, "Disambiguated skip-gram model" (EMNLP), and Grzegorczyk 2019
(arXiv 1901.01695). The hard kind follows Neelakantan et al. 2014 (arXiv 1504.06654).
Names: `senses` is the thesis's table of sense vectors S (V, K, m), `output` O (V, m), `selector` the
disambiguation vectors Q (V, K, m), `context` the vectors C (V, m) whose mean over the window enters the selector.
Differs from the paper: negatives are drawn once a batch and weighted, so that each context word still counts
`n_negatives` of them on average; text is read in short runs of words, whose windows overlap, so that each word's
vectors are looked up once a run and windows are products with a band matrix.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, logsigmoid

from etude.data.progress import track
from etude.data.randomness import stream
from etude.layers.straight_through import gumbel_softmax
from etude.text.paragraph import RowOptimizer

RUN = 32  # centre words a run
_CENTRES = ("senses", "selector")  # tables of centre words; the others are of the words around them


class SenseLoss(NamedTuple):
    """The parts of `sense_loss`; their sum is minimised."""

    skipgram: Tensor
    entropy: Tensor
    probabilities: Tensor  # (..., K) of the senses, before the draw


def sense_probabilities(selector: Tensor, context_mean: Tensor) -> Tensor:
    """softmax over senses of ``Q_{w,k} . cbar``: (..., K, m) and (..., m) -> (..., K)."""
    return (selector * context_mean.unsqueeze(-2)).sum(dim=-1).softmax(dim=-1)


def sense_loss(
    senses: Tensor,
    selector: Tensor,
    context: Tensor,
    output: Tensor,
    negatives: Tensor,
    band: Tensor,
    *,
    n_negatives: float,
    temperature: float,
    generator: torch.Generator,
    entropy_weight: float = 0.0,
    prior: Tensor | None = None,
) -> SenseLoss:
    """Negative-sampling loss of the disambiguated skip-gram, summed over the centre words of r runs.

    Parameters
    ----------
    senses, selector
        Rows of the L centre words of each run, (r, L, K, m).
    context, output
        Rows of the run's words with a window more on both sides, (r, W, m).
    negatives
        Output rows of the drawn words, (N, m).
    band
        1 where word j is in the window of centre i, (r, L, W); rows of padding are 0.
    n_negatives
        Weight of the negatives for every context word.
    temperature, generator
        Of the relaxed draw of a sense.
    entropy_weight, prior
        Cost of spreading over senses: ``entropy_weight * H(pi_w)`` with pi_w the mean of the probabilities over the
        word's occurrences. Its gradient with respect to one occurrence is that of ``-sum_k p_k log pi_{w,k}``, which
        is what is added, with the running means `prior`, (r, L, K).
    """
    size = band.sum(dim=-1, keepdim=True)  # (r, L, 1) words in the window
    mean = (band @ context) / size.clamp_min(1)
    probabilities = sense_probabilities(selector, mean)
    if senses.shape[-2] == 1:
        vector = senses[..., 0, :]
    else:
        tiny = torch.finfo(probabilities.dtype).tiny
        choice = gumbel_softmax(probabilities.clamp_min(tiny).log(), temperature, generator)
        vector = (choice.unsqueeze(-1) * senses).sum(dim=-2)
    loss = negative_sampling_loss(vector, output, negatives, band, n_negatives)
    entropy = loss.new_zeros(())
    if entropy_weight and prior is not None:
        centre = (size > 0).to(probabilities.dtype)
        entropy = -entropy_weight * (centre * probabilities * prior.clamp_min(1e-8).log()).sum()
    return SenseLoss(loss, entropy, probabilities)


def negative_sampling_loss(
    vector: Tensor, output: Tensor, negatives: Tensor, band: Tensor, n_negatives: float
) -> Tensor:
    """-sum over context words of [log sig(v.O_x) + sum over negatives of log sig(-v.O_n)]; shapes as above."""
    positive = (logsigmoid(vector @ output.mT) * band).sum()
    weight = band.sum(dim=-1).reshape(-1) * (n_negatives / len(negatives))
    against = logsigmoid(-(vector.reshape(-1, vector.shape[-1]) @ negatives.T)).sum(dim=1)
    return -positive - torch.dot(weight, against)


@dataclass
class SenseModel:
    """All parameters. `context` and `selector` have different meanings in the hard kind: see `hard_senses`."""

    senses: Tensor  # (V, K, m)
    selector: Tensor  # (V, K, m)
    context: Tensor  # (V, m)
    output: Tensor  # (V, m)
    offset: Tensor  # (m,) mean context over the corpus; only the hard kind subtracts it

    def tensors(self) -> dict[str, Tensor]:
        return {
            "senses": self.senses,
            "selector": self.selector,
            "context": self.context,
            "output": self.output,
            "offset": self.offset,
        }


def build_senses(n_words: int, n_senses: int, dim: int, generator: torch.Generator) -> SenseModel:
    """Small random vectors; selectors of about unit length, so that senses differ from the start."""

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator, dtype=torch.float32) - 0.5) / dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32) / dim**0.5

    return SenseModel(
        uniform(n_words, n_senses, dim),
        normal(n_words, n_senses, dim),
        normal(n_words, dim),
        uniform(n_words, dim),
        torch.zeros(dim, dtype=torch.float32),
    )


@dataclass(frozen=True)
class Corpus:
    """Word numbers of all documents in a row, and what each word is worth."""

    tokens: Tensor  # (T,) 0..V-1
    document: Tensor  # (T,) ascending
    keep: Tensor  # (V,) share of a word's occurrences that sub-sampling keeps
    noise: Tensor  # (V,) probabilities of the negatives

    def runs(self, window: int, kept: Tensor, shift: int = 0) -> tuple[Tensor, Tensor]:
        """The kept words as rows of RUN centres with `window` words on both sides, (runs, RUN + 2 window), and the
        place in `tokens` of each centre, (runs, RUN). -1 is padding; documents never meet in a window."""
        place = kept.nonzero()[:, 0]
        document = self.document[place]
        ordinal = torch.zeros_like(document)
        ordinal[1:] = (document[1:] != document[:-1]).cumsum(0)
        position = torch.arange(len(place), device=place.device) + window * (ordinal + 1) + shift
        length = int(position[-1]) + 1 + window
        n_runs = -(-(length - window) // RUN)
        line = torch.full((n_runs * RUN + 2 * window,), -1, device=place.device)
        line[position] = place
        rows = line.unfold(0, RUN + 2 * window, RUN)
        words = torch.where(rows >= 0, self.tokens[rows.clamp_min(0)], -1)
        return words, rows[:, window : window + RUN]


def bands(words: Tensor, window: int) -> Tensor:
    """Which words are in whose window: (r, RUN + 2 window) -> (r, RUN, RUN + 2 window), float."""
    width = words.shape[1]
    i = torch.arange(width - 2 * window, device=words.device)[:, None] + window
    j = torch.arange(width, device=words.device)
    inside = ((i - j).abs() <= window) & (i != j)
    known = words >= 0
    return (inside & known[:, None, :] & known[:, window : width - window, None]).float()


class _Local(NamedTuple):
    """A batch with its own numbering: only rows that get a gradient are looked up and moved."""

    rows: Tensor  # (u,) numbers of the words in windows and of the negatives
    words: Tensor  # (r, W) places in rows; padding points anywhere and is masked by the band
    negatives: Tensor  # (N,) places in rows
    centre_rows: Tensor  # (c,) numbers of the centre words
    centres: Tensor  # (r, RUN) places in centre_rows
    band: Tensor  # (r, RUN, W)


def _localise(words: Tensor, negatives: Tensor, window: int) -> _Local:
    filled = torch.where(words >= 0, words, words.max())
    rows, place = torch.cat([filled.reshape(-1), negatives]).unique(return_inverse=True)
    split = words.numel()
    centre_rows, centres = filled[:, window : window + RUN].unique(return_inverse=True)
    local = place[:split].view_as(words)
    return _Local(rows, local, place[split:], centre_rows, centres, bands(words, window))


def hard_senses(model: SenseModel, centres: Tensor, mean: Tensor, unused: Tensor | None = None) -> Tensor:
    """Index of the nearest cluster centre by cosine: (..., K, m) and (..., m) -> (...).

    In the hard kind `selector` holds the mean context of each sense, a context is the mean of its words' output
    vectors minus the corpus's mean, and only the assigned sense learns. In training a sense that is `unused` so far
    scores 0, so that a context that is unlike all others of its word opens a new one; afterwards one that stayed
    unused, whose centre is 0, is no sense of the word.
    """
    direction = torch.nn.functional.normalize(centres, dim=-1)
    score = (direction * (mean - model.offset).unsqueeze(-2)).sum(dim=-1)
    if unused is None:
        return score.masked_fill((centres == 0).all(-1), -torch.inf).argmax(-1)
    return score.masked_fill(unused, 0.0).argmax(-1)


def train_senses(
    model: SenseModel,
    corpus: Corpus,
    *,
    kind: Literal["soft", "hard"],
    window: int,
    n_negatives: int,
    shared_negatives: int,
    temperature: tuple[float, float],
    entropy_weight: float,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Train in place; returns the loss per context word of every epoch. ValueError if training diverges."""
    n_words, n_senses, _ = model.senses.shape
    device = model.senses.device
    names = ("senses", "output") if kind == "hard" else ("senses", "selector", "context", "output")
    tables = {name: RowOptimizer(model.tensors()[name], "adam", lr) for name in names}
    prior = model.senses.new_full((n_words, n_senses), 1 / n_senses)
    seen = torch.zeros_like(prior)
    order, noise, draw = stream(seed, "order"), stream(seed, "noise"), stream(seed, "negatives")
    history: list[dict[str, Any]] = []
    for epoch in track(range(epochs), "sense vectors"):
        total, pairs = 0.0, 0.0
        batches = list(_batches(corpus, window, batch_size, order))
        for i, words in enumerate(batches):
            drawn = torch.multinomial(corpus.noise, shared_negatives, replacement=True, generator=draw).to(device)
            batch = _localise(words, drawn, window)
            rows = {name: batch.centre_rows if name in _CENTRES else batch.rows for name in tables}
            leaf = {name: table.leaf(rows[name]) for name, table in tables.items()}
            output = embedding(batch.words, leaf["output"])
            negatives = embedding(batch.negatives, leaf["output"])
            shape = (*batch.centres.shape, n_senses, -1)
            senses = embedding(batch.centres, leaf["senses"].flatten(1)).view(shape)
            centres = batch.centre_rows[batch.centres]
            if kind == "hard":
                size = batch.band.sum(-1, keepdim=True)
                active = size[..., 0] > 0
                mean = (batch.band @ output.detach()) / size.clamp_min(1)
                model.offset.lerp_(mean[active].mean(0), 0.01 if seen.any() else 1.0)
                choice = hard_senses(model, model.selector[centres], mean, seen[centres] == 0)
                vector = senses.gather(2, choice[..., None, None].expand(-1, -1, 1, senses.shape[-1]))[:, :, 0]
                loss = negative_sampling_loss(vector, output, negatives, batch.band, n_negatives)
                _move_centres(model.selector, seen, centres[active], choice[active], mean[active] - model.offset)
            else:
                progress = (epoch + i / len(batches)) / epochs
                parts = sense_loss(
                    senses, embedding(batch.centres, leaf["selector"].flatten(1)).view(shape),
                    embedding(batch.words, leaf["context"]), output, negatives, batch.band,
                    n_negatives=n_negatives, generator=noise, entropy_weight=entropy_weight,
                    temperature=temperature[0] + (temperature[1] - temperature[0]) * progress,
                    prior=prior[centres] if entropy_weight else None,
                )  # fmt: skip
                loss = parts.skipgram + parts.entropy
                if entropy_weight:
                    active = batch.band.sum(-1) > 0
                    _move_prior(prior, centres[active], parts.probabilities.detach()[active])
            loss.backward()
            for name, table in tables.items():
                table.step(rows[name], leaf[name])
            total += float(loss.detach())
            pairs += float(batch.band.sum())
        if not math.isfinite(total) or not bool(model.senses.isfinite().all()):
            raise ValueError(f"training diverged in epoch {epoch + 1}: lower lr (it is {lr})")
        seen.mul_(0.1)  # contexts of earlier epochs, made of younger vectors, count less
        history.append({"epoch": epoch + 1, "loss": total / max(pairs, 1.0)})
    if kind == "hard":
        model.selector.masked_fill_((seen == 0)[..., None], 0.0)  # they hold what they were drawn as
    return history


def _batches(corpus: Corpus, window: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Runs of an epoch in random order, frequent words dropped at random."""
    device = corpus.tokens.device
    drawn = torch.rand(len(corpus.tokens), generator=generator, dtype=torch.float32)
    kept = drawn.to(device) < corpus.keep[corpus.tokens]
    shift = int(torch.randint(RUN, (1,), generator=generator))
    if not bool(kept.any()):
        return
    words, _ = corpus.runs(window, kept, shift)
    shuffled = torch.randperm(len(words), generator=generator).to(device)
    for rows in shuffled.split(max(1, batch_size // RUN)):
        yield words[rows]


def _move_centres(centres: Tensor, seen: Tensor, words: Tensor, choice: Tensor, means: Tensor) -> None:
    """Running means of the contexts that were assigned to each sense."""
    flat = words * seen.shape[1] + choice
    rows, place, count = flat.unique(return_inverse=True, return_counts=True)
    sums = means.new_zeros(len(rows), means.shape[1]).index_add_(0, place, means)
    table, times = centres.view(-1, centres.shape[-1]), seen.view(-1)
    before = times[rows]
    after = before + count
    table[rows] = torch.where(
        before[:, None] > 0, (table[rows] * before[:, None] + sums) / after[:, None], sums / count[:, None]
    )
    times[rows] = after


def _move_prior(prior: Tensor, words: Tensor, probabilities: Tensor, decay: float = 0.9) -> None:
    """Running mean of each word's sense probabilities."""
    rows, place, count = words.unique(return_inverse=True, return_counts=True)
    sums = prior.new_zeros(len(rows), prior.shape[1]).index_add_(0, place, probabilities)
    prior[rows] = decay * prior[rows] + (1 - decay) * sums / count[:, None]


def context_means(context: Tensor, keep: Tensor, words: Tensor) -> Tensor:
    """Mean context vector of lists of words, (n, W) padded with -1, each weighed by what sub-sampling keeps of it:
    what the training windows hold on average."""
    weight = torch.where(words >= 0, keep[words.clamp_min(0)], 0.0)
    total = torch.einsum("nw,nwm->nm", weight, context[words.clamp_min(0)])
    return total / weight.sum(1, keepdim=True).clamp_min(1e-12)

"""Metrics of written sequences: BLEU, edit distance, perplexity.

Sources: Papineni et al. 2002 (BLEU, corpus level, no smoothing); Levenshtein 1966.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tokens = Sequence[Hashable]


def bleu(
    candidates: str | Sequence[str] | Sequence[Tokens], references: str | Sequence[Any], *, max_order: int = 4
) -> float:
    """Corpus BLEU: B * exp(1/N sum_n log p_n), with B = 1 if c > r, else exp(1 - r / c).

    p_n is the share of candidate n-grams that stand in a reference, each counted at most as often as in the
    reference that has most of it; c is the length of all candidates, r of the references nearest in length
    (of two equally near, the shorter).

    Parameters
    ----------
    candidates
        One entry a sentence: a string (split at white space) or a sequence of tokens. A single string is one sentence.
    references
        As many entries: a sentence, or a list of sentences, in the candidates' form.
    max_order
        N.

    Returns
    -------
    float
        In [0, 1]; 0 where an order has no match (no smoothing), so also for sentences shorter than `max_order`.

    Raises
    ------
    ValueError
        For no sentences, unequal numbers of them, a sentence without reference, or `max_order` below 1.
    """
    if isinstance(candidates, str):
        candidates, references = [candidates], [references]
    if max_order < 1:
        raise ValueError(f"max_order must be at least 1, got {max_order}")
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            f"need one entry of references for each of the candidates, at least one, "
            f"got {len(candidates)} candidates and {len(references)} entries"
        )
    matched, total = [0] * max_order, [0] * max_order
    ours = theirs = 0
    for row, (candidate, given) in enumerate(zip(candidates, references, strict=True)):
        words = _tokens(candidate)
        refs = [_tokens(r) for r in _sentences(given, isinstance(candidate, str))]
        if not refs:
            raise ValueError(f"sentence {row} has no reference")
        ours += len(words)
        theirs += min((abs(len(r) - len(words)), len(r)) for r in refs)[1]
        for n in range(1, max_order + 1):
            grams = _ngrams(words, n)
            most = _ngrams(refs[0], n)
            for r in refs[1:]:
                most |= _ngrams(r, n)
            matched[n - 1] += sum(min(count, most[g]) for g, count in grams.items() if g in most)
            total[n - 1] += max(0, len(words) - n + 1)
    if min(matched) == 0:
        return 0.0
    precision = sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / max_order
    return math.exp(precision + (0.0 if ours > theirs else 1 - theirs / ours))


def masked_accuracy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> float:
    """Share of right labels among the steps that have a target.

    `logits` (..., C), `targets` (...); ValueError where no step has a target. NaN among the logits of such steps gives
    NaN: a net that diverged is right nowhere.
    """
    asked = targets != ignore_index
    if not bool(asked.any()):
        raise ValueError("no step has a target: the accuracy has no denominator")
    if bool(logits[asked].isnan().any()):
        return math.nan
    return float((logits.argmax(-1) == targets)[asked].double().mean())


def edit_distance(a: Tokens, b: Tokens) -> int:
    """Fewest insertions, deletions and substitutions that turn `a` into `b` (strings, lists or 1-d tensors)."""
    a, b = _plain(a), _plain(b)
    code: dict[Hashable, int] = {}
    x, y = (np.array([code.setdefault(t, len(code)) for t in s], dtype=np.int64) for s in (a, b))
    column = np.arange(len(y) + 1)
    row = column.copy()
    for i, symbol in enumerate(x, start=1):
        new = np.empty_like(row)
        new[0] = i
        new[1:] = np.minimum(row[1:] + 1, row[:-1] + (y != symbol))
        row = np.minimum.accumulate(new - column) + column  # insertions run along the row
    return int(row[-1])


def label_error_rate(outputs: Sequence[Tokens], targets: Sequence[Tokens]) -> float:
    """Edit distance summed over all pairs, over the summed length of the targets (0 is perfect, may exceed 1).

    Raises
    ------
    ValueError
        For unequal numbers of sequences, or targets that are all empty.
    """
    if len(outputs) != len(targets):
        raise ValueError(f"got {len(outputs)} outputs and {len(targets)} targets")
    length = sum(len(t) for t in targets)
    if length == 0:
        raise ValueError("the targets are empty: the rate has no denominator")
    return sum(edit_distance(o, t) for o, t in zip(outputs, targets, strict=True)) / length


def perplexity(nll: float | Tensor | Sequence[float]) -> float:
    """exp of the mean negative log-likelihood (nats a symbol): of one mean, or of one value a symbol.

    Raises
    ------
    ValueError
        For nothing, or a NaN.
    """
    mean = _mean(nll)
    return math.exp(mean) if mean < 709 else math.inf


def bits_per_symbol(nll: float | Tensor | Sequence[float]) -> float:
    """Mean negative log-likelihood in bits, from nats; ValueError as for `perplexity`."""
    return _mean(nll) / math.log(2)


def _mean(nll: float | Tensor | Sequence[float]) -> float:
    values = torch.as_tensor(nll, dtype=torch.float64).flatten()
    if values.numel() == 0 or bool(values.isnan().any()):
        raise ValueError("the negative log-likelihoods are empty or hold a NaN")
    return float(values.mean())


def _plain(sequence: Any) -> Sequence[Hashable]:
    return sequence.tolist() if isinstance(sequence, (Tensor, np.ndarray)) else sequence


def _tokens(sentence: Any) -> Sequence[Hashable]:
    return sentence.split() if isinstance(sentence, str) else _plain(sentence)


def _sentences(given: Any, text: bool) -> Sequence[Any]:
    """The references of one sentence, in the candidate's form: one sentence or a sequence of them."""
    if text:
        return [given] if isinstance(given, str) else given
    given = _plain(given)
    nested = bool(given) and isinstance(given[0], (list, tuple, Tensor, np.ndarray))
    return given if nested else [given]


def _ngrams(tokens: Sequence[Hashable], n: int) -> Counter:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))

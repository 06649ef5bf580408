"""Exact sequence tasks: what must be remembered, for how long, and what a guesser scores.

Each function draws a batch; `info` holds what is known of the task, so that a result can be read: "chance" is the
accuracy of the best guess without the information asked for, "causal" that of a net that sees no later step.

Sources: Hochreiter & Schmidhuber 1997 (adding, temporal order); Lipton, Berkowitz & Elkan 2015, arXiv 1506.00019
(the tasks' purpose); Gu & Dao 2023, arXiv 2312.00752 (selective copying); Arora et al. 2023, arXiv 2312.04927
(associative recall with many queries).
"""

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100


class SequenceBatch(NamedTuple):
    """Rows of a task; also a batch for `etude.training.train`."""

    x: Tensor
    """(n, time) int64 symbols, or (n, time, d) float32."""
    y: Tensor
    """(n, time): the target of each step, -100 (NaN for numbers) where none is asked for."""
    lengths: Tensor
    """(n,) real steps."""
    score_mask: Tensor
    """(n, time) bool: where a target is asked for."""
    num_symbols: int
    """Size of the input alphabet; the width d for numbers."""
    num_classes: int
    """Number of targets; 0 for numbers."""
    info: dict[str, float]


def _batch(x: Tensor, y: Tensor, lengths: Tensor | None, symbols: int, classes: int, **info: float) -> SequenceBatch:
    if lengths is None:
        lengths = torch.full((x.shape[0],), x.shape[1])
    mask = ~y.isnan() if y.is_floating_point() else y != IGNORED
    return SequenceBatch(x, y, lengths, mask, symbols, classes, info)


def _check(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _draw(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator)


def recall(
    n: int,
    delay: int | tuple[int, int],
    generator: torch.Generator,
    *,
    cues: int = 8,
    distractors: int | None = None,
) -> SequenceBatch:
    """Name the first symbol at the query mark, after `delay` distractors.

    Parameters
    ----------
    delay
        Distractors between cue and mark; (low, high) draws a delay for each row (shorter rows are padded with marks).
    cues
        Number of different first symbols.
    distractors
        Size of an alphabet of their own, or None: distractors are drawn from the cues, so that a net must learn to
        ignore them (with an alphabet of their own a plain tanh cell latches the cue and has nothing to ignore).
    """
    low, high = (delay, delay) if isinstance(delay, int) else delay
    if not 0 <= low <= high:
        raise ValueError(f"delay must be at least 0, and low <= high, got {delay}")
    _check(n=n, cues=cues, distractors=1 if distractors is None else distractors)
    own = cues if distractors is None else distractors
    mark = cues + (0 if distractors is None else own)
    gap = torch.randint(low, high + 1, (n,), generator=generator)
    x = _draw(own, (n, high + 2), generator) + (0 if distractors is None else cues)
    x[:, 0] = _draw(cues, (n,), generator)
    x[torch.arange(high + 2) > gap[:, None]] = mark
    y = torch.full_like(x, IGNORED)
    y.scatter_(1, gap[:, None] + 1, x[:, :1])
    return _batch(x, y, gap + 2, mark + 1, cues, chance=1 / cues)


def adding(n: int, length: int, generator: torch.Generator) -> SequenceBatch:
    """Sum of the two marked numbers (one in each half), asked for at the last step.

    x is (n, length, 2): uniform numbers in [0, 1] and marks. `info["variance"]`, 1/6, is the squared error of always
    answering 1.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    _check(n=n)
    numbers = torch.rand(n, length, generator=generator)
    marks = torch.zeros(n, length)
    half = length // 2
    marks.scatter_(1, _draw(half, (n, 1), generator), 1.0)
    marks.scatter_(1, half + _draw(length - half, (n, 1), generator), 1.0)
    y = torch.full((n, length), torch.nan)
    y[:, -1] = (numbers * marks).sum(1)
    return _batch(torch.stack([numbers, marks], dim=-1), y, None, 2, 0, variance=1 / 6)


def temporal_order(n: int, length: int, generator: torch.Generator, *, distractors: int = 4) -> SequenceBatch:
    """Which of two symbols came first and which second (4 classes), asked for at the end mark.

    The two stand in the second and the seventh tenth of the sequence, among `distractors` other symbols.
    """
    if length < 10:
        raise ValueError(f"length must be at least 10, got {length}")
    _check(n=n, distractors=distractors)
    x = _draw(distractors, (n, length), generator) + 2
    tenth = max(1, length // 10)
    first, second = _draw(2, (n, 1), generator), _draw(2, (n, 1), generator)
    x.scatter_(1, length // 10 + _draw(tenth, (n, 1), generator), first)
    x.scatter_(1, 6 * length // 10 + _draw(tenth, (n, 1), generator), second)
    x = torch.cat([x, torch.full((n, 1), distractors + 2)], dim=1)
    y = torch.full_like(x, IGNORED)
    y[:, -1] = (2 * first + second)[:, 0]
    return _batch(x, y, None, distractors + 3, 4, chance=0.25)


def copy_paste(n: int, length: int, generator: torch.Generator, *, symbols: int = 8) -> SequenceBatch:
    """Repeat `length` random symbols after the copy mark; while repeating the input is the mark itself."""
    _check(n=n, length=length, symbols=symbols)
    source = _draw(symbols, (n, length), generator)
    x = torch.cat([source, torch.full((n, length), symbols)], dim=1)
    y = torch.cat([torch.full_like(source, IGNORED), source], dim=1)
    return _batch(x, y, None, symbols + 1, symbols, chance=1 / symbols)


def copy_pairs(
    n: int, length: int, generator: torch.Generator, *, symbols: int = 8, reverse_source: bool = False
) -> tuple[Tensor, Tensor]:
    """Source and target (n, length) for encoder-decoders: the target repeats the source, or its reverse.

    `reverse_source` is the trick of Sutskever et al. 2014: the encoder reads the source backwards, so that the
    first target symbol is the one read last. The targets stay what they were.
    """
    _check(n=n, length=length, symbols=symbols)
    target = _draw(symbols, (n, length), generator)
    return target.flip(1) if reverse_source else target, target


def parity(
    n: int, length: int | tuple[int, int], generator: torch.Generator, *, every_step: bool = False
) -> SequenceBatch:
    """Parity of the ones of a bit string, asked for at its last bit (or at every bit).

    `length` (low, high) draws a length for each row; padding is symbol 2.
    """
    low, high = (length, length) if isinstance(length, int) else length
    if not 1 <= low <= high:
        raise ValueError(f"length must be at least 1, and low <= high, got {length}")
    _check(n=n)
    sizes = torch.randint(low, high + 1, (n,), generator=generator)
    bits = _draw(2, (n, high), generator)
    steps = torch.arange(high)
    x = torch.where(steps < sizes[:, None], bits, 2)
    asked = steps < sizes[:, None] if every_step else steps == sizes[:, None] - 1
    y = torch.where(asked, bits.cumsum(1) % 2, IGNORED)
    return _batch(x, y, sizes, 3, 2, chance=0.5)


def selective_copy(
    n: int, length: int, generator: torch.Generator, *, memorize: int = 8, symbols: int = 8
) -> SequenceBatch:
    """Repeat, in order, the `memorize` symbols that stand at random places among noise, after the copy marks."""
    _check(n=n, memorize=memorize, symbols=symbols)
    if length < memorize:
        raise ValueError(f"length must hold the {memorize} symbols, got {length}")
    noise, mark = symbols, symbols + 1
    places = torch.rand(n, length, generator=generator).argsort(1)[:, :memorize].sort(1).values
    tokens = _draw(symbols, (n, memorize), generator)
    x = torch.full((n, length), noise).scatter(1, places, tokens)
    x = torch.cat([x, torch.full((n, memorize), mark)], dim=1)
    y = torch.cat([torch.full((n, length), IGNORED), tokens], dim=1)
    return _batch(x, y, None, symbols + 2, symbols, chance=1 / symbols)


def associative_recall(
    n: int, pairs: int, generator: torch.Generator, *, queries: int | None = None, keys: int = 32, values: int = 32
) -> SequenceBatch:
    """Key-value pairs, then keys: name the value of each key (different keys, asked for in random order)."""
    queries = pairs if queries is None else queries
    _check(n=n, pairs=pairs, queries=queries, values=values)
    if not queries <= pairs <= keys:
        raise ValueError(f"need queries <= pairs <= keys, got {queries}, {pairs}, {keys}")
    key = torch.rand(n, keys, generator=generator).argsort(1)[:, :pairs]
    value = _draw(values, (n, pairs), generator)
    asked = torch.rand(n, pairs, generator=generator).argsort(1)[:, :queries]
    x = torch.cat([torch.stack([key, keys + value], dim=2).flatten(1), key.gather(1, asked)], dim=1)
    y = torch.cat([torch.full((n, 2 * pairs), IGNORED), value.gather(1, asked)], dim=1)
    return _batch(x, y, None, keys + values, values, chance=1 / values)


def two_sided(n: int, length: int, generator: torch.Generator, *, lag: int = 3, label: str = "pair") -> SequenceBatch:
    """Label each step by the bits `lag` before and `lag` after it: "pair" (4 classes) or their "xor" (2).

    Without the later bit half of the labels are open: a causal net scores 0.5 at best. The xor holds the same
    information but gives no gradient to find it.
    """
    _check(n=n, lag=lag)
    if length <= 2 * lag:
        raise ValueError(f"length must exceed 2 * lag = {2 * lag}, got {length}")
    if label not in ("pair", "xor"):
        raise ValueError(f"label must be pair or xor, got {label!r}")
    x = _draw(2, (n, length), generator)
    before, after = x[:, : length - 2 * lag], x[:, 2 * lag :]
    inner = 2 * before + after if label == "pair" else before ^ after
    y = torch.nn.functional.pad(inner, (lag, lag), value=IGNORED)
    classes = 4 if label == "pair" else 2
    return _batch(x, y, None, 2, classes, chance=1 / classes, causal=0.5)


def two_sided_xor(n: int, length: int, generator: torch.Generator, *, lag: int = 3) -> SequenceBatch:
    """`two_sided` with label "xor"."""
    return two_sided(n, length, generator, lag=lag, label="xor")

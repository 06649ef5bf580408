"""Sequence labelling problems ready to train on: fresh batches or rows of a seed, tests, sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.data.batching import sampled
from etude.data.images import ImageSet
from etude.data.randomness import stream
from etude.data.sequences import IGNORED, SequenceBatch, adding, copy_pairs, recall, temporal_order, two_sided
from etude.data.tasks import Split


class HeldOut(NamedTuple):
    """Rows to test on."""

    delay: int
    name: str | None
    rows: Split


@dataclass(frozen=True)
class SequenceProblem:
    """Label steps of sequences: x (n, time) symbols or (n, time, d) numbers, y (n, time) with -100 where none is asked.

    data
        What `etude.training.train` takes.
    tests
        ``tests(seed)``: what to test on, each with its delay (0 where the problem has none) and a name, or None for a
        point of a curve that needs no name of its own.
    """

    num_inputs: int
    num_outputs: int
    data: Any
    tests: Callable[[int], list[HeldOut]]
    provenance: tuple[dict[str, Any], ...] = ()


def recall_problem(
    batch: int, delays: tuple[int, int], test_delays: Mapping[int, str | None], rows: int, *, cues: int = 8
) -> SequenceProblem:
    """`recall` with one delay a batch, drawn evenly from delays[0]..delays[1], tested at fixed delays by name."""
    low, high = delays
    if not 0 <= low <= high:
        raise ValueError(f"delays must be 0 <= low <= high, got {delays}")

    def draw(generator: torch.Generator, step: int) -> Split:
        delay = int(torch.randint(low, high + 1, (1,), generator=generator))
        b = recall(batch, delay, generator, cues=cues)
        return Split(b.x, b.y)

    def tests(seed: int) -> list[HeldOut]:
        drawn = {d: recall(rows, d, stream(seed, "test", d), cues=cues) for d in sorted(test_delays)}
        return [HeldOut(d, test_delays[d], Split(b.x, b.y)) for d, b in drawn.items()]

    return SequenceProblem(cues + 1, cues, sampled(draw), tests)


def two_sided_problem(batch: int, length: int, rows: int, *, lag: int = 3, label: str = "pair") -> SequenceProblem:
    """`two_sided` with fresh batches."""

    def rows_of(n: int, generator: torch.Generator) -> Split:
        b = two_sided(n, length, generator, lag=lag, label=label)
        return Split(b.x, b.y)

    def tests(seed: int) -> list[HeldOut]:
        return [HeldOut(lag, "", rows_of(rows, stream(seed, "test")))]

    data = sampled(lambda generator, step: rows_of(batch, generator))
    return SequenceProblem(2, 4 if label == "pair" else 2, data, tests)


def adding_problem(batch: int, length: int, rows: int) -> SequenceProblem:
    """`adding` with fresh batches: one number is asked for at the last step."""
    return _drawn(2, 1, length, batch, rows, lambda n, generator: adding(n, length, generator))


def temporal_order_problem(batch: int, length: int, rows: int, *, distractors: int = 4) -> SequenceProblem:
    """`temporal_order` with fresh batches."""
    draw = lambda n, generator: temporal_order(n, length, generator, distractors=distractors)  # noqa: E731
    return _drawn(distractors + 3, 4, length, batch, rows, draw)


def _drawn(
    inputs: int, outputs: int, delay: int, batch: int, rows: int, draw: Callable[[int, torch.Generator], SequenceBatch]
) -> SequenceProblem:
    def rows_of(n: int, generator: torch.Generator) -> Split:
        b = draw(n, generator)
        return Split(b.x, b.y)

    data = sampled(lambda generator, step: rows_of(batch, generator))
    return SequenceProblem(
        inputs, outputs, data, lambda seed: [HeldOut(delay, "", rows_of(rows, stream(seed, "test")))]
    )


def image_pixels(images: ImageSet, *, order: int | None = 0) -> SequenceProblem:
    """Images read pixel by pixel, the class asked for at the last one; splits are drawn by seed.

    order
        Seed of the one order that the pixels of all images are read in (Le, Jaitly & Hinton 2015, arXiv 1504.00941);
        None: row by row.
    """
    channels, pixels = images.x.shape[1], images.x[0, 0].numel()
    places = torch.arange(pixels) if order is None else torch.randperm(pixels, generator=stream(order, "pixels"))

    def rows_of(split: Split | None) -> Split:
        assert split is not None
        y = torch.full((split.n, pixels), IGNORED)
        y[:, -1] = split.y
        return Split(split.x.flatten(2)[:, :, places].transpose(1, 2), y)  # (n, pixels, channels)

    return SequenceProblem(
        channels,
        len(images.classes),
        lambda seed: rows_of(images.task(seed).train),
        lambda seed: [HeldOut(pixels, "", rows_of(images.task(seed).test))],
        images.provenance,
    )


def image_rows(images: ImageSet) -> SequenceProblem:
    """Images read row by row, the class asked for at the last row; splits are drawn by seed."""

    def rows_of(split: Split | None) -> Split:
        assert split is not None
        x = split.x.transpose(1, 2).flatten(2)  # (n, rows, channels * columns)
        y = torch.full(x.shape[:2], IGNORED)
        y[:, -1] = split.y
        return Split(x, y)

    _, channels, _, columns = images.x.shape
    return SequenceProblem(
        channels * columns,
        len(images.classes),
        lambda seed: rows_of(images.task(seed).train),
        lambda seed: [HeldOut(0, "", rows_of(images.task(seed).test))],
        images.provenance,
    )


def next_characters(
    texts: Sequence[str], length: int = 50, *, test_share: float = 0.1, provenance: tuple[dict[str, Any], ...] = ()
) -> SequenceProblem:
    """Predict each next character; windows do not overlap, the last share of the text is for testing.

    The vocabulary is that of the training part; what only the test part holds becomes its last symbol.

    Raises
    ------
    ValueError
        For a text too short for one window on each side, or a share outside (0, 1).
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie in (0, 1), got {test_share}")
    text = "\n".join(texts)
    cut = int(len(text) * (1 - test_share))
    vocabulary = {c: i for i, c in enumerate(sorted(set(text[:cut])))}

    def windows(part: str) -> Split:
        n = len(part) // (length + 1)
        if n < 1:
            raise ValueError(f"a part of {len(part)} characters holds no window of {length + 1}: bring a longer text")
        codes = [vocabulary.get(c, len(vocabulary) - 1) for c in part[: n * (length + 1)]]
        ids: Tensor = torch.tensor(codes).view(n, length + 1)
        return Split(ids[:, :-1], ids[:, 1:])

    train, test = windows(text[:cut]), windows(text[cut:])
    return SequenceProblem(len(vocabulary), len(vocabulary), train, lambda seed: [HeldOut(0, "", test)], provenance)


def copy_problem(batch: int, lengths: tuple[int, int], rows: int, *, symbols: int = 8) -> SequenceProblem:
    """`copy_pairs` for encoder-decoders, one length a batch, tested at the middle one."""
    low, high = lengths
    if not 1 <= low <= high:
        raise ValueError(f"lengths must be 1 <= low <= high, got {lengths}")
    middle = (low + high) // 2

    def draw(generator: torch.Generator, step: int) -> Split:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return Split(*copy_pairs(batch, length, generator, symbols=symbols))

    def tests(seed: int) -> list[HeldOut]:
        return [HeldOut(middle, "", Split(*copy_pairs(rows, middle, stream(seed, "test"), symbols=symbols)))]

    return SequenceProblem(symbols, symbols, sampled(draw), tests)

"""Running text in windows, and strings that lead up the garden path."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.data import load_texts, stream, topic_documents, train_tokenizer
from etude.data.garden_path import garden_path_grammar
from etude.errors import SourceUnavailable

WINDOW = 50  # steps read at once in the tests


class Window(NamedTuple):
    """A piece of every row."""

    ids: Tensor
    """(rows, length)"""
    targets: Tensor
    """(rows, length), the tokens after them."""
    first: bool
    """Rows begin here: the state starts at zero."""


@dataclass(frozen=True)
class Corpus:
    """Token ids, (N,) each."""

    train: Tensor
    test: Tensor
    vocab_size: int
    words: tuple[str, ...]
    provenance: tuple[dict[str, Any], ...] = ()


def words_corpus(c: Any) -> Corpus:
    """The Penn Treebank where its files are, else English leads of Wikipedia articles, split by article."""
    try:
        data = load_texts("ptb")
        train, test = ([data.texts[i] for i in data.official[part].tolist()] for part in ("train", "test"))
    except SourceUnavailable:
        data = load_texts("wikilead")
        train, test = halves(data.texts)
    return corpus(train, test, c, data.provenance)


def halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """Nine tenths of the documents, then every tenth."""
    kept = [t for t in texts if t.strip()]
    return [t for i, t in enumerate(kept) if i % 10 != 9], kept[9::10]


def corpus(train: list[str], test: list[str], c: Any, provenance: Any = ()) -> Corpus:
    """Words of running text; the commonest `c.vocab` of the training part keep their own number.

    ValueError for less text than one word a row and the word after it.
    """
    tokenizer = train_tokenizer(train, "word", c.vocab, lowercase=True)
    parts = []
    for name, texts, most, rows in (
        ("training", train, c.train_tokens, c.batch_size), ("test", test, c.test_rows * c.test_steps + 1, c.test_rows)
    ):  # fmt: skip
        ids: list[Tensor] = []
        for text in texts:
            encoded = tokenizer.encode([text], add_eos=True)
            ids.append(encoded.ids[0])
            if sum(map(len, ids)) >= most:
                break
        if (found := min(most, sum(map(len, ids)))) <= rows:
            raise ValueError(
                f"{name} text needs more than {rows} words, one a row and the next, got {found} in {len(texts)} "
                "documents: give more text (every tenth document is the test) or lower batch_size and test_rows"
            )
        parts.append(torch.cat(ids)[:most])
    return Corpus(parts[0], parts[1], tokenizer.vocab_size, tuple(tokenizer.vocab), provenance)


def topics_corpus(c: Any) -> Corpus:
    """Drawn documents: words that were seen make others of their topic likelier, as in running text."""
    texts = topic_documents(
        (c.train_tokens + c.test_rows * c.test_steps) // 50, 0, n_topics=5, n_words=100, words_per_topic=15
    ).texts  # fmt: skip
    return corpus(*halves(texts), c)


def windows(ids: Tensor, rows: int, length: int, start: int = 0) -> list[Window]:
    """All of a stream in `rows` parallel rows, in order; `start` turns the stream."""
    turned = torch.cat([ids[start:], ids[:start]])
    steps = (len(turned) - 1) // rows
    x, y = (turned[shift : shift + rows * steps].view(rows, steps) for shift in (0, 1))
    return [Window(x[:, t : t + length], y[:, t : t + length], t == 0) for t in range(0, steps, length)]


def garden_path_windows(n: int, rows: int, seed: int, name: str) -> tuple[list[Window], list[Window], Tensor, int]:
    """Training windows, one string a row; strings whose cue contradicts, their floor, and the cue's place."""
    grammar = garden_path_grammar()
    ids = grammar.sample(n, None, stream(seed, name)).symbols
    start = torch.full((len(ids), 1), len(grammar.alphabet))
    x, y = torch.cat([start, ids[:, :-1]], 1), ids
    train = [Window(a, b, True) for a, b in zip(x.split(rows), y.split(rows), strict=True)]
    drawn = grammar.sample(10 * rows, None, stream(seed, name, "test")).symbols
    cue = int((drawn == grammar.alphabet.index("y")).any(0).nonzero()[0])
    wrong = drawn[drawn[:, cue] == grammar.alphabet.index("y")]
    begin = torch.full((len(wrong), 1), len(grammar.alphabet))
    test = [Window(torch.cat([begin, wrong[:, :-1]], 1), wrong, True)]
    return train, test, -grammar.log_probs(wrong).mean(0), cue


def steps_to_recover(nll: Tensor, floor: Tensor, cue: int, margin: float = 0.2) -> float:
    """Steps after the cue until the mean surprise is within `margin` nats of the floor for good."""
    late = (nll[cue + 1 :] > floor[cue + 1 :] + margin).nonzero()
    return float(late[-1] + 1) if len(late) else 0.0


def sentence(words: tuple[str, ...], window: Window, length: int = 24) -> Iterator[str]:
    """Words of the first row's first steps."""
    return (words[i] for i in window.targets[0, :length].tolist())

"""Texts as rows of token ids, with the way back to the characters.

"byte", "char" and "word" are our own; "bpe", "wordpiece" and "unigram" are trained by the package `tokenizers`.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from etude.errors import MissingExtra

Kind = Literal["byte", "char", "word", "bpe", "wordpiece", "unigram"]
PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<bos>", "<eos>"
SPECIALS = (PAD, UNK, BOS, EOS)
WORD = re.compile(r"<\w+>|\w+(?:['’]\w+)*|[^\w\s]")
Pieces = tuple[list[int], list[tuple[int, int]]]


class Encoded(NamedTuple):
    """Rows of ids, padded at the end.

    ids
        (n, T) int64.
    mask
        (n, T) bool, True = a real token.
    offsets
        (n, T, 2) int64: the token is ``text[start:end]``; special tokens have start = end, padding -1.
    n_truncated
        Texts that were longer than `max_length`.
    """

    ids: Tensor
    mask: Tensor
    offsets: Tensor
    n_truncated: int

    @property
    def lengths(self) -> Tensor:
        """(n,) real tokens of each row."""
        return self.mask.sum(1)


class Tokenizer:
    """Built by `train_tokenizer`. Ids 0 to 3 are padding, unknown, begin and end; `vocab[i]` is token i.

    Parameters
    ----------
    kind
        How texts are cut.
    vocab
        All tokens, the four special ones first.
    state
        What a trained kind needs beyond its vocabulary, as JSON text.
    """

    pad_id, unk_id, bos_id, eos_id = range(4)

    def __init__(self, kind: Kind, vocab: Sequence[str], *, lowercase: bool = False, state: str = "") -> None:
        if tuple(vocab[:4]) != SPECIALS:
            raise ValueError(f"a vocabulary begins with {', '.join(SPECIALS)}, got {', '.join(vocab[:4])}")
        self.kind, self.vocab, self.lowercase, self.state = kind, tuple(vocab), lowercase, state
        self._ids = {token: i for i, token in enumerate(self.vocab)}
        self._trained: Any = _load_trained(state) if state else None
        self._pieces: Callable[[str], Pieces] = {"byte": self._bytes, "char": self._chars, "word": self._words}.get(
            kind, self._subwords
        )

    @property
    def vocab_size(self) -> int:
        return len(self.vocab)

    def encode(
        self, texts: Sequence[str], max_length: int | None = None, *, add_bos: bool = False, add_eos: bool = False
    ) -> Encoded:
        """Ids of the texts, cut to `max_length` tokens (special ones included) and padded to the longest row."""
        if isinstance(texts, str):
            raise ValueError("encode takes a list of texts, got one text")
        extra = add_bos + add_eos
        if max_length is not None and max_length <= extra:
            raise ValueError(f"max_length must be more than {extra} here, got {max_length}")
        rows: list[Pieces] = []
        truncated = 0
        for text in texts:
            ids, spans = self._pieces(text)
            if max_length is not None and len(ids) + extra > max_length:
                ids, spans = ids[: max_length - extra], spans[: max_length - extra]
                truncated += 1
            if add_bos:
                ids, spans = [self.bos_id, *ids], [(0, 0), *spans]
            if add_eos:
                end = spans[-1][1] if spans else 0
                ids, spans = [*ids, self.eos_id], [*spans, (end, end)]
            rows.append((ids, spans))
        longest = max((len(ids) for ids, _ in rows), default=0)
        out = torch.full((len(rows), longest), self.pad_id)
        offsets = torch.full((len(rows), longest, 2), -1)
        lengths = torch.tensor([len(ids) for ids, _ in rows], dtype=torch.int64)
        for i, (ids, spans) in enumerate(rows):
            if ids:
                out[i, : len(ids)] = torch.tensor(ids)
                offsets[i, : len(ids)] = torch.tensor(spans)
        mask = torch.arange(longest)[None, :] < lengths[:, None]
        return Encoded(out, mask, offsets, truncated)

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Texts of rows of ids; special tokens are left out. Exact for "byte" (and for known characters of "char");
        words are joined by spaces."""
        rows = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]
        if rows and not isinstance(rows[0], list):
            raise ValueError("decode takes rows of ids, (n, T), got one row")
        bad = [i for row in rows for i in row if not 0 <= i < self.vocab_size]
        if bad:
            raise ValueError(f"id {bad[0]} is outside the vocabulary of {self.vocab_size} tokens")
        return [self._text([i for i in row if i >= len(SPECIALS)]) for row in rows]

    def to_json(self) -> str:
        """All that `from_json` needs."""
        return json.dumps(
            {"kind": self.kind, "lowercase": self.lowercase, "vocab": self.vocab, "state": self.state},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` wrote."""
        stored = json.loads(text)
        return cls(stored["kind"], stored["vocab"], lowercase=stored["lowercase"], state=stored["state"])

    def _bytes(self, text: str) -> Pieces:
        if text.isascii():
            return [b + len(SPECIALS) for b in text.encode()], list(pairwise(range(len(text) + 1)))
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for place, character in enumerate(text):
            raw = character.encode("utf-8", errors="surrogatepass")
            ids += [b + len(SPECIALS) for b in raw]
            spans += [(place, place + 1)] * len(raw)
        return ids, spans

    def _chars(self, text: str) -> Pieces:
        known = [self._ids.get(self._fold(c), self.unk_id) for c in text]
        return known, list(pairwise(range(len(text) + 1)))

    def _words(self, text: str) -> Pieces:
        found = list(WORD.finditer(text))
        return [self._ids.get(self._fold(m.group()), self.unk_id) for m in found], [m.span() for m in found]

    def _subwords(self, text: str) -> Pieces:
        done = self._trained.encode(text, add_special_tokens=False)
        return list(done.ids), [tuple(span) for span in done.offsets]

    def _fold(self, token: str) -> str:
        return token.lower() if self.lowercase else token

    def _text(self, ids: list[int]) -> str:
        if self.kind == "byte":
            return bytes(i - len(SPECIALS) for i in ids).decode("utf-8", errors="replace")
        if self._trained is not None:
            return str(self._trained.decode(ids))
        return ("" if self.kind == "char" else " ").join(self.vocab[i] for i in ids)


def train_tokenizer(
    texts: Iterable[str], kind: Kind, vocab_size: int | None = None, *, lowercase: bool = False
) -> Tokenizer:
    """A tokenizer for texts like `texts`.

    Parameters
    ----------
    kind
        "byte": the 256 bytes of UTF-8, nothing is ever unknown. "char": the commonest characters. "word": the
        commonest words, numbers and signs. "bpe", "wordpiece", "unigram": sub-words, by the package `tokenizers`.
    vocab_size
        Tokens at most, the four special ones included; None: every one that occurs (bytes: 260; sub-words need
        a number). Of equally common tokens the alphabetically first is kept.
    lowercase
        Fold upper case ("char", "word" and sub-words).

    Raises
    ------
    ValueError
        If the texts hold no token, or `vocab_size` leaves no room for one.
    MissingExtra
        If a sub-word kind is asked for without the package `tokenizers`.
    """
    if isinstance(texts, str):
        raise ValueError("train_tokenizer takes a list of texts, got one text")
    if vocab_size is not None and vocab_size <= len(SPECIALS):
        raise ValueError(f"vocab_size must be more than the {len(SPECIALS)} special tokens, got {vocab_size}")
    if kind == "byte":
        if vocab_size not in (None, 260):
            raise ValueError(f'"byte" has 260 tokens (256 and 4 special ones), got vocab_size {vocab_size}')
        return Tokenizer("byte", [*SPECIALS, *(f"<0x{b:02X}>" for b in range(256))])
    if kind in ("char", "word"):
        counts: Counter[str] = Counter()
        for text in texts:
            folded = text.lower() if lowercase else text
            counts.update(folded if kind == "char" else WORD.findall(folded))
        for special in SPECIALS:
            counts.pop(special, None)
        if not counts:
            raise ValueError("the texts hold no token")
        ordered = sorted(counts, key=lambda t: (-counts[t], t))
        room = None if vocab_size is None else vocab_size - len(SPECIALS)
        return Tokenizer(kind, [*SPECIALS, *ordered[:room]], lowercase=lowercase)
    if kind not in ("bpe", "wordpiece", "unigram"):
        raise ValueError(f'kind must be "byte", "char", "word", "bpe", "wordpiece" or "unigram", got {kind!r}')
    if vocab_size is None:
        raise ValueError(f"{kind!r} needs a vocab_size")
    return _train_subwords(texts, kind, vocab_size, lowercase)


def _train_subwords(texts: Iterable[str], kind: Kind, vocab_size: int, lowercase: bool) -> Tokenizer:
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise MissingExtra("tokenizers", "hf", f"a tokenizer of kind {kind!r}") from error
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": list(SPECIALS), "show_progress": False}
    trainer: Any
    if kind == "bpe":
        made = tokenizers.Tokenizer(models.BPE(unk_token=UNK))
        trainer = trainers.BpeTrainer(**common)
    elif kind == "wordpiece":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token=UNK))
        trainer = trainers.WordPieceTrainer(**common)
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token=UNK, **common)
    if kind == "wordpiece":
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        space: Any = {"prepend_scheme": "never"}  # a space put before the text would have no offset
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(**space), decoders.Metaspace(**space)
    if lowercase:
        made.normalizer = normalizers.Lowercase()
    made.train_from_iterator(texts, trainer)
    vocab = made.get_vocab()
    if len(vocab) <= len(SPECIALS):
        raise ValueError("the texts hold no token")
    return Tokenizer(kind, sorted(vocab, key=vocab.__getitem__), lowercase=lowercase, state=made.to_str())


def _load_trained(state: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "hf", "a sub-word tokenizer") from error
    return tokenizers.Tokenizer.from_str(state)

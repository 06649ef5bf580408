"""Which code stands for what: an index of a corpus by codes, searched by precision and recall.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230 (code search).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.data.progress import track


class CodeHit(NamedTuple):
    """How well "the code fires" says that the concept is there."""

    name: str
    """Place of the codebook."""
    group: int
    code: int
    precision: float
    recall: float
    fired: int
    """Tokens of the corpus at which it fires."""


class CodeIndex:
    """Where every code fires in a corpus.

    Attributes
    ----------
    codes
        Name of a place to (n, T, G, k), -1 where there is padding.
    ids
        (n, T) the corpus.
    """

    def __init__(
        self,
        codes: Mapping[str, Tensor],
        ids: Tensor,
        mask: Tensor,
        texts: Sequence[str] | None = None,
        offsets: Tensor | None = None,
    ) -> None:
        self.codes, self.ids, self.mask, self.texts, self.offsets = dict(codes), ids, mask, texts, offsets

    @classmethod
    def build(
        cls, codes: Callable[[Any], Mapping[str, Tensor]], dataset: Any, *, tokenizer: Any = None, batch_size: int = 64
    ) -> "CodeIndex":
        """Run `codes` (batch to codes by place) over ids (n, T) or texts.

        Parameters
        ----------
        tokenizer
            For texts: an `etude.data.Tokenizer`, or a fast tokenizer of `transformers`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not len(dataset):
            raise ValueError("there is nothing in this corpus")
        texts, offsets, columns = None, None, {"ids": dataset}
        if not isinstance(dataset, Tensor):
            texts = list(dataset)
            if tokenizer is None or not isinstance(texts[0], str):
                raise ValueError("a corpus is a tensor of ids (n, T), or texts with their tokenizer")
            columns, offsets = _encode(texts, tokenizer)
        ids = columns.get("ids", columns.get("input_ids"))
        assert ids is not None
        mask = columns.get("mask", columns.get("attention_mask"))
        parts = []
        for rows in track(torch.arange(len(ids)).split(batch_size), "reading the corpus"):
            here = {key: value[rows] for key, value in columns.items()}
            parts.append(codes(here if "input_ids" in here else tuple(here.values())))
        whole = {name: torch.cat([p[name].cpu() for p in parts]) for name in parts[0]}
        real = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
        for name, found in whole.items():
            if found.shape[:2] != real.shape:
                raise ValueError(
                    f"{name}: codes have shape {tuple(found.shape)}, not one set a token of {tuple(ids.shape)}"
                )
            whole[name] = found.masked_fill(~real[..., None, None], -1)
        return cls(whole, ids.cpu(), real, texts, offsets)

    def labels(self, predicate: Any) -> Tensor:
        """(n, T) bool: tokens that overlap a match of a regular expression, or ``predicate(ids)``, or a mask itself."""
        if isinstance(predicate, str):
            if self.texts is None or self.offsets is None:
                raise ValueError("a regular expression needs a corpus of texts; give a test of the ids, or a mask")
            out = torch.zeros_like(self.mask)
            for i, text in enumerate(self.texts):
                for m in re.finditer(predicate, text):
                    start, end = self.offsets[i, :, 0], self.offsets[i, :, 1]
                    out[i] |= (start < m.end()) & (end > m.start()) & (end > start)
            return out & self.mask
        found = torch.as_tensor(predicate(self.ids) if callable(predicate) else predicate)
        if found.dtype != torch.bool or found.shape != self.mask.shape:
            raise ValueError(f"labels must be Boolean {tuple(self.mask.shape)}, got {found.dtype} {tuple(found.shape)}")
        return found & self.mask

    def search(self, predicate: Any, *, min_precision: float = 0.9) -> list[CodeHit]:
        """Codes that detect a concept with at least `min_precision`, the highest recall first.

        Parameters
        ----------
        predicate
            See `labels`.

        Raises
        ------
        ValueError
            If the concept is nowhere in the corpus.
        """
        if not 0 <= min_precision <= 1:
            raise ValueError(f"min_precision must lie in [0, 1], got {min_precision}")
        label = self.labels(predicate)
        there = int(label.sum())
        if not there:
            raise ValueError(f"{predicate!r} is true of no token of this corpus")
        hits = []
        for name, codes in self.codes.items():
            for g in range(codes.shape[2]):
                of_group = codes[:, :, g]
                fired = torch.bincount(of_group[self.mask].flatten())
                right = torch.bincount(of_group[label].flatten(), minlength=len(fired))
                for code in right.nonzero()[:, 0].tolist():
                    n, r = int(fired[code]), int(right[code])
                    if r >= min_precision * n:
                        hits.append(CodeHit(name, g, code, r / n, r / there, n))
        return sorted(hits, key=lambda h: (-h.recall, -h.precision, h.name, h.group, h.code))

    def where(self, name: str, code: int, group: int = 0) -> Tensor:
        """(m, 2): row and position of every token at which a code fires.

        Raises
        ------
        ValueError
            If there is no such codebook.
        IndexError
            For a code below 0, which would find the padding, or a group that the codebook does not have.
        """
        if name not in self.codes:
            raise ValueError(f"no codebook named {name!r}; there are {', '.join(self.codes)}")
        groups = self.codes[name].shape[2]
        if code < 0 or not 0 <= group < groups:
            raise IndexError(f"codes are at least 0 and groups of {name!r} 0..{groups - 1}, got {code} and {group}")
        return (self.codes[name][:, :, group] == code).any(-1).nonzero()

    def contexts(self, name: str, code: int, group: int = 0, *, before: int = 8, limit: int = 5) -> list[Any]:
        """What stood at the first `limit` firings: text up to the token, or its ids and `before` ids in front of it."""
        out: list[Any] = []
        for row, t in self.where(name, code, group)[:limit].tolist():
            if self.texts is not None and self.offsets is not None:
                start, end = int(self.offsets[row, max(0, t - before), 0]), int(self.offsets[row, t, 1])
                out.append(self.texts[row][max(0, start) : end])
            else:
                out.append(self.ids[row, max(0, t - before) : t + 1].tolist())
        return out


def _encode(texts: Sequence[str], tokenizer: Any) -> tuple[dict[str, Tensor], Tensor]:
    if hasattr(tokenizer, "vocab_size") and callable(tokenizer):
        enc = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, return_offsets_mapping=True)
        return {"input_ids": enc["input_ids"], "attention_mask": enc["attention_mask"]}, enc["offset_mapping"]
    enc = tokenizer.encode(list(texts))
    return {"ids": enc.ids, "mask": enc.mask}, enc.offsets

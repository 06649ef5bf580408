"""Concepts in text: how well codes and neurons detect them, and whether forcing a code makes a model write them."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from etude import trust
from etude.data import Tokenizer, stream
from etude.lab.study import Job, Measurement
from etude.layers.surgery import Record
from etude.trust import CodebookModel

CONCEPTS = {
    "number": r"\d+", "capital": r"\b[A-Z][a-z]+", "comma": r",", "full stop": r"\.", "quote": r'"', "of": r"\bof\b",
    "the": r"\bthe\b", "and": r"\band\b", "in": r"\bin\b", "is": r"\b(is|was|are|were)\b",
    "he": r"\b(he|she|they|it)\b",
    "month": r"\b(January|February|March|April|June|July|August|September|October|November|December)\b",
}  # fmt: skip
PRECISION = 0.9
STILL = 0.8  # a detector's precision on the second half of the text, below which it has found nothing
STEERED = {
    "own": ("lm_codebook_k8", "topic_rate"), "none": ("lm_codebook_k8", "topic_rate_unforced"),
    "other": ("lm_codebook_random_concept", "topic_rate"),
}  # fmt: skip
START, WRITTEN, SAMPLES = 4, 24, 32  # tokens of a prompt and written after it, prompts


@torch.no_grad()
def concept_measurements(
    job: Job, seed: int, plain: nn.Module, cb: CodebookModel, tokenizer: Tokenizer, texts: list[str], characters: int
) -> Iterator[Measurement]:
    """A detector is chosen on every other text and scored on the rest, in the same way for codes and neurons; then the
    codes that were chosen steer what is written."""
    texts = [t[:characters] for t in texts if tokenizer.encode([t[:characters]]).ids.shape[1] >= 2]
    halves = [cb.index(part, tokenizer=tokenizer) for part in (texts[::2], texts[1::2]) if part]
    if len(halves) < 2:
        return
    units = []
    for half in halves:
        with Record(plain, "*.ffn.up") as record:
            plain(half.ids.to(job.device), half.mask.to(job.device))
        units.append(torch.cat([v[half.mask.to(v.device)] for v in record.features.values()], -1).cpu())
    best = {}
    for name, pattern in CONCEPTS.items():
        if all(int(half.labels(pattern).sum()) >= 5 for half in halves):
            best[name] = next(iter(halves[0].search(pattern, min_precision=PRECISION)), None)
    scores: dict[str, list[float]] = {"lm_codebook_k8": [], "lm_plain": [], "lm_codebook_random_concept": []}
    for i, name in enumerate(best):
        labels = [half.labels(CONCEPTS[name])[half.mask] for half in halves]
        scores["lm_codebook_k8"].append(_recall_of_code(halves[1], best[name], CONCEPTS[name]))
        other = [*best.values()][(i + 1) % len(best)]
        scores["lm_codebook_random_concept"].append(_recall_of_code(halves[1], other, CONCEPTS[name]))
        unit, cut = trust.best_unit(units[0], labels[0], min_precision=PRECISION)
        fires = units[1][:, unit] >= cut
        scores["lm_plain"].append(_recall(fires, labels[1]))
    for arm, values in scores.items():
        if values:
            yield Measurement(arm, seed, "recall_at_precision_90", sum(values) / len(values))
    codes = {name: hit for name, hit in best.items() if hit is not None}
    begin = halves[1].ids[halves[1].mask.sum(1) >= START][:SAMPLES, :START].to(job.device)
    if codes and len(begin):
        rates = topic_rates(cb, tokenizer, begin, codes, seed)
        for kind, (arm, metric) in STEERED.items():
            if kind in rates:
                yield Measurement(arm, seed, metric, rates[kind])


def topic_rates(cb: Any, tokenizer: Any, begin: Tensor, codes: dict[str, trust.CodeHit], seed: int) -> dict[str, float]:
    """Share of written samples that hold a concept, mean over concepts: with its "own" code forced at every token, with
    "none", and, where there are two concepts or more, with that of an "other" one."""
    found: dict[str, list[float]] = {"own": [], "none": [], "other": []}
    names = list(codes)
    for i, name in enumerate(names):
        other = codes[names[(i + 1) % len(names)]]
        forced = {"own": codes[name], "none": None} | ({"other": other} if len(names) > 1 else {})
        for kind, hit in forced.items():
            held = nullcontext() if hit is None else cb.force({hit.name: [hit.code]}, groups=[hit.group])
            with held:
                ids = cb.model.generate(begin, WRITTEN, generator=stream(seed, "steer", i))
            texts = tokenizer.decode(ids[:, begin.shape[1] :].cpu())
            found[kind].append(sum(bool(re.search(CONCEPTS[name], text)) for text in texts) / len(texts))
    return {kind: sum(values) / len(values) for kind, values in found.items() if values}


def _recall_of_code(index: trust.CodeIndex, hit: trust.CodeHit | None, pattern: str) -> float:
    if hit is None:
        return 0.0
    fires = (index.codes[hit.name][:, :, hit.group] == hit.code).any(-1)
    return _recall(fires[index.mask], index.labels(pattern)[index.mask])


def _recall(fires: Tensor, labels: Tensor) -> float:
    right = int((fires & labels).sum())
    return right / max(1, int(labels.sum())) if right >= STILL * int(fires.sum()) else 0.0

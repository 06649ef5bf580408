"""Corpus audit against counting alone, miscalibration of a million facts, sentences listed by shared prefixes."""

from collections import Counter
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from etude.data.randomness import numpy_stream, seeded_build, stream
from etude.lab.bench import Case
from etude.layers import DecoderConfig, DecoderLM, enumerate_logprobs, token_logprobs
from etude.trust import hallucination as hl


def _by_dictionary(g: np.ndarray, p: np.ndarray) -> float:
    """Miscalibration as it is written down: a dictionary from level to the mass in it."""
    gap: dict[float, float] = {}
    for level, truth in zip(g.tolist(), p.tolist(), strict=True):
        gap[level] = gap.get(level, 0.0) + truth - level
    return 0.5 * sum(map(abs, gap.values()))


def _smoothed(facts: list[str]) -> float:
    from nltk.probability import FreqDist, SimpleGoodTuringProbDist

    return float(SimpleGoodTuringProbDist(FreqDist(facts)).discount())


def cases() -> list[Case]:
    """Ten million facts; a million probabilities; 64,000 sentences. The second needs the package nltk."""
    rng = numpy_stream(0, "bench")
    facts = [f"fact {i}" for i in (rng.zipf(1.3, 10_000_000) % 1_000_000).tolist()]
    raw = rng.integers(1, 2000, 1_000_000).astype(float)
    g, p = raw / raw.sum(), rng.dirichlet(np.ones(1_000_000))
    config = DecoderConfig(num_layers=2, hidden_dim=64, vocab_size=121, max_length=4)
    model = seeded_build(lambda: DecoderLM(config).eval(), stream(0, "init"))
    slots = [list(range(1, 41)), list(range(41, 81)), list(range(81, 121))]
    every = torch.cartesian_prod(*(torch.tensor(s) for s in slots))
    ids = torch.cat([torch.zeros(len(every), 1, dtype=torch.long), every], 1)

    def one_by_one() -> Any:
        return torch.cat([token_logprobs(model, part).sum(1) for part in ids.split(1024)])

    found = [
        Case(
            "audit of ten million facts", lambda: hl.corpus_audit(facts).n, lambda: sum(Counter(facts).values()),
            "collections.Counter, counting alone", lambda a, b: a == b, target=0.5,
        ),
        Case(
            "missing mass of a million facts", lambda: hl.corpus_audit(facts[:1_000_000]).missing_mass,
            lambda: _smoothed(facts[:1_000_000]), "nltk SimpleGoodTuringProbDist", None, target=1.0,
            note="nltk smooths N_1 on a line through the log counts; ours is N_1 / n",
        ),
        Case(
            "miscalibration of a million facts", lambda: hl.miscalibration(g, p), lambda: _by_dictionary(g, p),
            "a dictionary of levels", lambda a, b: abs(a - b) < 1e-9, target=None,
        ),
        Case(
            "64,000 sentences by shared prefixes",
            lambda: enumerate_logprobs(model, slots, prefix=torch.tensor([0]), restrict=False).flatten(),
            one_by_one, "scoring every sentence", lambda a, b: bool((a - b).abs().max() < 1e-4), target=20.0,
        ),
    ]  # fmt: skip
    return found if find_spec("nltk") else [case for case in found if not case.peer_name.startswith("nltk")]

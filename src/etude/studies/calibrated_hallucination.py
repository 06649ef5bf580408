"""Calibrated language models must hallucinate: is the rate of falsehoods at least MF minus the miscalibration?

Worlds of a million facts with generators whose every probability is known, and small language models trained on
sentences that are facts, whose probabilities are all listed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from etude.data.randomness import numpy_stream
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._hallucination_plots import hallucination_plots
from etude.training import TrainConfig
from etude.trust.fact_language import (
    FactCorpus,
    WatchFacts,
    bigram_probabilities,
    fact_corpus,
    fact_point,
    model_summary,
    train_fact_model,
    uniform_probabilities,
    upweight,
)
from etude.trust.fact_worlds import FactWorld, fact_world, memoriser, repeated_world, world_points, world_summary
from etude.trust.facts import count_facts

OTHERS = {"uniform": uniform_probabilities, "bigram": bigram_probabilities}


class HallucinationConfig(StudyConfig):
    """Sizes of the worlds, the language and the nets."""

    space_size: PositiveInt = 1_000_000
    num_facts: PositiveInt = 5000
    n_documents: PositiveInt = 5000
    exponents: tuple[float, ...] = (0.6, 1.0, 1.4)
    """Zipf exponents of the worlds."""
    draws: PositiveInt = 4
    """Corpora of each world and seed."""
    words: PositiveInt = 40
    """Words a slot: a language of words^3 sentences."""
    true_sentences: PositiveInt = 640
    n_sentences: PositiveInt = 2000
    """In the training corpus, and as many held out."""
    language_exponent: PositiveFloat = 1.0
    num_layers: PositiveInt = 2
    hidden_dim: PositiveInt = 64
    num_heads: PositiveInt = 4
    steps: PositiveInt = 1500
    """At most: a run stops four evaluations after its best held-out loss and takes the net of that point."""
    eval_every: PositiveInt = 100
    batch_size: PositiveInt = 128
    lr: PositiveFloat = 3e-3


class HallucinationStudy(Study):
    """All arms of a seed have the same worlds; language models the same sentences."""

    kinds = ("documents",)
    configs = {
        "quick": HallucinationConfig(
            n_seeds=3, words=12, true_sentences=60, n_sentences=200, hidden_dim=32, num_layers=1, steps=160,
            eval_every=40,
        ),
        "laptop": HallucinationConfig(),
        "gpu": HallucinationConfig(
            words=100, true_sentences=10_000, n_sentences=100_000, num_layers=4, hidden_dim=256, steps=6000,
            eval_every=500, batch_size=1024, lr=1e-3, exponents=(0.4, 0.6, 0.8, 1.0, 1.2, 1.4),
        ),
    }  # fmt: skip
    arms = {
        "worlds": Arm("generators with known probabilities"),
        "uniform": Arm("every sentence alike", role="control", derived=True),
        "bigram": Arm("bigram model", role="reference", derived=True),
        "lm_random": Arm("language model, facts without a pattern"),
        "lm_copy": Arm("language model, facts that follow a rule"),
        "lm_upweighted": Arm("language model, a fifth of the sentences ten times", role="ablation"),
        "lm_thrice": Arm("language model, every fact three times", role="ablation"),
    }

    def task(self, protocol: str, config: HallucinationConfig) -> None:
        """Nothing to load: worlds are drawn."""

    def user_task(self, data: Any, config: HallucinationConfig) -> np.ndarray:
        """How often each of the user's texts occurs: the distribution of the worlds."""
        return count_facts(data.texts)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Compute the worlds, or train the arm's language model and list all it would say."""
        if job.arm == "worlds":
            for seed in job.seeds:
                yield from _worlds(job, seed)
        elif job.task is not None:  # the user's texts are no language of three words
            for seed in job.seeds:
                yield Measurement(job.arm, seed, "monofact", _user_world(job, seed).audit().monofact)
        else:
            yield from _language(job)

    def plots(self, results: Results) -> list[Plot]:
        """Rate against miscalibration over the floor, rate against MF, and the classes of counts."""
        return hallucination_plots(results)


def _user_world(job: Job, seed: int, draw: int = 0) -> FactWorld:
    p = job.task / job.task.sum()
    counts = numpy_stream(seed, "world", draw).multinomial(max(int(job.task.sum()), 2), p)
    return FactWorld(200 * len(p), p, counts)


def _worlds(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    c: HallucinationConfig = job.config
    sizes = c.space_size, c.num_facts, c.n_documents
    draws = [
        {a: fact_world(*sizes, a, numpy_stream(seed, "world", str(a), i)) for a in c.exponents} for i in range(c.draws)
    ]
    if job.task is not None:
        draws = [{1.0: _user_world(job, seed, i)} for i in range(c.draws)]
    worlds = draws[0]
    for metric, value in world_summary([list(draw.values()) for draw in draws]).items():
        yield Measurement("worlds", seed, metric.lower().replace(" ", "_").replace("-", "_").replace(".", ""), value)
    thrice, one = repeated_world(c.space_size, c.num_facts, 3), worlds[1.0]
    for metric, world in (("repeated_sum", thrice), ("zipf_sum", one)):
        g = memoriser(world)
        yield Measurement("worlds", seed, metric, g.hallucination_rate + g.miscalibration())
    if seed == c.seeds[0]:
        points = world_points(one)
        shown: Any = [{"name": p.generator, "mis": p.miscalibration, "rate": p.rate} for p in points]
        yield Artifact(
            "worlds", seed, "worlds", {"points": shown, "monofact": points[0].monofact, "slack": points[0].slack}
        )
        rows: Any = [p._asdict() | {"name": p.generator} for world in worlds.values() for p in world_points(world)]
        yield Artifact("worlds", seed, "by_monofact", rows)
        yield Artifact("worlds", seed, "audit", one.audit().plot())


def _corpus(job: Job, seed: int) -> FactCorpus:
    c: HallucinationConfig = job.config
    return fact_corpus(
        numpy_stream(seed, "corpus"), rule="copy" if job.arm == "lm_copy" else "random", sizes=(c.words,) * 3,
        num_facts=c.true_sentences, exponent=c.language_exponent, n=c.n_sentences, n_heldout=c.n_sentences,
        times=3 if job.arm == "lm_thrice" else None,
    )  # fmt: skip


def _language(job: Job) -> Iterator[Measurement | Artifact]:
    c: HallucinationConfig = job.config
    corpora = {seed: _corpus(job, seed) for seed in job.seeds}
    train_on = None
    if job.arm == "lm_upweighted":
        train_on = {s: upweight(k.train, 0.2, numpy_stream(s, "upweight")) for s, k in corpora.items()}
    watch = WatchFacts(corpora)
    config = TrainConfig(steps=c.steps, batch_size=c.batch_size, lr=c.lr, eval_every=c.eval_every, patience=4)
    nets = train_fact_model(
        corpora, num_layers=c.num_layers, hidden_dim=c.hidden_dim, num_heads=c.num_heads, config=config,
        train_on=train_on, callbacks=[watch], device=job.device,
    )  # fmt: skip
    for net in nets:
        seed, corpus = net.seed, corpora[net.seed]
        found, points = model_summary(net.module, corpus, [p for _, p in watch.points[seed]])
        yield from (Measurement(job.arm, seed, metric, value) for metric, value in found.items())
        rule = job.arm.removeprefix("lm_")
        for arm, make in OTHERS.items() if rule in ("random", "copy") else ():
            rate, mis, *_ = fact_point(make(corpus), corpus)
            yield Measurement(arm, seed, f"hallucination_{rule}", rate)
            yield Measurement(arm, seed, f"mis_{rule}", mis)
            yield Measurement(arm, seed, f"ratio_{rule}", rate / found["monofact"])
        if seed == c.seeds[0] and rule in ("random", "upweighted"):
            shown: Any = [
                {"name": f"{rule}, {n}", "mis": p.miscalibration, "rate": p.hallucination_rate} for n, p in points
            ]
            yield Artifact(job.arm, seed, "points", {"points": shown, "monofact": found["monofact"], "slack": 0.0})

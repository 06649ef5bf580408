"""How the study of hallucination measures its worlds and its language models."""

from collections.abc import Iterator
from typing import Any

from etude.data.randomness import numpy_stream
from etude.lab.study import Artifact, Job, Measurement
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

SHARES = {"lm_upweighted": 0.2, "lm_upweighted5": 0.05}  # of the sentences, which the net then reads ten times
OTHERS = {"uniform": uniform_probabilities, "bigram": bigram_probabilities}


def user_world(job: Job, seed: int, draw: int = 0) -> FactWorld:
    """A world with the user's frequencies and a corpus drawn from it."""
    p = job.task / job.task.sum()
    counts = numpy_stream(seed, "world", draw).multinomial(max(int(job.task.sum()), 2), p)
    return FactWorld(200 * len(p), p, counts)


def measure_worlds(job: Job, seed: int) -> Iterator[Measurement | Artifact]:
    """Rate, miscalibration and MF of generators whose every probability is known."""
    c = job.config
    sizes = c.space_size, c.num_facts, c.n_documents
    draws = [
        {a: fact_world(*sizes, a, numpy_stream(seed, "world", str(a), i)) for a in c.exponents} for i in range(c.draws)
    ]
    if job.task is not None:
        draws = [{1.0: user_world(job, seed, i)} for i in range(c.draws)]
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
    c = job.config
    return fact_corpus(
        numpy_stream(seed, "corpus"), rule="copy" if job.arm == "lm_copy" else "random", sizes=(c.words,) * 3,
        num_facts=c.true_sentences, exponent=c.language_exponent, n=c.n_sentences, n_heldout=c.n_sentences,
        times=3 if job.arm == "lm_thrice" else None,
    )  # fmt: skip


def measure_language(job: Job) -> Iterator[Measurement | Artifact]:
    """Train the arm's language models and list all they would say."""
    c = job.config
    corpora = {seed: _corpus(job, seed) for seed in job.seeds}
    train_on = None
    if share := SHARES.get(job.arm):
        train_on = {s: upweight(k.train, share, numpy_stream(s, "upweight")) for s, k in corpora.items()}
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
            if found["monofact"]:  # without facts seen once there is no ratio, as in `model_summary`
                yield Measurement(arm, seed, f"ratio_{rule}", rate / found["monofact"])
        if seed == c.seeds[0] and rule in ("random", "upweighted", "upweighted5"):
            shown: Any = [
                {"name": f"{rule}, {n}", "mis": p.miscalibration, "rate": p.hallucination_rate} for n, p in points
            ]
            yield Artifact(job.arm, seed, "points", {"points": shown, "monofact": found["monofact"], "slack": 0.0})

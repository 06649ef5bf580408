"""Calibrated language models must hallucinate: is the rate of falsehoods at least MF minus the miscalibration?

Worlds of a million facts with generators whose every probability is known, and small language models trained on
sentences that are facts, whose probabilities are all listed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import PositiveFloat, PositiveInt, field_validator

from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._hallucination_measures import measure_language, measure_worlds, user_world
from etude.studies._hallucination_plots import hallucination_plots
from etude.trust.facts import count_facts


class HallucinationConfig(StudyConfig):
    """Sizes of the worlds, the language and the nets."""

    space_size: PositiveInt = 1_000_000
    num_facts: PositiveInt = 5000
    n_documents: PositiveInt = 5000
    exponents: tuple[float, ...] = (0.6, 1.0, 1.4)
    """Zipf exponents of the worlds; 1 must be among them."""
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

    @field_validator("exponents")
    @classmethod
    def _with_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in value or not all(0 <= exponent < np.inf for exponent in value):
            raise ValueError(
                f"exponents must be at least 0 and hold 1 (the plots and H4a need that world), got {list(value)}"
            )
        return value


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
        "lm_upweighted5": Arm("language model, a twentieth of the sentences ten times", role="ablation"),
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
                yield from measure_worlds(job, seed)
        elif job.task is not None:  # the user's texts are no language of three words
            for seed in job.seeds:
                yield Measurement(job.arm, seed, "monofact", user_world(job, seed).audit().monofact)
        else:
            yield from measure_language(job)

    def plots(self, results: Results) -> list[Plot]:
        """Rate against miscalibration over the floor, rate against MF, and the classes of counts."""
        return hallucination_plots(results)

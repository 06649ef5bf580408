"""Recoding latent representations: does moving a recurrent state down an error signal make the model better?

One plain language model a seed; every signal is then applied at test time to the same weights. A second pair of
models is trained with and without the recoder. The control takes steps of the same length in random directions.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies import _recoding_measures as measures
from etude.studies import _recoding_problems as problems
from etude.studies._recoding_arms import GRID, NLL, TESTED
from etude.studies._recoding_plots import recoding_plots

WORDS = ("words", "topics")


class RecodingConfig(StudyConfig):
    """Sizes of the text, the nets and the tests."""

    vocab: PositiveInt = 3000
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 1
    dropout: float = Field(0.2, ge=0, lt=1)
    train_tokens: PositiveInt = 75_000
    twin_tokens: PositiveInt = 30_000
    """For the pair that is trained with and without the recoder."""
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 32
    bptt: PositiveInt = 16
    lr: PositiveFloat = 2e-3
    test_rows: PositiveInt = 20
    test_steps: PositiveInt = 500
    dynamic_lr: PositiveFloat = 0.3
    """Of dynamic evaluation, whose windows are 5 tokens long."""
    timing_seconds: PositiveFloat = 0.1
    """A turn of the comparison of speeds lasts at least so long."""
    garden_path_strings: PositiveInt = 3000


class RecodingStudy(Study):
    """Perplexities of a seed are of the same test text; changes are of the same weights."""

    kinds: ClassVar = ("documents",)
    configs = {
        "quick": RecodingConfig(
            n_seeds=3, protocols=("topics",), vocab=110, hidden_size=32, train_tokens=9000, twin_tokens=3000, lr=1e-2,
            batch_size=16, test_rows=10, test_steps=60, garden_path_strings=640, epochs=2, timing_seconds=0.03,
        ),
        "laptop": RecodingConfig(protocols=("words",)),
        "gpu": RecodingConfig(
            n_seeds=3, protocols=("words", "trained"), vocab=10_000, hidden_size=650, num_layers=2, bptt=35,
            batch_size=64, train_tokens=1_000_000, twin_tokens=100_000, epochs=8, lr=1e-3, test_steps=1000,
        ),
    }  # fmt: skip
    arms = {
        "plain": Arm("LSTM language model as it is", role="baseline", protocols=WORDS),
        **{
            name: Arm(f"{name.replace('_', ' ')}: recoded at test time", derived=True,
                      role="control" if name.startswith("random") else "method")
            for name in TESTED
        },
        "dynamic_evaluation": Arm("weights, not states, follow the gradient", role="reference", derived=True),
        "recoder": Arm("speed of recoding by surprise", derived=True),
        "plain_repeat": Arm("the plain net timed a second time", role="control", derived=True),
        "trained_with_tested_with": Arm("trained with recoding, tested with it", protocols=WORDS),
        "trained_with_tested_without": Arm("trained with recoding, tested without", role="ablation", derived=True),
        "trained_with_random_direction": Arm("trained with, random steps in the test", role="control", derived=True),
        "trained_without_tested_with": Arm("trained without, tested with", role="ablation", derived=True),
        "trained_without_tested_without": Arm("trained without, tested without", role="baseline", derived=True),
        "garden_path": Arm("strings whose cue contradicts their likely reading", role="reference", protocols=WORDS),
        **{name: Arm("trained and tested with the thesis' settings", protocols=("trained",)) for name in GRID},
        **{f"{name}_tested_without": Arm("the same net, read without", role="ablation", derived=True) for name in GRID},
    }  # fmt: skip

    def task(self, protocol: str, config: RecodingConfig) -> problems.Corpus:
        """Running text as word numbers."""
        return problems.topics_corpus(config) if protocol == "topics" else problems.words_corpus(config)

    def user_task(self, data: Any, config: RecodingConfig) -> problems.Corpus:
        """The words of the user's documents, every tenth document held out."""
        return problems.corpus(*problems.halves(data.texts), config, data.provenance)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the nets of a job, then read the test text with each recoding."""
        if job.arm == "plain":
            for seed, lm in measures.trained(job, job.config.train_tokens).items():
                yield from measures.test_time(job, seed, lm)
        elif job.arm == "garden_path":
            yield from measures.garden_path(job)
        elif job.arm in GRID:
            options = GRID[job.arm]
            for seed, lm in measures.trained(job, job.config.twin_tokens, **options).items():
                yield from measures.two_by_two(job, seed, lm, options, job.arm, f"{job.arm}_tested_without")
        else:
            size = NLL | {"step_size": 0.1}
            for name, trained_with in (("trained_with", size), ("trained_without", {})):
                for seed, lm in measures.trained(job, job.config.twin_tokens, **trained_with).items():
                    yield from measures.two_by_two(job, seed, lm, size, f"{name}_tested_with", f"{name}_tested_without")

    def plots(self, results: Results) -> list[Plot]:
        """Signal before and after, perplexity against step size, the 2 x 2 table, one sentence, the garden path."""
        return recoding_plots(results, {name: o["step_size"] for name, o in TESTED.items()})

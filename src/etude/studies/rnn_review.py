"""A critical review of recurrent nets: which cell remembers for how long, and what that hangs on.

Exact tasks whose answer lies a known number of steps back, gradients through time, real rows and characters.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import PositiveFloat, PositiveInt, model_validator

from etude.data import load_images, load_texts
from etude.data import sequence_problems as problems
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._recurrent_plots import recurrent_plots
from etude.studies._recurrent_runs import gradients, trained

TASKS, CUT, PAIRS = ("recall", "digits", "characters"), ("truncation", "characters"), ("two_sided", "copy")
CELLS, OLD = (*TASKS, "gradients"), ("recall", "characters", "gradients")
ORDER, XOR, PIXELS = "temporal_order", "two_sided_xor", "pixels"
MORE = ("adding_50", "adding_200", ORDER, PIXELS)
"""Of the gpu tier alone, as is XOR: measured without a verdict."""


class ReviewConfig(StudyConfig):
    """Sizes of the nets, delays and runs."""

    protocols: tuple[str, ...] = ("recall", "truncation", "two_sided", "copy", "gradients", "digits")
    hidden_size: PositiveInt = 48
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 3e-3
    steps: PositiveInt = 1000
    """Updates; two_sided takes a third of them, digits two."""
    longest: PositiveInt = 40
    """Longest delay in training on recall; truncation goes to half of it."""
    window: PositiveInt = 10
    """Inputs that the time window sees."""
    test_rows: PositiveInt = 512

    @model_validator(mode="after")
    def _long_enough(self) -> "ReviewConfig":
        if "truncation" in self.protocols and self.longest < 12:
            raise ValueError(f"longest must be at least 12 for protocol truncation (delays from 6), got {self.longest}")
        return self


class ReviewStudy(Study):
    """Every arm of a seed sees the same batches; `shuffled` is the LSTM with its neighbour's answers."""

    kinds: ClassVar = ("documents",)
    configs: ClassVar = {
        "quick": ReviewConfig(
            n_seeds=3, protocols=("recall", "two_sided", "gradients"), hidden_size=32, batch_size=32, lr=1e-2,
            steps=200, longest=10, window=5,
        ),
        "laptop": ReviewConfig(),
        "gpu": ReviewConfig(
            protocols=(*CELLS, *PAIRS, "truncation", *MORE, XOR), hidden_size=128, steps=4000, longest=200
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "lstm": Arm("LSTM, forget bias 1"),
        "gru": Arm("GRU", protocols=(*CELLS, *MORE)),
        "lstm97": Arm("LSTM without forget gate", protocols=(*OLD, "adding_50", ORDER)),
        "elman": Arm("Elman net, tanh", role="baseline", protocols=(*CELLS, *MORE)),
        "relu": Arm("Elman net, relu, identity start", role="ablation", protocols=(*OLD, *MORE)),
        "jordan": Arm("Jordan net", role="baseline", protocols=(*OLD, ORDER)),
        "memory": Arm("LSTM with an outer memory", protocols=("adding_50", ORDER), own_data=False),
        "window": Arm("feed-forward net over a time window", role="baseline", protocols=OLD[:2]),
        "k5": Arm("LSTM, gradients cut after 5 steps", protocols=CUT),
        "k10": Arm("LSTM, gradients cut after 10 steps", role="ablation", protocols=CUT),
        "k1": Arm("the same, after 1", role="ablation", protocols=CUT[1:], own_data=False),
        "k20": Arm("the same, after 20", role="ablation", protocols=CUT[1:]),
        "bidirectional": Arm("two LSTMs, one reads backwards", derived=True),
        "reversed": Arm("encoder-decoder that reads the source backwards", derived=True),
        "linear": Arm("linear cells of known spectral radius", protocols=("gradients",)),
        "shuffled": Arm("LSTM, answers of the neighbour", role="control", protocols=(*TASKS, *CUT, *PAIRS, *MORE, XOR)),
        "shuffled_lags": Arm("linear cells, lags in random order", role="control", derived=True),
    }

    def task(self, protocol: str, config: ReviewConfig) -> Any:
        """The sequences of a protocol; gradients need none."""
        c, top = config, config.longest
        delays = {1: None, 5: None, 10: None, 3 * top // 4: None, top // 2: "_half", 3 * top // 2: "_beyond", top: ""}
        make = {
            "recall": lambda: problems.recall_problem(c.batch_size, (1, top), delays, c.test_rows),
            "truncation": lambda: problems.recall_problem(c.batch_size, (6, top // 2), {top // 2: ""}, c.test_rows),
            "two_sided": lambda: problems.two_sided_problem(c.batch_size, 20, c.test_rows),
            "copy": lambda: problems.copy_problem(c.batch_size, (10, 20), c.test_rows),
            "digits": lambda: problems.image_rows(load_images("digits")),
            "characters": lambda: self.user_task(load_texts("tinyshakespeare"), c),
            "adding_50": lambda: problems.adding_problem(c.batch_size, 50, c.test_rows),
            "adding_200": lambda: problems.adding_problem(c.batch_size, 200, c.test_rows),
            ORDER: lambda: problems.temporal_order_problem(c.batch_size, 100, c.test_rows),
            XOR: lambda: problems.two_sided_problem(c.batch_size, 20, c.test_rows, label="xor"),
            PIXELS: lambda: problems.image_pixels(load_images("mnist")),
        }
        return make[protocol]() if protocol in make else None

    def user_task(self, data: Any, config: ReviewConfig) -> problems.SequenceProblem:
        """The next character of the user's documents."""
        return problems.next_characters(data.texts, provenance=data.provenance)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Train the arm on the protocol's task and score it on sequences that it has not seen."""
        untrained = job.protocol == "gradients" or job.arm == "linear"
        yield from gradients(job) if untrained else trained(job, job.arm)
        if job.protocol in (*PAIRS, XOR) and job.arm == "lstm":
            yield from trained(job, "reversed" if job.protocol == "copy" else "bidirectional")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy against delay, gradient norm against lag, cost of an update."""
        return recurrent_plots(results)

"""A critical review of recurrent nets: which cell remembers for how long, and what that hangs on.

Exact tasks whose answer lies a known number of steps back, gradients through time, real rows and characters.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import altair as alt
import torch
from pydantic import PositiveFloat, PositiveInt, model_validator

from etude.data import Split, load_images, load_texts, seeded_build, stream
from etude.data import sequence_problems as problems
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import RecurrentSeq2Seq, gradient_profile, make_readout, slope_error
from etude.training import TrainConfig, train
from etude.training.sequence_scores import sequence_scores

TASKS, CUT, PAIRS = ("recall", "digits", "characters"), ("truncation", "characters"), ("two_sided", "copy")
CELLS, OLD = (*TASKS, "gradients"), ("recall", "characters", "gradients")


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
            protocols=(*CELLS, *PAIRS, "truncation"), hidden_size=128, steps=4000, longest=200
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "lstm": Arm("LSTM, forget bias 1"),
        "gru": Arm("GRU", protocols=CELLS),
        "lstm97": Arm("LSTM without forget gate", protocols=OLD),
        "elman": Arm("Elman net, tanh", role="baseline", protocols=CELLS),
        "relu": Arm("Elman net, relu, identity start", role="ablation", protocols=OLD),
        "jordan": Arm("Jordan net", role="baseline", protocols=OLD),
        "window": Arm("feed-forward net over a time window", role="baseline", protocols=OLD[:2]),
        "k5": Arm("LSTM, gradients cut after 5 steps", protocols=CUT),
        "k10": Arm("LSTM, gradients cut after 10 steps", role="ablation", protocols=CUT),
        "bidirectional": Arm("two LSTMs, one reads backwards", derived=True),
        "reversed": Arm("encoder-decoder that reads the source backwards", derived=True),
        "linear": Arm("linear cells of known spectral radius", protocols=("gradients",)),
        "shuffled": Arm("LSTM, answers of the neighbour", role="control", protocols=(*TASKS, *CUT, *PAIRS)),
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
        }
        return make[protocol]() if protocol in make else None

    def user_task(self, data: Any, config: ReviewConfig) -> problems.SequenceProblem:
        """The next character of the user's documents."""
        return problems.next_characters(data.texts, provenance=data.provenance)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Train the arm on the protocol's task and score it on sequences that it has not seen."""
        untrained = job.protocol == "gradients" or job.arm == "linear"
        yield from _gradients(job) if untrained else _train(job, job.arm)
        if job.protocol in PAIRS and job.arm == "lstm":
            yield from _train(job, "reversed" if job.protocol == "copy" else "bidirectional")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy against delay, gradient norm against lag, cost of an update."""
        delay = alt.X("step:Q", title="delay", scale=alt.Scale(type="symlog"))  # a delay may be 0
        lag, arm = alt.X("step:Q", title="lag"), alt.X("arm:N", title="")
        plots = []
        for metric, x, title in (
            ("accuracy_by_delay", delay, "Recall: accuracy (%) against the delay."),
            ("log_gradient_norm", lag, "Gradient of the last state (log10 of its norm) against the lag."),
            ("ms_per_update", arm, "Milliseconds an update."),
            ("parameters", arm, "Parameters."),
        ):
            if rows := [r for r in results.select(metric) if r["protocol"] in ("recall", "gradients")]:
                chart = alt.Chart(alt.Data(values=rows)).encode(x=x, y="mean(value):Q", color="arm:N")
                chart = chart.mark_bar() if x is arm else chart.mark_line(point=x is delay)
                plots.append(Plot(metric, chart.to_dict(), title))
        return plots


def _gradients(job: Job) -> Iterator[Measurement]:
    for seed in job.seeds:
        for name in ("linear", "shuffled_lags") if job.arm == "linear" else ():
            error = slope_error((0.8, 0.9, 1.1), 16, 60, stream(seed, "init"), shuffled=name == "shuffled_lags")
            yield Measurement(name, seed, "slope_error", error)
        if job.arm != "linear":
            net = seeded_build(lambda: make_readout(job.arm, 8, 8, job.config.hidden_size), stream(seed, "init"))
            profile = gradient_profile(net.rnn, torch.randn(4, 40, 8, generator=stream(seed, "x")))
            for lag, norm in zip(profile.lags.tolist(), profile.norms.tolist(), strict=True):
                yield Measurement(job.arm, seed, "log_gradient_norm", math.log10(max(norm, 1e-30)), step=lag)


def _train(job: Job, arm: str) -> Iterator[Measurement]:
    c, problem, copying = job.config, job.task, job.protocol == "copy"
    one_way = "unidirectional" if job.protocol == "two_sided" else "lstm"  # as many parameters as both ways have
    name = {"lstm": one_way, "shuffled": one_way, "k5": "lstm", "k10": "lstm"}.get(arm, arm)

    def build(seed: int) -> Any:
        if copying:
            return RecurrentSeq2Seq(c.hidden_size, c.hidden_size, symbols=8, reverse_source=arm != "lstm")
        return make_readout(name, problem.num_inputs, problem.num_outputs, c.hidden_size, window=c.window)

    def loss(net: Any, batch: Split) -> torch.Tensor:
        y = batch.y.roll(1, 0) if arm == "shuffled" else batch.y
        return net(batch.x, y).loss if copying else net.loss(batch.x, y, truncate={"k5": 5, "k10": 10}.get(arm))

    thirds = {"two_sided": 1, "digits": 2}.get(job.protocol, 3)
    config = TrainConfig(steps=c.steps * thirds // 3, lr=c.lr, batch_size=c.batch_size, clip_norm=1.0)
    for done in train(build, problem.data, loss=loss, config=config, seeds=job.seeds, device=job.device):
        yield Measurement(arm, done.seed, "ms_per_update", 1e3 * done.seconds / done.steps, "ms")
        yield Measurement(arm, done.seed, "parameters", float(sum(p.numel() for p in done.module.parameters())))
        for test in problem.tests(done.seed):
            for metric, value in sequence_scores(done.module, test.rows.x, test.rows.y).items():
                unit = "bits" if metric == "bits" else "points"
                yield Measurement(arm, done.seed, f"{metric}_by_delay", value, unit, step=test.delay)
                if test.name is not None:
                    yield Measurement(arm, done.seed, metric + test.name, value, unit)

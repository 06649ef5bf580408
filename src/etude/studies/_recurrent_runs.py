"""How the comparison of recurrent nets trains an arm and scores it, and what gradients it looks at."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from etude.data import Split, seeded_build, stream
from etude.lab.study import Job, Measurement
from etude.layers import RecurrentSeq2Seq, gradient_profile, make_readout, slope_error
from etude.training import TrainConfig, train
from etude.training.sequence_scores import sequence_scores

CUTS = {"k1": 1, "k5": 5, "k10": 10, "k20": 20}
"""Steps that the gradient of an arm reaches back."""
THIRDS = {"two_sided": 1, "two_sided_xor": 1, "digits": 2}
"""Thirds of the updates that a protocol takes; all where it is not named."""
UNITS = {"bits": "bits", "squared_error": "1"}


def gradients(job: Job) -> Iterator[Measurement]:
    for seed in job.seeds:
        for name in ("linear", "shuffled_lags") if job.arm == "linear" else ():
            error = slope_error((0.8, 0.9, 1.1), 16, 60, stream(seed, "init"), shuffled=name == "shuffled_lags")
            yield Measurement(name, seed, "slope_error", error)
        if job.arm != "linear":
            net = seeded_build(lambda: make_readout(job.arm, 8, 8, job.config.hidden_size), stream(seed, "init"))
            profile = gradient_profile(net.rnn, torch.randn(4, 40, 8, generator=stream(seed, "x")))
            for lag, norm in zip(profile.lags.tolist(), profile.norms.tolist(), strict=True):
                yield Measurement(job.arm, seed, "log_gradient_norm", math.log10(max(norm, 1e-30)), step=lag)


def trained(job: Job, arm: str) -> Iterator[Measurement]:
    c, problem, copying = job.config, job.task, job.protocol == "copy"
    one_way = "unidirectional" if job.protocol.startswith("two_sided") else "lstm"  # as many parameters as both ways
    name = {"lstm": one_way, "shuffled": one_way, **dict.fromkeys(CUTS, "lstm")}.get(arm, arm)

    def build(seed: int) -> Any:
        if copying:
            return RecurrentSeq2Seq(c.hidden_size, c.hidden_size, symbols=8, reverse_source=arm != "lstm")
        return make_readout(name, problem.num_inputs, problem.num_outputs, c.hidden_size, window=c.window)

    def loss(net: Any, batch: Split) -> torch.Tensor:
        y = batch.y.roll(1, 0) if arm == "shuffled" else batch.y
        return net(batch.x, y).loss if copying else net.loss(batch.x, y, truncate=CUTS.get(arm))

    config = TrainConfig(
        steps=c.steps * THIRDS.get(job.protocol, 3) // 3, lr=c.lr, batch_size=c.batch_size, clip_norm=1.0
    )
    for done in train(build, problem.data, loss=loss, config=config, seeds=job.seeds, device=job.device):
        yield Measurement(arm, done.seed, "ms_per_update", 1e3 * done.seconds / done.steps, "ms")
        yield Measurement(arm, done.seed, "parameters", float(sum(p.numel() for p in done.module.parameters())))
        for test in problem.tests(done.seed):
            for metric, value in sequence_scores(done.module, test.rows.x, test.rows.y).items():
                unit = UNITS.get(metric, "points")
                yield Measurement(arm, done.seed, f"{metric}_by_delay", value, unit, step=test.delay)
                if test.name is not None:
                    yield Measurement(arm, done.seed, metric + test.name, value, unit)

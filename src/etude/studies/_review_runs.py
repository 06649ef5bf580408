"""The two smaller comparisons of hypernetworks: calibrated noise, and weights that follow the data."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from etude.data.batching import sampled
from etude.data.randomness import seeded_build, stream
from etude.lab.study import Job, Measurement
from etude.layers import mlp, predictive_entropy
from etude.studies._review_nets import NOISE_DIM, NoisyNet, WaveNet
from etude.studies._review_problems import OpenSet, Waves
from etude.training import TrainConfig, train
from etude.training.metrics import accuracy, auroc, expected_calibration_error, nll


def fit(job: Job, seed: int, net: Any, draw: Any, loss: Any, steps: int) -> Any:
    """A net trained on drawn batches with the study's optimiser."""
    config = TrainConfig(steps=steps, lr=job.config.lr)
    (done,) = train(
        net, sampled(draw), loss=loss, config=config, seeds=(seed,), plan="sequential", device=job.device
    )  # fmt: skip
    return done.module.eval()


def open_set(job: Job, seed: int) -> Iterator[Measurement]:
    """Confidence on known classes and entropy on unknown ones, of the average over draws or nets.

    Nothing for a user's set of fewer than four classes: half of them are known, and one alone is no question.
    """
    if len(job.task.classes) < 4:
        return
    c, data = job.config, OpenSet.of(job.task, seed, job.config.open_rows)
    sizes = (data.train.x.shape[1], 32, data.classes)

    def draw(generator: torch.Generator, step: int) -> Any:
        part = data.train.take(torch.randint(data.train.n, (64,), generator=generator))
        return part.x, part.y, torch.randn(4, NOISE_DIM, generator=generator)

    def loss(net: Any, b: Any) -> Tensor:
        x, y, noise = b
        out = net(x, noise) if isinstance(net, NoisyNet) else net(x)[None]
        return F.cross_entropy(out.flatten(0, 1), y.repeat(len(out)))

    def probs(x: Tensor) -> Tensor:
        with torch.no_grad():
            out = [n(x, noise) if isinstance(n, NoisyNet) else n(x)[None] for n in nets]
        return torch.cat(out).softmax(-1).cpu()

    noisy = job.arm == "noise_hypernetwork"
    noise = torch.randn(c.draws, NOISE_DIM, generator=stream(seed, "noise"))
    starts = [seed] if job.arm != "ensemble5" else [100 * seed + i for i in range(5)]
    nets = [fit(job, s, lambda _: NoisyNet(sizes) if noisy else mlp(sizes), draw, loss, c.steps) for s in starts]
    spread = relative_spread(nets[0], noise) if noisy else None
    known, unknown = probs(data.test.x), probs(data.unknown)
    sets = {job.arm: (known, unknown)}
    if noisy:
        sets["noise_one_draw"] = (known[:1], unknown[:1])
        nets = [seeded_build(lambda: NoisyNet(sizes), stream(seed, "untrained")).to(job.device)]
        sets["noise_untrained"] = (probs(data.test.x), probs(data.unknown))
    for arm, (inside, outside) in sets.items():
        seen = inside.mean(0)
        yield Measurement(arm, seed, "expected_calibration_error",
                          100 * expected_calibration_error(seen, data.test.y), "points")  # fmt: skip
        yield Measurement(arm, seed, "nll", nll(seen, data.test.y))
        yield Measurement(arm, seed, "known_accuracy", 100 * accuracy(seen, data.test.y), "points")
        doubt = torch.cat([predictive_entropy(inside), predictive_entropy(outside)])
        yield Measurement(arm, seed, "ood_auroc", 100 * auroc(doubt, torch.arange(len(doubt)) >= len(seen)), "points")
    if spread is not None:
        yield Measurement(job.arm, seed, "relative_spread_of_weights", spread)


def relative_spread(net: NoisyNet, noise: Tensor) -> float:
    """Spread of the drawn weight vectors over their length: 0 where the hypernetwork has collapsed to one net."""
    flat = net.hyper.generate_flat(noise=noise).detach()
    return float(flat.std(0).norm() / flat.norm(dim=1).mean())


def waves(job: Job, seed: int) -> Iterator[Measurement]:
    """Error of the regression, and the size of the net."""
    c, train_rows, test = job.config, Waves.of(seed, job.config.wave_rows, "train"), Waves.of(seed, 2000, "test")
    told = [r.c.roll(1, 0) if job.arm == "shuffled_condition" else r.c for r in (train_rows, test)]

    def draw(generator: torch.Generator, step: int) -> Any:
        at = torch.randint(len(train_rows.x), (128,), generator=generator)
        return train_rows.x[at], told[0][at], train_rows.y[at]

    net = fit(
        job, seed, lambda s: WaveNet(job.arm), draw, lambda net, b: F.mse_loss(net(b[0], b[1]), b[2]), c.wave_steps
    )  # fmt: skip
    with torch.no_grad():
        error = float((net(test.x, told[1]) - test.y).square().mean())
    yield Measurement(job.arm, seed, "ln_test_mse", math.log(error))
    yield Measurement(job.arm, seed, "parameters", sum(p.numel() for p in net.parameters()))

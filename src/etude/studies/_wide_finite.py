"""Nets of finite width in the study of wide and deep nets: how near their kernel is, and what training makes of them.

Without scaling rows back, three layers of the optimal activation are enough to leave the kernel: its tails are heavy.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data import dirichlet_on_sphere
from etude.data.randomness import stream
from etude.data.sphere import uniform_on_sphere
from etude.data.tasks import Split
from etude.kernels import FiniteNet, HermiteActivation, deep_kernel, empirical_nngp, optimal_activation
from etude.lab.study import Job, Measurement
from etude.training import TrainConfig, train

POINTS, BATCH, CLIP = 50, 128, 4.0


def nngp_errors(job: Job, seed: int) -> Iterator[Measurement]:
    """Mean distance of the entries of a draw's kernel from the infinite net's, with rows as they are or scaled back."""
    c, dim = job.config, job.task.dim
    x = uniform_on_sphere(POINTS, dim + 1, generator=stream(seed, "finite"), positive=True, dtype=torch.float64)
    phi = HermiteActivation(optimal_activation(dim))
    for depth in c.finite_depths:
        exact = deep_kernel(1 - x @ x.T, job.task.duals["optimal"], depth, "nngp")
        for arm, unit_rows in (("finite", False), ("finite_unit", True)):
            draws = stream(seed, "net", str(depth))
            drawn = empirical_nngp(x, phi, depth, width=c.finite_width, unit_rows=unit_rows, generator=draws)
            yield Measurement(arm, seed, "nngp_error", float((drawn - exact).abs().mean()), step=depth)


def trained_accuracies(job: Job, seed: int, pair: tuple[tuple[float, ...], ...]) -> Iterator[Measurement]:
    """Test accuracy of finite nets with the optimal activation, trained by gradient descent on the squared error.

    The step is one over the kernel's diagonal, 1 + B' + ... + B'^depth: so the infinite net's training is stable.
    """
    c, dim = job.config, job.task.dim
    drawn = dirichlet_on_sphere(c.n_depth + c.n_test, pair, 0.4, seed)
    near, test = drawn.take(slice(0, c.n_depth)), drawn.take(slice(c.n_depth, None))
    phi, slope = HermiteActivation(optimal_activation(dim), clip=CLIP), job.task.duals["optimal"].slope_at_one
    for depth in c.trained_depths:

        def build(run_seed: int, depth: int = depth) -> nn.Module:
            return FiniteNet(
                dim + 1, depth, c.trained_width, 2, activation=phi, unit_rows=True,
                generator=stream(run_seed, "net", str(depth)),
            )  # fmt: skip

        def loss(net: nn.Module, batch: Split) -> Tensor:
            return (net(batch.x) - F.one_hot(batch.y, 2)).square().sum(1).mean() / 2

        steady = 1 / sum(slope**k for k in range(depth + 1))
        config = TrainConfig(steps=c.trained_steps, batch_size=BATCH, optimizer="sgd", lr=steady, clip_norm=10.0)
        rows = Split(near.x.float(), near.y)
        (done,) = train(build, rows, loss=loss, config=config, seeds=(seed,), device=job.device)
        with torch.no_grad():
            found = done.module.cpu()(test.x.float()).argmax(1)
        yield Measurement("trained", seed, "trained_accuracy", float((found == test.y).float().mean()), step=depth)

"""Training of the arms of the study of magnitude-invariant hypernetworks, and the spread of their gradients."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.batching import sampled
from etude.data.randomness import seeded_build, stream
from etude.hypernetworks import HyperNetwork, MagnitudeReport, ScalarCondition
from etude.lab.study import Job
from etude.layers.hypernetwork_magnitude import coefficient_of_variation
from etude.studies._magnitude_problems import Drawn
from etude.training import TrainConfig, train

OPTIONS: dict[str, dict[str, Any]] = {  # the default has tensors of ordinary size at a condition of 1
    "default": {"encoding": None, "init": "scaled"},
    "encoding_only": {"encoding": "cos|sin", "init": "scaled", "residual": False},
    "residual_only": {"encoding": None, "residual": True}, "mip": {"encoding": "cos|sin", "residual": True},
}  # fmt: skip
OPTIONS["default_gain"] = {"encoding": None, "init": "gain"}
OPTIONS |= {"default_reseeded": OPTIONS["default"], "mip_shuffled_condition": OPTIONS["mip"]}


class GradientSpread:
    """A callback: every 20 updates, the spread over 8 conditions of the gradient's norm."""

    one_seed = True

    def __init__(self, problem: Any, seed: int, last: int) -> None:
        self.problem, self.last, self.found = problem, last, list[float]()
        self.draws = stream(seed, "gradient_spread")

    def on_step(self, state: Any) -> None:
        if state.step % 20 or state.step > self.last:
            return
        norms, net = [], state.model
        for batch in (self.problem.draw(self.draws), self.problem.draw(self.draws)):
            for loss in self.problem.losses(net, batch, batch.gamma):
                parts = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)
                norms.append(torch.stack([g.square().sum() for g in parts if g is not None]).sum().sqrt())
        self.found.append(coefficient_of_variation(torch.stack(norms)))


def build(arm: str, seed: int, problem: Any, **more: Any) -> nn.Module:
    options = {"activation": "leaky_relu", **OPTIONS[arm], **more}
    start = stream(seed, "other_init" if arm == "default_reseeded" else "weights")  # the same trunk in every arm
    return seeded_build(lambda: HyperNetwork(problem.target(), ScalarCondition(["gamma"]), **options), start)


def fit(
    job: Job, arm: str, seed: int, problem: Any, steps: int, optimizer: str, lr: float, callbacks: Any = (), **more: Any
) -> Any:
    def told(batch: Drawn) -> Tensor:
        return batch.gamma.roll(1) if arm == "mip_shuffled_condition" else batch.gamma

    def score(net: Any, batch: Drawn) -> float:
        return float(problem.losses(net, batch, told(batch)).mean())

    config = TrainConfig(
        steps=steps, optimizer=optimizer, lr=lr, momentum=0.9 if optimizer == "sgd" else 0.0, better="lower",
        eval_every=max(1, steps // 20) if callbacks else steps,
    )  # fmt: skip
    (done,) = train(
        lambda s: build(arm, s, problem, **more), sampled(problem.draw), config=config, seeds=(seed,),
        loss=lambda net, batch: problem.losses(net, batch, told(batch)).mean(), val=problem.test, metric=score,
        callbacks=callbacks, plan="sequential", device=job.device,
    )  # fmt: skip
    return done


def report_of(net: Any) -> MagnitudeReport:
    with warnings.catch_warnings():  # it warns that the default is proportional, which is the point here
        warnings.simplefilter("ignore", UserWarning)
        return net.magnitude_report()  # type: ignore[no-any-return]


def final_loss(done: Any) -> float:
    return math.nan if done.diverged else float(done.curve[-1]["metric"])

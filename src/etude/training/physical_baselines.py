"""Rivals of local learning on nets with physical layers: they need the physics' gradient, a model of it, or neither.

`PhysicalNet` is the net; what its boxes do backwards makes the method: ideal back-propagation differentiates the box
itself, in-silico training puts a digital twin in its place, physics-aware training (PAT) runs the box forwards and the
twin backwards. `read_out_only` trains the last layer, SPSA estimates the gradient from two runs.

Sources: Momeni et al. 2023, arXiv 2304.11042, comparisons; Wright et al. 2022 (PAT); Spall 1992 (SPSA).
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.linear_model import RidgeClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.layers.mlp import mlp
from etude.layers.parameters import flatten, unflatten
from etude.layers.straight_through import straight_through
from etude.training.blackbox import amplitude
from etude.training.config import TrainConfig
from etude.training.engine import train

TWIN_HIDDEN = (100, 200, 100)


class PhysicalNet(nn.Module):
    """``h_l = W_l [P_l(|h|/||h||); h] + b_l``, then a linear head; differentiable wherever its boxes are.

    Parameters
    ----------
    boxes
        One module (n, m) -> (n, p) a layer, or None for no physics. They are not trained.
    widths
        Outputs p of each box (its input's width where there is none).
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        num_classes: int,
        boxes: Sequence[Callable[[Tensor], Tensor] | None],
        widths: Sequence[int],
        *,
        bypass: bool = True,
    ) -> None:
        super().__init__()
        if not len(hidden) == len(boxes) == len(widths):
            raise ValueError(f"need a box and a width a layer, got {len(hidden)}, {len(boxes)} and {len(widths)}")
        self.boxes, self.bypass = tuple(boxes), bypass  # a tuple: boxes have no parameters to train
        inputs = [in_features, *hidden[:-1]]
        sizes = [p + m if bypass and box is not None else p for m, p, box in zip(inputs, widths, boxes, strict=True)]
        self.layers = nn.ModuleList(nn.Linear(q, k) for q, k in zip(sizes, hidden, strict=True))
        self.head = nn.Linear(hidden[-1], num_classes)

    @property
    def linear_widths(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of every trained layer, the head last."""
        return [tuple(m.weight.shape) for m in (*self.layers, self.head)]  # type: ignore[union-attr, misc]

    def on(self, boxes: Sequence[Callable[[Tensor], Tensor] | None]) -> "PhysicalNet":
        """The same trained layers on other boxes (the real ones, or drifted ones)."""
        other = copy.copy(self)
        other.boxes = tuple(boxes)
        return other

    def features(self, x: Tensor) -> Tensor:
        """What the last trainable layer before the head sees."""
        for layer, box in zip(self.layers[:-1], self.boxes, strict=False):
            x = layer(self._box(box, x))
        return self._box(self.boxes[-1], x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[-1](self.features(x)))  # type: ignore[no-any-return]

    def _box(self, box: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
        if box is None:
            return x
        f = box(amplitude(x))
        return torch.cat([f, x], 1) if self.bypass else f


class PhysicsAware(nn.Module):
    """A box whose backward pass is its digital twin's: forwards exactly the box, backwards the twin's Jacobian."""

    def __init__(self, box: Callable[[Tensor], Tensor], twin: nn.Module) -> None:
        super().__init__()
        self.box, self.twin = box, twin

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.box(x)
        return straight_through(value, self.twin(x))


def fit_twin(
    box: Callable[[Tensor], Tensor],
    in_features: int,
    *,
    seed: int,
    pairs: int = 9000,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
) -> nn.Module:
    """A digital twin: an MLP of 100, 200 and 100 SiLU units fitted to `pairs` runs of the box on random unit inputs.

    The loss is the root of the mean squared error. The twin's parameters are frozen.
    """
    x = amplitude(torch.randn(pairs, in_features, generator=stream(seed, "twin")))
    with torch.no_grad():
        y = box(x)

    def build(_: int) -> nn.Module:
        return mlp((in_features, *TWIN_HIDDEN, y.shape[1]), activation="silu")

    def loss(net: Any, batch: Split) -> Tensor:
        return F.mse_loss(net(batch.x), batch.y).sqrt()

    config = TrainConfig(steps=steps, batch_size=batch_size, lr=lr, schedule="cosine")
    (done,) = train(build, Split(x, y), loss=loss, config=config, seeds=(seed,))
    return done.module.requires_grad_(False)


def read_out_only(net: PhysicalNet, x: Tensor, y: Tensor, *, alpha: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Reservoir computing: random layers as they are, a ridge read-out on what the last one sees; returns predict."""
    with torch.no_grad():
        ridge = RidgeClassifier(alpha=alpha).fit(net.features(x).cpu().numpy(), y.cpu().numpy())

    def predict(rows: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(ridge.predict(net.features(rows).cpu().numpy()))

    return predict


def spsa_gradient(
    objective: Callable[[Tensor], Tensor],
    theta: Tensor,
    generator: torch.Generator,
    *,
    size: float = 0.01,
    samples: int = 1,
) -> Tensor:
    """Simultaneous perturbation: the mean of ``(L(theta + c d) - L(theta - c d)) / (2 c) d`` over random signs d.

    Unbiased up to O(c^2), at two evaluations a sample whatever the number of parameters.
    """
    total = torch.zeros_like(theta)
    for _ in range(samples):
        signs = (torch.randint(0, 2, theta.shape, generator=generator) * 2 - 1).to(theta)
        slope = (objective(theta + size * signs) - objective(theta - size * signs)) / (2 * size)
        total += slope * signs
    return total / samples


def spsa_step(loss: Callable[[nn.Module, Any], Tensor], *, size: float = 0.01, samples: int = 1) -> Callable[..., Any]:
    """A `step` for `etude.training.train` that never differentiates: the optimiser gets `spsa_gradient`."""

    @torch.no_grad()
    def step(net: nn.Module, optimizer: Any, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = dict(net.named_parameters())
        theta, layout = flatten(parameters)

        def objective(vector: Tensor) -> Tensor:
            for name, value in unflatten(vector, layout).items():
                parameters[name].copy_(value)
            return loss(net, batch)

        start = theta.clone()
        gradient = unflatten(spsa_gradient(objective, start, generator, size=size, samples=samples), layout)
        value = objective(start)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        optimizer.step()
        return {"loss": value}

    return step

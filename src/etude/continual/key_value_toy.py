"""The authors' toy in the plane: one codebook, a linear head or a small MLP on eight Gaussians in four tasks.

Source: Traeuble et al. 2022, arXiv 2207.11240, fig. 2 and its official notebook: keys placed on uniform points of the
square, values from N(0, 0.001^2), full batches, one Adam (1e-3) through all tasks. Its momentum still moves cells right
after a task has ended, so exact locality is not to be seen here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.key_value import KeyValueBottleneck
from etude.continual.stream_learning import StreamRecord, learn_stream
from etude.data.gaussians import gaussian_stream
from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.layers.mlp import mlp
from etude.training.config import TrainConfig

LEARNERS = ("bottleneck", "untrained", "linear", "mlp")
SIDE = 30  # points of a side of the recorded plane


def learn_toy(
    learner: str, seeds: Sequence[int], *, steps: int = 1000, device: str | torch.device = "cpu"
) -> dict[int, StreamRecord]:
    """Train one learner a seed, `steps` updates a task, and record it with its regions of the unit square.

    Parameters
    ----------
    learner
        ``"bottleneck"`` (400 pairs), ``"untrained"`` (the same before training), ``"linear"``, ``"mlp"`` (32 units).
    """
    if learner not in LEARNERS:
        raise ValueError(f"unknown learner {learner!r}: choose one of {', '.join(LEARNERS)}")
    table, trained = learner in ("bottleneck", "untrained"), learner != "untrained"

    def build(seed: int) -> nn.Module:
        if not table:
            return mlp((2, 8) if learner == "linear" else (2, 32, 8))
        kv = KeyValueBottleneck(2, 1, 400, 2, 8, projection="chunk", value_init=1e-3, generator=stream(seed, "values"))
        square = torch.rand(100 * steps, 2, generator=stream(seed, "square"))
        return kv.initialize_keys(square, 1, batch_size=100, generator=stream(seed, "keys")).freeze_keys()

    def loss(model: Any, batch: Split) -> Tensor:
        if table:
            return model.loss(batch.x, batch.y, label_smoothing=0.0)  # type: ignore[no-any-return]
        return F.cross_entropy(model(batch.x), batch.y)

    line = (torch.arange(SIDE) + 0.5) / SIDE
    return learn_stream(
        build,
        {seed: gaussian_stream(seed) for seed in seeds},
        loss=loss,
        predict=lambda model, x: model.vote(x) if table else model(x),
        config=TrainConfig(steps=steps if trained else 1, lr=1e-3 if trained else 0.0),
        whole_segments=True,
        grid=torch.cartesian_prod(line, line).to(device),
        device=device,
    )

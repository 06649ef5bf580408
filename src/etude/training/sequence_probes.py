"""Probes that read all positions of a sequence: learned weights over them, then a line or a small net.

Source: Akyurek et al. 2022, arXiv 2211.15661 (what layers encode): ``head(sum_t softmax(s)_t h_t)`` on frozen states h.
"""

from collections.abc import Mapping
from typing import Any

import torch
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import stream
from etude.data.tasks import Split
from etude.training.config import TrainConfig
from etude.training.engine import train
from etude.training.probes import ProbeTable, held_out


class PositionReadout(nn.Module):
    """States (B, T, d) to (B, k): one learned score a position, the same for every row, then a head.

    Parameters
    ----------
    hidden_size
        None: a linear head; else the width of a net of two layers.
    """

    def __init__(self, positions: int, width: int, outputs: int, hidden_size: int | None = None) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(positions))
        self.head: nn.Module = nn.Linear(width, outputs)
        if hidden_size is not None:
            self.head = nn.Sequential(nn.Linear(width, hidden_size), nn.GELU(), nn.Linear(hidden_size, outputs))

    def forward(self, h: Tensor) -> Tensor:
        """The head of the weighted mean state."""
        return self.head(torch.einsum("t,btd->bd", self.scores.softmax(0), h))


def probe_sequences(
    features: Mapping[str, Tensor],
    y: Any,
    *,
    hidden_size: int | None = None,
    steps: int = 1000,
    batch_size: int = 128,
    lr: float = 1e-2,
    test_size: float = 0.3,
    generator: torch.Generator | None = None,
) -> ProbeTable:
    """Train one `PositionReadout` a layer and score it on rows it has not seen.

    Parameters
    ----------
    features
        Layer name -> hidden states (n, T, d); each feature is scaled to mean 0 and deviation 1.
    y
        (n,) or (n, k) numbers.
    hidden_size
        Width of a two-layer head; None: a linear one.
    steps, batch_size, lr
        Adam, cosine decay; a fifth of the rows is kept back and the best weights on it are taken.

    Returns
    -------
    ProbeTable
        `score` is R^2, `error` the relative squared error, `weights` those of the positions.

    Raises
    ------
    ValueError
        Without layers, for states that are not (n, T, d) or not finite, or a test size that leaves no rows.
    """
    if not features:
        raise ValueError("no layers to probe")
    n = len(y)
    generator = stream(0, "probe_sequences") if generator is None else generator
    fit, test = held_out(n, test_size, generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    kept = max(1, len(fit) // 5)
    target = torch.as_tensor(y).detach().float().reshape(n, -1)
    config = TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, schedule="cosine", eval_every=max(1, steps // 20), patience=20,
        better="lower",
    )  # fmt: skip
    rows = []
    for layer, states in features.items():
        if states.ndim != 3 or len(states) != n or not bool(states.isfinite().all()):
            raise ValueError(f"layer {layer!r} must be finite ({n}, T, d), got shape {tuple(states.shape)}")
        h = states.detach().float()
        h = (h - h[fit].mean((0, 1))) / h[fit].std((0, 1)).clamp_min(1e-6)
        net = lambda _, h=h: PositionReadout(h.shape[1], h.shape[2], target.shape[1], hidden_size)  # noqa: E731
        done = train(
            net, Split(h[fit[kept:]], target[fit[kept:]]), loss=_squares, config=config, seeds=(seed,),
            val=Split(h[fit[:kept]], target[fit[:kept]]), plan="sequential",
        )[0]  # fmt: skip
        with torch.no_grad():
            found = done.module(h[test])
        error = float((target[test] - found).square().sum() / target[test].square().sum().clamp_min(1e-30))
        score = float(r2_score(target[test].numpy(), found.numpy()))
        weights = done.module.get_parameter("scores").detach().softmax(0).tolist()
        rows.append({"layer": layer, "score": score, "error": error, "weights": weights})
    return ProbeTable(tuple(rows))


def _squares(net: nn.Module, batch: Split) -> Tensor:
    return F.mse_loss(net(batch.x), batch.y)

"""Ten nets trained at once beside a plain loop, and the probe's grid beside scikit-learn's.

torchensemble needs torchvision; its trainer is a loop over the members like the peer here.
"""

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import Tensor
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import mlp
from etude.training import LinearProbe, TrainConfig, train

STEPS, MEMBERS, SIZES = 300, 10, (196, 64, 32, 5)


def _loss(net: Any, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


def cases() -> list[Case]:
    """2,000 rows of 196 numbers in 5 classes; 250 rows of 160 features for the probe."""
    g = stream(0, "bench")
    y = torch.arange(2000) % 5
    x = torch.randn(2000, 196, generator=g) + 2 * torch.randn(5, 196, generator=g)[y]
    config = TrainConfig(
        steps=STEPS, batch_size=64, optimizer="sgd", momentum=0.9, lr=0.05, weight_decay=5e-3, decay="all"
    )

    def ours() -> float:
        made = train(lambda s: mlp(SIZES), (x, y), loss=_loss, config=config, seeds=range(MEMBERS), plan="stacked")
        return float(np.mean([t.curve[-1]["loss"] for t in made]))

    def loop() -> float:
        last = []
        for seed in range(MEMBERS):
            net = seeded_build(lambda: mlp(SIZES), stream(seed, "init"))
            optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
            order, losses, done = stream(seed, "order"), [], 0
            while done < STEPS:
                for rows in torch.randperm(len(x), generator=order).split(64):
                    if done == STEPS:
                        break
                    optimizer.zero_grad()
                    value = F.cross_entropy(net(x[rows]), y[rows])
                    value.backward()
                    optimizer.step()
                    losses.append(value.item())
                    done += 1
            last.append(float(np.mean(losses[-15:])))
        return float(np.mean(last))

    few, labels = torch.randn(250, 160, generator=g), torch.arange(250) % 5
    few = few + 0.4 * torch.randn(5, 160, generator=g)[labels]
    strengths = tuple(10.0**p for p in range(-3, 2))

    def probe() -> float:
        return float(LinearProbe("logistic", strengths, folds=3).fit(few, labels).score(few, labels))

    def grid() -> float:
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        search = GridSearchCV(LogisticRegression(max_iter=2000, tol=1e-6), {"C": strengths}, cv=folds)
        return float(search.fit(few.double().numpy(), labels.numpy()).score(few.double().numpy(), labels.numpy()))

    return [
        Case(
            f"{MEMBERS} perceptrons, {STEPS} updates", ours, loop, "loop of plain torch",
            lambda a, b: abs(a - b) < 1e-4, 3.0, "losses of the last 15 updates compared",
        ),
        Case("probe: 5 strengths x 3 folds", probe, grid, "scikit-learn's grid search", None),
    ]  # fmt: skip

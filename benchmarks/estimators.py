"""The scikit-learn shell over the engine against a bare loop that does the same updates."""

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.lab.bench import Case
from etude.layers import mlp
from etude.training import TorchClassifier

EPOCHS, BATCH = 30, 64


class Perceptron(TorchClassifier):
    """One hidden layer."""

    def _build(self, X: Tensor, y: Tensor | None) -> nn.Module:
        return mlp((X.shape[1], 64, len(self.classes_)))


def cases() -> list[Case]:
    """Fit and score on the digits; the target is the engine's: at most 10 % over the loop."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype("float32")
    rows, labels = torch.from_numpy(X), torch.from_numpy(y)

    def ours() -> float:
        shell = Perceptron(max_epochs=EPOCHS, batch_size=BATCH, device="cpu", random_state=0)
        return float(shell.fit(X[:1200], y[:1200]).score(X[1200:], y[1200:]))

    def bare() -> float:
        order = stream(0, "order")
        net = seeded_build(lambda: mlp((64, 64, 10)), stream(0, "init"))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        for _ in range(EPOCHS):
            for part in torch.randperm(1200, generator=order).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(rows[part]), labels[part]).backward()
                optimizer.step()
        with torch.no_grad():
            return float((net(rows[1200:]).argmax(1) == labels[1200:]).float().mean())

    def same(a: Any, b: Any) -> bool:
        return abs(a - b) < 0.03

    name = f"TorchClassifier on digits, {EPOCHS} epochs of {BATCH}"
    return [Case(name, ours, bare, "bare loop, fused Adam", same, 0.9, "accuracy within 3 points")]

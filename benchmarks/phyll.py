"""Local learning of two layers of 500 on the 8 x 8 digits, five epochs of batches of 64, and the test set classified:
`PhyLL` without boxes beside fflib's Forward-Forward net. "Same" asks that ours classifies at least as well.

fflib's layers, losses and try-all-classes prediction are used as they are; its data helpers need torchvision and are
left out. As fflib asks for torchvision, it is not in the extra `bench`: `pip install --no-deps fflib` adds it. The
official scripts of the paper are for a GPU, and the Keras example for another framework.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from etude.data.randomness import stream
from etude.lab.bench import Case
from etude.training import PhyLL

EPOCHS, BATCH, HIDDEN, CLASSES = 5, 64, 500, 10
THRESHOLD, LR = 0.1, 0.01  # the peer's best of thresholds 0.1 to 10 and rates 0.001 to 0.03 on these rows


def cases() -> list[Case]:
    """One training run each."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    train, test = slice(0, 1400), slice(1400, None)

    def ours() -> float:
        net = PhyLL([None, None], [HIDDEN, HIDDEN], goodness="cosine-gelu", random_state=0)
        net.fit(x[train], y[train], epochs=EPOCHS, batch_size=BATCH, inner_steps=1, lr=1e-3)
        return float(net.score(x[test], y[test]))

    try:
        from fflib.nn.ff_linear import FFLinear
        from fflib.nn.ff_net import FFNet
        from fflib.probes.one_hot import TryAllClasses
    except ImportError:
        return []
    xs, ys = torch.from_numpy(x), torch.from_numpy(y)

    def theirs() -> float:
        torch.manual_seed(0)  # the peer draws its weights from torch's own generator
        sizes = (64 + CLASSES, HIDDEN, HIDDEN)
        layers = [FFLinear(a, b, THRESHOLD, LR) for a, b in pairwise(sizes)]
        net, draws = FFNet(layers, "cpu"), stream(0, "batches")

        def joined(rows: Any, labels: Any) -> Any:
            return torch.cat([rows, labels], 1)

        for _ in range(EPOCHS):
            for at in torch.randperm(1400, generator=draws).split(BATCH):
                wrong = (ys[at] + torch.randint(1, CLASSES, (len(at),), generator=draws)) % CLASSES
                positive, negative = (joined(xs[at], F.one_hot(v, CLASSES).float()) for v in (ys[at], wrong))
                net.run_train_combined(positive, negative)
        with torch.no_grad():
            found = TryAllClasses(lambda a, b: net(joined(a, b)), CLASSES).predict(xs[test])
        return float((found == ys[test]).float().mean())

    return [Case("digits, 2 x 500, five epochs", ours, theirs, "fflib", lambda a, b: a >= b, 3.0)]

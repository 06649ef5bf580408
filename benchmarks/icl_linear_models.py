"""Reference learners of every prefix against a scikit-learn refit for each: 64 sequences, 40 prefixes, d = 20."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from etude.data.randomness import stream
from etude.incontext import linear
from etude.lab.bench import Case


def _refits(X: np.ndarray, y: np.ndarray, make: Callable[[int], Any]) -> np.ndarray:
    out = np.zeros(y.shape)
    for b in range(len(X)):
        for n in range(1, y.shape[1]):
            out[b, n] = make(n).fit(X[b, :n], y[b, :n]).predict(X[b, n : n + 1])[0]
    return out


def _same(ours: torch.Tensor, peer: np.ndarray) -> bool:
    return bool(np.abs(ours.numpy() - peer).max() < 1e-6)


def cases() -> list[Case]:
    """Least squares, ridge and nearest neighbours."""
    X, y, _ = linear.regression_prompts(64, 40, 20, noise=0.5, generator=stream(0, "bench"))
    X, y = X.double(), y.double()
    arrays = X.numpy(), y.numpy()
    refs = linear.references(["ols", "ridge:0.25", "knn:3"])
    peers: dict[str, tuple[str, Callable[[int], Any]]] = {
        "ols": ("scikit-learn LinearRegression", lambda n: LinearRegression(fit_intercept=False)),
        "ridge:0.25": ("scikit-learn Ridge", lambda n: Ridge(alpha=0.25, fit_intercept=False)),
        "knn:3": ("scikit-learn KNeighborsRegressor", lambda n: KNeighborsRegressor(min(3, n))),
    }
    return [
        Case(
            name=f"{name}, all prefixes",
            ours=lambda name=name: refs[name].prefixes(X, y),  # type: ignore[misc]
            peer=lambda make=make: _refits(*arrays, make),  # type: ignore[misc]
            peer_name=peer,
            same=_same,
            target=50.0,
        )
        for name, (peer, make) in peers.items()
    ]

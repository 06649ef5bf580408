"""The infinitely deep classifier beside scikit-learn's weighted neighbours, and beside iterating and solving.

`same` asks for equal predictions on at least 99.9 % of the test points for the deep kernel (it tends to our limit), and
on 99 % for the Hilbert estimate, which is another classifier of the same order.
"""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from etude.data import dirichlet_on_sphere
from etude.kernels import DeepKernelClassifier
from etude.lab.bench import Case

PAIR = ([3, 1, 2, 1, 1], [1, 2, 2, 2, 3])
DIM = 4


def _points(n: int, n_test: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    drawn = dirichlet_on_sphere(n + n_test, PAIR, 0.4, 0)
    x, y = drawn.x.numpy(), drawn.y.numpy()
    return x[:n], y[:n], x[n:]


def _iterate_and_solve(X: np.ndarray, y: np.ndarray, Z: np.ndarray, depth: int) -> np.ndarray:
    """NNGP of the optimal activation by the recursion on Gram values, then kernel regression of the labels."""

    def dual(z: np.ndarray) -> np.ndarray:
        return 2 ** (-DIM / 2) * (z**3 + z) + (1 - 2 ** (1 - DIM / 2)) * z**2

    train, cross = np.clip(X @ X.T, -1, 1), np.clip(Z @ X.T, -1, 1)
    for _ in range(depth):
        train, cross = dual(train), dual(cross)
        np.fill_diagonal(train, 1.0)
    return (cross @ np.linalg.solve(train, 2.0 * y - 1) > 0).astype(int)


def _agree(share: float):
    return lambda ours, theirs: bool((ours == theirs).mean() >= share)


def cases() -> list[Case]:
    """Fit and predict, 2,000 test points."""
    X, y, Z = _points(1000, 2000)
    X3, y3, Z3 = _points(3000, 2000)
    return [
        Case(
            "limit kernel, n = 1000",
            lambda: DeepKernelClassifier(dim=DIM).fit(X, y).predict(Z),
            lambda: _iterate_and_solve(X, y, Z, 100),
            "depth-100 iteration and solve (numpy)",
            _agree(0.999),
            10.0,
        ),
        Case(
            "limit kernel, n = 3000",
            lambda: DeepKernelClassifier(dim=DIM).fit(X3, y3).predict(Z3),
            lambda: KNeighborsClassifier(len(X3), weights=lambda r: r ** -float(DIM)).fit(X3, y3).predict(Z3),
            "scikit-learn KNeighborsClassifier, all neighbours, weights r^-d",
            _agree(0.99),
            1.0,
        ),
    ]

"""Infinitely deep nets beside the classifiers that they are said to become: on spheres, and on real rows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from etude.data.randomness import stream
from etude.data.sphere import Labelled, uniform_on_sphere
from etude.data.tasks import Task
from etude.kernels.classifier import DeepKernelClassifier
from etude.kernels.deep import LimitKernel, deep_kernel, deep_predictions, log_limit_ratio
from etude.kernels.dual import DualActivation, dual_activation
from etude.kernels.votes import Rule, hilbert_weights, nearest_weights, power_weights, vote_shares
from etude.layers.distances import squared_distances

SQUARE_LAYERS = 60


class SphereRules:
    """The rules compared on the sphere of dimension `dim`; their tables are made once.

    `duals` holds the activations of the singular class ("optimal", "erf", "sin"); `rules` their limit kernels and
    "nearest", "hilbert" (the Hilbert estimate of order `dim`) and "square" (sixty layers of h_2).
    """

    provenance: tuple[dict[str, Any], ...] = ()

    def __init__(self, dim: int, *, device: str = "cpu") -> None:
        self.dim = dim
        self.duals: dict[str, DualActivation] = {a: dual_activation(a, dim) for a in ("optimal", "erf", "sin")}
        self.rules: dict[str, Rule] = {n: LimitKernel(d, device=device).weights for n, d in self.duals.items()}
        self.rules["nearest"] = nearest_weights
        self.rules["square"] = lambda u: power_weights(u, 2, SQUARE_LAYERS)
        self.rules["hilbert"] = lambda u: hilbert_weights(u, dim)

    def predictions(self, train: Labelled, rows: Tensor, *, device: str = "cpu") -> dict[str, Tensor]:
        """Predicted classes (m,) of every rule, and of "majority"."""
        labels = one_hot(train.y, train.posterior.shape[1])
        shares = vote_shares(rows.to(device), train.x.to(device), labels.to(device), self.rules)
        shares["majority"] = labels.mean(0).expand(len(rows), -1)
        return {name: share.argmax(1).cpu() for name, share in shares.items()}


def one_hot(y: Tensor, classes: int) -> Tensor:
    """(n, classes) float64."""
    return torch.eye(classes, dtype=torch.float64, device=y.device)[y]


def regret(predicted: Tensor, test: Labelled) -> float:
    """Mean excess of the probability of an error over that of the Bayes rule, exact at every test point."""
    chosen = test.posterior.gather(1, predicted[:, None]).squeeze(1)
    return float((test.posterior.max(1).values - chosen).mean())


def agreement(a: Tensor, b: Tensor) -> float:
    """Share of equal entries."""
    return float((a == b).double().mean())


class Profile(NamedTuple):
    """log of the limit kernel at some distances, and minus its log-log slope: the measured order."""

    log_kernel: np.ndarray
    order: float


def kernel_profile(dual: DualActivation, distances: np.ndarray) -> Profile:
    """The limit kernel of a singular activation against the distance of two points of the sphere."""
    u = torch.from_numpy(np.asarray(distances, dtype=np.float64) ** 2 / 2)
    log_k = (log_limit_ratio(u, dual)[0] + torch.log1p(-u)).numpy()
    return Profile(log_k, -float(np.polyfit(np.log(distances), log_k, 1)[0]))


def deep_fits(
    rows: Tensor,
    points: Tensor,
    targets: Tensor,
    dual: DualActivation,
    depths: Sequence[int],
    *,
    ridge: float = 0.0,
    device: str = "cpu",
) -> dict[int, Tensor]:
    """Kernel regression (NTK) of `targets` (n, k) at several depths: depth to predictions (m, k)."""
    points, targets = points.to(device), targets.to(device)
    u_test, u_train = (squared_distances(x.to(device), points, exact=True).div_(2) for x in (rows, points))
    return {n: deep_predictions(u_test, u_train, targets, dual, n, ridge=ridge).cpu() for n in depths}


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope; exactly 0 for a constant y."""
    centred = x - x.mean()
    return float(centred @ (y - y[0]) / (centred @ centred))


class Score(NamedTuple):
    """One figure of one rule; `step` for a point of a curve."""

    arm: str
    metric: str
    value: float
    step: int | None = None


def learning_curves(
    rules: SphereRules, drawn: Labelled, sizes: Sequence[int], compare_at: int, *, device: str = "cpu"
) -> Iterator[Score]:
    """Every rule fitted to the first n points for each n of `sizes`, tested on the points after the last n.

    "regret" at each n and its log-log "slope"; "accuracy" at the last n; at `compare_at`, "depth_accuracy" and the
    shares of test points where a rule differs from the Hilbert estimate and from the nearest neighbour.
    """
    test, regrets = drawn.take(slice(sizes[-1], None)), dict[str, list[float]]()
    for n in sizes:
        found = rules.predictions(drawn.take(slice(0, n)), test.x, device=device)
        for arm, predicted in found.items():
            regrets.setdefault(arm, []).append(regret(predicted, test))
            yield Score(arm, "regret", regrets[arm][-1], n)
            if n == compare_at:
                yield Score(arm, "depth_accuracy", agreement(predicted, test.y))
                yield Score(arm, "disagreement_hilbert", 1 - agreement(predicted, found["hilbert"]))
                yield Score(arm, "disagreement_nearest", 1 - agreement(predicted, found["nearest"]))
            if n == sizes[-1]:
                yield Score(arm, "accuracy", agreement(predicted, test.y))
    for arm, values in regrets.items():
        yield Score(arm, "slope", _slope(np.log(sizes), np.log(values)))


def rectifier_majority(
    rules: SphereRules, drawn: Labelled, layers: dict[str, int], *, counts: tuple[int, int], n_test: int
) -> Iterator[Score]:
    """Share of test points where nets of rectifiers (NTK) predict the commoner class of few unbalanced points, and
    where the optimal infinite net does."""
    half = len(drawn.x) // 2
    train, rows = drawn.take(unbalanced(drawn.y[:half], counts)), drawn.x[half:][:n_test]
    fits = deep_fits(rows, train.x, one_hot(train.y, 2), dual_activation("relu"), tuple(layers.values()))
    found = {arm: fits[n].argmax(1) for arm, n in layers.items()}
    found["optimal"] = rules.predictions(train, rows)["optimal"]
    common = int(counts[1] > counts[0])
    for arm, predicted in found.items():
        yield Score(arm, "agreement_majority", float((predicted == common).double().mean()))


def unbalanced(labels: Tensor, counts: Sequence[int]) -> Tensor:
    """Row numbers of the first ``counts[c]`` rows of every class c, in order."""
    there = [int((labels == c).sum()) for c in range(len(counts))]
    if any(have < n for have, n in zip(there, counts, strict=True)):
        raise ValueError(f"there are {there} rows of the classes, {list(counts)} were asked for")
    return torch.cat([(labels == c).nonzero()[:n, 0] for c, n in enumerate(counts)]).sort().values


def regression_by_depth(
    dual: DualActivation, n: int, dim: int, depths: Sequence[int], seed: int, *, ridge: float = 0.0, device: str = "cpu"
) -> tuple[dict[int, float], dict[int, float]]:
    """Test R squared by depth (NTK) for sin(3 x_1) on n uniform points of the sphere's positive part, and the same when
    the training targets are shuffled."""
    x = uniform_on_sphere(2 * n, dim + 1, generator=stream(seed, "x"), positive=True, dtype=torch.float64)
    y = torch.sin(3 * x[:, 0])
    targets = torch.stack([y[:n], y[:n][torch.randperm(n, generator=stream(seed, "shuffle"))]], dim=1)
    fits = deep_fits(x[n:], x[:n], targets, dual, depths, ridge=ridge, device=device)
    true, shuffled = ({d: r_squared(fit[:, i], y[n:]) for d, fit in fits.items()} for i in (0, 1))
    return true, shuffled


def r_squared(predicted: Tensor, y: Tensor) -> float:
    """1 - residual variance / variance."""
    return 1 - float((y - predicted).square().sum() / (y - y.mean()).square().sum())


def finite_net(net: DeepKernelClassifier, depth: int, ridges: Sequence[float]) -> DeepKernelClassifier:
    """An unfitted net of `depth` hidden layers, tuned as `net`, the infinite one, was: of the same dimensions the one
    with the best leave-one-out accuracy on the same training rows, here with the best of `ridges`; the first of equals.

    Without row i the kernel regression G Y, G = (K + ridge I)^-1, predicts y_i - (G Y)_i / G_ii at row i.
    """
    rows, labels = net.tuning_rows()
    u = squared_distances(rows, rows, exact=True).div_(2)
    eye = torch.eye(len(rows), dtype=u.dtype, device=u.device)
    right: dict[tuple[float, float], int] = {}
    for dim in net.candidate_dims():
        kernel = deep_kernel(u, dual_activation(net.activation, dim), depth)
        for ridge in ridges:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + ridge * eye))
            left_out = labels - (inverse @ labels) / inverse.diagonal()[:, None]
            right[dim, ridge] = int((left_out.argmax(1) == labels.argmax(1)).sum())
    dim, ridge = max(right, key=lambda setting: right[setting])
    return DeepKernelClassifier(net.activation, dim=dim, depth=depth, ridge=ridge, lift=net.lift)


def compare_on_rows(task: Task, *, lift: bool, depths: dict[str, int], ridges: Sequence[float]) -> dict[str, float]:
    """Test accuracies on real rows (n, ...): "optimal", "erf", "nearest", "hilbert", "majority", and nets of finite
    depth with the optimal activation, named by `depths`.

    The dimension of "optimal" is found on the training rows and is that of "hilbert" too; a finite net has its own
    dimension, and one of `ridges` (above 0), found on the same rows (`finite_net`).
    """
    assert task.test is not None
    X, Z = task.train.x.flatten(1).numpy(), task.test.x.flatten(1).numpy()
    y, t = task.train.y.numpy(), task.test.y.numpy()
    net = DeepKernelClassifier("optimal", lift=lift).fit(X, y)
    fits = {"optimal": net, "erf": DeepKernelClassifier("erf", lift=lift)}
    fits |= {name: finite_net(net, n, ridges) for name, n in depths.items()}
    found = {name: fit.fit(X, y).predict(Z) for name, fit in fits.items()}
    rules: dict[str, Rule] = {"nearest": nearest_weights, "hilbert": lambda u: hilbert_weights(u, net.dim_)}
    shares = vote_shares(net.on_sphere(Z), net.X_, net.Y_, rules)
    shares["majority"] = net.Y_.mean(0).expand(len(Z), -1)
    found |= {name: net.classes_[share.argmax(1).numpy()] for name, share in shares.items()}
    return {name: float((predicted == t).mean()) for name, predicted in found.items()}

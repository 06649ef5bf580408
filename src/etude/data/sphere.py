"""Exact generators on the unit sphere, with the best possible classifier beside the data."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import gammaln, softmax, xlogy
from torch import Tensor

from etude.data.randomness import numpy_stream
from etude.data.tasks import Split


class Labelled(NamedTuple):
    """Points with labels and what the Bayes rule says of them.

    x
        (n, dim) float64, rows of length 1.
    y
        (n,) int64, drawn class.
    posterior
        (n, classes) float64, P(class | x).
    """

    x: Tensor
    y: Tensor
    posterior: Tensor

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.x)

    @property
    def bayes(self) -> Tensor:
        """(n,) int64: the most probable class at each point; no rule is right more often."""
        return self.posterior.argmax(1)

    @property
    def bayes_error(self) -> float:
        """The Bayes rule's mean probability of being wrong at these points."""
        return float((1 - self.posterior.max(1).values).mean())

    def split(self) -> Split:
        """Points and labels as a `Split`."""
        return Split(self.x, self.y)

    def take(self, rows: slice | Tensor) -> "Labelled":
        """The points of the given rows."""
        return Labelled(self.x[rows], self.y[rows], self.posterior[rows])


def dirichlet_on_sphere(
    n: int, alphas: Sequence[Sequence[float]], prior: float | Sequence[float], seed: int
) -> Labelled:
    """Classes with Dirichlet densities, carried to the positive part of the unit sphere.

    A point is drawn from its class's Dirichlet distribution on the simplex and divided by its Euclidean length. That
    map is one to one, so the posterior is that of the simplex.

    Parameters
    ----------
    alphas
        One concentration vector a class, all of the same length dim >= 2; the sphere's own dimension is dim - 1.
    prior
        Probabilities of the classes; for two classes that of the first will do.
    seed
        The same seed gives the same points; a smaller n gives other ones, so cut one draw where sizes are compared.

    Raises
    ------
    ValueError
        If n is below 1, a concentration is not positive, lengths differ or the prior is no distribution.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    lengths = {len(a) for a in alphas}
    if len(alphas) < 2 or len(lengths) != 1 or lengths.pop() < 2:
        raise ValueError(f"alphas needs two or more vectors of one length of at least 2, got {list(map(len, alphas))}")
    table = np.asarray(alphas, dtype=np.float64)
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise ValueError(f"concentrations must be positive, got {table.tolist()}")
    shares = _prior(prior, len(table))
    rng = numpy_stream(seed, "dirichlet_on_sphere")
    y = rng.choice(len(table), size=n, p=shares)
    # never exactly 0: a density with a concentration below 1 is infinite there
    drawn = np.maximum(rng.standard_gamma(table[y]), np.finfo(np.float64).tiny)
    simplex = drawn / drawn.sum(1, keepdims=True)
    log_density = (
        gammaln(table.sum(1)) - gammaln(table).sum(1) + xlogy((table - 1)[None], simplex[:, None]).sum(-1)
    )  # (n, classes)
    posterior = softmax(log_density + np.log(shares), axis=1)
    x = simplex / np.linalg.norm(simplex, axis=1, keepdims=True)
    return Labelled(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), torch.from_numpy(posterior))


def _prior(prior: float | Sequence[float], classes: int) -> np.ndarray:
    if isinstance(prior, int | float):
        if classes != 2:
            raise ValueError(f"one number is a prior of two classes; give {classes} for {classes}")
        prior = (prior, 1 - prior)
    shares = np.asarray(prior, dtype=np.float64)
    if shares.shape != (classes,) or (shares <= 0).any() or abs(shares.sum() - 1) > 1e-9:
        raise ValueError(f"prior must be {classes} positive probabilities that sum to 1, got {shares.tolist()}")
    return shares


def uniform_on_sphere(
    *shape: int, generator: torch.Generator, positive: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Points drawn uniformly from the unit sphere.

    Parameters
    ----------
    shape
        (..., dim) of the result.
    positive
        Only the part where every coordinate is at least 0.

    Raises
    ------
    ValueError
        If dim is below 1.
    """
    if not shape or shape[-1] < 1:
        raise ValueError(f"shape must end in a dimension of at least 1, got {shape}")
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (x.abs() if positive else x).to(dtype)

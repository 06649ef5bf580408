"""Regret bounds of neural bandits where contexts are not drawn independently: a worked figure, nothing is measured.

NeuralUCB and NeuralTS are bounded by ``d~ sqrt(T)`` up to logarithms, with the effective dimension ``d~ = log det(I +
H / lambda) / log(1 + T K / lambda)`` of the tangent kernel H of all T K contexts (Zhou et al. 2020, arXiv 1911.04462).
For orthonormal contexts H is a I + b 1 1' with a > 0, so d~ grows like T / log T and the bound exceeds T, which says
nothing. Those of Deb et al. 2023, arXiv 2312.07145, know no such dimension.
"""

import math

import torch

SAME, ORTHOGONAL = 2.0, 1 / math.pi  # tangent kernel of a layer of rectifiers, of a context with itself and another


def effective_dimension(eigenvalues: torch.Tensor, *, ridge: float = 1.0) -> float:
    """``log det(I + H / ridge) / log(1 + n / ridge)`` of a kernel with the given n eigenvalues (n,).

    Raises
    ------
    ValueError
        If `ridge` is not positive, there is no eigenvalue, or one is negative.
    """
    h = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be positive and finite, got {ridge}")
    if h.ndim != 1 or not len(h) or not bool((h >= 0).all()):
        raise ValueError("eigenvalues must be a list of at least one number, none below 0")
    return float(torch.log1p(h / ridge).sum()) / math.log1p(len(h) / ridge)


def orthonormal_dimension(n: int, *, ridge: float = 1.0) -> float:
    """The effective dimension of `n` orthonormal contexts under the tangent kernel of one layer of rectifiers.

    With 2 on its diagonal and 1 / pi off it, the eigenvalues are 2 + (n - 1) / pi once and 2 - 1 / pi for the others.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    total = math.log1p((SAME + (n - 1) * ORTHOGONAL) / ridge) + (n - 1) * math.log1p((SAME - ORTHOGONAL) / ridge)
    return total / math.log1p(n / ridge)


def orthonormal_bounds(horizon: int, n_arms: int, best_loss: float = 0.0) -> dict[str, float]:
    """Leading terms, constants left out, after `horizon` rounds of orthonormal contexts of `n_arms` arms.

    "confidence": d~ sqrt(T) of NeuralUCB and NeuralTS; "squarecb": sqrt(K T log T); "fastcb": sqrt(K L* log T) +
    K log T with `best_loss` L*; "all": T, the regret of always being wrong.
    """
    if horizon < 2 or n_arms < 1 or best_loss < 0:
        raise ValueError(
            f"horizon must be at least 2, n_arms at least 1 and best_loss at least 0, got {horizon}, {n_arms} and "
            f"{best_loss}"
        )
    log_t = math.log(horizon)
    return {
        "confidence": orthonormal_dimension(horizon * n_arms) * math.sqrt(horizon),
        "squarecb": math.sqrt(n_arms * horizon * log_t),
        "fastcb": math.sqrt(n_arms * best_loss * log_t) + n_arms * log_t,
        "all": float(horizon),
    }

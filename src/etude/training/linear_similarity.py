"""How alike two representations are up to linear maps: canonical correlations, and regression of one on the other.

Sources: SVCCA, Raghu et al. 2017, arXiv 1706.05806, section 2; both as indices of guidance, Subramaniam et al. 2024,
arXiv 2410.20035 (ablations). Names: X (n, p) and Y (n, q) are activations of the same n rows.
"""

import math
from typing import Any

import torch
from torch import Tensor

from etude.training.similarity import full_precision, is_flat, moderate, paired_rows

RANK = 1e-6  # singular values below this share of the largest are rounding


def svcca(X: Tensor, Y: Tensor, *, keep: float = 0.99) -> Tensor:
    """Mean canonical correlation between the main directions of both sides, in [0, 1].

    Each side (n, ...) is centred and cut to the fewest directions that hold the share `keep` of its variance; the mean
    is over the directions of the side that has fewer. Blind to rotations and to a common factor of either side, with
    ``keep=1`` to every invertible linear map. 0 where a side is constant, and 1 for any rows where the directions are
    as many as the rows allow: take many more rows than directions.

    Raises
    ------
    ValueError
        For fewer than four rows, different numbers of them, or `keep` outside (0, 1].

    Examples
    --------
    >>> X = torch.arange(24.0).view(8, 3).sin()
    >>> round(float(svcca(X, X @ torch.tensor([[1.0, 2, 0], [0, 1, 3], [1, 0, 1]]), keep=1)), 5)
    1.0
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], got {keep}")
    X, Y = map(moderate, paired_rows(X, Y))
    with full_precision(X):
        bases = [_MainDirections.apply(Z - Z.mean(0), keep) for Z in (X, Y)]
        fewest = min(Q.shape[1] for Q in bases)
        if fewest == 0 or bool(is_flat(X) | is_flat(Y)):
            return (X.sum() + Y.sum()) * 0.0
        return torch.linalg.svdvals(bases[0].mT @ bases[1]).clamp_max(1.0).sum() / fewest


class _MainDirections(torch.autograd.Function):
    """Z (n, p) to orthonormal (n, k), the left singular vectors that hold the share `keep` of the squared ones.

    The gradient is that of the subspace, all that a canonical correlation sees: it divides by gaps between kept and
    dropped singular values only, so that equal values and dead features do no harm.
    """

    @staticmethod
    def forward(ctx: Any, Z: Tensor, keep: float) -> Tensor:  # type: ignore[override]
        U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
        power = S.square().cumsum(0)
        enough = int((power < keep * power[-1]).sum()) + 1
        rank = int((S / S[0].clamp_min(torch.finfo(S.dtype).tiny) > RANK).sum())
        ctx.save_for_backward(U[:, :rank], S[:rank], Vh[:rank])
        ctx.kept = min(enough, rank)
        return U[:, : ctx.kept].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        U, S, Vh = ctx.saved_tensors
        k = ctx.kept
        outside = (grad - U @ (U.mT @ grad)) / S[:k] @ Vh[:k]  # turning into directions that Z has not
        across = U[:, k:].mT @ grad / (S[:k].square() - S[k:, None].square())  # (dropped, kept)
        swapped = U[:, k:] @ (across * S[:k]) @ Vh[:k] + U[:, :k] @ (across * S[k:, None]).mT @ Vh[k:]
        return outside + swapped, None


def ridge_similarity(X: Tensor, Y: Tensor, *, penalty: float = 0.1) -> Tensor:
    """Share of the variance of Y that ridge regression on X explains on these very rows, in [0, 1].

    Not symmetric: as an index of guidance, the guide's layer is predicted from the target's. `penalty` is a multiple of
    the mean squared length of the centred rows of X, so that their size does not matter. 0 where a side is constant.

    Raises
    ------
    ValueError
        For fewer than four rows, different numbers of them, or a penalty that is not positive and finite.

    Examples
    --------
    >>> X = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    >>> round(float(ridge_similarity(X, X, penalty=4.0)), 4)
    0.75
    """
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty must be positive and finite, got {penalty}")
    X, Y = map(moderate, paired_rows(X, Y))
    with full_precision(X):
        if bool(is_flat(X) | is_flat(Y)):
            return (X.sum() + Y.sum()) * 0.0
        X, Y = X - X.mean(0), Y - Y.mean(0)
        K = X @ X.mT
        ridge = penalty * K.diagonal().mean() * torch.eye(len(K), dtype=K.dtype, device=K.device)
        left = torch.linalg.solve(K + ridge, ridge @ Y)  # residuals: Y - K (K + ridge)^-1 Y
        return 1 - left.square().sum() / Y.square().sum()

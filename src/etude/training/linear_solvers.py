"""Batched solvers of the linear probes: least squares in closed form, logistic regression by L-BFGS."""

import warnings
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

FAR = 1e3  # means so many times the spread (and so large) are taken off first: the normal equations would cancel


def ridge_solutions(Z: Tensor, Y: Tensor, penalties: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ridge regression with an intercept for every penalty and every row weighting at once.

    One eigendecomposition a weighting serves all penalties.

    Parameters
    ----------
    Z, Y
        (n, d) features and (n, k) targets.
    penalties
        (P,), of ``sum_i m_i |Y_i - Z_i W - b|^2 + penalty |W|^2``.
    weights
        (F, n) row weights m, such as 0 for a fold's held-out rows. None: all rows.

    Returns
    -------
    W, b
        (F, P, d, k) and (F, P, k).
    """
    z_off, y_off = _far(Z), _far(Y)
    if bool(z_off.any()) or bool(y_off.any()):
        W, b = ridge_solutions(Z - z_off, Y - y_off, penalties, weights)
        return W, b + y_off - torch.einsum("d,fpdk->fpk", z_off, W)
    m = torch.ones(1, len(Z), dtype=Z.dtype, device=Z.device) if weights is None else weights.to(Z.dtype)
    total = m.sum(1, keepdim=True)
    z_mean, y_mean = m @ Z / total, m @ Y / total
    G = torch.einsum("fn,nd,ne->fde", m, Z, Z) - total.unsqueeze(-1) * z_mean.unsqueeze(-1) * z_mean.unsqueeze(-2)
    c = torch.einsum("fn,nd,nk->fdk", m, Z, Y) - total.unsqueeze(-1) * z_mean.unsqueeze(-1) * y_mean.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(G)
    scaled = (vectors.mT @ c).unsqueeze(1) / (values.clamp_min(0)[:, None, :, None] + penalties[None, :, None, None])
    W = vectors.unsqueeze(1) @ scaled
    b = y_mean.unsqueeze(1) - torch.einsum("fd,fpdk->fpk", z_mean, W)
    return W, b


def _far(Z: Tensor) -> Tensor:
    """Means of the columns of Z (n, d) that lie far from 0 for their spread; 0 for the others."""
    mean = Z.mean(0)
    spread = (Z - mean).abs().amax(0)
    return torch.where(mean.abs() > FAR * spread.clamp_min(1.0), mean, 0.0)


def logistic_solutions(
    Z: Tensor,
    y: Tensor,
    num_classes: int,
    strengths: Tensor,
    weights: Tensor,
    *,
    tol: float = 1e-4,
    max_iter: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Penalised logistic regression for P problems at once, by batched L-BFGS.

    Problem p minimises ``C_p sum_i m_pi loss_i + |W|^2 / 2``, scikit-learn's objective: softmax for three classes
    and more, one logit for two. It is solved in centred features and in weights times the root of a bound on the
    curvature of each, so that features of unlike scales do no harm. A `ConvergenceWarning` says where `max_iter`
    steps did not bring the gradient of those weights below `tol`.

    Parameters
    ----------
    Z, y
        (n, d) and (n,) class numbers.
    strengths, weights
        (P,) the C of each problem and (P, n) its row weights.

    Returns
    -------
    W, b
        (P, d, K) and (P, K); for two classes the first column is 0.
    """
    d, P, K = Z.shape[1], len(strengths), num_classes
    free = 1 if K == 2 else K
    one_hot = torch.nn.functional.one_hot(y, K).to(Z.dtype)
    scale = (strengths[:, None] * weights).to(Z.dtype)
    mean = Z.mean(0)
    Z = Z - mean
    curvature = torch.cat([scale @ Z.square() / 4 + 1, scale.sum(1, keepdim=True).clamp_min(1e-12) / 4], 1)
    root = curvature.sqrt().unsqueeze(-1)  # (P, d + 1, 1), the intercept last

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        W, b = (theta / root).split([d, 1], 1)  # (P, d, free), (P, 1, free)
        logits = torch.einsum("nd,pdk->pnk", Z, W) + b
        if K == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], -1)
        log_p = logits.log_softmax(-1)
        value = -(scale * (log_p * one_hot).sum(-1)).sum(-1) + 0.5 * W.square().sum((1, 2))
        error = scale.unsqueeze(-1) * (log_p.exp() - one_hot)[..., K - free :]
        grad = torch.cat([torch.einsum("nd,pnk->pdk", Z, error) + W, error.sum(1, keepdim=True)], 1)
        return value, grad / root

    theta, left = _lbfgs(objective, Z.new_zeros(P, d + 1, free), tol=tol, max_iter=max_iter)
    if left:
        warnings.warn(
            f"{left} of {P} logistic regressions did not converge in {max_iter} steps: "
            "take a smaller C (stronger penalty) or standardise the features",
            ConvergenceWarning, stacklevel=2,
        )  # fmt: skip
    W, b = (theta / root).split([d, 1], 1)
    b = b.squeeze(1) - torch.einsum("d,pdk->pk", mean, W)
    if K == 2:
        W, b = torch.cat([torch.zeros_like(W), W], -1), torch.cat([torch.zeros_like(b), b], -1)
    return W, b


def _lbfgs(objective: Any, theta: Tensor, *, tol: float, max_iter: int, memory: int = 10) -> tuple[Tensor, int]:
    """Minimise P separate convex functions; theta (P, ...). Each problem has its own step length.

    Also returned: how many are left whose gradient is not below `tol`.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    def wide(a: Tensor) -> Tensor:
        return a[:, None, None]

    value, grad = objective(theta)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(max_iter):
        if float(grad.abs().max()) < tol:
            break
        q, alphas = grad.clone(), []
        for s, t, rho in reversed(pairs):
            alphas.append(rho * dot(s, q))
            q = q - wide(alphas[-1]) * t
        if pairs:
            s, t, rho = pairs[-1]
            q = q * wide(torch.where(rho > 0, dot(s, t) / dot(t, t).clamp_min(1e-300), torch.ones_like(rho)))
        else:
            q = q / wide(grad.flatten(1).norm(dim=1).clamp_min(1.0))
        for (s, t, rho), alpha in zip(pairs, reversed(alphas), strict=True):
            q = q + wide(alpha - rho * dot(t, q)) * s
        slope = -dot(grad, q)
        uphill = slope >= 0
        q = torch.where(wide(uphill), grad, q)
        slope = torch.where(uphill, -dot(grad, grad), slope)
        length = torch.ones_like(value)
        for _ in range(30):
            new_theta = theta - wide(length) * q
            new_value, new_grad = objective(new_theta)
            bad = ~(new_value <= value + 1e-4 * length * slope + 1e-14 * value.abs())
            if not bool(bad.any()):
                break
            length = torch.where(bad, length * 0.5, length)
        stay = wide(bad)
        new_theta = torch.where(stay, theta, new_theta)
        new_grad, new_value = torch.where(stay, grad, new_grad), torch.where(bad, value, new_value)
        s, t = new_theta - theta, new_grad - grad
        curvature = dot(s, t)
        pairs.append((s, t, torch.where(curvature > 1e-300, 1 / curvature.clamp_min(1e-300), 0.0)))
        pairs = pairs[-memory:]
        theta, value, grad = new_theta, new_value, new_grad
        if bool(bad.all()):
            if len(pairs) == 1:  # not even downhill: the floor of rounding
                break
            pairs = []
    return theta, int((grad.abs().flatten(1).amax(1) >= tol).sum())

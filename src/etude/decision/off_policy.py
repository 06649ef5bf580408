"""What a policy would have cost on decisions that another one made: IPS, SNIPS and doubly robust estimates.

With logged actions a_i, their losses y_i, the probabilities p_i with which they were chosen, the new policy pi and
predicted losses q: IPS is mean w_i y_i with w_i = pi(a_i) / p_i, SNIPS sum w_i y_i / sum w_i, and DR
mean(sum_a pi(a) q(a) + w_i (y_i - q(a_i))).
"""

import math
from typing import Literal, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from etude.decision.decisions import tensor_of

Estimator = Literal["ips", "snips", "dr"]


class PolicyValue(NamedTuple):
    """An estimated mean loss with its confidence interval.

    `effective_n` is (sum w)^2 / sum w^2: how many rows the weights leave.
    """

    value: float
    low: float
    high: float
    n: int
    effective_n: float


def policy_value(
    probabilities: Tensor | ArrayLike,
    actions: Tensor | ArrayLike,
    losses: Tensor | ArrayLike,
    logged: Tensor | ArrayLike,
    *,
    estimator: Estimator = "dr",
    predicted: Tensor | ArrayLike | None = None,
    confidence: float = 0.95,
) -> PolicyValue:
    """Mean loss of the policy with the given probabilities, estimated from logged decisions.

    Tensors, arrays, columns of data frames or lists.

    Parameters
    ----------
    probabilities
        (n, K) pi of the policy in question.
    actions, losses, logged
        (n,) actions taken, their losses, and the probabilities with which they were taken.
    predicted
        (n, K) predicted losses, for "dr".
    confidence
        Of the normal interval (delta method for "snips").

    Raises
    ------
    ValueError
        If shapes differ, a loss or predicted loss is not finite, a row of `probabilities` is no distribution, a logged
        probability is not in (0, 1], an action is none of the K, `predicted` is missing, or `confidence` is not in
        (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    probabilities, actions, losses, logged = (tensor_of(t).cpu() for t in (probabilities, actions, losses, logged))
    if actions.is_floating_point():
        raise ValueError(f"actions must hold integers, got {actions.dtype}")
    if probabilities.ndim != 2:
        raise ValueError(f"probabilities must have shape (n, K), got {tuple(probabilities.shape)}")
    n, k = probabilities.shape
    actions = actions.long()
    losses, logged = losses.double(), logged.double()
    if not actions.shape == losses.shape == logged.shape == (n,) or n == 0:
        shapes = [tuple(t.shape) for t in (actions, losses, logged)]
        raise ValueError(f"actions, losses and logged probabilities must have shape ({n},), n > 0; got {shapes}")
    if not bool((finite := torch.isfinite(losses)).all()):
        i = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"loss {float(losses[i])} of row {i} is not finite: leave the row out")
    pi = probabilities.double()
    proper = (pi >= 0).all(1) & ((pi.sum(1) - 1).abs() < 0.01)  # half precision does not come nearer to 1
    if not bool(proper.all()):
        i = int(proper.logical_not().nonzero()[0])
        raise ValueError(f"probabilities of row {i} must be at least 0 and sum to 1, got {pi[i].tolist()}")
    if not bool(((logged > 0) & (logged <= 1)).all()):
        i = int(((logged > 0) & (logged <= 1)).logical_not().nonzero()[0])
        raise ValueError(f"logged probability {float(logged[i]):.4g} of row {i} is not in (0, 1]")
    if not bool(((actions >= 0) & (actions < k)).all()):
        raise ValueError(f"actions must be 0 to {k - 1}, got {int(actions.min())} to {int(actions.max())}")
    weights = pi.gather(1, actions[:, None])[:, 0] / logged
    if estimator == "ips":
        terms = weights * losses
    elif estimator == "snips":
        mean = float(weights.mean())
        if mean == 0:
            raise ValueError("the policy never takes a logged action: SNIPS has no weight to normalise by")
        value = float((weights * losses).mean()) / mean
        terms = value + weights * (losses - value) / mean
    elif estimator == "dr":
        if predicted is None or (q := tensor_of(predicted).cpu().double()).shape != (n, k):
            raise ValueError(f'estimator "dr" needs predicted losses of shape ({n}, {k})')
        if not bool(torch.isfinite(q).all()):
            raise ValueError("predicted losses must be finite")
        terms = (pi * q).sum(1) + weights * (losses - q.gather(1, actions[:, None])[:, 0])
    else:
        raise ValueError(f'estimator must be "ips", "snips" or "dr", got {estimator!r}')
    value = float(terms.mean())
    from scipy.stats import norm

    half = float(norm.ppf(0.5 + confidence / 2)) * float(terms.std()) / math.sqrt(n) if n > 1 else math.inf
    effective = float(weights.sum() ** 2 / weights.square().sum()) if float(weights.sum()) else 0.0
    return PolicyValue(value, value - half, value + half, n, effective)

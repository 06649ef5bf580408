"""A pull towards earlier weights: weight * sum_i importance_i (theta_i - anchor_i)^2.

With importance 1 it is L2 towards a start (ridge to the initialisation), with a Fisher diagonal EWC, with mean
absolute gradients MAS (Aljundi 2018, arXiv 1711.09601).
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.layers.parameters import Anchor


class QuadraticPenalty:
    """Penalty of a model's distance from an anchor; to be passed as `penalty` to the engine.

    Parameters
    ----------
    anchor
        Tensors by parameter name, or an `Anchor` (the weights that it remembers). Parameters of the model that
        the anchor does not name, such as a new head, are not penalised; names that the model lacks are ignored.
    importance
        Tensors of the same shapes (or broadcastable to them) by name, at least 0. None: 1 everywhere. A name that
        stands in `anchor` alone is not penalised.
    weight
        Factor of the sum.
    lr
        The step size that plain gradient descent will take. A step multiplies theta - anchor by
        1 - 2 lr weight importance, so from 2 lr weight importance >= 2 on it diverges: this is warned of.

    Raises
    ------
    ValueError
        If a weight or an importance is negative or not finite, or an importance does not fit its anchor.
    """

    def __init__(
        self,
        anchor: Mapping[str, Tensor] | Anchor,
        importance: Mapping[str, Tensor] | None = None,
        weight: float = 1.0,
        *,
        lr: float | None = None,
    ) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be at least 0 and finite, got {weight}")
        start = anchor.start if isinstance(anchor, Anchor) else anchor
        self.anchor = {name: t.detach().clone() for name, t in start.items()}
        self.importance: dict[str, Tensor] | None = None
        self.weight = weight
        if importance is not None:
            self.importance = {n: t.detach().clone() for n, t in importance.items() if n in self.anchor}
            for name, t in self.importance.items():
                if not bool((torch.isfinite(t) & (t >= 0)).all()):
                    raise ValueError(f"the importance of {name!r} must be at least 0 and finite")
                try:
                    t.expand(self.anchor[name].shape)
                except RuntimeError:
                    raise ValueError(
                        f"the importance of {name!r} has shape {tuple(t.shape)}, its anchor "
                        f"{tuple(self.anchor[name].shape)}"
                    ) from None
        largest = self.largest()
        if lr is not None and 2 * lr * weight * largest >= 2:
            warnings.warn(
                f"2 * lr * weight * max(importance) = {2 * lr * weight * largest:.3g} >= 2: gradient descent will "
                f"diverge from the anchor; take lr or weight {lr * weight * largest:.3g} times smaller",
                stacklevel=2,
            )

    def largest(self) -> float:
        """The largest importance."""
        if self.importance is None:
            return 1.0
        return max((float(t.max()) for t in self.importance.values() if t.numel()), default=0.0)

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty, a scalar; differentiable with respect to the model's parameters."""
        terms = []
        for name, p in model.named_parameters():
            if name not in self.anchor or (self.importance is not None and name not in self.importance):
                continue
            start = self.anchor[name]
            if start.shape != p.shape:
                raise ValueError(f"{name!r} has shape {tuple(p.shape)}, its anchor {tuple(start.shape)}")
            if start.device != p.device:
                start = self.anchor[name] = start.to(p.device)
            moved = (p - start).square()
            if self.importance is not None:
                moved = moved * self.importance[name].to(p.device)
            terms.append(moved.sum())
        if not terms:
            first = next(model.parameters(), None)
            return torch.zeros(()) if first is None else first.new_zeros(())
        return self.weight * torch.stack(terms).sum()

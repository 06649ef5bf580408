"""How a batch of features of two nets is compared, pair by pair of layers, so that a gradient can be taken."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from etude.training.layer_maps import Pairs
from etude.training.linear_similarity import ridge_similarity, svcca
from etude.training.similarity import MIN_ROWS, as_rows, full_precision, rsa, unit_grams

Index = Literal["cka", "rsa", "svcca", "ridge"] | Callable[[Tensor, Tensor], Tensor]
OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"rsa": rsa, "svcca": svcca, "ridge": ridge_similarity}


@dataclass
class Alignment:
    """Similarities of pairs of layers. The settings are those of `etude.training.Guidance`.

    Raises
    ------
    ValueError
        For unfit settings.
    """

    index: Index = "cka"
    debiased: bool = False
    max_samples: int | None = 128
    per_position: bool = False
    warned_flat: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_samples is not None and self.max_samples < MIN_ROWS:
            raise ValueError(f"max_samples must be at least {MIN_ROWS}, got {self.max_samples}")
        if isinstance(self.index, str) and self.index not in ("cka", *OTHERS):
            known = ", ".join(map(repr, ("cka", *OTHERS)))
            raise ValueError(f"index must be {known} or a function of two activations, got {self.index!r}")
        if self.debiased and self.index != "cka":
            raise ValueError(f"debiased is an estimator of CKA: leave it out with index={self.index!r}")

    def similarities(self, pairs: Pairs, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Tensor:
        """(pairs,) similarities of layers that `prepared` has made."""
        made: list[Tensor] = []
        if self.index == "cka":
            X, Y = (torch.stack([side[p[i]] for p in pairs]) for i, side in enumerate((mine, theirs)))
            products = (X * Y).flatten(2).sum(2) if X.ndim == 4 else (X * Y).flatten(1).sum(1)
            return products.mean(1) if X.ndim == 4 else products
        compare = OTHERS[self.index] if isinstance(self.index, str) else self.index
        for t, g in pairs:
            X, Y = mine[t], theirs[g]
            with full_precision(X):  # target first
                parts = [compare(a, b) for a, b in zip(X, Y, strict=True)] if X.ndim == 3 else [compare(X, Y)]
            made.append(torch.stack(parts).mean())
        return torch.stack(made)

    def prepared(self, features: Mapping[str, Tensor], names: Iterable[str], mask: Tensor | None) -> dict[str, Tensor]:
        """Layers ready to compare: (n, n) Gram matrices of length 1 for CKA, else (n, p); by position with one axis
        more in front.

        Raises
        ------
        ValueError
            For a batch that is too small.
        """
        names = list(dict.fromkeys(names))
        chosen = [self._rows(features[name], mask) for name in names]
        with full_precision(chosen[0]):
            if self.per_position:
                steps = [[X[:, t] for X in chosen] for t in range(min(X.shape[1] for X in chosen))]
                each = [self._flat(layers) for layers in steps]
                return {name: torch.stack([layers[i] for layers in each]) for i, name in enumerate(names)}
            return dict(zip(names, self._flat(chosen), strict=True))

    def _flat(self, layers: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.index == "cka":
            grams = unit_grams(layers, debiased=self.debiased)
            if not self.warned_flat and not bool(grams.detach().flatten(1).any(1).all()):
                self.warned_flat = True
                warnings.warn("constant activations in a guided layer: their similarity is taken as 0", stacklevel=4)
            return grams.unbind(0)
        return [as_rows(X) for X in layers]

    def _rows(self, X: Tensor, mask: Tensor | None) -> Tensor:
        if len(X) < MIN_ROWS:
            raise ValueError(f"guidance needs at least {MIN_ROWS} rows a batch (64 or more for a steady gradient)")
        if mask is not None and X.ndim > 2 and X.shape[:2] == mask.shape:
            X = X.masked_fill(~mask.view(*mask.shape, *[1] * (X.ndim - 2)), 0)
        return X[: self.max_samples]

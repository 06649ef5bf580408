"""Which samples to keep, chosen anew from kept and latest ones: the quadratic program and its clustering rivals.

    GSS-IQP      min over S, |S| = M, of  sum_{i, j in S} <g_i, g_j> / (|g_i| |g_j|)
    GSS-Clust    medoids of the gradients;      FSS-Clust    medoids of the features

Source: Aljundi et al. 2019, arXiv 1903.08671, eq. 7 and section 4.1 (Aljundi 2019, arXiv 1910.02718). The integer
program is solved by greedy removal and pairwise exchange, which ends in a set that no single exchange improves.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from etude.continual.gss import GSSBuffer, LossFn
from etude.continual.importance import Forward, outputs
from etude.layers.clustering import kmeans_plus_plus
from etude.layers.distances import cosine_similarities, squared_distances
from etude.layers.modes import evaluating

Selection = Literal["iqp", "gradient_clusters", "feature_clusters"]
SELECTIONS: tuple[Selection, ...] = ("iqp", "gradient_clusters", "feature_clusters")


def diverse_subset(similarity: Tensor, size: int, *, exchanges: int = 1000) -> Tensor:
    """Rows S, |S| = `size`, with a small sum of `similarity` over S x S: greedy removal, then pairwise exchange.

    Parameters
    ----------
    similarity
        (n, n) symmetric.
    exchanges
        Exchanges at most.

    Raises
    ------
    ValueError
        If `size` does not lie in 1..n, or `similarity` is not square and finite.
    """
    n = len(similarity)
    if similarity.shape != (n, n) or not 1 <= size <= n:
        raise ValueError(f"need a square matrix and a size in 1..{n}, got {tuple(similarity.shape)} and {size}")
    if not bool(torch.isfinite(similarity).all()):
        raise ValueError("similarity holds NaN or infinity")
    s = similarity.double()
    s = (s + s.T) / 2
    inside = torch.ones(n, dtype=torch.bool, device=s.device)
    load = s.sum(1)  # of every row towards the set
    for _ in range(n - size):
        gain = torch.where(inside, 2 * load - s.diag(), -torch.inf)
        worst = int(gain.argmax())
        inside[worst] = False
        load = load - s[:, worst]
    for _ in range(exchanges if size < n else 0):
        held, free = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        out = -2 * load[held] + s.diag()[held]
        come = 2 * load[free] + s.diag()[free]
        change = out[:, None] + come[None] - 2 * s[held][:, free]
        best = int(change.argmin())
        i, j = int(held[best // len(free)]), int(free[best % len(free)])
        if change.flatten()[best] >= -1e-9:
            break
        inside[i], inside[j] = False, True
        load = load - s[:, i] + s[:, j]
    return inside.nonzero()[:, 0]


def medoids(points: Tensor, k: int, generator: torch.Generator, *, iterations: int = 20) -> Tensor:
    """k rows that stand for the rest: k-means++ start, then each cluster's most central member, until nothing moves."""
    if not 1 <= k <= len(points):
        raise ValueError(f"k must lie in 1..{len(points)}, got {k}")
    d = squared_distances(points, points).clamp_min(0).sqrt()
    chosen = kmeans_plus_plus(points, k, generator)
    if len(chosen.unique()) < k:  # equal points: any other rows
        rest = [i for i in range(len(points)) if i not in set(chosen.tolist())]
        chosen = torch.tensor([*chosen.unique().tolist(), *rest][:k], device=points.device)
    for _ in range(iterations):
        label = d[:, chosen].argmin(1)
        label[chosen] = torch.arange(k, device=points.device)
        same = label[:, None] == label[None]
        cost = torch.where(same, d, 0.0).sum(1)
        new = chosen.clone()
        for c in range(k):
            rows = (label == c).nonzero()[:, 0]
            new[c] = rows[cost[rows].argmin()]
        if torch.equal(new, chosen):
            break
        chosen = new
    return chosen.sort().values


class SelectionBuffer(GSSBuffer):
    """Keeps `size` samples and, beside them, up to `recent` latest ones; when those are full it chooses anew.

    Parameters
    ----------
    selection
        "iqp", "gradient_clusters" or "feature_clusters".
    features
        ``features(model, x)`` for "feature_clusters"; None: the model's outputs.

    Raises
    ------
    ValueError
        For an unknown selection or a size below 1.
    """

    def __init__(
        self,
        size: int,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        selection: Selection = "iqp",
        recent: int = 100,
        features: Forward | None = None,
        parameters: str | Sequence[str] = "all",
        project: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(size, model, loss_fn, parameters=parameters, project=project, generator=generator)
        if selection not in SELECTIONS or recent < 1:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)} and recent at least 1")
        self.selection, self.recent = selection, recent
        self.features: Forward = features or outputs

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Take in a batch; places as of now (a later choice moves samples). Raises as `GSSBuffer.observe` does."""
        self._check_offer(x, y)
        fine = torch.isfinite(self.gradients(x, y)).all(1).nonzero()[:, 0] if len(x) else torch.zeros(0).long()
        self.num_rejected += len(x) - len(fine)
        places = torch.full((len(x),), -1)
        if len(fine):
            places[fine] = torch.arange(len(self), len(self) + len(fine))
            self._append(x[fine], y[fine], torch.zeros(len(fine)))
        if len(self) >= self.size + self.recent:
            keep = self._choose()
            moved = {int(old): new for new, old in enumerate(keep)}
            assert self._x is not None and self._y is not None
            self._x, self._y, self.scores = self._x[keep], self._y[keep], self.scores[keep]
            places = torch.tensor([moved.get(int(p), -1) for p in places])
        return places

    def _choose(self) -> Tensor:
        x, y = self.rows()
        if self.selection == "feature_clusters":
            with evaluating(self.model), torch.no_grad():
                return medoids(self.features(self.model, x).flatten(1), self.size, self.generator).cpu()
        g = self.gradients(x, y)
        if self.selection == "iqp":
            return diverse_subset(cosine_similarities(g, g), self.size).cpu()
        return medoids(g, self.size, self.generator).cpu()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:  # type: ignore[override]
        held, self.size = self.size, self.size + self.recent
        try:
            super().load_state_dict(state)
        finally:
            self.size = held

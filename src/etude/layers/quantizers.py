"""The vector quantiser: every vector is replaced by the mean of its k nearest codes.

Sources: van den Oord et al. 2017, arXiv 1711.00937, sec. 3 (straight-through, codebook and commitment terms) and
appendix A.1 (moving averages); Tamkin et al. 2023, arXiv 2310.17230 (top-k by cosine, gradients of codebook
features); Traeuble et al. 2022, arXiv 2207.11240, appendix (keys placed by moving averages, dead keys replaced).
Differs from the official code of the last: a replaced code's moving averages are set to the code as well,
otherwise the next update would bring the dead code back.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.layers.clustering import kmeans
from etude.layers.code_forcing import Forcing, excluded, forcing, put_codes
from etude.layers.code_gradients import BACKWARD, emit_codes, quantization_loss
from etude.layers.code_search import SIMILARITIES, take_codes
from etude.layers.code_search import nearest_codes as nearest_codes

LEARN = ("ema", "gradient", "frozen")


class Quantized(NamedTuple):
    """values (..., G, d), indices (..., G, k), distances (..., G, k), loss a scalar."""

    values: Tensor
    indices: Tensor
    distances: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Codebooks for vectors in groups: (..., G, d) to the mean of each group's `k` nearest codes.

    Parameters
    ----------
    num_codes, dim, groups
        J codes of width d in each of G independent codebooks.
    k
        Codes a vector and group.
    similarity
        ``"euclidean"`` or ``"cosine"`` (ranks by the direction of the codes, emits the codes as they are).
    learn
        ``"ema"``: codes move in each training forward to the moving average of what they are nearest to.
        ``"gradient"``: codes are a parameter. ``"frozen"``: they stay where they are.
    backward
        Which gradients reach the input and the codes, and what `.loss` holds: ``"straight"``, ``"base"``,
        ``"aeloss"``, ``"vqvae"`` or ``"fullaeloss"``; see the table of `etude.layers.code_gradients`.
    decay
        Weight of the old value in the moving averages.
    dead_after
        A code that no training forward of the last `dead_after` chose counts as dead for `replace_dead`.
    commitment
        Weight of the pull of the input towards its codes.
    name
        Stands in errors, so that a quantiser inside a network can be found.
    generator
        For the codes' start, N(0, 1); None: the global generator, as every constructor of `torch.nn`.

    Attributes
    ----------
    codes
        (G, J, d).
    usage
        (G, J) int64: how often each code was chosen in training mode. Evaluation moves no count.
    """

    codes: Tensor
    usage: Tensor
    idle: Tensor
    ema_count: Tensor
    ema_sum: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        groups: int = 1,
        k: int = 1,
        similarity: str = "euclidean",
        learn: str = "ema",
        backward: str = "straight",
        decay: float = 0.95,
        dead_after: int | None = None,
        commitment: float = 0.25,
        eps: float = 1e-5,
        name: str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(num_codes, dim, groups) < 1:
            raise ValueError(f"num_codes, dim and groups must be at least 1, got {(num_codes, dim, groups)}")
        if not 1 <= k <= num_codes:
            raise ValueError(f"k must lie in 1..{num_codes}, the number of codes, got {k}")
        for label, value, choices in (
            ("similarity", similarity, SIMILARITIES),
            ("learn", learn, LEARN),
            ("backward", backward, BACKWARD),
        ):
            if value not in choices:
                raise ValueError(f"unknown {label} {value!r}: choose one of {', '.join(choices)}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is the weight of the old value and lies in [0, 1), got {decay}")
        if dead_after is not None and dead_after < 1:
            raise ValueError(f"dead_after must be at least 1, got {dead_after}")
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment must be finite and at least 0, got {commitment}")
        self.num_codes, self.dim, self.groups, self.k = num_codes, dim, groups, k
        self.similarity, self.learn, self.backward, self.decay = similarity, learn, backward, decay
        self.dead_after, self.commitment, self.eps, self.name = dead_after, commitment, eps, name
        start = torch.randn(groups, num_codes, dim, generator=generator)
        if learn == "gradient":
            self.codes = nn.Parameter(start)
        else:
            self.register_buffer("codes", start)
        self.register_buffer("usage", torch.zeros(groups, num_codes, dtype=torch.long))
        self.register_buffer("idle", torch.zeros(groups, num_codes, dtype=torch.long))
        if learn == "ema":
            self.register_buffer("ema_count", torch.zeros(groups, num_codes))
            self.register_buffer("ema_sum", torch.zeros(groups, num_codes, dim))
        self._forced: list[Forcing] = []
        self._without: list[Tensor] = []

    def select(self, x: Tensor, *, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Indices and distances (..., G, k) of the nearest allowed codes; nothing is counted."""
        for gone in self._without:
            free = ~gone.to(x.device)
            allowed = free if allowed is None else allowed.expand_as(free) & free
        with self._named():
            indices, distances = nearest_codes(x, self.codes, k=self.k, similarity=self.similarity, allowed=allowed)
        for entry in self._forced:
            indices = put_codes(indices, entry)
            distances = self._distances(x, indices)
        return indices, distances

    def forward(self, x: Tensor, *, allowed: Tensor | None = None) -> Quantized:
        """Quantise `x` (..., G, d); in training mode counts usage and, with ``learn="ema"``, moves the codes.

        Raises
        ------
        ValueError
            If shapes do not fit or `x` is not finite (the message holds the quantiser's `name`).
        IndexError
            If a forced position lies beyond the sequence.
        """
        indices, distances = self.select(x, allowed=allowed)
        y = emit_codes(x, self.codes, indices, self.backward, self.commitment)
        loss = quantization_loss(x, self.codes, indices, y, self.backward, self.commitment)
        if self.training:
            with torch.no_grad():
                self.count(indices)
                if self.learn == "ema":
                    self.move(x, indices[..., 0])
        return Quantized(y, indices, distances, loss)

    # --- counting and moving averages ------------------------------------------------------------------------

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Add the chosen codes (..., G, k) to `usage`; codes that were not chosen have been idle one more step."""
        chosen = self._bincount(indices)
        self.usage += chosen
        self.idle += 1
        self.idle[chosen > 0] = 0

    def _bincount(self, indices: Tensor) -> Tensor:
        flat = indices + torch.arange(self.groups, device=indices.device)[:, None] * self.num_codes
        return torch.bincount(flat.flatten(), minlength=self.usage.numel()).view_as(self.usage)

    @torch.no_grad()
    def move(self, x: Tensor, nearest: Tensor) -> None:
        """One step of the moving averages: `x` (..., G, d), their nearest codes (..., G).

        n <- g n + (1-g) count, m <- g m + (1-g) sum, code = m / n', n' = (n + eps) / (sum n + J eps) * sum n.
        A code that was never chosen stays.
        """
        g = self.decay
        rows = x.detach().reshape(-1, self.groups, self.dim).to(self.ema_sum.dtype)
        offsets = torch.arange(self.groups, device=x.device) * self.num_codes
        flat = (nearest.reshape(-1, self.groups) + offsets).flatten()
        sums = torch.zeros_like(self.ema_sum).view(-1, self.dim).index_add_(0, flat, rows.reshape(-1, self.dim))
        self.ema_count.mul_(g).add_(self._bincount(nearest[..., None]), alpha=1 - g)
        self.ema_sum.mul_(g).add_(sums.view_as(self.ema_sum), alpha=1 - g)
        total = self.ema_count.sum(-1, keepdim=True)
        smooth = (self.ema_count + self.eps) / (total + self.num_codes * self.eps) * total
        self.codes.copy_(torch.where(self.ema_count[..., None] > 0, self.ema_sum / smooth[..., None], self.codes))

    @torch.no_grad()
    def replace_dead(
        self, x: Tensor, generator: torch.Generator, *, below: float | None = None, noise: float = 0.0
    ) -> Tensor:
        """Put dead codes on random rows of `x` (..., G, d), different rows as long as there are any.

        Parameters
        ----------
        below
            With ``learn="ema"``: dead is a moving count below this. None: idle for `dead_after` training forwards.
        noise
            Standard deviation of Gaussian noise added to the rows.

        Returns
        -------
        (G, J) bool, True where a code was replaced: set an optimiser's moments of these codes to zero.
        """
        if below is None and self.dead_after is None:
            raise ValueError("say which codes are dead: give below=, or set dead_after")
        if below is not None and self.learn != "ema":
            raise ValueError('below= compares moving counts, which only learn="ema" has: set dead_after')
        dead = self.idle >= self.dead_after if below is None else self.ema_count < below  # type: ignore[operator]
        if not bool(dead.any()):
            return dead
        rows = x.detach().reshape(-1, self.groups, self.dim).transpose(0, 1).to(self.codes.dtype)
        if rows.shape[1] == 0 or not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{self._label}: replace_dead needs at least one row, and every entry finite")
        order = torch.rand(self.groups, rows.shape[1], generator=generator).argsort(-1).to(rows.device)
        place = (dead.long().cumsum(-1) - 1).clamp_min(0) % rows.shape[1]
        fresh = rows.gather(1, order.gather(1, place)[..., None].expand(-1, -1, self.dim))
        if noise > 0:
            fresh = fresh + noise * torch.randn(fresh.shape, generator=generator).to(fresh)
        self.codes.copy_(torch.where(dead[..., None], fresh, self.codes))
        self.idle[dead] = 0
        if self.learn == "ema":
            weight = max(below or 0.0, 1 - self.decay)
            self.ema_count.masked_fill_(dead, weight)
            self.ema_sum.copy_(torch.where(dead[..., None], weight * fresh, self.ema_sum))
        return dead

    @torch.no_grad()
    def initialize(
        self,
        batches: Iterable[Tensor],
        *,
        method: str | None = None,
        epochs: int = 1,
        dead_share: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        """Place the codes on data; counts are left as they are.

        Parameters
        ----------
        batches
            Tensors (..., G, d); gone through `epochs` times, so no bare iterator for more than one.
        method
            ``"ema"`` (default with ``learn="ema"``): moving averages from where the codes are; codes chosen less
            than `dead_share` of the average are put on random rows. ``"rows"`` (default otherwise): random rows.
            ``"kmeans"``: k-means++ and Lloyd over all rows.
        generator
            None: ``stream(0, "codes")``.

        Raises
        ------
        ValueError
            If there are no batches, they are not finite, or ``"kmeans"`` gets fewer rows than codes.
        """
        method = method or ("ema" if self.learn == "ema" else "rows")
        if method not in ("ema", "rows", "kmeans") or (method == "ema" and self.learn != "ema"):
            raise ValueError(f'method must be "rows", "kmeans" or, with learn="ema", "ema", got {method!r}')
        generator = stream(0, "codes") if generator is None else generator
        if method == "ema":
            self._initialize_ema(batches, epochs, dead_share, generator)
            return
        rows = torch.cat([b.reshape(-1, self.groups, self.dim) for b in batches] or [self.codes.new_empty(0, 0, 0)])
        if rows.numel() == 0 or not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{self._label}: initialize needs at least one row, and every entry finite")
        rows = rows.transpose(0, 1).to(self.codes)
        if method == "kmeans":
            self.codes.copy_(kmeans(rows, self.num_codes, generator=generator).centers)
        else:
            order = torch.rand(self.groups, rows.shape[1], generator=generator).argsort(-1).to(rows.device)
            place = order[:, torch.arange(self.num_codes, device=rows.device) % rows.shape[1]]
            self.codes.copy_(rows.gather(1, place[..., None].expand(-1, -1, self.dim)))
        if self.learn == "ema":
            self.ema_count.fill_(1.0)
            self.ema_sum.copy_(self.codes)

    def _initialize_ema(self, batches: Iterable[Tensor], epochs: int, share: float, generator: torch.Generator) -> None:
        seen = 0
        for _ in range(epochs):
            for x in batches:
                with self._named():
                    indices, _ = nearest_codes(x, self.codes, similarity=self.similarity)
                self.move(x, indices[..., 0])
                below = share * (x.numel() // (self.groups * self.dim)) / self.num_codes
                self.replace_dead(x, generator, below=below)
                seen += 1
        if not seen:
            raise ValueError(f"{self._label}: initialize needs at least one batch")

    def freeze(self) -> "VectorQuantizer":
        """From now on nothing moves the codes: no moving average, no gradient."""
        self.learn = "frozen"
        self.codes.requires_grad_(False)
        return self

    def live_fraction(self) -> float:
        """Share of the codes that training has chosen at least once."""
        return float((self.usage > 0).float().mean())

    # --- interventions ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def force(
        self, codes: Sequence[int] | Tensor, *, groups: Sequence[int] | None = None, positions: Any = None
    ) -> Iterator[None]:
        """Inside the block, every vector's set of codes holds `codes`; the nearest others fill the k slots.

        Parameters
        ----------
        codes
            (m,) indices for all chosen groups, or (len(groups), m); at most k of them. They stand last.
        groups
            Which groups; None: all.
        positions
            Slice, index or list of indices of the axis before the groups (time); None: everywhere.

        Raises
        ------
        IndexError
            If an index reaches beyond the codebook or the groups, or (in forward) a position or the start of a slice
            beyond the axis.
        ValueError
            If more than k codes are forced.
        """
        entry = forcing(codes, groups, positions, k=self.k, num_codes=self.num_codes, num_groups=self.groups)
        self._forced.append(entry)
        try:
            yield
        finally:
            self._forced = [e for e in self._forced if e is not entry]

    @contextlib.contextmanager
    def without(self, codes: Sequence[int] | Tensor, *, groups: Sequence[int] | None = None) -> Iterator[None]:
        """Inside the block these codes are not chosen; IndexError beyond the codebook or the groups."""
        mask = excluded(codes, groups, num_codes=self.num_codes, num_groups=self.groups)
        self._without.append(mask)
        try:
            yield
        finally:
            self._without = [m for m in self._without if m is not mask]

    @property
    def _label(self) -> str:
        return self.name or type(self).__name__

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self._label}: {error}") from error

    def _distances(self, x: Tensor, indices: Tensor) -> Tensor:
        chosen = take_codes(self.codes.detach(), indices).float()
        rows = x.detach().float().unsqueeze(-2)
        if self.similarity == "cosine":
            return 1 - torch.cosine_similarity(rows, chosen, dim=-1)
        return (rows - chosen).square().sum(-1)

    def extra_repr(self) -> str:
        return f"{self.num_codes}, {self.dim}, groups={self.groups}, k={self.k}, learn={self.learn!r}"

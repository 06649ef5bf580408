"""Discrete key-value bottleneck: a frozen encoder's output picks cells of small tables, and only those cells learn.

Source: Traeuble et al. 2022, arXiv 2207.11240 (ICML 2023). Names: codebook c of C, key j of J, heads u_c = P_c^T e.
Differs from the paper's code: values start at zero (its module draws N(0, 1), its experiments use zero); keys move only
in `initialize_keys`; a replaced dead key keeps its place (see `etude.layers.quantizers`); an evaluation with nothing
visited in a codebook uses all of its keys.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.key_value_batches import Again, embeddings_of
from etude.continual.key_value_checks import (
    check_cells,
    check_labels,
    check_step,
    holds_embeddings,
    what_ruins,
)
from etude.data.randomness import stream
from etude.layers.modes import evaluating
from etude.layers.quantizers import VectorQuantizer


class KeyValueOutput(NamedTuple):
    """values (..., C, value_dim), indices (..., C, topk), distances and visit counts of the fetched cells likewise."""

    values: Tensor
    indices: Tensor
    distances: Tensor
    counts: Tensor


class Coverage(NamedTuple):
    """How keys suit data. visited: share of all keys that some row fetches; distance_ratio: mean squared distance
    to the fetched keys, in units of that of the data that the keys were placed on (NaN: they never were)."""

    visited: float
    distance_ratio: float


class KeyValueBottleneck(nn.Module):
    """Table of key-value pairs between an embedding and a class vote: (B, D) to (B, C, value_dim).

    Place the keys with `initialize_keys` on unlabelled embeddings, call `freeze_keys`, then train: only `values` has
    gradients, and only the fetched cells get any. With plain SGD every other cell stays bit for bit.

    Parameters
    ----------
    in_features
        Width D of the embeddings. Tokens (B, n, D) are taken too and give (B, n, C, value_dim).
    num_codebooks, num_pairs, key_dim, value_dim
        C codebooks of J pairs; value_dim = number of classes for `vote`. The paper takes C=256, J=4096, key_dim=14.
    topk
        Keys fetched a codebook; their values are averaged.
    projection
        ``"random"``: fixed Gaussian directions of unit length. ``"chunk"``: consecutive pieces, D = C * key_dim. Or
        a module from D to C * key_dim features, which is frozen with the keys and always works as in eval mode.
    value_init
        ``"zeros"``, or a number: the standard deviation of a normal start.
    decay
        Of the moving averages that place the keys.
    visited_only
        In evaluation, keys that training never fetched cannot be chosen: an unknown region falls back to
        the nearest visited key.
    strict
        Raise instead of warning when used before the keys were placed.
    generator
        Of projection, keys and values; None: the global one, as every constructor of `torch.nn`.

    Attributes
    ----------
    values
        Parameter (C, J, value_dim).
    keys, counts
        (C, J, key_dim), and how often training fetched each (C, J).
    """

    projection: Tensor
    placed: Tensor
    frozen: Tensor
    own_distance: Tensor

    def __init__(
        self,
        in_features: int,
        num_codebooks: int,
        num_pairs: int,
        key_dim: int,
        value_dim: int,
        *,
        topk: int = 1,
        projection: str | nn.Module = "random",
        value_init: str | float = "zeros",
        decay: float = 0.95,
        visited_only: bool = True,
        strict: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = (in_features, num_codebooks, num_pairs, key_dim, value_dim)
        if min(sizes) < 1:
            raise ValueError(
                f"in_features, num_codebooks, num_pairs, key_dim, value_dim must be at least 1, got {sizes}"
            )
        self.in_features, self.num_codebooks, self.num_pairs = in_features, num_codebooks, num_pairs
        self.key_dim, self.value_dim, self.topk = key_dim, value_dim, topk
        self.visited_only, self.strict = visited_only, strict
        self.projector = projection if isinstance(projection, nn.Module) else None
        if projection == "random":
            directions = torch.randn(in_features, num_codebooks * key_dim, generator=generator)
            self.register_buffer("projection", F.normalize(directions, dim=0))
        elif projection == "chunk":
            if in_features != num_codebooks * key_dim:
                raise ValueError(
                    f"chunk cuts the embedding into num_codebooks * key_dim = {num_codebooks * key_dim} features, "
                    f"but in_features is {in_features}"
                )
        elif self.projector is None:
            raise ValueError(f'projection must be "random", "chunk" or a module, got {projection!r}')
        self.quantizer = VectorQuantizer(
            num_pairs, key_dim, groups=num_codebooks, k=topk, learn="ema", decay=decay, name="KeyValueBottleneck",
            generator=generator,
        )  # fmt: skip
        if value_init == "zeros":
            values = torch.zeros(num_codebooks, num_pairs, value_dim)
        elif isinstance(value_init, str):
            raise ValueError(f'value_init must be "zeros" or a standard deviation, got {value_init!r}')
        elif not (value_init >= 0 and math.isfinite(value_init)):
            raise ValueError(f"value_init is a standard deviation and must be finite and at least 0, got {value_init}")
        else:
            values = value_init * torch.randn(num_codebooks, num_pairs, value_dim, generator=generator)
        self.values = nn.Parameter(values)
        self.register_buffer("placed", torch.tensor(False))
        self.register_buffer("frozen", torch.tensor(False))
        self.register_buffer("own_distance", torch.tensor(torch.nan))

    @property
    def keys(self) -> Tensor:
        return self.quantizer.codes

    @property
    def counts(self) -> Tensor:
        return self.quantizer.usage

    # --- keys --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def initialize_keys(
        self,
        loader: Any,
        epochs: int = 10,
        *,
        method: str = "ema",
        batch_size: int = 256,
        generator: torch.Generator | None = None,
    ) -> "KeyValueBottleneck":
        """Place the keys on unlabelled embeddings; sets the visit counts to zero.

        Parameters
        ----------
        loader
            Batches of embeddings (of pairs or splits the first part is taken), or all of them as one tensor
            or array, which is then cut into shuffled batches.
        method
            ``"ema"``: moving averages over `epochs` passes, dead keys put on random rows. ``"kmeans"``.
        generator
            None: ``stream(0, "keys")``.

        Raises
        ------
        ValueError
            If the keys are frozen, there is nothing to place them on, or embeddings do not fit or are not finite.
        """
        if bool(self.frozen):
            raise ValueError("the keys are frozen: make a new bottleneck to place them elsewhere")
        if min(epochs, batch_size) < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
        generator = stream(0, "keys") if generator is None else generator
        batches = embeddings_of(loader, batch_size, generator)
        seen, distance = 0, 0.0

        def heads() -> Iterator[Tensor]:
            nonlocal seen
            seen = 0
            for batch in batches:
                u = self.heads(batch)
                seen += u[..., 0, 0].numel()
                yield u

        self.quantizer.initialize(
            Again(heads), method=method, epochs=epochs if method == "ema" else 1, generator=generator
        )
        if not seen:
            raise ValueError("there are no embeddings to place the keys on")
        for u in heads():
            distance += float(self.quantizer.select(u)[1][..., 0].sum())
        self.own_distance.fill_(distance / (seen * self.num_codebooks))
        if seen < self.num_pairs:
            warnings.warn(
                f"{self.num_pairs} keys a codebook were placed on {seen} embeddings: some will stay unused; "
                "take fewer pairs or more data",
                stacklevel=2,
            )
        self.quantizer.usage.zero_()
        self.placed.fill_(True)
        return self

    def freeze_keys(self) -> "KeyValueBottleneck":
        """Keys and projection stay as they are from now on; returns self.

        Called before `initialize_keys`, it keeps the random start on purpose, without further warnings.
        """
        self.frozen.fill_(True)
        if self.projector is not None:
            self.projector.requires_grad_(False)
        return self

    @torch.no_grad()
    def coverage(self, e: Tensor) -> Coverage:
        """Whether the keys cover these embeddings; see `Coverage`. Counts nothing."""
        indices, distances = self._select(e, False)
        if not indices.numel():
            raise ValueError(f"there are no embeddings to cover, got shape {tuple(e.shape)}")
        visited = self.quantizer._bincount(indices) > 0
        found, own = distances[..., 0].mean(), self.own_distance
        ratio = torch.where((own == 0) & (found == 0), 1.0, found / own)  # both lie on the keys
        return Coverage(float(visited.float().mean()), float(ratio))

    # --- reading -----------------------------------------------------------------------------------------------

    def heads(self, e: Tensor) -> Tensor:
        """Embeddings (..., D) to their heads (..., C, key_dim)."""
        if not holds_embeddings(e) or e.ndim < 2 or e.shape[-1] != self.in_features:
            raise ValueError(f"embeddings must be float (..., {self.in_features}), got {e.dtype} {tuple(e.shape)}")
        if not bool(torch.isfinite(e).all()):
            row = tuple((~torch.isfinite(e)).any(-1).nonzero()[0].tolist())
            raise ValueError(f"embeddings hold NaN or infinities, first in row {row[0] if len(row) == 1 else row}")
        e = e.to(self.values.device, self.keys.dtype)
        if self.projector is not None:
            # nothing here trains it, and kept cells must be those of now: neither mode nor precision may matter
            with evaluating(self.projector), torch.autocast(e.device.type, enabled=False):
                e = self.projector(e)
            if e.shape[-1] != self.num_codebooks * self.key_dim:
                raise ValueError(
                    f"projection must give num_codebooks * key_dim = {self.num_codebooks * self.key_dim} features, "
                    f"got {e.shape[-1]}"
                )
        elif "projection" in self._buffers:
            with torch.autocast(e.device.type, enabled=False):
                e = e @ self.projection
        return e.unflatten(-1, (self.num_codebooks, self.key_dim))

    def cells(self, e: Tensor, *, visited_only: bool | None = None) -> Tensor:
        """Which cells embeddings fetch, (..., C, topk), to be kept: once the keys are frozen they do not change.

        int16 where that suffices. `visited_only` None: as in `forward`, so only in evaluation mode.
        """
        indices = self._select(e, visited_only)[0]
        return indices.short() if self.num_pairs <= 2**15 else indices

    def _select(self, e: Tensor, visited_only: bool | None) -> tuple[Tensor, Tensor]:
        if not bool(self.placed) and not bool(self.frozen):
            text = "the keys are random: call initialize_keys on unlabelled embeddings first"
            if self.strict:
                raise ValueError(text)
            warnings.warn(text, stacklevel=3)
        allowed = None
        if (self.visited_only and not self.training) if visited_only is None else visited_only:
            visited = self.counts > 0
            allowed = visited | (visited.sum(-1, keepdim=True) < self.topk)
        return self.quantizer.select(self.heads(e), allowed=allowed)

    def _kept(self, cells: Tensor) -> Tensor:
        return check_cells(cells, self.num_codebooks, self.topk, self.num_pairs).to(self.values.device)

    def _flat(self, cells: Tensor) -> Tensor:
        """Row numbers in the table of all codebooks, int64."""
        return cells.long() + torch.arange(self.num_codebooks, device=cells.device)[:, None] * self.num_pairs

    @property
    def _table(self) -> Tensor:
        return self.values.view(-1, self.value_dim)

    def forward(self, e: Tensor, return_dict: bool = False) -> Tensor | KeyValueOutput:
        """Embeddings (..., D), or cells kept from `cells`, to their values (..., C, value_dim).

        In training mode the fetched cells are counted as visited; evaluation counts nothing. `return_dict` gives
        indices, distances (NaN for kept cells) and visit counts as well.
        """
        if holds_embeddings(e):
            indices, distances = self._select(e, None)
        else:
            indices, distances = self._kept(e).long(), torch.full((), torch.nan).expand(e.shape)
        flat = self._flat(indices)
        values = F.embedding(flat, self._table).mean(-2)
        seen = self.counts.view(-1)[flat] if return_dict else None
        if self.training:
            self.quantizer.count(indices.long())
        return values if seen is None else KeyValueOutput(values, indices, distances, seen)

    def vote(self, e: Tensor) -> Tensor:
        """The mean value over codebooks (and tokens), (B, value_dim): the logits of a decoder without weights.

        Takes embeddings or kept cells, as `forward`; quicker than averaging its result.
        """
        cells = self._select(e, None)[0] if holds_embeddings(e) else self._kept(e)
        if len(cells) and not cells.numel():
            raise ValueError(f"there are no tokens to vote, got shape {tuple(e.shape)}")
        flat = self._flat(cells).flatten(1)
        if self.training:
            self.quantizer.count(cells.long())
        return F.embedding_bag(flat, self._table, mode="mean")

    # --- learning ----------------------------------------------------------------------------------------------

    def loss(self, e: Tensor, y: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
        """Cross-entropy of the vote, the paper's training loss.

        Raises
        ------
        ValueError
            If there is no row, a label is not one of the `value_dim` classes or `label_smoothing` no share.
        """
        check_step(label_smoothing=label_smoothing)
        holds_embeddings(e)
        y = check_labels(e, y, self.value_dim)
        return F.cross_entropy(self.vote(e), y, label_smoothing=label_smoothing)

    @torch.no_grad()
    def learn(
        self, e: Tensor, y: Tensor, *, lr: float = 0.3, label_smoothing: float = 0.1, clip_norm: float | None = 1.0
    ) -> float:
        """One step of SGD on `loss`, written into the fetched rows alone; returns the loss before it.

        The same numbers as ``loss().backward()``, clipping the gradient's norm and ``torch.optim.SGD(lr)``, without
        a gradient of the table's size. Marks the cells as visited, whatever the mode.

        Raises
        ------
        ValueError
            As `loss`, and for a negative or infinite `lr` or a `clip_norm` that is not positive; nothing is learned
            or counted then.
        """
        check_step(lr=lr, label_smoothing=label_smoothing, clip_norm=clip_norm)
        embedded = holds_embeddings(e)
        y = check_labels(e, y, self.value_dim)
        cells = self._select(e, False)[0] if embedded else self._kept(e)
        flat = self._flat(cells).flatten(1)
        self.quantizer.count(cells.long())
        logits = F.embedding_bag(flat, self._table, mode="mean")
        y = y.to(logits.device)
        loss = F.cross_entropy(logits, y, label_smoothing=label_smoothing)
        wanted = F.one_hot(y, self.value_dim) * (1 - label_smoothing) + label_smoothing / self.value_dim
        gradient = (logits.softmax(-1) - wanted) / flat.numel()
        rows, place = flat.flatten().unique(return_inverse=True)
        spread = gradient.repeat_interleave(flat.shape[1], 0)
        total = spread.new_zeros(len(rows), self.value_dim).index_add_(0, place, spread)
        if clip_norm is not None:
            total *= (clip_norm / (torch.linalg.vector_norm(total) + 1e-6)).clamp_max(1.0)
        self._table.index_add_(0, rows, total.to(self._table.dtype), alpha=-lr)
        return float(loss)

    @torch.no_grad()
    def grow_values(self, value_dim: int) -> None:
        """Append columns of zeros for new classes. `values` becomes a new parameter: build a new optimiser."""
        if value_dim < self.value_dim:
            raise ValueError(f"value_dim can only grow: it is {self.value_dim}, got {value_dim}")
        wider = self.values.new_zeros(self.num_codebooks, self.num_pairs, value_dim)
        wider[..., : self.value_dim] = self.values
        self.values, self.value_dim = nn.Parameter(wider), value_dim

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """A state of more classes: `values` grows to them, so build the optimiser afterwards."""
        values = state_dict.get(f"{prefix}values")
        if values is not None and values.shape[:2] == self.values.shape[:2] and values.shape[2] > self.value_dim:
            self.grow_values(values.shape[2])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether untouched cells stay untouched under `optimizer`; warns for what would move them.

        False, with a warning, also where `values` is not among its parameters, as after `grow_values`.
        """
        reasons = what_ruins(optimizer, self.values)
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}: use SGD without momentum and decay, on `values`", stacklevel=2)
        return not reasons

    def extra_repr(self) -> str:
        sizes = (self.in_features, self.num_codebooks, self.num_pairs, self.key_dim, self.value_dim)
        return "in_features={}, num_codebooks={}, num_pairs={}, key_dim={}, value_dim={}".format(*sizes)

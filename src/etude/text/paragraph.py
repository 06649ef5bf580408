"""Paragraph vectors, real or binary: the model, its training and the inference of new documents.

Sources: Le & Mikolov 2014 (arXiv 1405.4053) for PV-DBOW and PV-DM; Grzegorczyk & Kurdziel 2017 (arXiv 1611.01116)
and Grzegorczyk 2019 (arXiv 1901.01695) for the binary bottleneck.
Names: `documents` is the paper's table of paragraph vectors, E (D, M); `weight`, `bias` its softmax layer, U (V, H)
and c (V,); `projection`, `offset` the shared layer P (B, M) and p (B,) of the Real-Binary model.
Differs from the paper: where the vocabulary is small the softmax is exact (the paper samples it always), and
frequent words are weighed down instead of dropped at random. A document's row is touched once an epoch, so every
row has its own moments and its own age in the optimiser.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from etude.data.progress import track
from etude.data.randomness import stream
from etude.layers.straight_through import binarize
from etude.text.count_loss import CountRows, Counts, count_cross_entropy, sampled_cross_entropy

Architecture = Literal["dbow", "dm", "real-binary"]
Combine = Literal["concat", "mean"]


class RowOptimizer:
    """Adam or AdaGrad over a table of which a step touches few rows. Rows left alone do not move."""

    def __init__(self, table: Tensor, kind: Literal["adam", "adagrad"], lr: float) -> None:
        self.table, self.kind, self.lr = table, kind, lr
        self.square = torch.zeros_like(table)
        self.mean = torch.zeros_like(table) if kind == "adam" else None
        self.age = torch.zeros(len(table), dtype=table.dtype, device=table.device)

    def leaf(self, rows: Tensor) -> Tensor:
        """A copy of the rows that collects their gradient."""
        return self.table.index_select(0, rows).requires_grad_()

    def step(self, rows: Tensor, leaf: Tensor) -> None:
        """Move the rows, (r,) without repetition, along the gradient that `leaf` collected."""
        gradient = leaf.grad
        if gradient is None:
            return
        square = self.square.index_select(0, rows)
        if self.mean is None:
            self.square.index_copy_(0, rows, square.addcmul_(gradient, gradient))
            self.table.index_copy_(
                0, rows, leaf.detach().addcdiv_(gradient, square.sqrt_().add_(1e-10), value=-self.lr)
            )
            return
        age = self.age.index_select(0, rows) + 1
        mean = self.mean.index_select(0, rows).lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        self.age.index_copy_(0, rows, age)
        self.mean.index_copy_(0, rows, mean)
        self.square.index_copy_(0, rows, square)
        ones = (1,) * (gradient.ndim - 1)
        root = square.div_((1 - 0.999**age).view(-1, *ones)).sqrt_().add_(1e-8)
        step = mean.div_((1 - 0.9**age).view(-1, *ones))
        self.table.index_copy_(0, rows, leaf.detach().addcdiv_(step, root, value=-self.lr))


@dataclass
class ParagraphModel:
    """The parameters that documents share. `bits` is None for real paragraph vectors."""

    architecture: Architecture
    bits: int | None
    dim: int  # length of a document's own row
    weight: Tensor  # (V, H)
    bias: Tensor  # (V,)
    projection: Tensor | None = None  # (B, M)
    offset: Tensor | None = None  # (B,)
    context: Tensor | None = None  # (V + 1, m); the last row stands for "outside the document" and stays zero
    window: int = 0
    combine: Combine = "concat"

    def logits(self, rows: Tensor) -> Tensor:
        """What is binarised, (n, B); real paragraph vectors are their own rows."""
        if self.projection is None or self.offset is None:
            return rows
        return torch.addmm(self.offset, rows, self.projection.T)

    def code(self, rows: Tensor) -> Tensor:
        """What a document contributes to the prediction, (n, B)."""
        return rows if self.bits is None else binarize(self.logits(rows))

    def bits_of(self, rows: Tensor) -> Tensor:
        """Boolean codes, (n, B): a bit is logit > 0."""
        return self.logits(rows) > 0

    def tensors(self) -> dict[str, Tensor]:
        named = {"weight": self.weight, "bias": self.bias, "projection": self.projection, "offset": self.offset}
        return {k: v for k, v in (named | {"context": self.context}).items() if v is not None}


def build_model(
    architecture: Architecture,
    frequencies: Tensor,
    generator: torch.Generator,
    *,
    bits: int | None,
    dim: int,
    word_dim: int = 64,
    window: int = 4,
    combine: Combine = "concat",
) -> ParagraphModel:
    """A fresh model whose softmax starts at the words' own frequencies, (V,), so that the first thing a document's
    row learns is how the document differs from the collection. Small random softmax rows and context vectors,
    projection rows of about unit gain."""
    code = dim if bits is None else bits
    hidden, n_features = code, len(frequencies)
    bias = ((frequencies + 0.5) / (frequencies + 0.5).sum()).log()
    model = ParagraphModel(architecture, bits, dim, bias.new_empty(0), bias)
    if architecture == "real-binary":
        assert bits is not None
        model.projection = torch.randn(bits, dim, generator=generator, dtype=torch.float32) / dim**0.5
        model.offset = torch.zeros(bits, dtype=torch.float32)
    if architecture == "dm":
        word_dim = code if combine == "mean" else word_dim
        model.window, model.combine = window, combine
        drawn = torch.rand(n_features + 1, word_dim, generator=generator, dtype=torch.float32)
        model.context = (drawn - 0.5) / word_dim
        model.context[-1] = 0
        hidden = code + 2 * window * word_dim if combine == "concat" else code
    model.weight = 0.01 * torch.randn(n_features, hidden, generator=generator, dtype=torch.float32)
    return model


def new_documents(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """Rows of new documents, uniform in +-0.5/dim: near 0, where the sigmoid still learns."""
    return (torch.rand(n, dim, generator=generator, dtype=torch.float32) - 0.5) / dim


class Batch(NamedTuple):
    documents: Tensor  # (n,) rows of the document table, without repetition
    counts: Counts  # rows are documents of the batch, or positions for PV-DM
    position: Tensor | None = None  # (p,) document of the batch that a position belongs to
    context: Tensor | None = None  # (p, 2 window) words around it


@dataclass(frozen=True)
class TokenRows:
    """Documents as sequences of words of the vocabulary, for PV-DM."""

    bounds: Tensor  # (D + 1,)
    tokens: Tensor  # (T,)
    word_weight: Tensor  # (V,)

    def take(self, documents: Tensor, window: int) -> Batch:
        start, length = self.bounds[documents], self.bounds[documents + 1] - self.bounds[documents]
        position = torch.repeat_interleave(length)
        first = length.cumsum(0) - length
        within = torch.arange(len(position), device=position.device) - first[position]
        target = self.tokens[start[position] + within]
        offsets = torch.tensor([o for o in range(-window, window + 1) if o], device=position.device)
        place = within[:, None] + offsets
        inside = (place >= 0) & (place < length[position, None])
        around = self.tokens[(start[position, None] + place).clamp_(0, len(self.tokens) - 1)]
        context = torch.where(inside, around, len(self.word_weight))
        rows = torch.arange(len(position), device=position.device)
        return Batch(documents, Counts(rows, target, self.word_weight[target]), position, context)


class Objective:
    """The loss of a batch as a function of the documents' rows, and the update of whatever else it trains."""

    def __init__(
        self,
        model: ParagraphModel,
        *,
        loss: Literal["exact", "sampled"],
        frequencies: Tensor,
        n_negatives: int,
        product_dtype: torch.dtype | None,
        generator: torch.Generator,
        optimizer: Literal["adam", "adagrad"] = "adam",
        lr: float | None = None,
    ) -> None:
        """`lr` None freezes the model (inference); `frequencies` (V,) are the words' counts, for sampling."""
        self.model, self.loss, self.product_dtype, self.generator = model, loss, product_dtype, generator
        self.n_negatives = n_negatives
        power = frequencies.double().pow(0.75)
        self.noise = (power / power.sum()).float()
        self.tables: dict[str, RowOptimizer] = {}
        self.dense: list[torch.optim.Optimizer] = []
        if lr is None:
            return
        rows = {"context"} if loss == "exact" else {"context", "weight", "bias"}
        rest = []
        for name, tensor in model.tensors().items():
            if name in rows:
                self.tables[name] = RowOptimizer(tensor, optimizer, lr)
            else:
                rest.append(tensor.requires_grad_())
        if rest:
            fused = rest[0].device.type in ("cpu", "cuda")
            self.dense.append(
                torch.optim.Adam(rest, lr, fused=fused) if optimizer == "adam" else torch.optim.Adagrad(rest, lr)
            )

    def __call__(self, documents: Tensor, batch: Batch) -> tuple[Tensor, Callable[[], None]]:
        """Loss summed over the batch, and the function that updates the shared parameters after backward."""
        leaves: list[tuple[str, Tensor, Tensor]] = []

        def take(wanted: Tensor, *names: str) -> tuple[Tensor, Tensor, list[Tensor]]:
            """The rows that the batch needs of some tables, where each wanted row went, and the tables' rows."""
            tensors = self.model.tensors()
            if not self.tables:
                return torch.arange(len(tensors[names[0]]), device=wanted.device), wanted, [tensors[n] for n in names]
            rows, place = wanted.unique(return_inverse=True)
            taken = [self.tables[name].leaf(rows) for name in names]
            leaves.extend((name, rows, leaf) for name, leaf in zip(names, taken, strict=True))
            return rows, place, taken

        model, counts = self.model, batch.counts
        hidden = model.code(documents)
        if batch.position is not None and batch.context is not None and model.context is not None:
            _, place, (table,) = take(batch.context, "context")
            outside = batch.context == len(model.context) - 1
            around = torch.nn.functional.embedding(place, table).masked_fill(outside[..., None], 0.0)
            hidden = torch.nn.functional.embedding(batch.position, hidden)
            if model.combine == "concat":
                hidden = torch.cat([hidden, around.flatten(1)], dim=1)
            else:
                hidden = (hidden + around.sum(1)) / (1 + (~outside).sum(1, keepdim=True))
        if self.loss == "exact":
            value = count_cross_entropy(hidden, model.weight, model.bias, counts, self.product_dtype)
        else:
            drawn = torch.multinomial(self.noise, self.n_negatives, replacement=True, generator=self.generator)
            wanted = torch.cat([counts.columns, drawn.to(counts.columns.device)])
            rows, place, (weight, bias) = take(wanted, "weight", "bias")
            expected = (self.noise.to(rows.device)[rows] * self.n_negatives).clamp_min(1e-30).log()
            split = len(counts.columns)
            value = sampled_cross_entropy(
                hidden, weight, bias, counts._replace(columns=place[:split]), place[split:], expected
            )

        def update() -> None:
            for name, rows, leaf in leaves:
                self.tables[name].step(rows, leaf)
            for optimizer in self.dense:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return value, update


Source = CountRows | TokenRows


def take_batch(source: Source, documents: Tensor, window: int) -> Batch:
    """The batch of some documents, for either kind of model."""
    if isinstance(source, TokenRows):
        return source.take(documents, window)
    return Batch(documents, source.take(documents))


def fit_documents(
    documents: Tensor,
    source: Source,
    objective: Objective,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Literal["adam", "adagrad"],
    lr: float,
    seed: int,
    what: str,
) -> list[dict[str, Any]]:
    """Train the rows of all documents together with the shared parameters, in place.

    Returns
    -------
    A record for every epoch: loss (per counted word) and the share of bits that flipped in it.

    Raises
    ------
    ValueError
        If training diverges: the loss or a row is no finite number.
    """
    model, rows, history = objective.model, RowOptimizer(documents, optimizer, lr), []
    order = stream(seed, "order")
    with torch.no_grad():
        before = model.bits_of(documents)
    for epoch in track(range(epochs), what):
        total, words = 0.0, 0.0
        for batch in _epoch(source, len(documents), batch_size, model.window, order, documents.device):
            leaf = rows.leaf(batch.documents)
            loss, update = objective(leaf, batch)
            loss.backward()
            update()
            rows.step(batch.documents, leaf)
            total += float(loss.detach())
            words += float(batch.counts.values.sum())
        if not math.isfinite(total) or not bool(documents.isfinite().all()):
            raise ValueError(f"training diverged in epoch {epoch + 1}: lower lr or document_lr (it is {lr})")
        with torch.no_grad():
            after = model.bits_of(documents)
        flips = float((before != after).float().mean())
        history.append({"epoch": epoch + 1, "loss": total / max(words, 1e-12), "flips": flips})
        before = after
    for tensor in model.tensors().values():
        tensor.requires_grad_(False)
    return history


def _epoch(
    source: Source, n: int, batch_size: int, window: int, generator: torch.Generator, device: torch.device
) -> Iterator[Batch]:
    order = torch.randperm(n, generator=generator).to(device)
    for documents in order.split(batch_size):
        yield take_batch(source, documents, window)


def infer_documents(
    source: Source,
    n: int,
    objective: Objective,
    *,
    steps: int,
    batch_size: int,
    optimizer: Literal["adam", "adagrad"],
    lr: float,
    start: Tensor,
    seed: int,
    what: str,
) -> Tensor:
    """Rows of n new documents under a frozen model, (n, dim).

    Every document starts from the same small row `start`, (dim,), and takes `steps` steps on its own words, so that
    its result does not depend on which documents come with it (but for the order of floating-point sums).
    Sampled words are the same for every batch, for the same reason.
    """
    device = start.device
    result = start.new_empty(n, len(start))
    for documents in track(list(torch.arange(n, device=device).split(batch_size)), what):
        batch = take_batch(source, documents, objective.model.window)
        objective.generator = stream(seed, "infer", "negatives")
        part = start.repeat(len(documents), 1)
        rows, everything = RowOptimizer(part, optimizer, lr), torch.arange(len(documents), device=device)
        for _ in range(steps):
            leaf = rows.leaf(everything)
            loss, _ = objective(leaf, batch)
            loss.backward()
            rows.step(everything, leaf)
        result[documents] = part
    return result

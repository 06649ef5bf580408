"""How alike two representations of the same rows are: CKA, RSA and effective rank.

Sources: linear CKA, Kornblith et al. 2019, arXiv 1905.00414, eq. 1 and 3 (`debiased=False`); unbiased HSIC, Song et
al. 2012, eq. 5, and its average over batches, Nguyen, Raghu & Kornblith 2021, arXiv 2010.15327, eq. 2 and 3
(`debiased=True`); representational similarity, Kriegeskorte et al. 2008; effective rank, Roy & Vetterli 2007.
Names: X, Y are (n, p) and (n, q) activations of n rows; K = X X^T their Gram matrix.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from etude.data.progress import track
from etude.layers.modes import evaluating
from etude.layers.surgery import Record, TargetError, Targets

MIN_ROWS = 4
GRAM_ROWS = 2048  # above this many rows Gram matrices of all layers are not held at once
FLAT = 1e-12  # share of the squared size below which what centring leaves is rounding
MODERATE = 2.0**20  # sizes beyond it, or below its inverse, are brought to about 1
REPRESENTATIONS: tuple[type, ...] = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.RNNBase, nn.LayerNorm, nn.MultiheadAttention,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)  # fmt: skip


class CKAMatrix(NamedTuple):
    """`values` (a, b): the similarity of each layer of the first model with each of the second."""

    values: Tensor
    rows: tuple[str, ...]
    columns: tuple[str, ...]


def as_rows(X: Tensor) -> Tensor:
    """Activations (n, ...) as (n, p), in single precision at least.

    Raises
    ------
    ValueError
        If there are fewer than four rows or no features: no similarity is defined.
    """
    X = torch.as_tensor(X)
    if X.ndim < 2 or 0 in X.shape[1:]:
        raise ValueError(f"activations must be (rows, features...), got shape {tuple(X.shape)}")
    if len(X) < MIN_ROWS:
        raise ValueError(f"similarity needs at least {MIN_ROWS} rows, got {len(X)}: use larger batches")
    X = X.flatten(1)
    return X if X.dtype == torch.float64 else X.float()


def full_precision(X: Tensor) -> torch.autocast:
    """A block without autocast, which would round the products of `as_rows` to half precision again."""
    return torch.autocast(X.device.type, enabled=False)


def centred_gram(X: Tensor, *, debiased: bool = False) -> Tensor:
    """The centred Gram matrix (n, n), of length 1, so that CKA of two layers is the sum of their product.

    `debiased`: centred without the diagonal (U-centring), which makes the product an unbiased HSIC. Constant
    activations give zeros (their CKA is 0/0, taken as 0).
    """
    X = moderate(as_rows(X))
    with full_precision(X):
        K = torch.where(is_flat(X), 0.0, _gram(X, debiased))
    return K / K.norm().clamp_min(torch.finfo(K.dtype).tiny)


def moderate(X: Tensor) -> Tensor:
    """X (..., n, p), times a power of two where its products would leave the range of floats: CKA is blind to that."""
    power = _power(X)
    return X if bool((power == 1).all()) else X * power


def _power(X: Tensor) -> Tensor:
    """(..., 1, 1) powers of two that bring very large and very small X (..., n, p) to a size of about 1; else 1."""
    size = X.detach().abs().amax((-2, -1), keepdim=True)
    far = ((size > MODERATE) | (size < 1 / MODERATE)) & (size > 0) & torch.isfinite(size)
    return torch.exp2(-torch.where(far, size, 1.0).log2().floor().clamp(-120, 120))


def _gram(X: Tensor, debiased: bool) -> Tensor:
    centred = X - X.mean(0)
    K = centred @ centred.T
    return _u_centred(K) if debiased else K


def _u_centred(K: Tensor) -> Tensor:
    """(..., n, n) centred without the diagonal, which becomes 0."""
    n = K.shape[-1]
    off = 1 - torch.eye(n, dtype=K.dtype, device=K.device)
    K = K * off
    rows = K.sum(-1) / (n - 2)
    K = K - rows.unsqueeze(-1) - rows.unsqueeze(-2) + rows.sum(-1)[..., None, None] / (n - 1)
    return K * off


class _OwnGram(torch.autograd.Function):
    """C C^T, whose backward pass is one matmul instead of two."""

    @staticmethod
    def forward(ctx: Any, C: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(C)
        return C @ C.mT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (C,) = ctx.saved_tensors
        return (grad + grad.mT) @ C


def unit_grams(features: Sequence[Tensor], *, debiased: bool = False) -> Tensor:
    """`centred_gram` of many layers, (layers, n, n), for a training loop: layers of one shape go together.

    Each of `features` is (n, ...) with the same n; (n, n) of a layer without spread is 0.
    """
    rows = [as_rows(X) for X in features]
    kind = max((X.dtype for X in rows), key=lambda d: d.itemsize)
    made: list[Tensor] = [rows[0]] * len(rows)
    for width in dict.fromkeys(X.shape[1] for X in rows):
        where = [i for i, X in enumerate(rows) if X.shape[1] == width]
        X = moderate(torch.stack([rows[i].to(kind) for i in where]))
        mean = X.mean(1, keepdim=True)
        K = _OwnGram.apply(X - mean)
        spread = K.detach().diagonal(dim1=1, dim2=2).sum(1)
        flat = spread <= FLAT * (spread + X.shape[1] * mean.detach().square().sum((1, 2)))
        K = torch.where(flat[:, None, None], 0.0, _u_centred(K) if debiased else K)
        K = K / K.flatten(1).norm(dim=1).clamp_min(torch.finfo(kind).tiny)[:, None, None]
        for i, k in zip(where, K.unbind(0), strict=True):
            made[i] = k
    return torch.stack(made)


def is_flat(X: Tensor) -> Tensor:
    """Whether all rows are the same but for rounding (a scalar bool tensor)."""
    X = X.detach()
    return (X - X.mean(0)).square().sum() <= FLAT * X.square().sum()


def _warn_flat(*activations: Tensor) -> None:
    for X in activations:
        if bool(is_flat(X)):
            warnings.warn("constant activations: their similarity is undefined and taken as 0", stacklevel=3)
            return


def hsic(X: Tensor, Y: Tensor, *, debiased: bool = False) -> Tensor:
    """Sum of the product of the two centred Gram matrices, from the features where they are fewer than the rows.

    Divided by (n - 1)^2 this is the biased HSIC, with `debiased` by n (n - 3) the unbiased one.
    """
    X, Y = paired_rows(X, Y)
    n = len(X)
    with full_precision(X):
        if X.shape[1] + Y.shape[1] > n:
            return (_gram(X, debiased) * _gram(Y, debiased)).sum()
        X, Y = X - X.mean(0), Y - Y.mean(0)
        value = (X.T @ Y).square().sum()
    if debiased:  # of the Gram matrices without their diagonals dx and dy; their rows sum to -dx and -dy
        dx, dy = X.square().sum(1), Y.square().sum(1)
        value = value - (1 + 2 / (n - 2)) * (dx * dy).sum() + dx.sum() * dy.sum() / ((n - 1) * (n - 2))
    return value


def paired_rows(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    X, Y = as_rows(X), as_rows(Y)
    if len(X) != len(Y):
        raise ValueError(f"both sides must hold the same rows, got {len(X)} and {len(Y)}")
    kind = torch.promote_types(X.dtype, Y.dtype)
    return X.to(kind), Y.to(kind)


def cka(X: Tensor, Y: Tensor, *, debiased: bool = False) -> Tensor:
    """Linear centred kernel alignment of two representations of the same rows.

    Blind to rotations and to one common factor of either side, not to other linear maps.

    Parameters
    ----------
    X, Y
        (n, ...) activations; further axes are flattened.
    debiased
        Unbiased HSIC. The biased form is near 1 for random features when they outnumber the rows.

    Returns
    -------
    Tensor
        Scalar in [0, 1]; debiased it may lie somewhat below 0. 0 with a warning for constant activations.

    Raises
    ------
    ValueError
        For fewer than four rows, or different numbers of them.

    Examples
    --------
    >>> X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 3.0], [5.0, 1.0]])
    >>> round(float(cka(X, -3 * X.flip(1))), 6)
    1.0
    """
    X, Y = map(moderate, paired_rows(X, Y))
    _warn_flat(X, Y)
    if max(X.shape[1], Y.shape[1]) * 2 > len(X):
        return (centred_gram(X, debiased=debiased) * centred_gram(Y, debiased=debiased)).sum()
    size = torch.finfo(X.dtype).tiny
    lengths = [hsic(Z, Z, debiased=debiased).clamp_min(size).sqrt() for Z in (X, Y)]
    return torch.where(is_flat(X) | is_flat(Y), 0.0, hsic(X, Y, debiased=debiased) / lengths[0] / lengths[1])


def rsa(X: Tensor, Y: Tensor) -> Tensor:
    """Representational similarity: Pearson correlation of the rows' cosine similarities (upper triangles)."""
    X, Y = map(moderate, paired_rows(X, Y))
    rows, columns = torch.triu_indices(len(X), len(X), 1, device=X.device)
    parts = []
    with full_precision(X):
        for Z in (X, Y):
            unit = Z / Z.norm(dim=1, keepdim=True).clamp_min(torch.finfo(Z.dtype).tiny)
            v = (unit @ unit.T)[rows, columns]
            v = v - v.mean()
            parts.append(v / v.norm().clamp_min(1e-12))
        return parts[0] @ parts[1]


def effective_rank(X: Tensor, *, centred: bool = False) -> Tensor:
    """Exponential of the entropy of the singular values of X (n, p), scaled to sum 1; between 1 and min(n, p).

    Parameters
    ----------
    centred
        Take each feature's mean off first, so that a common offset is no direction of its own.

    Raises
    ------
    ValueError
        If X is no matrix, or zero.
    """
    X = torch.as_tensor(X)
    if X.ndim != 2 or X.numel() == 0:
        raise ValueError(f"X must be (rows, features), got shape {tuple(X.shape)}")
    X = X.double()
    if centred:
        size = X.square().sum()
        X = X - X.mean(0)
        X = torch.where(X.square().sum() <= 1e-24 * size, torch.zeros_like(X), X)
    values = torch.linalg.svdvals(X)
    total = values.sum()
    if not bool(total > 0):
        raise ValueError("all features are zero (or constant): they have no effective rank")
    p = values / total
    return torch.special.entr(p).sum().exp()


def model_inputs(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called on a batch: a mapping by keyword without its labels, of a tuple the first entry."""
    if isinstance(batch, Mapping):
        return (), {k: v for k, v in batch.items() if k not in ("label", "labels", "y")}
    if isinstance(batch, (tuple, list)):
        return (batch[0],), {}
    return (batch,), {}


@torch.no_grad()
def layer_features(model: nn.Module, batches: Iterable[Any], layers: Targets = None) -> Iterator[dict[str, Tensor]]:
    """What chosen layers put out on each batch, in the order of the calls; the model is in eval mode meanwhile.

    `layers` is as in `etude.layers.match`; None: convolutions, linear and recurrent layers, attention, layer norms
    and pooling, wherever the model calls them.
    """
    chosen = layers if layers is not None else representation_layers(model)
    with evaluating(model), Record(model, chosen, detach=True) as record:
        for batch in batches:
            args, kwargs = model_inputs(batch)
            model(*args, **kwargs)
            yield record.features if layers is not None else same_rows(record.features)


def same_rows(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without layers that put out something else than one entry a row (tables of positions, single vectors).

    The rows of a batch are what most layers have.
    """
    sizes = [len(X) for X in features.values() if X.ndim > 1]
    rows = max(sizes, key=sizes.count) if sizes else 0
    return {name: X for name, X in features.items() if X.ndim > 1 and len(X) == rows}


def representation_layers(model: nn.Module) -> list[str]:
    """Names of the layers that make representations (see `layer_features`).

    Raises
    ------
    TargetError
        If the model has none of them.
    """
    names = [n for n, m in model.named_modules() if isinstance(m, REPRESENTATIONS)]
    if not names:
        raise TargetError(f"{type(model).__name__} has no convolution, linear, recurrent or attention layer: name some")
    return names


def cka_matrix(
    a: Mapping[str, Tensor] | nn.Module,
    b: Mapping[str, Tensor] | nn.Module | None = None,
    batches: Iterable[Any] | None = None,
    *,
    layers: Targets = None,
    debiased: bool = False,
) -> CKAMatrix:
    """CKA of every layer of one model with every layer of another: one Gram matrix a layer, one matmul for all pairs.

    Parameters
    ----------
    a, b
        Layer name -> (n, ...) activations, or models, which then run on `batches`. `b` None: `a` with itself.
    batches
        For models: tensors, tuples whose first entry is the input, or mappings. HSIC is averaged over them, which
        is right for any batch size with `debiased`; the biased form depends on the batch size.
    layers
        Of both models, as in `layer_features`.

    Raises
    ------
    ValueError
        If activations disagree in their rows, a batch has fewer than four, models come without batches, or
        activations with.
    """
    other = a if b is None else b
    if isinstance(a, nn.Module) != isinstance(other, nn.Module):
        raise ValueError("give two models or two mappings of activations, not one of each")
    if not isinstance(a, nn.Module):
        if batches is not None:
            raise ValueError("activations need no batches")
        assert isinstance(other, Mapping)
        return _one_batch(a, other, debiased)
    if batches is None:
        raise ValueError("models need batches to run on: give batches=")
    assert isinstance(other, nn.Module)
    batches = list(batches) if not isinstance(batches, Sequence) else batches
    found = [layer_features(m, batches, layers) for m in (a, other)]
    totals: list[Tensor] | None = None
    powers: list[dict[str, Tensor]] = []  # of the first batch, as HSIC is averaged over batches
    names: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    for left, right in track(zip(*found, strict=True), "comparing layers", len(batches)):
        names = (tuple(left), tuple(right))
        powers = powers or [{n: _power(as_rows(X)) for n, X in side.items()} for side in (left, right)]
        left, right = ({n: as_rows(X) * p[n] for n, X in f.items()} for f, p in zip((left, right), powers, strict=True))
        parts = _products(left, right, debiased)
        totals = parts if totals is None else [t + p for t, p in zip(totals, parts, strict=True)]
    if totals is None:
        raise ValueError("there are no batches to compare the models on")
    cross, own_a, own_b = totals
    tiny = torch.finfo(cross.dtype).tiny
    values = cross / own_a.clamp_min(tiny).sqrt()[:, None] / own_b.clamp_min(tiny).sqrt()
    return CKAMatrix(values, *names)


def _one_batch(a: Mapping[str, Tensor], b: Mapping[str, Tensor], debiased: bool) -> CKAMatrix:
    if not a or not b:
        raise ValueError("there are no activations to compare")
    first = next(iter(a.values()))
    for name, X in (*a.items(), *b.items()):
        if len(X) != len(first):
            raise ValueError(f"layer {name!r} has {len(X)} rows, the first has {len(first)}")
    if len(first) > GRAM_ROWS:
        values = torch.stack([torch.stack([cka(X, Y, debiased=debiased) for Y in b.values()]) for X in a.values()])
        return CKAMatrix(values, tuple(a), tuple(b))
    _warn_flat(*(moderate(as_rows(X)) for side in ([a] if a is b else [a, b]) for X in side.values()))
    left = _stacked(a, lambda X: centred_gram(X, debiased=debiased))
    right = left if a is b else _stacked(b, lambda X: centred_gram(X, debiased=debiased))
    with full_precision(left):
        return CKAMatrix(left @ right.T, tuple(a), tuple(b))


def _stacked(features: Mapping[str, Tensor], gram: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([gram(X).flatten() for X in features.values()])


def _products(a: Mapping[str, Tensor], b: Mapping[str, Tensor], debiased: bool) -> list[Tensor]:
    """Of one batch: HSIC of all pairs, and of each layer with itself, up to the common factor of its size."""
    n = len(next(iter(a.values())))
    scale = n * (n - 3) if debiased else (n - 1) ** 2
    with full_precision(next(iter(a.values()))):
        left, right = (_stacked(f, lambda X: _gram(as_rows(X), debiased)) for f in (a, b))
        return [v / scale for v in (left @ right.T, left.square().sum(1), right.square().sum(1))]

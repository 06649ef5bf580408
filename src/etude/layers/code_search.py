"""Nearest codes of many codebooks at once, without ever holding all distances.

One matrix product a tile gives |k|^2 - 2 u.k (the row's own |u|^2 changes no ranking); the smallest entries are
found in the tile, and only the distances of the chosen codes are computed, by differences. A product rounds equal
columns differently, so rows with two codes that it cannot tell apart are ranked again by differences in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SIMILARITIES = ("euclidean", "cosine")
_TILE = {"cpu": 2**22}  # distances held at once, 16 MiB; else 256 MiB
_LARGE_TILE = 2**26
_BLOCKS = ((1024, 64), (64, 32))  # from this many codes on, blocks of that many
_TOP_BLOCK = 32


def nearest_codes(
    x: Tensor,
    codes: Tensor,
    *,
    k: int = 1,
    similarity: str = "euclidean",
    allowed: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The `k` nearest codes of every vector, in its group's own codebook.

    Parameters
    ----------
    x
        (..., G, d) vectors, one a group.
    codes
        (G, J, d) codebooks.
    similarity
        ``"euclidean"``: smallest squared distance. ``"cosine"``: smallest 1 - cosine; a zero vector has cosine
        0 to everything.
    allowed
        (G, J) or (J,), True = may be chosen.
    chunk
        Rows handled at a time, in all groups; None: tiles that fit the device's cache.

    Returns
    -------
    indices, distances
        (..., G, k) int64 and float, nearest first; equally near codes in the order of their index. No
        gradient flows through either.

    Raises
    ------
    ValueError
        If shapes do not fit, `k` is not in 1..J, a group has fewer than `k` allowed codes, or `x` or `codes` hold
        NaN or infinities.
    """
    _check(x, codes, k, similarity, chunk)
    groups, num_codes, dim = codes.shape
    blocked = _blocked(allowed, groups, num_codes, k)
    dtype = torch.float64 if torch.float64 in (x.dtype, codes.dtype) else torch.float32
    lead = x.shape[:-2]
    rows = x.detach().reshape(-1, groups, dim).transpose(0, 1)  # (G, N, d)
    n = rows.shape[1]
    indices = torch.empty(groups, n, k, dtype=torch.long, device=x.device)
    distances = torch.empty(groups, n, k, dtype=dtype, device=x.device)
    entries = _TILE.get(x.device.type, _LARGE_TILE) // max(num_codes, k * dim)
    per_row = min(n, max(1, entries)) if chunk is None else min(n, chunk)
    per_group = max(1, entries // max(1, per_row)) if chunk is None else groups
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        for g in range(0, groups, per_group):
            here = slice(g, g + per_group)
            book = codes.detach()[here].to(dtype)
            banned = None if blocked is None else blocked[here]
            table = _table(book, similarity, banned)
            for r in range(0, n, max(1, per_row)):
                part = rows[here, r : r + per_row].to(dtype)
                found = _search(part, book, table, k, similarity, banned)
                indices[here, r : r + per_row] = found
                distances[here, r : r + per_row] = _distances(part, book, found, similarity)
    shape = (*lead, groups, k)
    return indices.transpose(0, 1).reshape(shape), distances.transpose(0, 1).reshape(shape)


def take_codes(codes: Tensor, indices: Tensor) -> Tensor:
    """Codes (G, J, d) by their indices (..., G, k): (..., G, k, d); differentiable in `codes`."""
    groups, num_codes, dim = codes.shape
    offsets = torch.arange(groups, device=indices.device)[:, None] * num_codes
    return torch.nn.functional.embedding(indices + offsets, codes.reshape(groups * num_codes, dim))


def _check(x: Tensor, codes: Tensor, k: int, similarity: str, chunk: int | None) -> None:
    if codes.ndim != 3 or 0 in codes.shape:
        raise ValueError(f"codes must have shape (groups, codes, dim) without empty axes, got {tuple(codes.shape)}")
    if x.ndim < 2 or x.shape[-2] != codes.shape[0] or x.shape[-1] != codes.shape[2]:
        wanted = f"(..., {codes.shape[0]}, {codes.shape[2]})"
        raise ValueError(f"x must have shape {wanted} for codes of shape {tuple(codes.shape)}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be floating point, got {x.dtype}")
    if not 1 <= k <= codes.shape[1]:
        raise ValueError(f"k must lie in 1..{codes.shape[1]}, the number of codes, got {k}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"unknown similarity {similarity!r}: choose one of {', '.join(SIMILARITIES)}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    _require_finite("x", x)


def _require_finite(name: str, t: Tensor) -> None:
    if not bool(torch.isfinite(t).all()):
        where = tuple((~torch.isfinite(t)).nonzero()[0].tolist())
        raise ValueError(f"{name} holds {float(t[where].detach())} at {where}: every entry must be finite")


def _blocked(allowed: Tensor | None, groups: int, num_codes: int, k: int) -> Tensor | None:
    if allowed is None:
        return None
    if allowed.dtype != torch.bool or allowed.shape not in ((groups, num_codes), (num_codes,)):
        wanted = f"({groups}, {num_codes}) or ({num_codes},)"
        raise ValueError(f"allowed must be boolean of shape {wanted}, got {allowed.dtype} {tuple(allowed.shape)}")
    allowed = allowed.expand(groups, num_codes)
    short = allowed.sum(-1) < k
    if bool(short.any()):
        group = int(short.int().argmax())
        raise ValueError(f"group {group} has {int(allowed[group].sum())} allowed codes, fewer than k = {k}")
    return ~allowed


class _Table(NamedTuple):
    """factor (g, d + 1, J) of the product, its last row a bias where there is one; what is taken off the rows before
    it (g, 1, d); largest |k| (g, 1)."""

    factor: Tensor
    shift: Tensor
    reach: Tensor
    biased: bool


def _table(book: Tensor, similarity: str, blocked: Tensor | None) -> _Table:
    if similarity == "cosine":
        columns, bias = -_unit(book), 0 * book[..., :1]
        shift, reach = torch.zeros_like(book[:, :1]), torch.ones_like(book[:, :1, 0])
    else:
        # codes far from the origin would lose their digits: move it near them, by a step that rounds nothing
        # where codes and rows are short binary fractions
        middle = book.mean(1, keepdim=True)
        spread = (book - middle).square().mean((1, 2), keepdim=True).sqrt()
        step = torch.exp2(torch.floor(torch.log2(torch.maximum(spread, middle.abs().amax(-1, keepdim=True) * 1e-3))))
        shift = torch.where(step > 0, torch.round(middle / step) * step, 0.0)
        moved = book - shift
        columns, bias = -2 * moved, moved.square().sum(-1, keepdim=True)
        reach = bias.amax(1).sqrt()
    if not bool(torch.isfinite(bias.sum()) & torch.isfinite(columns.sum())):
        _require_finite("codes", book)
    if blocked is not None:
        bias = bias.masked_fill(blocked[..., None], torch.inf)
    biased = similarity != "cosine" or blocked is not None
    return _Table((torch.cat([columns, bias], dim=-1) if biased else columns).mT, shift, reach, biased)


def _search(
    rows: Tensor, book: Tensor, table: _Table, k: int, similarity: str, blocked: Tensor | None
) -> Tensor:  # fmt: skip
    """Indices (g, r, k) of the nearest codes of the rows (g, r, d), ties in the order of the index."""
    near = _unit(rows) if similarity == "cosine" else rows - table.shift
    one = near.new_ones(*near.shape[:-1], 1 if table.biased else 0)
    scores = torch.bmm(torch.cat([near, one], dim=-1), table.factor)
    reach = table.reach
    rounding = 2 * (book.shape[-1] + 2) * torch.finfo(scores.dtype).eps
    slack = (rounding * reach * (reach + 2 * torch.linalg.vector_norm(near, dim=-1)))[..., None]
    found, unsure = _smallest(scores, k, slack)
    for g in unsure.any(-1).nonzero()[:, 0].tolist():
        again = unsure[g]
        banned = None if blocked is None else blocked[g]
        found[g, again] = _rank_again(rows[g, again], book[g], scores[g, again], slack[g, again], k, similarity, banned)
    return found


def _smallest(scores: Tensor, k: int, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (..., k) of the smallest entries of the last axis; and where another entry lies within `slack` of
    one of them, so that rounding may have decided."""
    if k > 1:
        values, found = _lowest(scores, min(k + 1, scores.shape[-1]))
        return found[..., :k], (values[..., 1:] - values[..., :-1] <= slack).any(-1)
    width = scores.shape[-1]
    size = next((size for least, size in _BLOCKS if width >= least), width)
    blocks = width // size
    if blocks < 2:
        best, found = scores.min(-1, keepdim=True)
        return found, (scores <= best + slack).sum(-1) > 1
    # a minimum vectorises, its position does not: first the block, then the place in it
    body = scores[..., : blocks * size].unflatten(-1, (blocks, size))
    lowest = body.amin(-1)
    if blocks * size < width:
        lowest = torch.cat([lowest, scores[..., blocks * size :].amin(-1, keepdim=True)], dim=-1)
    best, block = lowest.min(-1, keepdim=True)
    start = (block * size).clamp_max(width - size)  # the last, shorter block: its entries and some before
    inside = scores.gather(-1, start + torch.arange(size, device=scores.device))
    found = start + inside.argmin(-1, keepdim=True)
    limit = best + slack
    unsure = ((lowest <= limit).sum(-1) > 1) | ((inside <= limit).sum(-1) > 1)
    return found, unsure


def _lowest(scores: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """`topk` of the smallest `m`: they lie in the `m` blocks of the smallest minima, and in the rest of the axis."""
    width = scores.shape[-1]
    blocks = width // _TOP_BLOCK
    if blocks < 4 * m:
        return scores.topk(m, largest=False)
    body = scores[..., : blocks * _TOP_BLOCK].unflatten(-1, (blocks, _TOP_BLOCK))
    block = body.amin(-1).topk(m, largest=False, sorted=False).indices
    places = block[..., None] * _TOP_BLOCK + torch.arange(_TOP_BLOCK, device=scores.device)
    rest = torch.arange(blocks * _TOP_BLOCK, width, device=scores.device).expand(*scores.shape[:-1], -1)
    places = torch.cat([places.flatten(-2), rest], dim=-1)
    values, found = scores.gather(-1, places).topk(m, largest=False)
    return values, places.gather(-1, found)


def _rank_again(
    rows: Tensor, book: Tensor, scores: Tensor, slack: Tensor, k: int, similarity: str, banned: Tensor | None
) -> Tensor:
    """(r, k) by differences in float64: of the codes that rounding may have put among the nearest, or of all where
    there are very many of those."""
    width = scores.shape[-1]
    m = min(width, 2 * k + 8)
    values, places = scores.topk(m, largest=False)
    if m < width and bool((values[:, -1:] - values[:, k - 1 : k] > slack).all()):
        places = places.sort(-1).values  # equally near ones stand in the order of their index
        exact = _by_differences(rows[:, None], book[places], similarity)[:, 0]
        exact = exact.masked_fill(torch.isinf(scores.gather(-1, places)), torch.inf)
        return places.gather(-1, exact.sort(dim=-1, stable=True).indices[:, :k])
    exact = _by_differences(rows, book, similarity)
    if banned is not None:
        exact = exact.masked_fill(banned, torch.inf)
    return exact.sort(dim=-1, stable=True).indices[:, :k]


def _unit(t: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(t, dim=-1, keepdim=True)
    return t / torch.where(norm == 0, 1.0, norm)


def _by_differences(rows: Tensor, book: Tensor, similarity: str) -> Tensor:
    """(..., r, J) float64: squared distances, or 1 - cosine; equal codes give equal entries."""
    a, b = rows.double(), book.double()
    if similarity == "cosine":
        a, b = _unit(a), _unit(b)
    gap = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    if similarity == "cosine":  # of unit vectors; a zero vector has cosine 0
        zero = (a == 0).all(-1)[..., :, None] | (b == 0).all(-1)[..., None, :]
        gap = torch.where(zero, 1.0, gap / 2)
    return gap


def _distances(rows: Tensor, book: Tensor, found: Tensor, similarity: str) -> Tensor:
    """(g, r, k) distances of the found codes."""
    flat = found.flatten(1)[..., None].expand(-1, -1, book.shape[-1])
    chosen = book.gather(1, flat).view(*found.shape, -1)
    if similarity == "euclidean":
        return (rows[:, :, None] - chosen).square_().sum(-1)
    lengths = torch.linalg.vector_norm(rows, dim=-1)[..., None] * torch.linalg.vector_norm(chosen, dim=-1)
    cosine = (rows[:, :, None] * chosen).sum(-1) / torch.where(lengths == 0, 1.0, lengths)
    return 1 - cosine.clamp(-1, 1)

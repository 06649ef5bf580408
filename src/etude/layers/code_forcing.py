"""Interventions on a quantiser's choice: codes that must stand among the k chosen ones, and codes that must not.

Source: Tamkin et al. 2023, arXiv 2310.17230 (forced codes).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Forcing(NamedTuple):
    """codes (groups, m) on the CPU; the groups, None for all; the positions, None for everywhere."""

    codes: Tensor
    groups: list[int] | None
    positions: Any


def forcing(
    codes: Sequence[int] | Tensor,
    groups: Sequence[int] | None,
    positions: Any,
    *,
    k: int,
    num_codes: int,
    num_groups: int,
) -> Forcing:
    """A checked `Forcing`; codes (m,) for all of its groups, or (len(groups), m).

    Raises
    ------
    IndexError
        If a code or a group lies beyond the codebooks.
    ValueError
        If the shape does not fit, or there are more than k codes.
    """
    wanted = torch.as_tensor(codes, dtype=torch.long).cpu()
    names = range(num_groups) if groups is None else list(groups)
    wanted = wanted.expand(len(names), -1) if wanted.ndim == 1 else wanted
    if wanted.ndim != 2 or wanted.shape[0] != len(names):
        raise ValueError(f"codes must be (m,) or ({len(names)}, m) indices, got shape {tuple(wanted.shape)}")
    if not 1 <= wanted.shape[1] <= k:
        raise ValueError(f"{wanted.shape[1]} forced codes do not fit into k = {k} slots")
    if int(wanted.min()) < 0 or int(wanted.max()) >= num_codes:
        raise IndexError(f"forced codes must lie in 0..{num_codes - 1}, got {wanted.flatten().tolist()}")
    _check_groups(names, num_groups)
    return Forcing(wanted, None if groups is None else list(names), positions)


def excluded(codes: Sequence[int] | Tensor, groups: Sequence[int] | None, *, num_codes: int, num_groups: int) -> Tensor:
    """(G, J) bool, True for the codes; IndexError beyond the codebook or the groups."""
    gone = torch.as_tensor(codes, dtype=torch.long).cpu().flatten()
    if len(gone) and (int(gone.min()) < 0 or int(gone.max()) >= num_codes):
        raise IndexError(f"codes must lie in 0..{num_codes - 1}, got {gone.tolist()}")
    _check_groups([] if groups is None else groups, num_groups)
    mask = torch.zeros(num_groups, num_codes, dtype=torch.bool)
    rows = torch.arange(num_groups) if groups is None else torch.as_tensor(list(groups))
    mask[rows[:, None], gone] = True
    return mask


def put_codes(indices: Tensor, entry: Forcing) -> Tensor:
    """Chosen codes (..., G, k) with the forced ones last, before them the nearest others.

    Raises
    ------
    IndexError
        If there is no axis of positions, or a position or the start of a slice lies beyond it.
    """
    codes, positions = entry.codes.to(indices.device), entry.positions
    num_groups, k = indices.shape[-2:]
    forced = codes.shape[1]
    names = torch.arange(num_groups) if entry.groups is None else torch.as_tensor(entry.groups)
    own = indices[..., names.to(indices.device), :]
    hit = (own[..., :, None] == codes[:, None, :]).any(-1)  # (..., g, k): already among the forced
    order = hit.int().sort(dim=-1, stable=True).indices[..., : k - forced]
    new = torch.cat([own.gather(-1, order), codes.expand(*own.shape[:-1], forced)], dim=-1)
    at = torch.ones((), dtype=torch.bool, device=indices.device)
    if positions is not None:
        if indices.ndim < 3:
            raise IndexError("positions need an axis before the groups: x is one vector a group")
        length = indices.shape[-3]
        if isinstance(positions, slice) and 0 < length <= (positions.start or 0):
            raise IndexError(f"forced positions start at {positions.start}, beyond a sequence of {length}")
        at = torch.zeros(length, dtype=torch.bool)
        at[positions] = True  # raises IndexError beyond the sequence
        at = at.to(indices.device)[:, None, None]
    out = indices.clone()
    out[..., names.to(indices.device), :] = torch.where(at, new, own)
    return out


def _check_groups(groups: Iterable[int], num_groups: int) -> None:
    if any(not 0 <= g < num_groups for g in groups):
        raise IndexError(f"groups must lie in 0..{num_groups - 1}, got {list(groups)}")

"""Distance and similarity matrices between two sets of vectors.

`squared_distances` has two modes. The default is one matrix product, |x|^2 + |y|^2 - 2 x.y: fastest, but two
points that nearly coincide lose their digits in the difference of large numbers. `exact=True` takes the
differences of the coordinates in float64, so a squared distance is right to rounding however small it is
(kernels on the sphere need 1 - x.y = |x - y|^2 / 2 of near duplicates).
"""

import torch
from torch import Tensor


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    for name, t in (("x", x), ("y", y)):
        if t.ndim < 2:
            raise ValueError(f"{name} must have shape (..., rows, dim), got {tuple(t.shape)}")
        if t.is_complex():
            raise ValueError(f"{name} must be real, got {t.dtype}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x has {x.shape[-1]} columns and y has {y.shape[-1]}; they must agree")
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return x.to(dtype), y.to(dtype)


def _batched(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to the same leading axes, as views."""
    lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return x.expand(*lead, *x.shape[-2:]), y.expand(*lead, *y.shape[-2:])


def _by_differences(x: Tensor, y: Tensor) -> Tensor:
    out = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return out.to(x.dtype)


def _by_product(x: Tensor, y: Tensor) -> Tensor:
    if x.dtype in (torch.float16, torch.bfloat16):  # the difference of large numbers has no digits there
        return _by_product(x.float(), y.float()).to(x.dtype)
    squares_x, squares_y = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    cross = torch.matmul(x, (-2.0 * y).mT)
    if torch.is_grad_enabled() and cross.requires_grad:
        return (cross + squares_x + squares_y.mT).clamp_min(0.0)
    return cross.add_(squares_x).add_(squares_y.mT).clamp_min_(0.0)


def squared_distances(x: Tensor, y: Tensor, *, exact: bool = False, chunk: int | None = None) -> Tensor:
    """Squared Euclidean distances of every row of `x` to every row of `y`.

    Parameters
    ----------
    x, y
        (..., n, d) and (..., m, d); leading axes broadcast. Integers are taken as the default float type.
    exact
        Sum squared differences in float64 (about 2 to 4 times slower); equal rows give exactly 0. The
        result has the type of the inputs.
    chunk
        Rows of `x` handled at a time; None: all at once. No mode holds (n, m, d).

    Returns
    -------
    Tensor
        (..., n, m), never negative. Differentiable; the gradient at distance 0 is 0.

    Raises
    ------
    ValueError
        If the widths differ, an input has fewer than two axes, or `chunk` is below 1.
    """
    x, y = _batched(*_checked(x, y))
    compute = _by_differences if exact else _by_product
    if chunk is None:
        return compute(x, y)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if x.shape[-2] <= chunk:
        return compute(x, y)
    return torch.cat([compute(part, y) for part in x.split(chunk, dim=-2)], dim=-2)


def _unit(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a zero row stays zero. The largest entry goes first, so nothing under- or overflows."""
    largest = x.abs().amax(-1, keepdim=True).detach() if x.shape[-1] else x.new_ones(*x.shape[:-1], 1)
    x = x / torch.where(largest == 0, 1.0, largest)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


def cosine_similarities(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle between every row of `x` and every row of `y`.

    Parameters
    ----------
    x, y
        (..., n, d) and (..., m, d); leading axes broadcast.

    Returns
    -------
    Tensor
        (..., n, m) in [-1, 1]. A zero vector has similarity 0 to everything, itself included.

    Raises
    ------
    ValueError
        If the widths differ or an input has fewer than two axes.
    """
    x, y = _checked(x, y)
    return torch.matmul(_unit(x), _unit(y).mT).clamp(-1.0, 1.0)

"""Ghost batch normalisation: a large batch is normalised in small groups, each by its own statistics.

Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741, section 4 ("Ghost Batch Normalization") and algorithm 1.
Differs from the paper: its exponent of the decay counts samples of a ghost batch where the number of ghost batches
is meant; running statistics here are what batch norm gets when it sees the ghosts one after another.
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers.surgery import TargetError, Targets, match, replace


def ghost_sizes(rows: int, ghost_size: int) -> list[int]:
    """Rows of each ghost: `ghost_size`, but for the last when `rows` is no multiple of it.

    A remainder below half a ghost joins the last one, a larger one is a ghost of its own.
    """
    whole, rest = divmod(rows, ghost_size)
    if whole == 0:
        return [rows]
    sizes = [ghost_size] * whole
    if rest and 2 * rest < ghost_size:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes


def _whole(ghost_size: int) -> int:
    if not isinstance(ghost_size, Real) or not ghost_size >= 1 or ghost_size % 1:
        raise ValueError(f"ghost_size must be a whole number of at least 1, got {ghost_size}")
    return int(ghost_size)


def ghost_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    ghost_size: int,
    momentum: float | None = 0.1,
    seen: int = 0,
    eps: float = 1e-5,
    contiguous_groups: bool = False,
) -> Tensor:
    """Normalise `x` (N, C, ...) ghost by ghost and fold each ghost's statistics into the running ones.

    Parameters
    ----------
    running_mean, running_var
        (C,), changed in place; None: nothing is kept. Each ghost adds its mean and its unbiased variance:
        ``r <- (1 - m)^G r + sum_i m (1 - m)^(G - i) s_i`` over G ghosts.
    momentum
        Weight of a ghost's value, as in torch. None: the plain average over all ghosts ever seen, of which there
        were `seen`.
    contiguous_groups
        A ghost is a run of neighbouring rows (one copy of `x` more). Otherwise the whole ghosts interleave: of G,
        ghost g holds rows g, g + G, g + 2 G, ..., which is a view and as good where rows come shuffled.

    Raises
    ------
    ValueError
        If a ghost has a single value for a channel, the channels of `x` are not those of the statistics or weights,
        or `ghost_size` is no whole number of at least 1.
    """
    n, channels = x.shape[0], x.shape[1]
    known = next((len(t) for t in (running_mean, weight) if t is not None), channels)
    if channels != known:  # torch would count the channels of all ghosts together
        raise ValueError(f"expected {known} channels, got an input of shape {tuple(x.shape)}")
    sizes = ghost_sizes(n, _whole(ghost_size))
    if min(sizes) == 1 and x.shape[2:].numel() == 1:
        raise ValueError(
            f"expected more than 1 value per channel when training, but {n} rows in ghosts of {ghost_size} leave a "
            "ghost of one row: take ghosts of at least 3 rows, and batches of at least 2"
        )
    whole = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
    kept = running_mean is not None and running_var is not None
    like = weight if weight is not None else running_mean
    dtype = x.dtype if like is None else like.dtype
    outputs, means, variances = [], [], []
    start = 0
    for count, size in ((whole, sizes[0]), (1, sizes[-1])) if whole < len(sizes) else ((whole, sizes[0]),):
        rows = x if count * size == n else x[start : start + count * size]
        start += count * size
        mean = x.new_zeros(count * channels, dtype=dtype) if kept else None  # of x: stacked where x is
        var = x.new_ones(count * channels, dtype=dtype) if kept else None
        outputs.append(_by_groups(rows, count, mean, var, weight, bias, eps, contiguous_groups))
        if mean is not None and var is not None:
            means.append(mean.view(count, channels))
            variances.append(var.view(count, channels))
    if running_mean is not None and running_var is not None:
        old, shares = _decay(len(sizes), momentum, seen, running_mean)
        with torch.no_grad():
            running_mean.mul_(old).add_(shares @ torch.cat(means))
            running_var.mul_(old).add_(shares @ torch.cat(variances))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _by_groups(
    x: Tensor,
    groups: int,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    neighbours: bool,
) -> Tensor:
    """One fused batch norm over G times as many channels; `mean` and `var` (G * C,) are overwritten."""
    n, channels, rest = x.shape[0], x.shape[1], x.shape[2:]
    if groups == 1:
        return F.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    if neighbours:
        folded = x.reshape(groups, n // groups, channels, *rest).transpose(0, 1)
    else:
        folded = x.reshape(n // groups, groups, channels, *rest)
    folded = folded.reshape(n // groups, groups * channels, *rest)
    weight, bias = (None if p is None else p.repeat(groups) for p in (weight, bias))
    y = F.batch_norm(folded, mean, var, weight, bias, True, 1.0, eps)
    if neighbours:
        y = y.view(n // groups, groups, channels, *rest).transpose(0, 1)
    return y.reshape(n, channels, *rest)


def _decay(groups: int, momentum: float | None, seen: int, like: Tensor) -> tuple[float, Tensor]:
    """Share of the old running value, and of each ghost's."""
    if momentum is None:
        total = seen + groups
        return seen / total, like.new_full((groups,), 1 / total)
    ages = torch.arange(groups - 1, -1, -1, device=like.device, dtype=like.dtype)
    return (1 - momentum) ** groups, momentum * (1 - momentum) ** ages


class _GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the three classes share; see `GhostBatchNorm1d`."""

    ghost_size: int
    contiguous_groups: bool

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        contiguous_groups: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.set_ghosts(ghost_size, contiguous_groups)

    def set_ghosts(self, ghost_size: int, contiguous_groups: bool = False) -> None:
        """Divide batches otherwise from now on; ValueError unless the size is a whole number of at least 1."""
        self.ghost_size, self.contiguous_groups = _whole(ghost_size), contiguous_groups

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training or len(input) <= self.ghost_size:
            return super().forward(input)
        seen = 0
        if self.num_batches_tracked is not None:
            if self.momentum is None:
                seen = int(self.num_batches_tracked)
            self.num_batches_tracked.add_(len(ghost_sizes(len(input), self.ghost_size)))
        return ghost_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, ghost_size=self.ghost_size,
            momentum=self.momentum, seen=seen, eps=self.eps, contiguous_groups=self.contiguous_groups,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}, contiguous_groups={self.contiguous_groups}"


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that normalises training batches in ghosts of `ghost_size` rows.

    Same parameters, buffers and keys of the state as batch norm, so checkpoints swap both ways; in eval mode it is
    batch norm. `num_batches_tracked` counts ghosts. A batch of at most `ghost_size` rows is one ghost.

    Parameters
    ----------
    ghost_size
        Rows of a ghost; see `ghost_sizes` for what is left over.
    contiguous_groups
        See `ghost_batch_norm`.

    Raises
    ------
    ValueError
        In training, if a ghost has a single value for a channel.
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` in ghosts; see `GhostBatchNorm1d`."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` in ghosts; see `GhostBatchNorm1d`."""


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
         "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_is_full_backward_hook",
         "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip
_GHOSTS: dict[type, type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


def to_ghost_batchnorm(
    model: nn.Module, ghost_size: int = 32, *, targets: Targets = None, contiguous_groups: bool = False
) -> nn.Module:
    """Swap the batch norms of `model` for ghost batch norms, in place; returns the model.

    Parameters and running statistics are the same tensors as before, so an optimiser that holds them goes on; hooks
    stay, but for those before `load_state_dict`, which are bound to the old module. Batch norms that are in ghosts
    already stay the modules they are and take the new size and grouping.

    Parameters
    ----------
    targets
        Which batch norms, as in `etude.layers.match`; None: all of them, and none may be of a class of your own.

    Returns
    -------
    The model; if it is itself a batch norm, the new module.

    Raises
    ------
    TargetError
        If there is no batch norm at all, or one of them is a `SyncBatchNorm`, which joins batches where ghosts
        divide them, or, without `targets`, of a subclass, whose own ways a swap would lose.
    ValueError
        If `ghost_size` is no whole number of at least 1.
    """
    if type(model) in _GHOSTS:
        return _ghost_of(model, ghost_size, contiguous_groups)
    for name, m in model.named_modules():
        if isinstance(m, nn.SyncBatchNorm):
            raise TargetError(
                f"{name or 'the model'} is a SyncBatchNorm, which takes statistics over all devices: the opposite "
                "of ghost batches. Leave batch norms unsynchronised"
            )
        if isinstance(m, nn.modules.lazy.LazyModuleMixin) and isinstance(m, nn.modules.batchnorm._BatchNorm):
            raise TargetError(f"{name!r} does not know its width yet: run a batch through the model first")
        if targets is None and not _swappable(m) and isinstance(m, tuple(_GHOSTS)):
            raise TargetError(
                f"{name or 'the model'} is a {type(m).__name__}, a batch norm of its own kind, which a swap would "
                "lose: give targets to leave it as it is, or put a plain batch norm in its place"
            )
    known = [m for m in model.modules() if _swappable(m)]
    if not known:
        raise TargetError(f"{type(model).__name__} has no batch norm to swap")
    chosen = known if targets is None else list(match(model, targets, tuple(_GHOSTS)).values())
    plain = [m for m in chosen if not isinstance(m, _GhostBatchNorm)]
    if plain:
        replace(model, plain, lambda m: _ghost_of(m, ghost_size, contiguous_groups), tuple(_GHOSTS))
    for m in chosen:
        if isinstance(m, _GhostBatchNorm):
            m.set_ghosts(ghost_size, contiguous_groups)
    return model


def _swappable(m: nn.Module) -> bool:
    return type(m) in _GHOSTS or isinstance(m, _GhostBatchNorm)


def _ghost_of(old: nn.Module, ghost_size: int, contiguous_groups: bool) -> nn.Module:
    assert isinstance(old, nn.modules.batchnorm._BatchNorm)
    made = _GHOSTS[type(old)](
        old.num_features, ghost_size, old.eps, old.momentum, old.affine, old.track_running_stats,
        contiguous_groups=contiguous_groups, device="meta",
    )  # fmt: skip
    made.weight, made.bias = old.weight, old.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(made, name, getattr(old, name))
    made.training = old.training
    for name in HOOKS:
        setattr(made, name, getattr(old, name))
    return made

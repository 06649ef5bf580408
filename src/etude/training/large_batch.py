"""A recipe for small batches carried to large ones, and the noise of the updates that it makes.

Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741, sections 4 and 5.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.tasks import Split
from etude.training.config import TrainConfig
from etude.training.gradients import gradient_statistics
from etude.training.schedules import adapt_regime, scale_lr
from etude.training.updater import Loss


def large_batch_config(
    base: TrainConfig,
    regime: Mapping[int, float],
    *,
    num_rows: int,
    batch: int,
    epochs: int,
    rule: str = "sqrt",
    adapted: bool = True,
) -> TrainConfig:
    """The configuration of a run with batches of `batch` rows, from one that is right for `base.batch_size`.

    Lengths are turned into updates, ``epochs * num_rows / batch``, so that runs of one number of epochs see equally
    many rows whatever their last batches hold.

    Parameters
    ----------
    base
        Everything that stays: optimiser, weight decay, clipping; its batch size is the one the rates are right for.
    regime
        Epoch -> learning rate from there on, for the batch size of `base`; it has epoch 0.
    epochs
        Length for the batch size of `base`.
    rule
        See `scale_lr`.
    adapted
        Stretch the regime to as many updates in each phase as `base` makes; False keeps the epochs.
    """
    stretched = adapt_regime(regime, batch if adapted else base.batch_size, base.batch_size, epochs)
    first = stretched.boundaries[0]
    boundaries: dict[int, float] = {}
    for epoch, lr in stretched.boundaries.items():  # of phases without an update of their own the first one stays
        boundaries.setdefault(round(epoch * num_rows / batch), lr / first)
    return replace(
        base, steps=max(1, round(stretched.epochs * num_rows / batch)), epochs=None, seconds=None, batch_size=batch,
        lr=scale_lr(first, batch, base.batch_size, rule), schedule="step", boundaries=boundaries,
    )  # fmt: skip


def multiplicative_noise(batch: int, base_batch: int, generator: torch.Generator) -> Tensor:
    """Weights z (batch,) of the rows' losses, with which a large batch's gradient is as noisy as a small one's.

    ``(cross_entropy(net(x), y, reduction="none") * z).mean()``: with z ~ N(1, batch / base_batch - 1) the second moment
    of the gradient's noise is that of a batch of `base_batch` rows at the same learning rate, in the place of a higher
    rate (section 4, "multiplicative noise"). Do not raise the rate as well.

    Raises
    ------
    ValueError
        For a base below 1, or above `batch`: noise can be added only.
    """
    if not 1 <= base_batch <= batch:
        raise ValueError(f"base_batch must lie in 1..{batch}, the rows of the batch, got {base_batch}")
    drawn = torch.randn(batch, generator=generator, device=generator.device)
    return 1 + (batch / base_batch - 1) ** 0.5 * drawn


def step_noise(
    model: nn.Module, loss: Loss, data: Split, batch: int, lr: float, generator: torch.Generator, *, batches: int = 200
) -> float:
    """Trace of the covariance of one SGD step ``-lr * gradient`` where the model stands.

    Batches of `batch` rows are drawn with replacement, as the derivation of the square-root rule supposes (drawn
    without, a batch that is a good part of the rows has less noise).

    Raises
    ------
    ValueError
        If a batch norm takes its statistics from the batch: the gradient then is no mean over rows.
    """
    for name, m in model.named_modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None):
            raise ValueError(
                f"{name or 'the model'} normalises by the batch, so the gradient is no mean over rows: call "
                "model.eval() first (a norm without running statistics cannot be measured)"
            )
    n = data.n

    def drawn() -> Any:
        for _ in range(batches):
            rows: Tensor = torch.randint(n, (batch,), generator=generator)
            yield data.take(rows)

    return lr**2 * gradient_statistics(model, loss, drawn()).trace

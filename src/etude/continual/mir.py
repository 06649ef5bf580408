"""Maximally interfered retrieval: replay the samples whose loss the coming update would raise most.

    theta' = theta - lr * gradient of the incoming batch's loss;      s(x) = loss(theta'; x) - loss(theta; x)

or, with the lowest loss that x ever had, s(x) = loss(theta'; x) - min(loss(theta; x), best loss(x)).

Source: Aljundi et al. 2019, arXiv 1908.04742, section 3.1. The virtual step is not taken: the model is left as it was.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from etude.continual.buffers import ReservoirBuffer, warn_if_few
from etude.continual.gss import GSSBuffer
from etude.continual.heads import check_labels, check_rows, cross_entropies, loss_of_each
from etude.continual.importance import check_gradients
from etude.layers.modes import evaluating

Losses = Callable[[Tensor, Tensor], Tensor]


class Retrieved(NamedTuple):
    """Samples to replay, most interfered first: x and y, their scores, and their places in what they came from."""

    x: Tensor
    y: Tensor
    scores: Tensor
    places: Tensor


def interference(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    candidates: tuple[Tensor, Tensor],
    *,
    lr: float,
    losses: Losses = cross_entropies,
) -> tuple[Tensor, Tensor]:
    """Losses of the candidates before and after a virtual SGD step on (x, y), (C,) each; no gradient is kept.

    Parameters
    ----------
    losses
        ``losses(model(x), y)``: one number a sample.

    Raises
    ------
    ValueError
        If lr is not positive and finite, the batch is empty, a label (of the candidates, too) lies outside the head,
        `losses` do not give one number a sample, a loss is NaN, or no parameter is trained.
    RuntimeError
        In ``torch.inference_mode``, where there are no gradients.
    """
    check_gradients("the virtual step")
    check_rows(x, y)
    if not 0 < lr < math.inf or not len(x):
        raise ValueError(f"need a positive, finite lr and a batch with samples, got {lr} and {len(x)} samples")
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    cx, cy = candidates
    if not named:
        raise ValueError(f"{type(model).__name__} has no trainable parameters: no step could hurt a sample")
    with evaluating(model):  # batch norm must not learn from the rehearsal, and dropout would be noise
        with torch.enable_grad():
            out = model(x)
            check_labels(out, y)
            check_labels(out, cy)
            grads = torch.autograd.grad(loss_of_each(losses, out, y).mean(), list(named.values()), allow_unused=True)
        pairs = zip(named.items(), grads, strict=True)
        stepped = {n: p.detach() if g is None else p.detach() - lr * g for (n, p), g in pairs}
        with torch.no_grad():
            found = losses(model(cx), cy), losses(functional_call(model, stepped, (cx,)), cy)
    for each, when in zip(found, ("before", "after"), strict=True):
        if bool(each.isnan().any()):
            raise ValueError(f"losses {when} the virtual step are NaN: the model diverged, or lr={lr} is too large")
    return found


def mir_select(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    buffer: ReservoirBuffer | GSSBuffer | tuple[Tensor, Tensor],
    k: int = 10,
    *,
    lr: float,
    candidates: int | None = 50,
    criterion: Literal["interference", "best"] = "interference",
    best_loss: Tensor | None = None,
    losses: Losses = cross_entropies,
) -> Retrieved:
    """The `k` kept samples that an update on the incoming batch (x, y) would hurt most.

    Parameters
    ----------
    buffer
        A buffer, of which `candidates` random samples are looked at, or the candidates (x, y) themselves.
    lr
        Step size of the virtual step: that of the optimiser.
    candidates
        Random samples looked at; None: all.
    criterion
        "interference", or "best": against the lowest loss so far, which a `ReservoirBuffer` remembers (of the samples
        looked at) and which is given as `best_loss` (C,) beside candidates.
    losses
        ``losses(model(x), y)``: one number a sample.

    Returns
    -------
    Retrieved
        All candidates, with a warning, if there are fewer than `k`.

    Raises
    ------
    ValueError
        If nothing is held, `k` or `candidates` is below 1, or the criterion is unknown or lacks its losses; and as
        `interference`.
    """
    if k < 1 or criterion not in ("interference", "best"):
        raise ValueError(f'need k of at least 1 and criterion "interference" or "best", got {k} and {criterion!r}')
    if candidates is not None and candidates < 1:
        raise ValueError(f"candidates must be at least 1, or None for all, got {candidates}")
    if isinstance(buffer, tuple | list):
        check_rows(*buffer)
        if not len(buffer[0]):
            raise ValueError("there are no candidates: give at least one sample to choose from")
        pool, places = (buffer[0], buffer[1]), torch.arange(len(buffer[0]))
        best = best_loss
    else:
        if not len(buffer):
            raise ValueError("the buffer is empty: observe a batch first")
        places = torch.arange(len(buffer)) if candidates is None else buffer.draw(candidates)
        pool = buffer.rows(places)
        best = buffer.best_loss[places] if isinstance(buffer, ReservoirBuffer) else None
    if criterion == "best" and best is None:
        raise ValueError('criterion "best" needs the lowest losses: a ReservoirBuffer, or best_loss=')
    if best is not None and best.shape != (len(places),):
        raise ValueError(f"best_loss must hold one loss a candidate, ({len(places)},), got {tuple(best.shape)}")
    before, after = interference(model, x, y, pool, lr=lr, losses=losses)
    reference = before if criterion == "interference" or best is None else torch.minimum(before, best.to(before))
    if isinstance(buffer, ReservoirBuffer):
        buffer.best_loss[places] = torch.minimum(buffer.best_loss[places], before.to(buffer.best_loss))
    scores = after - reference
    warn_if_few(len(scores), k)
    top = torch.topk(scores, min(k, len(scores))).indices
    return Retrieved(pool[0][top], pool[1][top], scores[top], places[top.cpu()])

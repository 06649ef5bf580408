"""What codes are worth: how pure they are, and how far forcing them moves a model's predictions.

Source: Tamkin, Taufeeque & Goodman 2023, arXiv 2310.17230, and the tutorial of its official code. A code is pure
there if it fires on one state only over all inputs; on sampled inputs a share of the firings is asked for.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from etude.layers.modes import evaluating
from etude.trust.codebook import CodebookModel


class Purity(NamedTuple):
    """Detectors that fire on one label only."""

    share: float
    """Of the live ones; 0 where none is live."""
    live: int
    pure: int


def code_purity(codes: Tensor, labels: Tensor, *, min_count: int = 5, pure_from: float = 0.95) -> Purity:
    """Share of live codes whose firings lie on one label.

    Parameters
    ----------
    codes
        (n, k) chosen codes of one codebook.
    labels
        (n,) int64.
    min_count, pure_from
        A code is live from so many firings, and pure from such a share of them on one label.

    Raises
    ------
    ValueError
        For labels of another length, or codes below 0 (the padding of `CodeIndex.codes`).
    """
    if len(labels) != len(codes):
        raise ValueError(f"codes must have one label each, got {len(codes)} rows and {len(labels)} labels")
    if int(codes.min()) < 0:
        raise ValueError("codes holds -1, which stands for padding: leave these rows out")
    wide = int(labels.max()) + 1
    flat = (codes * wide + labels[:, None]).flatten()
    counts = torch.bincount(flat, minlength=(int(codes.max()) + 1) * wide)
    return _purity(counts.view(-1, wide), min_count, pure_from)


def unit_purity(
    values: Tensor, labels: Tensor, *, quantile: float = 0.98, min_count: int = 5, pure_from: float = 0.95
) -> Purity:
    """The same of neurons: each of the columns of values (n, units) fires above its own quantile."""
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
    if values.dtype in (torch.float16, torch.bfloat16):  # of which quantile knows nothing, and in which counts end
        values = values.float()
    fires = values > values.quantile(quantile, dim=0)
    states = torch.nn.functional.one_hot(labels, int(labels.max()) + 1).to(values.dtype)
    return _purity((fires.to(values.dtype).T @ states).long(), min_count, pure_from)


def _purity(counts: Tensor, min_count: int, pure_from: float) -> Purity:
    """Of counts (detectors, labels)."""
    fired = counts.sum(-1)
    live = fired >= min_count
    pure = live & (counts.amax(-1) >= pure_from * fired)
    return Purity(int(pure.sum()) / max(1, int(live.sum())), int(live.sum()), int(pure.sum()))


def best_unit(values: Tensor, labels: Tensor, *, min_precision: float = 0.9) -> tuple[int, float]:
    """The neuron, and the cut from which it fires, with the highest recall at `min_precision`.

    Parameters
    ----------
    values
        (n, units)
    labels
        (n,) bool: where the concept is.

    Returns
    -------
    tuple
        A column and a value; (0, inf), which never fires, where no cut of any neuron is precise enough.
    """
    ordered, order = values.sort(dim=0, descending=True)
    right = labels.to(torch.float64)[order].cumsum(0)
    fired = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)[:, None]
    last = torch.ones_like(ordered, dtype=torch.bool)  # equal values fire together
    last[:-1] = ordered[:-1] != ordered[1:]
    found = torch.where((right >= min_precision * fired) & last, right, 0.0)
    best = int(found.argmax())
    row, unit = divmod(best, values.shape[1])
    return (unit, float(ordered[row, unit])) if float(found[row, unit]) > 0 else (0, float("inf"))


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(...,) nats between distributions given as log-probabilities (..., V)."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    p, q = log_p.exp(), log_q.exp()
    return 0.5 * (_kl(p, log_p, middle) + _kl(q, log_q, middle))


def _kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


class ForcingEffect(NamedTuple):
    """How much of the distance between predictions goes when codes are forced; 1 = all of it, 0 = none."""

    removed: float
    """By the codes of the input whose prediction is wanted."""
    removed_other: float
    """By the codes of another input with another label, against the same wanted prediction."""
    removed_none: float
    """By no codes: 0."""


@torch.no_grad()
def forcing_effect(
    cb: CodebookModel, ids: Tensor, labels: Tensor, names: Sequence[str], generator: torch.Generator
) -> ForcingEffect:
    """Read input a, force the codes of input b at its last token: does the model predict what follows b?

    Over all pairs a, b of different labels: 1 - sum JSD(forced, p_b) / sum JSD(p_a, p_b).

    Parameters
    ----------
    ids
        (n, T) inputs of one length; one a state is enough.
    labels
        (n,) what the inputs end in.
    names
        Codebooks that are forced.
    generator
        Draws the other input for every b.
    """
    if ids.ndim != 2 or len(labels) != len(ids):
        raise ValueError(f"ids must be (n, T) with one label each, got {tuple(ids.shape)} and {tuple(labels.shape)}")
    differ = labels[:, None] != labels[None]
    if not bool(differ.any(-1).all()):
        raise ValueError("every input needs another one with another label")
    found = cb.codes(ids)
    if unknown := [n for n in names if n not in found]:
        raise ValueError(f"no codebook named {unknown}; there are {', '.join(found)}")
    with evaluating(cb):
        plain = _last(cb(ids))
        forced = []
        for b in range(len(ids)):
            with cb.force({n: found[n][b, -1] for n in names}, positions=[ids.shape[1] - 1]):
                forced.append(_last(cb(ids)))
    table = torch.stack(forced, 1)  # (a, codes of, V)
    weights = differ.double()  # (b, c): c may stand for b
    other = torch.multinomial(weights, 1, generator=generator)[:, 0]
    none = jensen_shannon(plain[:, None], plain[None])[differ].sum()
    own = jensen_shannon(table, plain[None])[differ].sum()
    foreign = jensen_shannon(table[:, other], plain[None])[differ].sum()
    unmoved = jensen_shannon(plain[:, None].expand_as(table), plain[None])[differ].sum()
    return ForcingEffect(*(float(1 - s / none) for s in (own, foreign, unmoved)))


def _last(out: object) -> Tensor:
    logits = getattr(out, "logits", out)
    return logits[:, -1].double().log_softmax(-1)  # type: ignore[index]

"""Scores of nets that label or write sequences."""

import math

import torch
from torch import Tensor, nn

from etude.layers.cross_entropy import masked_cross_entropy
from etude.layers.seq2seq import EncoderDecoder
from etude.training.metrics.sequence import masked_accuracy

CLOSE = 0.04


@torch.no_grad()
def sequence_scores(net: nn.Module, x: Tensor, y: Tensor, *, rows: int = 1024) -> dict[str, float]:
    """How well a net answers, at the steps that have a target.

    Parameters
    ----------
    net
        A labeller, ``net(x) -> logits (batch, time, labels)``, or an encoder-decoder of symbols.
    x, y
        Rows and their targets (batch, time), -100 (NaN for numbers) where none is asked for.
    rows
        Rows a pass.

    Returns
    -------
    dict
        `accuracy` in percent, `bits` a step. For numbers `squared_error`, and `accuracy` is the percentage of answers
        less than 0.04 away (the criterion of Hochreiter & Schmidhuber 1997 for the adding problem). For an
        encoder-decoder accuracy and bits are those under teacher forcing, without its END; `free_accuracy` is the
        percentage of symbols at their place when it reads its own outputs.
    """
    device = next(net.parameters()).device
    writes = isinstance(net, EncoderDecoder)
    logits, free = [], []
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        a, b = a.to(device), b.to(device)
        logits.append((net(a, b).logits if writes else net(a)).cpu())
        if isinstance(net, EncoderDecoder):
            written = net.generate(a, max_steps=b.shape[1] + 1).sequences[:, : b.shape[1]]
            free.append(torch.nn.functional.pad(written, (0, b.shape[1] - written.shape[1]), value=-1).cpu())
    scores, target = torch.cat(logits), y.cpu()
    if target.is_floating_point():
        gap = (scores[..., 0] - target)[~target.isnan()].double().abs()
        close = math.nan if bool(gap.isnan().any()) else 100 * float((gap < CLOSE).double().mean())
        return {"accuracy": close, "squared_error": float(gap.square().mean())}
    if writes:
        target = torch.where(target >= 0, target + 1, -100)  # slot 0 is END
    bits = float(masked_cross_entropy(scores, target)) / math.log(2)
    out = {"accuracy": 100 * masked_accuracy(scores, target), "bits": bits}
    if free:
        out["free_accuracy"] = 100 * float((torch.cat(free) == y.cpu()).double().mean())
    return out

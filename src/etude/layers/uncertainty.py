"""How uncertain a prediction is: samples of dropout, entropy of their mean, what the samples disagree on.

Sources: Gal & Ghahramani 2016, arXiv 1506.02142 (Monte-Carlo dropout); Houlsby et al. 2011, arXiv 1112.5745 (mutual
information between prediction and weights, BALD). Entropies are in nats and are differentiable.
"""

from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import fork_global
from etude.layers.attention import MultiHeadAttention
from etude.layers.modes import evaluating
from etude.layers.surgery import TargetError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
INSIDE = (nn.RNNBase, nn.MultiheadAttention, MultiHeadAttention)  # that drop without a module for it


def mc_dropout(model: nn.Module, x: Any, samples: int, generator: torch.Generator) -> Tensor:
    """Class probabilities under `samples` draws of the model's dropout.

    Only dropout is switched on: batch norm keeps to its stored statistics. Every module's mode is what it was
    afterwards, also after an error.

    Parameters
    ----------
    model
        From `x` to logits (B, C), or an output with `.logits`. Its dropouts may be modules, or those of `torch.nn`'s
        recurrent nets (between layers) and of attention (of the weights), `torch.nn`'s or `MultiHeadAttention`.
    x
        What the model is called with; a tuple is several arguments.

    Returns
    -------
    Tensor
        (S, B, C) probabilities.

    Raises
    ------
    ValueError
        For fewer than 1 sample.
    TargetError
        If the model has no dropout above 0: all samples would be the same.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    active: list[nn.Module] = [m for m in model.modules() if isinstance(m, DROPOUTS) and m.p > 0]
    active += [m for m in model.modules() if isinstance(m, INSIDE) and m.dropout > 0]
    if not active:
        raise TargetError(f"{type(model).__name__} has no dropout above 0, so all samples would be the same")
    with evaluating(model), fork_global(generator):
        for m in active:
            m.train()
        for m in model.modules():  # in eval mode without gradients its fused kernel leaves every dropout inside out
            if isinstance(m, nn.TransformerEncoderLayer):
                m.training = True
        out = [model(*x) if isinstance(x, tuple) else model(x) for _ in range(samples)]
    return torch.stack([getattr(o, "logits", o) for o in out]).softmax(-1)


def entropy(probs: Tensor) -> Tensor:
    """Entropy over the last axis; a probability of 0 adds 0, and has the gradient of a tiny one."""
    return -(probs * probs.clamp_min(torch.finfo(probs.dtype).tiny).log()).sum(-1)


def predictive_entropy(probs: Tensor) -> Tensor:
    """Entropy (B,) of the mean of samples (S, B, C): all of the uncertainty.

    Raises
    ------
    ValueError
        For another shape, or rows that do not sum to 1 (logits?).
    """
    _check(probs)
    return entropy(probs.mean(0))


def mutual_information(probs: Tensor) -> Tensor:
    """Predictive entropy minus the mean entropy of the samples (S, B, C), (B,): what the samples disagree on.

    0 when all samples agree, at most log(C).
    """
    _check(probs)
    return (entropy(probs.mean(0)) - entropy(probs).mean(0)).clamp_min(0)


def _check(probs: Tensor) -> None:
    if probs.ndim != 3:
        raise ValueError(f"probs must be (samples, batch, classes), got shape {tuple(probs.shape)}")
    total = probs.detach().sum(-1)
    if not bool(((total - 1).abs() < 1e-2).all()) or bool((probs.detach() < 0).any()):
        raise ValueError("probs must hold probabilities that sum to 1 over the last axis; take softmax of logits first")

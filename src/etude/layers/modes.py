"""Modes for a block, of a model and of autograd: whoever leaves the block finds them as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """The models in eval mode; every module's own mode is put back."""
    modes = [(m, m.training) for model in models for m in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, norms take the statistics that their mode says; afterwards the running ones are as before."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    before = [(b, b.clone()) for m in norms for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)


@contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients are taken here, whatever the caller switched off around it."""
    with torch.inference_mode(False), torch.enable_grad():
        yield

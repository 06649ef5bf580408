"""Who guides: trained and untrained guides of the study of guidance, and one without content."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import seeded_build, stream
from etude.studies._guidance_problems import Problem
from etude.training import train

_guides: dict[Any, nn.Module] = {}  # trained once a process: four arms ask for the same one


def trained_guide(p: Problem, seed: int, key: Any, device: str) -> nn.Module:
    """The guide, trained on the target's own data; its start and the order of its batches are not the target's."""
    full = (p.name, seed, key, device)
    if full not in _guides:
        while len(_guides) >= 8:
            _guides.pop(next(iter(_guides)))
        own = int(torch.randint(2**31, (1,), generator=stream(seed, "trained guide")))
        (done,) = train(
            lambda s: p.guide(), p.data(seed), loss=p.loss, config=p.guide_config, seeds=(own,), device=device
        )  # fmt: skip
        _guides[full] = done.module
    return _guides[full]


def untrained(build: Callable[[], nn.Module], seed: int, device: str) -> nn.Module:
    """A net at its start, by a stream of its own."""
    return seeded_build(build, stream(seed, "guide")).to(device).eval()


class Shuffled(nn.Module):
    """A guide that sees another row of the batch in each row's place: the pull without the content."""

    def __init__(self, guide: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.guide, self.generator = guide, generator

    def forward(self, x: Tensor) -> Any:
        return self.guide(x[torch.randperm(len(x), generator=self.generator).to(x.device)])

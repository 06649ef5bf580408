"""Ghost batch norm against plain batch norm over chunks (what other packages do) and against plain batch norm."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.lab.bench import Case
from etude.training import GhostBatchNorm1d, GhostBatchNorm2d


def _both_ways(norm: Callable[[Tensor], Tensor], x: Tensor, up: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """A call that goes forward and back: the output and the gradient of the input."""

    def run() -> tuple[Tensor, Tensor]:
        x.grad = None
        y = norm(x)
        y.backward(up)
        assert x.grad is not None
        return y.detach(), x.grad

    return run


def _chunks(norm: nn.Module, size: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([norm(part) for part in x.split(size)])


def _case(shape: tuple[int, ...], ghost: int, *, loop_target: float | None, plain_target: float | None) -> list[Case]:
    groups = shape[0] // ghost
    g = stream(0, "bench")
    x, up = torch.randn(shape, generator=g), torch.randn(shape, generator=g)

    def neighbours(t: Tensor) -> Tensor:
        """Interleaved ghosts brought together, so that a chunk of the loop is a ghost of ours."""
        return t.view(ghost, groups, *shape[1:]).transpose(0, 1).reshape(shape)

    ours_class, plain_class = (
        (GhostBatchNorm1d, nn.BatchNorm1d) if len(shape) == 2 else (GhostBatchNorm2d, nn.BatchNorm2d)
    )
    ours = _both_ways(ours_class(shape[1], ghost), x.clone().requires_grad_(), up)
    together, up_together = neighbours(x).requires_grad_(), neighbours(up)
    loop = _both_ways(_chunks(plain_class(shape[1]), ghost), together, up_together)
    plain = _both_ways(plain_class(shape[1]), x.clone().requires_grad_(), up)

    def same(a: Any, b: Any) -> bool:
        return all(torch.allclose(neighbours(p), q, atol=1e-4) for p, q in zip(a, b))

    name = f"{ours_class.__name__} {'x'.join(map(str, shape))}, {groups} ghosts of {ghost}, forward and backward"
    made = [
        Case(name, ours, loop, "plain batch norm over chunks and cat", same, loop_target),
        Case(name, ours, plain, "plain batch norm of the whole batch", None, plain_target, "0.77: 1.3 times its time"),
    ]
    if len(shape) == 2 and importlib.util.find_spec("pytorch_tabnet"):
        from pytorch_tabnet.tab_network import GBN

        peer = _both_ways(GBN(shape[1], virtual_batch_size=ghost), neighbours(x).requires_grad_(), up_together)
        made.append(Case(name, ours, peer, "pytorch_tabnet GBN", same, loop_target))
    return made


def cases() -> list[Case]:
    """128 ghosts where launches dominate and where arithmetic does, and images."""
    return [
        *_case((4096, 64), 32, loop_target=5.0, plain_target=None),
        *_case((16384, 512), 128, loop_target=None, plain_target=0.77),
        *_case((1024, 64, 14, 14), 8, loop_target=None, plain_target=0.77),
    ]

"""A guide that is asked for its layers and never moves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from etude.layers.surgery import Record

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class FrozenGuide:
    """Runs a guide in eval mode and without gradient; `guide_input` and `noise` are those of `Guidance`.

    Raises
    ------
    ValueError
        For both `guide_input` and `noise`.
    """

    guide: nn.Module
    guide_input: Callable[[Any], Any] | None = None
    noise: torch.Generator | None = None
    _checked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.guide_input is not None and self.noise is not None:
            raise ValueError("give guide_input or noise, not both")

    def features(self, record: Record, x: Any, seen: Call | None) -> dict[str, Tensor]:
        """What the layers of `record` put out for `x`; None: for what the target has `seen`.

        Raises
        ------
        ValueError
            If the guide's buffers move though it is in eval mode.
        """
        args, kwargs = self._call(x, seen)
        for module in self.guide.modules():
            if module.training:
                self.guide.eval()
                break
        before = None if self._checked else {n: b.clone() for n, b in self.guide.named_buffers()}
        with torch.no_grad(), record:
            self.guide(*args, **kwargs)
            found = dict(record.features)
        if before is not None:
            moved = [n for n, b in self.guide.named_buffers() if not torch.equal(b, before[n])]
            if moved:
                raise ValueError(f"the guide changes its own buffers in eval mode ({moved[0]}): it is not frozen")
            self._checked = True
        return found

    def _call(self, x: Any, seen: Call | None) -> Call:
        args, kwargs = seen if x is None and seen is not None else ((x,), {})
        if isinstance(x, Mapping):
            args, kwargs = (), dict(x)
        if self.guide_input is not None:
            return (self.guide_input(args[0] if args else kwargs),), {}
        if self.noise is not None:
            named = {k: _noise_like(v, self.noise) for k, v in kwargs.items()}
            return tuple(_noise_like(a, self.noise) for a in args), named
        return args, kwargs


def _noise_like(value: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        if isinstance(value, Tensor) and value.dtype != torch.bool:
            raise ValueError("noise needs inputs of numbers, not ids: give guide_input to draw random ids")
        return value
    drawn = torch.randn(value.shape, generator=generator, device=generator.device, dtype=value.dtype)
    return drawn.to(value.device)

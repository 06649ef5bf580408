"""What conditions generated weights: tasks, scalars, noise, data; and the encoding of constant norm.

Sources: Chauhan et al. 2023, arXiv 2306.06955, criterion 1 (input); Ortiz, Guttag & Dalca 2023, arXiv 2304.07645,
section 4 (input encoding).
"""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Encoding = Literal["cos|sin", "z|1-z"]
Scale = Literal["linear", "log", "sigmoid", "tanh"]


def encode_magnitude(z: Tensor, encoding: Encoding | None) -> Tensor:
    """Components in [0, 1] as a vector whose length does not depend on them.

    "cos|sin": ``[cos(pi z / 2), sin(pi z / 2)]``, squared norm k for every z; "z|1-z": ``[z, 1 - z]``, whose squared
    norm lies in [k / 2, k]; None: as it is. Shapes: (C, k) -> (C, 2k) or (C, k). Computed in float32 at least.
    """
    if encoding is None:
        return z
    if encoding == "cos|sin":
        angle = z.to(torch.promote_types(z.dtype, torch.float32)) * (math.pi / 2)
        return torch.cat([angle.cos(), angle.sin()], -1)
    if encoding == "z|1-z":
        return torch.cat([z, 1 - z], -1)
    raise ValueError(f'encoding must be "cos|sin", "z|1-z" or None, got {encoding!r}')


class Condition(nn.Module):
    """Base: named inputs to (C, width) rows; `bounded` says that components lie in [0, 1] and can be encoded."""

    names: tuple[str, ...]
    width: int
    bounded = False

    def probe(self) -> Tensor:
        """Rows (C, width), not encoded, at which an initial scale is measured."""
        return torch.randn(64, self.width, generator=torch.Generator().manual_seed(0))

    def take(self, given: dict[str, Any]) -> list[Any]:
        """The values of the declared names, in order.

        Raises
        ------
        TypeError
            For a name that is missing or was not declared.
        """
        for name in (*given, *self.names):
            if name not in self.names or name not in given:
                word = "unknown condition" if name not in self.names else "missing condition"
                raise TypeError(f"{word} {name!r}: this hypernetwork takes {', '.join(self.names)}")
        return [given[name] for name in self.names]

    def numbers(self, given: dict[str, Any]) -> list[Tensor]:
        """The same as tensors (n,).

        Raises
        ------
        TypeError
            For a value that is not numbers, too.
        """
        found = []
        for name, value in zip(self.names, self.take(given), strict=True):
            try:
                found.append(torch.as_tensor(value).reshape(-1))
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"condition {name!r} must be a number or a tensor of them, got {value!r}") from error
        return found


@dataclass(frozen=True)
class _Range:
    """Where one number lies, and how it is brought to [0, 1]."""

    low: float
    high: float
    scale: Scale

    def __post_init__(self) -> None:
        low, high, scale = self.low, self.high, self.scale
        if scale in ("sigmoid", "tanh"):
            if (low, high) != (0.0, 1.0):
                raise ValueError(f'scale="{scale}" takes every number: leave out low={low} and high={high}')
        elif not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}")
        elif not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f'low and high must be finite, got {low} and {high}: without bounds take scale="sigmoid" or "tanh"'
            )
        elif scale not in ("linear", "log") or (scale == "log" and low <= 0):
            raise ValueError(
                f'scale must be "linear", "sigmoid", "tanh", or "log" with low > 0, got {scale!r} and low={low}'
            )

    def unit(self, v: Tensor) -> Tensor:
        """Finite numbers (C,) on [0, 1], or beyond it for those outside the range."""
        if self.scale == "sigmoid":
            return v.sigmoid()
        if self.scale == "tanh":
            return (v.tanh() + 1) / 2
        if self.scale == "log" and not bool((v > 0).all()):
            raise ValueError(f'condition {v.min():g} has no logarithm: the scale is "log", values must be positive')
        low, high = (math.log(self.low), math.log(self.high)) if self.scale == "log" else (self.low, self.high)
        return ((v.log() if self.scale == "log" else v) - low) / (high - low)

    def left_by(self, v: Tensor, kinds: list[torch.dtype]) -> bool:
        """Whether v leaves the range further than its bounds do in the coarsest type that values came in."""
        if self.scale in ("sigmoid", "tanh") or not len(v) or (v.min() >= self.low and v.max() <= self.high):
            return False
        coarsest = max(kinds, key=lambda kind: torch.finfo(kind).eps, default=v.dtype)
        low, high = torch.tensor([self.low, self.high], dtype=torch.float64).to(coarsest).tolist()
        return not (bool(v.min() >= min(low, self.low)) and bool(v.max() <= max(high, self.high)))


class ScalarCondition(Condition):
    """Numbers in a known range, brought to [0, 1]; one value for all rows or a tensor (C,).

    Parameters
    ----------
    low, high
        The finite ends of the range: one for all names, or a sequence with one for each.
    scale
        "linear"; "log" for a range whose logarithm is meant; for numbers without bounds, and then without `low` and
        `high` (or with 0 and 1), "sigmoid" or "tanh", which squash them: 1 / (1 + exp(-v)) or (1 + tanh v) / 2. Values
        far from 0, by more than about 5 or 3, are then hardly told apart: divide by their usual size first. One for
        all names, or a sequence with one for each.
    strict
        A value outside the range is an error; otherwise a warning, once a name, and it is used as it is (the encoding
        gives two values one code there).

    Raises
    ------
    ValueError
        For names that repeat or none, ranges without ends or of another number than the names, an unknown scale.
    """

    bounded = True

    def __init__(
        self,
        names: Sequence[str] | str,
        low: float | Sequence[float] = 0.0,
        high: float | Sequence[float] = 1.0,
        scale: Scale | Sequence[Scale] = "linear",
        *,
        strict: bool = False,
    ) -> None:
        super().__init__()
        names = (names,) if isinstance(names, str) else names
        if not names or len(set(names)) != len(names):
            raise ValueError(f"names must be different and at least one, got {list(names)}")
        self.names, self.width, self.strict = tuple(names), len(names), strict
        each = (_for_each(self.names, what, of) for what, of in (("low", low), ("high", high), ("scale", scale)))
        self.ranges = tuple(_Range(*own) for own in zip(*each, strict=True))
        self._warned: set[str] = set()

    def probe(self) -> Tensor:
        return torch.ones(1, self.width)

    def forward(self, **given: Any) -> Tensor:
        raw = self.numbers(given)
        floating = [v.dtype for v in raw if v.is_floating_point()]
        kind = functools.reduce(torch.promote_types, floating, torch.get_default_dtype())
        raw = [v.to(kind) for v in raw]
        length = max(len(v) for v in raw)
        if any(len(v) not in (1, length) for v in raw):
            raise ValueError(f"conditions of lengths {[len(v) for v in raw]} do not go together")
        z = torch.stack([v.expand(length) for v in raw], 1)
        if not torch.isfinite(z).all():
            row = int((~torch.isfinite(z)).any(1).nonzero()[0])
            values = dict(zip(self.names, z[row].tolist(), strict=True))
            raise ValueError(f"condition {row} is NaN or infinite: {values}")
        units = []
        for name, own, v in zip(self.names, self.ranges, z.unbind(1), strict=True):
            units.append(own.unit(v))
            if own.left_by(v, floating):
                self._outside(name, f"from {v.min():g} to {v.max():g} leaves the range [{own.low:g}, {own.high:g}]")
        return torch.stack(units, 1)

    def _outside(self, name: str, text: str) -> None:
        text = f"condition {name!r} {text}"
        if self.strict:
            raise ValueError(text)
        if name not in self._warned:
            warnings.warn(text, stacklevel=3)
            self._warned.add(name)


def _for_each(names: tuple[str, ...], what: str, given: Any) -> tuple[Any, ...]:
    """One value a name."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return (given,) * len(names)
    if len(given) != len(names):
        raise ValueError(f"{what} must be one for all, or one for each of {', '.join(names)}; got {list(given)}")
    return tuple(given)


class TaskCondition(Condition):
    """A learned embedding for each task; `task` is a whole number or ids (C,)."""

    names = ("task",)

    def __init__(self, num_tasks: int, dim: int, *, std: float = 1.0) -> None:
        super().__init__()
        if num_tasks < 1 or dim < 1:
            raise ValueError(f"num_tasks and dim must be at least 1, got {num_tasks} and {dim}")
        self.width, self.std = dim, std
        # one parameter a task, so that a new task replaces none that an optimiser holds, and old ones can be frozen
        self.rows = nn.ParameterList(nn.Parameter(torch.randn(dim) * std) for _ in range(num_tasks))

    @property
    def num_tasks(self) -> int:
        """Tasks so far."""
        return len(self.rows)

    @property
    def table(self) -> Tensor:
        """The embeddings, (num_tasks, dim)."""
        return torch.stack(list(self.rows))

    def forward(self, **given: Any) -> Tensor:
        (ids,) = self.numbers(given)
        if len(ids) and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
            raise TypeError(f"task must be a whole number or ids of type int64, got {ids.dtype}")
        ids = ids.to(self.rows[0].device, torch.long)  # uint8 would be taken as a mask
        wrong = ids[(ids < 0) | (ids >= self.num_tasks)]
        if len(wrong):
            raise IndexError(f"task {int(wrong[0])} of {self.num_tasks} tasks (0 to {self.num_tasks - 1})")
        return self.table[ids]

    def add(self, count: int = 1, generator: torch.Generator | None = None) -> range:
        """New tasks; returns their ids. Their embeddings are new parameters: tell the optimiser."""
        start = self.num_tasks
        for _ in range(count):
            fresh = torch.randn(self.width, generator=generator) * self.std
            self.rows.append(nn.Parameter(fresh.to(self.rows[0])))
        return range(start, self.num_tasks)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        held = sum(k.startswith(f"{prefix}rows.") for k in state_dict)
        if held > self.num_tasks:
            raise ValueError(
                f"the state holds {held} tasks, this condition {self.num_tasks}: "
                f"add_condition({held - self.num_tasks}) first"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def freeze(self, task: int) -> None:
        """Train this task's embedding no longer: without a gradient no momentum moves it either."""
        self.rows[task].requires_grad_(False).grad = None

    def probe(self) -> Tensor:
        return self.table.detach()


class NoiseCondition(Condition):
    """Draws from a standard "normal" or from a "uniform" distribution on [-1, 1].

    `noise` is a tensor (C, dim), or a number of draws beside `generator`.
    """

    names = ("noise",)

    def __init__(
        self,
        dim: int,
        generator: torch.Generator | None = None,
        *,
        distribution: Literal["normal", "uniform"] = "normal",
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if distribution not in ("normal", "uniform"):
            raise ValueError(f'distribution must be "normal" or "uniform", got {distribution!r}')
        self.width, self.generator, self.distribution = dim, generator, distribution

    def probe(self) -> Tensor:
        return self._draw(64, torch.Generator().manual_seed(0))

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        if self.distribution == "uniform":
            return 2 * torch.rand(count, self.width, generator=generator) - 1
        return torch.randn(count, self.width, generator=generator)

    def forward(self, **given: Any) -> Tensor:
        (noise,) = self.take(given)
        if isinstance(noise, Tensor):
            if noise.ndim != 2 or noise.shape[1] != self.width:
                raise ValueError(f"noise must be (C, {self.width}), got {tuple(noise.shape)}")
            return noise
        if self.generator is None:
            raise ValueError("NoiseCondition needs a generator to draw from, or a tensor of noise")
        if int(noise) < 1:
            raise ValueError(f"noise must be a tensor (C, {self.width}) or at least 1 draw, got {noise}")
        return self._draw(int(noise), self.generator)


class PreferenceCondition(Condition):
    """Weights of k losses, not negative and with sum 1: one net a trade-off, and with all of them the Pareto front.

    `preference` is (k,) or (C, k). A training step draws some and lets each weigh the losses of its own net::

        p = condition.draw(8, generator)
        y = hyper.forward_each(x, shared=True, preference=p)             # (8, B, ...)
        losses = torch.stack([first_loss(y), second_loss(y)], 1)         # (8, k), one row a net
        (p * losses).sum(1).mean().backward()
    """

    names, bounded = ("preference",), True

    def __init__(self, num_losses: int) -> None:
        super().__init__()
        if num_losses < 2:
            raise ValueError(f"a preference weighs at least 2 losses, got num_losses={num_losses}")
        self.width = num_losses

    def probe(self) -> Tensor:
        return torch.full((1, self.width), 1 / self.width)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, k), evenly over all preferences."""
        share = -torch.log1p(-torch.rand(count, self.width, generator=generator, dtype=torch.float64))
        return (share / share.sum(1, keepdim=True)).float()

    def forward(self, **given: Any) -> Tensor:
        (raw,) = self.take(given)
        p = torch.as_tensor(raw)
        p = p if p.is_floating_point() else p.to(torch.get_default_dtype())
        p = p[None] if p.ndim == 1 else p
        if p.ndim != 2 or p.shape[1] != self.width:
            raise ValueError(f"preference must be ({self.width},) or (C, {self.width}), got {tuple(p.shape)}")
        wrong = ~((p >= 0).all(1) & ((p.sum(1) - 1).abs() < 1e-2))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(f"preference {row} must be weights from 0 with sum 1, got {p[row].tolist()}")
        return p


class DataCondition(Condition):
    """The output (C, width) of an encoder on `data`: every row gets weights of its own."""

    names = ("data",)

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}: it is what the encoder gives for a row")
        self.encoder, self.width = encoder, width

    def forward(self, **given: Any) -> Tensor:
        (data,) = self.take(given)
        z = self.encoder(data)
        if z.ndim != 2 or z.shape[1] != self.width:
            raise ValueError(f"the encoder must give (C, {self.width}), got {tuple(z.shape)}")
        return z

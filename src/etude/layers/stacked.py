"""Many nets of one shape as one net with a leading axis of seeds: (S, B, ...) to (S, B, ...).

Linear layers become one `baddbmm`; norms and dropout keep their meaning for each seed. `stack_modules`
knows sequences of linear layers, elementwise activations, `LayerNorm`, `BatchNorm1d`, `Flatten` and `Dropout`,
and names what it does not know.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.layers.mlp import ACTIVATIONS, StackedLinear

ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity)
assert all(make in ELEMENTWISE for make in ACTIVATIONS.values())


class NotStackable(ValueError):
    """These modules have no stacked form; the message names the layer."""


class StackedLayerNorm(nn.Module):
    """Layer norm over the last axes, with a scale and shift for each seed."""

    def __init__(self, norms: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.normalized_shape, self.eps = norms[0].normalized_shape, norms[0].eps
        self.weight = _stacked([m.weight for m in norms])
        self.bias = _stacked([m.bias for m in norms])

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        if self.weight is not None:
            y = y * _before_rows(self.weight, x)
        return y if self.bias is None else y + _before_rows(self.bias, x)


class StackedBatchNorm1d(nn.Module):
    """Batch norm of (S, B, F) with statistics for each seed."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norms: Sequence[nn.BatchNorm1d]) -> None:
        super().__init__()
        first = norms[0]
        if first.momentum is None or not first.track_running_stats:
            raise NotStackable("BatchNorm1d with a cumulative average or without running statistics")
        self.momentum, self.eps = first.momentum, first.eps
        self.weight = _stacked([m.weight for m in norms])
        self.bias = _stacked([m.bias for m in norms])
        for name, _ in first.named_buffers():
            self.register_buffer(name, torch.stack([m.get_buffer(name) for m in norms]))
        self.train(first.training)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise NotStackable(f"BatchNorm1d on rows of {x.ndim - 2} axes")
        seeds, rows, features = x.shape
        if self.training and rows < 2:
            raise ValueError(f"batch norm needs more than one row in training, got {rows}")
        if self.training:
            self.num_batches_tracked.add_(1)
        y = F.batch_norm(
            x.transpose(0, 1).reshape(rows, seeds * features),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            None if self.weight is None else self.weight.view(-1),
            None if self.bias is None else self.bias.view(-1),
            self.training,
            self.momentum,
            self.eps,
        )
        return y.view(rows, seeds, features).transpose(0, 1)


class StackedDropout(nn.Module):
    """Dropout whose mask for each seed comes from that seed's own generator."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generators: list[torch.Generator] = []  # one a seed, set by whoever trains

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if len(self.generators) != len(x):
            raise ValueError(f"dropout over {len(x)} seeds needs as many generators, got {len(self.generators)}")
        mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for lane, generator in zip(mask.unbind(0), self.generators):
            lane.bernoulli_(1 - self.p, generator=generator)
        return x * mask.div_(1 - self.p)


class _Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)


def stack_modules(modules: Sequence[nn.Module]) -> nn.Module:
    """One module that applies ``modules[s]`` to ``x[s]``, with copies of their weights under the same names.

    Raises
    ------
    NotStackable
        If a layer has no stacked form, or the modules differ.
    """
    first = modules[0]
    if any(type(m) is not type(first) for m in modules):
        raise NotStackable(f"modules differ: {sorted({type(m).__name__ for m in modules})}")
    if any(m.training != first.training for m in modules):
        raise NotStackable("some modules are in training mode and some are not")
    if _hooked(first):
        raise NotStackable(f"{type(first).__name__} has hooks")
    if type(first) is nn.Sequential:
        if any(len(m) != len(first) for m in modules):  # type: ignore[arg-type]
            raise NotStackable("sequences differ in length")
        children = zip(*(m.named_children() for m in modules))
        parts = [(pairs[0][0], stack_modules([m for _, m in pairs])) for pairs in children]
        made = nn.Sequential()
        for name, part in parts:
            made.add_module(name, part)
        return made.train(first.training)
    return _stack_layer(modules).train(first.training)


def _stack_layer(modules: Sequence[nn.Module]) -> nn.Module:
    first = modules[0]
    if _settings(first) != _settings(modules[-1]) or len({_settings(m) for m in modules}) > 1:
        raise NotStackable(f"{type(first).__name__} differs between the modules")
    if any(not p.requires_grad for m in modules for p in m.parameters()):
        raise NotStackable("some parameters are frozen")
    if type(first) in ELEMENTWISE:
        return first
    if type(first) is nn.Linear:
        return StackedLinear.from_linears(modules)  # type: ignore[arg-type]
    if type(first) is nn.LayerNorm:
        return StackedLayerNorm(modules)  # type: ignore[arg-type]
    if type(first) is nn.BatchNorm1d:
        return StackedBatchNorm1d(modules)  # type: ignore[arg-type]
    if type(first) is nn.Dropout:
        return StackedDropout(first.p)
    if type(first) is nn.Flatten and first.start_dim == 1 and first.end_dim == -1:
        return _Flatten()
    raise NotStackable(f"no stacked form of {type(first).__name__}")


def lane_tensors(net: nn.Module, lane: int) -> dict[str, Tensor]:
    """Views of one seed's parameters and buffers in a stacked net, in the shapes of the single module."""
    views: dict[str, Tensor] = {}
    for prefix, module in net.named_modules():
        dot = f"{prefix}." if prefix else ""
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, value in tensors:
            one = value.detach()[lane]
            if isinstance(module, StackedLinear):
                one = one.T if name == "weight" else one[0]
            views[dot + name] = one
    return views


def _stacked(values: Sequence[Tensor | None]) -> nn.Parameter | None:
    present = [v.detach() for v in values if v is not None]
    return nn.Parameter(torch.stack(present)) if present else None


def _before_rows(p: Tensor, x: Tensor) -> Tensor:
    """(S, *shape) with axes of 1 put in, so that it meets (S, B, ..., *shape)."""
    return p.view(len(p), *([1] * (x.ndim - p.ndim)), *p.shape[1:])


def _settings(module: nn.Module) -> str:
    return f"{type(module).__name__} {module.extra_repr()}"


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )

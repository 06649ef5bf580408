"""Cosines between gradients of small groups of samples, without the gradients where a net is linear layers in a row.

The gradient of a linear layer's weight is d a^T summed over a group's rows (d: gradient at the layer's output, a: its
input), so two gradients' inner product needs no vector of all P weights:

    <g, h> = sum over layers, rows r of g, rows s of h of  (d_r . d_s) (a_r . a_s + 1 for the bias)

For an MLP 784-100-100-10 and 100 remembered samples that is a thousandth of the numbers. Other nets hold theirs flat.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from etude.layers.distances import cosine_similarities

ROW_BY_ROW = (
    nn.Identity, nn.Flatten, nn.Dropout, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Hardtanh, nn.ReLU6,
)  # fmt: skip


class Directions(Protocol):
    """Gradients of G groups of samples; only those of one net, held in one form, are compared."""

    def finite(self) -> Tensor:
        """(G,) which hold finite numbers alone."""
        ...

    def __getitem__(self, groups: Tensor) -> Self: ...

    def mean(self) -> Self:
        """The mean gradient, as one group."""
        ...

    def cosines(self, other: Any) -> Tensor:
        """(G, H) cosines with the groups of `other`; a gradient of zeros has 0."""
        ...


@dataclass(frozen=True)
class FlatGradients:
    """Gradients as they are, (G, P)."""

    g: Tensor

    def finite(self) -> Tensor:
        return torch.isfinite(self.g).all(1)

    def __getitem__(self, groups: Tensor) -> Self:
        return type(self)(self.g[groups])

    def mean(self) -> Self:
        return type(self)(self.g.mean(0, keepdim=True))

    def cosines(self, other: Any) -> Tensor:
        return cosine_similarities(self.g, other.g)


class LayerFactors(NamedTuple):
    """A linear layer's part: outputs' gradients (G, n, out), inputs (G, n, in), and what of it is trained."""

    delta: Tensor
    x: Tensor
    weight: bool
    bias: bool


@dataclass(frozen=True)
class FactoredGradients:
    """Gradients of G groups of n rows, as the factors of every linear layer, in float64."""

    layers: tuple[LayerFactors, ...]

    def finite(self) -> Tensor:
        fine = [torch.isfinite(f.delta.abs().amax((1, 2)) * f.x.abs().amax((1, 2))) for f in self.layers]
        return torch.stack(fine).all(0)

    def __getitem__(self, groups: Tensor) -> Self:
        return self._each(lambda t: t[groups], lambda t: t[groups])

    def mean(self) -> Self:
        return self._each(lambda t: t.flatten(0, 1)[None] / len(t), lambda t: t.flatten(0, 1)[None])

    def cosines(self, other: Any) -> Tensor:
        inner = sum(_inner(a, b) for a, b in zip(self.layers, other.layers, strict=True))
        lengths = self._squares()[:, None].sqrt() * other._squares().sqrt()
        return torch.where(lengths > 0, inner / lengths, 0.0).clamp(-1.0, 1.0)

    def _squares(self) -> Tensor:
        total = torch.zeros(len(self.layers[0].delta), dtype=torch.float64, device=self.layers[0].delta.device)
        for f in self.layers:
            rows = (f.x @ f.x.mT) * f.weight + f.bias
            total += ((f.delta @ f.delta.mT) * rows).sum((1, 2))
        return total.clamp_min(0.0)

    def _each(self, delta: Callable[[Tensor], Tensor], x: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(tuple(LayerFactors(delta(f.delta), x(f.x), f.weight, f.bias) for f in self.layers))


def _inner(a: LayerFactors, b: LayerFactors) -> Tensor:
    rows = (a.x.flatten(0, 1) @ b.x.flatten(0, 1).T) * a.weight + a.bias
    products = (a.delta.flatten(0, 1) @ b.delta.flatten(0, 1).T) * rows
    return products.unflatten(0, a.delta.shape[:2]).unflatten(2, b.delta.shape[:2]).sum((1, 3))


def linear_chain(model: nn.Module) -> list[nn.Module] | None:
    """The modules that run one after another, each row by itself, if linear layers are all that is trained."""
    modules = list(_chain(model))
    held = [p for m in modules if type(m) is nn.Linear for p in m.parameters(recurse=False)]
    ids = {id(p) for p in held}
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained and all(_known(m) for m in modules) and len(ids) == len(held) and all(id(p) in ids for p in trained):
        return modules
    return None


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential and not (module._forward_hooks or module._forward_pre_hooks):
        for child in module:
            yield from _chain(child)
    else:
        yield module


def _known(module: nn.Module) -> bool:
    if module._forward_hooks or module._forward_pre_hooks or getattr(module, "inplace", False):
        return False
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1
    if type(module) is nn.Linear:  # a pruned or parametrized one holds its weight in another form
        return set(module._parameters) == {"weight", "bias"}
    return type(module) in ROW_BY_ROW


def factored_gradients(
    chain: Sequence[nn.Module], loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> FactoredGradients:
    """Gradients of ``loss_fn(model(x[g]), y[g])`` for G groups (G, n, ...), of a `linear_chain` in evaluation mode."""
    groups, h = x.shape[:2], x.flatten(0, 1)
    linear: list[nn.Linear] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with torch.enable_grad():
        for module in chain:
            if isinstance(module, nn.Linear):
                linear.append(module)
                inputs.append(h.detach())
                h = F.linear(h, module.weight.detach(), None if module.bias is None else module.bias.detach())
                outputs.append(h if h.requires_grad else h.requires_grad_())
            else:
                h = module(h)
        deltas = torch.autograd.grad(vmap(loss_fn)(h.unflatten(0, groups), y).sum(), outputs)

    def rows(t: Tensor) -> Tensor:  # (G, rows and positions, width)
        return t.unflatten(0, groups).flatten(1, -2).double()

    return FactoredGradients(
        tuple(
            LayerFactors(rows(d), rows(a), m.weight.requires_grad, m.bias is not None and m.bias.requires_grad)
            for m, a, d in zip(linear, inputs, deltas, strict=True)
        )
    )

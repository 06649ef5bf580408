"""Gradients of single samples, and how noisy the gradients of mini-batches are.

Linear layers take the closed form: the gradient of a sample is d a^T (d: gradient at the layer's output, a: its
input), so only d and a are computed sample by sample and mean |d a^T| over samples is the one product
|D|^T |A| / B (Aljundi 2019, arXiv 1910.02718, for MAS). Every other parameter goes through `vmap(grad)`;
modules that cannot (nn.LSTM and its kin) through one backward pass a sample.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from etude.layers.parameters import flatten
from etude.training.updater import Loss, total_loss

_AUTO_CHUNK = 2**24  # numbers of single-sample gradients held at once where the result is smaller


class _Lossy(nn.Module):
    """Loss and model as one module, so that the model's weights can be exchanged while the loss runs."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return total_loss(self.loss(self.model, batch))


def _chosen(model: nn.Module, parameters: str | Sequence[str]) -> dict[str, Tensor]:
    trainable: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    if parameters == "all":
        return trainable
    if parameters == "last":
        last = next(reversed(trainable)).rpartition(".")[0]
        return {n: p for n, p in trainable.items() if n.rpartition(".")[0] == last}
    wanted = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    for pattern in wanted:
        if not any(fnmatchcase(n, pattern) for n in trainable):
            raise ValueError(f"no trainable parameter matches {pattern!r}; there are {sorted(trainable)}")
    return {n: p for n, p in trainable.items() if any(fnmatchcase(n, w) for w in wanted)}


def _rows(batch: Any) -> tuple[list[Tensor], Any, int]:
    leaves, spec = tree_flatten(batch)
    tensors = [leaf for leaf in leaves if leaf is not None]
    bad = [type(leaf).__name__ for leaf in tensors if not isinstance(leaf, Tensor)]
    if bad or not tensors:
        raise ValueError(f"a batch must hold tensors, one row a sample; got {bad or 'nothing'}")
    sizes = {len(t) if t.ndim else 0 for t in tensors}
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(f"the tensors of a batch must have one first axis of at least 1, got {sorted(sizes)}")
    return leaves, spec, sizes.pop()


@contextmanager
def _hooked(layers: dict[str, nn.Linear], hook: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    handles = [
        m.register_forward_hook(lambda _, args, out, name=name: hook(name, args[0], out)) for name, m in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _closed_form(lossy: _Lossy, chosen: dict[str, Tensor], first: Any) -> tuple[dict[str, nn.Linear], dict[str, Any]]:
    """The linear layers that run exactly once a sample and share no weight, with their output's shape."""
    owners: dict[int, int] = {}
    for module in lossy.model.modules():
        for p in module._parameters.values():
            if p is not None:
                owners[id(p)] = owners.get(id(p), 0) + 1
    layers = {
        name: m
        for name, m in lossy.model.named_modules()
        if type(m) is nn.Linear
        and (f"{name}.weight" if name else "weight") in chosen
        and all(owners[id(p)] == 1 for p in m.parameters(recurse=False))
    }
    shapes: dict[str, list[torch.Size]] = {name: [] for name in layers}

    def seen(name: str, _: Tensor, out: Tensor) -> None:
        shapes[name].append(out.shape)

    with _hooked(layers, seen), torch.no_grad():
        lossy(first)
    once = {name: s[0] for name, s in shapes.items() if len(s) == 1 and s[0][0] == 1}
    return {name: layers[name] for name in once}, once


def _check(model: nn.Module) -> None:
    for name, m in model.named_modules():
        if m.training and isinstance(m, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{name or 'the model'} normalises over the batch, so a sample has no gradient of its own: "
                "call model.eval() first"
            )


def per_sample_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    parameters: str | Sequence[str] = "all",
    project: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    mean_abs: bool = False,
    mean_square: bool = False,
) -> Tensor:
    """The gradient of ``loss(model, batch of this one sample)`` for every sample.

    Parameters
    ----------
    loss
        ``loss(model, batch)``, a scalar or a dictionary of terms, as the engine takes it.
    batch
        A `Split`, tensor, tuple or dictionary of tensors whose first axis counts the B samples.
    parameters
        "all" trainable ones, those of the "last" module that has any, or names (globs are understood).
    project
        (P, k) matrix that the gradients are multiplied with, or k for a Gaussian one drawn from `generator` and
        scaled so that inner products are kept in expectation.
    chunk
        Samples handled at a time; None chooses by memory.
    mean_abs, mean_square
        Return the mean absolute value or the mean square over the samples, (P,), without holding (B, P).

    Returns
    -------
    Tensor
        (B, P) in `etude.layers.flatten` order; (B, k) with `project`; (P,) with `mean_abs` or `mean_square`.

    Raises
    ------
    ValueError
        If a name matches nothing, the batch is not of tensors, batch norm is in training mode, or options clash.
    """
    chosen = _chosen(model, parameters)
    if sum((mean_abs, mean_square, project is not None)) > 1:
        raise ValueError("mean_abs, mean_square and project exclude each other")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    _check(model)
    leaves, spec, n = _rows(batch)
    size = sum(p.numel() for p in chosen.values())
    matrix = _projection(project, size, generator, next(iter(chosen.values())))
    if chunk is None:
        chunk = n if not (mean_abs or mean_square or matrix is not None) else max(1, _AUTO_CHUNK // size)

    def part(rows: slice) -> Any:
        return tree_unflatten([None if leaf is None else leaf[rows] for leaf in leaves], spec)

    lossy = _Lossy(model, loss)
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    reduce = torch.abs if mean_abs else torch.square if mean_square else None
    layers, shapes = ({}, {}) if recurrent else _closed_form(lossy, chosen, part(slice(0, 1)))
    results = []
    for start in range(0, n, chunk):
        rows = part(slice(start, start + chunk))
        if recurrent:
            pieces = _one_by_one(lossy, chosen, rows, min(chunk, n - start))
        else:
            pieces = _at_once(lossy, chosen, layers, shapes, rows, min(chunk, n - start), reduce)
        if recurrent and reduce is not None:
            pieces = {name: reduce(g).sum(0) for name, g in pieces.items()}
        if reduce is not None:
            results.append(torch.cat([pieces[name].reshape(-1) for name in chosen]))
        else:
            flat = torch.cat([pieces[name].flatten(1) for name in chosen], dim=1)
            results.append(flat if matrix is None else flat @ matrix)
    return torch.cat(results) if reduce is None else torch.stack(results).sum(0) / n


def _projection(project: int | Tensor | None, size: int, generator: Any, like: Tensor) -> Tensor | None:
    if project is None:
        return None
    if isinstance(project, Tensor):
        if project.ndim != 2 or project.shape[0] != size:
            raise ValueError(f"project must have shape ({size}, k), got {tuple(project.shape)}")
        return project.to(like)
    if project < 1 or generator is None:
        raise ValueError(f"project={project} must be at least 1 and needs a generator")
    drawn = torch.randn(size, project, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device) / math.sqrt(project)


def _at_once(
    lossy: _Lossy,
    chosen: dict[str, Tensor],
    layers: dict[str, nn.Linear],
    shapes: dict[str, Any],
    rows: Any,
    n: int,
    reduce: Callable[[Tensor], Tensor] | None,
) -> dict[str, Tensor]:
    """Gradients (n, *shape) by name, or with `reduce` the sum over samples of the reduced gradient."""
    closed = {f"{name}.{kind}" if name else kind for name in layers for kind in ("weight", "bias")}
    others = {name: p.detach() for name, p in chosen.items() if name not in closed}
    like = next(iter(chosen.values()))
    shifts = {name: like.new_zeros((n, *shapes[name])) for name in layers}

    def one(other: dict[str, Tensor], shift: dict[str, Tensor], row: Any) -> tuple[Tensor, dict[str, Tensor]]:
        inputs: dict[str, Tensor] = {}

        def hook(name: str, x: Tensor, out: Tensor) -> Tensor:
            inputs[name] = x
            return out + shift[name]

        with _hooked(layers, hook):
            single = tree_map(_one_row, row)
            value = functional_call(lossy, {f"model.{k}": v for k, v in other.items()}, (single,))
        return value, inputs

    tensors, spec = tree_flatten(rows)

    def call(other: Any, shift: Any, given: list[Tensor]) -> Any:
        filled = iter(given)
        row = [None if t is None else next(filled) for t in tensors]
        return grad(lambda o, s: one(o, s, tree_unflatten(row, spec)), argnums=(0, 1), has_aux=True)(other, shift)

    given = [t for t in tensors if t is not None]
    (rest, deltas), inputs = vmap(call, in_dims=(None, 0, 0), randomness="different")(others, shifts, given)
    out = {name: g if reduce is None else reduce(g).sum(0) for name, g in rest.items()}
    for name in layers:
        prefix = f"{name}." if name else ""
        delta, x = deltas[name].flatten(1, -2), inputs[name].flatten(1, -2)  # (n, positions, width)
        if f"{prefix}bias" in chosen:
            bias = delta.sum(1)
            out[f"{prefix}bias"] = bias if reduce is None else reduce(bias).sum(0)
        if reduce is not None and delta.shape[1] == 1:
            out[f"{prefix}weight"] = reduce(delta[:, 0]).T @ reduce(x[:, 0])
        else:
            weight = torch.einsum("npo,npi->noi", delta, x)
            out[f"{prefix}weight"] = weight if reduce is None else reduce(weight).sum(0)
    return out


def _one_row(leaf: Tensor | None) -> Tensor | None:
    return None if leaf is None else leaf[None]


def _one_by_one(lossy: _Lossy, chosen: dict[str, Tensor], rows: Any, n: int) -> dict[str, Tensor]:
    found: list[Sequence[Tensor | None]] = []
    for i in range(n):
        single = tree_map(lambda t, i=i: None if t is None else t[i : i + 1], rows)
        with torch.enable_grad():
            found.append(torch.autograd.grad(lossy(single), list(chosen.values()), allow_unused=True))
    return {
        name: torch.stack([torch.zeros_like(p) if g[j] is None else g[j] for g in found])  # type: ignore[misc]
        for j, (name, p) in enumerate(chosen.items())
    }


@dataclass(frozen=True)
class GradientNoise:
    """What the gradients of n mini-batches at one point say.

    `mean` is their mean (P,); `trace` the trace of their covariance (unbiased); `norms` their lengths (n,).
    """

    mean: Tensor
    trace: float
    norms: Tensor

    @property
    def n(self) -> int:
        """Number of mini-batches."""
        return len(self.norms)

    @property
    def noise_scale(self) -> float:
        """trace / |true gradient|^2, the latter estimated without bias; infinite where that estimate is not
        positive."""
        squared = float(self.mean.square().sum()) - self.trace / self.n
        return self.trace / squared if squared > 0 else math.inf

    @property
    def norm_variation(self) -> float:
        """Standard deviation of the gradients' lengths over their mean."""
        return float(self.norms.std() / self.norms.mean())


def gradient_statistics(
    model: nn.Module, loss: Loss, batches: Iterable[Any], *, parameters: str | Sequence[str] = "all"
) -> GradientNoise:
    """Mean and noise of the mini-batch gradient where the model stands; the model is left as it was.

    The covariance of an SGD step of size eta is eta^2 times that of the gradient.

    Raises
    ------
    ValueError
        If there are fewer than two batches.
    """
    chosen = _chosen(model, parameters)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    mean = torch.zeros(sum(p.numel() for p in chosen.values()), dtype=torch.float64)
    spread, norms = torch.zeros_like(mean), []
    try:
        for batch in batches:
            with torch.enable_grad():
                value = total_loss(loss(model, batch))
                found = torch.autograd.grad(value, list(chosen.values()), allow_unused=True)
            pairs = zip(chosen.items(), found, strict=True)
            g = flatten({name: torch.zeros_like(p) if f is None else f for (name, p), f in pairs})[0].double().cpu()
            norms.append(torch.linalg.vector_norm(g))
            step = g - mean
            mean = mean + step / len(norms)
            spread += step * (g - mean)
    finally:
        with torch.no_grad():
            for name, b in model.named_buffers():
                b.copy_(buffers[name])
    if len(norms) < 2:
        raise ValueError(f"the noise of gradients needs at least 2 batches, got {len(norms)}")
    return GradientNoise(mean, float(spread.sum()) / (len(norms) - 1), torch.stack(norms))

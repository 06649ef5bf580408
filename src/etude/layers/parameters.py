"""A model's parameters as one vector, and forward passes with weights that are given from outside.

`flatten` and `unflatten` turn named tensors into a vector and back; `forward_with` runs a module with other
weights than its own, one set or C sets at once; `Anchor` measures how far a model has moved from where it stood.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_POINTWISE = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity, nn.Hardtanh,
    nn.ReLU6, nn.Mish, nn.LogSigmoid, nn.Softsign,
)  # fmt: skip
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Randomness = Literal["error", "different"]
_ONE_BATCH = (nn.RNNBase, torch.jit.ScriptModule)  # kernels that vmap cannot carry


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in the vector that `flatten` made.

    `names`, `shapes` and `offsets` go together. A tied tensor stands once; `tied` maps its other names to the
    first.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    tied: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Length of the vector, P."""
        return self.offsets[-1] + math.prod(self.shapes[-1]) if self.names else 0

    def slices(self) -> dict[str, slice]:
        """The stretch of the vector that holds each tensor."""
        ends = [o + math.prod(s) for o, s in zip(self.offsets, self.shapes, strict=True)]
        return {n: slice(o, e) for n, o, e in zip(self.names, self.offsets, ends, strict=True)}


def layout_of(params: Mapping[str, Tensor], *, stacked: bool = False) -> Layout:
    """The layout that `flatten` would give, without touching the values."""
    names, shapes, offsets, tied, at = [], [], [], [], 0
    seen: dict[int, str] = {}
    for name, p in params.items():
        if id(p) in seen:
            tied.append((name, seen[id(p)]))
            continue
        seen[id(p)] = name
        shape = p.shape[1:] if stacked else p.shape
        names.append(name)
        shapes.append(shape)
        offsets.append(at)
        at += math.prod(shape)
    return Layout(tuple(names), tuple(shapes), tuple(offsets), tuple(tied))


def flatten(params: Mapping[str, Tensor], *, stacked: bool = False) -> tuple[Tensor, Layout]:
    """Named tensors as one vector.

    Parameters
    ----------
    params
        For example ``dict(model.named_parameters())``. One tensor under two names (tied) is stored once; to have
        both names in the layout pass ``model.named_parameters(remove_duplicate=False)``.
    stacked
        Every tensor has a leading axis of C weight sets; the vector is then (C, P).

    Returns
    -------
    vector, layout
        (P,) or (C, P), differentiable with respect to `params`; what `unflatten` needs.

    Raises
    ------
    ValueError
        If there is nothing to flatten, or types, devices or the numbers of weight sets differ.
    """
    if not params:
        raise ValueError("there are no tensors to flatten")
    layout = layout_of(params, stacked=stacked)
    first = params[layout.names[0]]
    for name in layout.names:
        p = params[name]
        if p.dtype != first.dtype or p.device != first.device:
            raise ValueError(
                f"one vector needs one type and device: {layout.names[0]!r} is {first.dtype} on {first.device}, "
                f"{name!r} is {p.dtype} on {p.device}"
            )
        if stacked and (p.ndim == 0 or p.shape[0] != first.shape[0]):
            raise ValueError(f"{name!r} has shape {tuple(p.shape)}: its first axis must count {first.shape[0]} sets")
    if stacked:
        return torch.cat([params[n].reshape(first.shape[0], -1) for n in layout.names], dim=1), layout
    return torch.cat([params[n].reshape(-1) for n in layout.names]), layout


def unflatten(vector: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The named tensors of a vector, as views of it.

    Parameters
    ----------
    vector
        (..., P); leading axes are kept in front of every tensor.

    Raises
    ------
    ValueError
        If the vector's length is not the layout's.
    """
    if vector.ndim == 0 or vector.shape[-1] != layout.size:
        raise ValueError(f"the layout holds {layout.size} numbers, the vector has shape {tuple(vector.shape)}")
    lead = vector.shape[:-1]
    out = {
        name: vector[..., o : o + math.prod(shape)].unflatten(-1, shape) if shape else vector[..., o]
        for name, shape, o in zip(layout.names, layout.shapes, layout.offsets, strict=True)
    }
    assert all(out[n].shape == (*lead, *s) for n, s in zip(layout.names, layout.shapes, strict=True))
    return {**out, **{name: out[first] for name, first in layout.tied}}


def _check(model: nn.Module, params: Mapping[str, Tensor], stacked: bool) -> int:
    """Names and shapes against the model's; the number of weight sets (0 when not stacked)."""
    owners = {name.rpartition(".")[0] for name in params}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.RNNBase) and name in owners:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, whose fused kernel reads its own packed weights "
                "and would ignore the given ones: write it with nn.LSTMCell, nn.GRUCell or nn.RNNCell"
            )
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    unknown = sorted(set(params) - set(own))
    if unknown:
        raise ValueError(f"{type(model).__name__} has no parameter named {unknown}; it has {sorted(own)}")
    sets = 0
    for name, p in params.items():
        shape = p.shape[1:] if stacked else p.shape
        if shape != own[name].shape or (stacked and p.ndim == 0):
            wanted = ("C, " if stacked else "") + ", ".join(map(str, own[name].shape))
            raise ValueError(f"{name!r} must have shape ({wanted}), got {tuple(p.shape)}")
        if stacked:
            if sets and p.shape[0] != sets:
                raise ValueError(f"{name!r} has {p.shape[0]} weight sets, the tensors before it {sets}")
            sets = p.shape[0]
    if stacked and not sets:
        raise ValueError("stacked=True needs at least one tensor with at least one weight set")
    return sets


def _refuse_state(model: nn.Module, params: Mapping[str, Tensor], randomness: Randomness) -> None:
    owners = {name.rpartition(".")[0] for name in params}
    for name, m in model.named_modules():
        if _draws(m) and randomness == "error":
            raise ValueError(
                f"{name or 'the model'} draws dropout masks, which sets of weights cannot share: model.eval(), or "
                'randomness="different"'
            )
        if m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats:
            raise ValueError(f"{name or 'the model'} would update one running mean from every set: model.eval()")
        if m.training and isinstance(m, _SpectralNorm) and name.rpartition(".")[0] in owners:
            owner = name.rpartition("parametrizations")[0].rstrip(".")
            raise ValueError(f"{owner or 'the model'} would update its spectral norm from every set: model.eval()")


def _draws(m: nn.Module) -> bool:
    return m.training and isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0


def _batch_rank(model: nn.Module) -> int:
    """Axes of an ordinary batch, as far as the first layer tells."""
    for m in model.modules():
        if isinstance(m, _CONVOLUTIONS):
            return 2 + len(m.kernel_size)
        if isinstance(m, nn.Linear | nn.Embedding):
            break
    return 2


def forward_with(
    model: nn.Module,
    params: Mapping[str, Tensor],
    x: Any,
    *,
    stacked: bool = False,
    shared: bool | None = None,
    randomness: Randomness = "error",
) -> Any:
    """Run `model` with `params` in place of its own weights.

    Parameters
    ----------
    params
        Tensors by the model's own names (parameters or buffers). Names left out keep the model's values. A tied
        weight given under one name counts under all.
    x
        One batch (B, ...). With `stacked`, one for each weight set (C, B, ...), or one that all sets share. Tensors
        may lie in dicts, lists and tuples.
    stacked
        `params` are (C, ...): C weight sets in one pass (one matrix product for a linear layer, one grouped
        convolution for a convolution, `vmap` for any other module, set by set where nn.LSTM and its kin keep their own
        weights). The result is (C, B, ...), and so is every tensor in a result of several.
    shared
        With `stacked`: whether `x` is one batch for all sets. None: `x` belongs to the sets one by one when it has
        more axes than a batch of the first layer and its first axis has length C.
    randomness
        With `stacked`, of active dropout: "error", or "different" masks for every set.

    Returns
    -------
    What the model returns; differentiable with respect to `params` and `x`, and the model itself is not changed.

    Raises
    ------
    ValueError
        If a name is unknown or a shape wrong; for weights of nn.LSTM, nn.GRU and nn.RNN, whose fused kernels ignore
        given ones; with `stacked` for active dropout, and for batch norm and spectral norm in training mode.
    """
    sets = _check(model, params, stacked)
    if not stacked:
        return _call(model, _under_all_names(model, params), x)
    _refuse_state(model, params, randomness)
    first = first_tensor(x)
    if shared is None:
        shared = not (first.ndim > _batch_rank(model) and first.shape[0] == sets)
    elif not shared and first.shape[0] != sets:
        raise ValueError(f"x has {first.shape[0]} batches for {sets} weight sets; for one common batch say shared=True")
    if shared and any(_draws(m) for m in model.modules()):  # a mask for each set, before a weight has touched x, too
        x, shared = map_tensors(lambda t: t.expand(sets, *t.shape), x), False
    with _attention_by_parts(model):
        out, still_shared = _run(model, _under_all_names(model, params), x, shared, randomness)
    return map_tensors(lambda t: t.expand(sets, *t.shape), out) if still_shared else out


def _call(model: nn.Module, params: Mapping[str, Tensor], x: Any) -> Any:
    """`functional_call`, which by itself would not give a module that stands in two places its own weights back."""
    slots: dict[tuple[int, str], str] = {}
    for name in params:
        owner, _, leaf = name.rpartition(".")
        slots.setdefault((id(model.get_submodule(owner)), leaf), name)
    return functional_call(model, {name: params[name] for name in slots.values()}, (x,), tie_weights=False)


def _under_all_names(model: nn.Module, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tied weight that was given under one name, under all of its names."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))
    }  # fmt: skip
    given: dict[int, Tensor] = {}
    for name, p in params.items():
        other = given.setdefault(id(named[name]), p)
        if other is not p and not torch.equal(other, p):
            raise ValueError(f"{name!r} is tied, and was given other numbers under another of its names")
    return {**{n: given[id(p)] for n, p in named.items() if id(p) in given}, **params}


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same dicts, lists and tuples with every tensor changed."""
    return tree_map(lambda t: function(t) if isinstance(t, Tensor) else t, tree)


def first_tensor(tree: Any) -> Tensor:
    """The first tensor among dicts, lists and tuples, whose shape counts rows; TypeError if there is none."""
    for leaf in tree_flatten(tree)[0]:
        if isinstance(leaf, Tensor):
            return leaf
    raise TypeError(f"a batch must be a tensor, or hold some in dicts, lists or tuples, got {type(tree).__name__}")


@contextmanager
def _attention_by_parts(model: nn.Module) -> Iterator[None]:
    """Inside `vmap` tensors hide that they need gradients: attention in eval mode would take a kernel without any."""
    fast = torch.backends.mha.get_fastpath_enabled()
    apart = torch.is_grad_enabled() and any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    if not (fast and apart):
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _run(model: nn.Module, params: dict[str, Tensor], x: Any, shared: bool, randomness: Randomness) -> tuple[Any, bool]:
    """The output and whether it is still one for all sets (no weight has touched it yet)."""
    hooked = bool(model._forward_hooks or model._forward_pre_hooks)
    if not hooked and type(model) is nn.Sequential:
        for name, child in model._modules.items():  # named_children() leaves out a module's second place
            assert child is not None
            mine = {k[len(name) + 1 :]: v for k, v in params.items() if k.startswith(name + ".")}
            x, shared = _run(child, mine, x, shared, randomness)
        return x, shared
    if not params and (shared or (not hooked and isinstance(model, _POINTWISE))):
        return model(x), shared
    if not hooked and type(model) is nn.Linear and "weight" in params:
        return _linear(x, params["weight"], params.get("bias", model.bias), shared), False

    def one(p: dict[str, Tensor], rows: Any) -> Any:
        return _call(model, p, rows)

    if any(isinstance(m, _ONE_BATCH) for m in model.modules()):
        sets = len(next(iter(params.values()))) if params else len(first_tensor(x))
        made = [
            one({n: p[c] for n, p in params.items()}, x if shared else map_tensors(lambda t, c=c: t[c], x))  # type: ignore[misc]
            for c in range(sets)
        ]
        form = tree_flatten(made[0])[1]
        leaves = zip(*(tree_flatten(m)[0] for m in made), strict=True)
        return tree_unflatten([torch.stack(same) for same in leaves], form), False
    rows = None if shared else tree_map(lambda t: 0 if isinstance(t, Tensor) else None, x)
    call: Callable[..., Any] = vmap(one, in_dims=(0 if params else None, rows), randomness=randomness)
    return call(params, x), False


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, shared: bool) -> Tensor:
    sets, d_out, d_in = weight.shape
    rows = x.shape[:-1] if shared else x.shape[1:-1]
    if bias is not None and bias.ndim == 1:
        bias = bias.expand(sets, d_out)
    if shared:  # one product with all the sets' weights side by side
        out = (x.reshape(-1, d_in) @ weight.reshape(sets * d_out, d_in).T).view(-1, sets, d_out).transpose(0, 1)
        out = out if bias is None else out + bias[:, None]
    else:
        flat = x.reshape(sets, -1, d_in)
        out = torch.bmm(flat, weight.mT) if bias is None else torch.baddbmm(bias[:, None], flat, weight.mT)
    return out.reshape(sets, *rows, d_out)


class Anchor:
    """Where a model's parameters stood when the anchor was cast, and how far they have moved since.

    Parameters
    ----------
    model
        Its parameters, tied ones once, are copied; the model is kept by reference.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.start = {name: p.detach().clone() for name, p in model.named_parameters()}
        if not self.start:
            raise ValueError(f"{type(model).__name__} has no parameters to anchor")

    def _moves(self) -> dict[str, Tensor]:
        return {name: p - self.start[name] for name, p in self.model.named_parameters() if name in self.start}

    def delta(self) -> Tensor:
        """theta - theta_0 as a vector (P,) in `flatten` order; differentiable with respect to the parameters."""
        return flatten(self._moves())[0]

    def distance(self, per_tensor: bool = False) -> Tensor | dict[str, Tensor]:
        """Euclidean length of the way, a scalar tensor; or one for each tensor by name."""
        with torch.no_grad():
            norms = {name: torch.linalg.vector_norm(d) for name, d in self._moves().items()}
            return norms if per_tensor else torch.linalg.vector_norm(torch.stack(list(norms.values())))

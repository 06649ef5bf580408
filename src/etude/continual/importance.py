"""How important each parameter is to what a net has learned: MAS, Fisher, and MAS without a backward pass.

    MAS      Omega_i = (1/N) sum_n | d ||F(x_n)||^2 / d theta_i |     F: outputs before the softmax, no labels
    Fisher   Omega_i = (1/N) sum_n sum_c p_c(x_n) (d log p_c(x_n) / d theta_i)^2      exact over the net's own classes
    local    Omega_ij = (1/N) sum_n |y_j^n z_i^n|                     input times output activation of a linear layer

Sources: Aljundi 2019, arXiv 1910.02718 (MAS: arXiv 1711.09601, eq. 2 and 4; local: eq. 6); Kirkpatrick et al. 2017,
arXiv 1612.00796 (Fisher). The published code takes |gradient of the batch's sum| for each batch, so that signs cancel
within a batch; that is `per_sample=False`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.layers.modes import evaluating
from etude.layers.parameters import layout_of, unflatten
from etude.training.gradients import per_sample_gradients
from etude.training.representations import is_pair

Kind = Literal["mas", "fisher", "empirical_fisher", "local"]
KINDS: tuple[Kind, ...] = ("mas", "fisher", "empirical_fisher", "local")
Forward = Callable[[Any, Any], Tensor]
Omega = dict[str, Tensor]


def outputs(model: Any, x: Any) -> Tensor:
    """``model(x)``: the `Forward` of a net that needs no other. ValueError where that is no tensor."""
    out = model(x)
    if not isinstance(out, Tensor):
        raise ValueError(f"the model gives {type(out).__name__}, not a tensor: say what its outputs are by forward=")
    return out


def check_gradients(what: str) -> None:
    """Refuse to work where autograd is off for good; `torch.no_grad` can be lifted and is fine.

    Raises
    ------
    RuntimeError
        In ``torch.inference_mode``: tensors made there could not be used in training either.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(f"{what} takes gradients: call it outside torch.inference_mode (torch.no_grad is fine)")


def importance(
    model: nn.Module,
    data: Any,
    kind: Kind = "mas",
    *,
    per_sample: bool = True,
    forward: Forward | None = None,
    chunk: int | None = None,
) -> Omega:
    """Importance of every trainable parameter, by name, in the parameter's shape.

    Parameters
    ----------
    data
        Inputs (N, ...), a mapping of them, a `Split` or an (x, y) pair, or an iterable of these, such as a loader; see
        `batches_of`.
        Labels are ignored but for "empirical_fisher".
    kind
        "mas", "fisher", "empirical_fisher" (gradients of the given labels' log-probabilities), or "local" (linear
        layers alone; where an `nn.ReLU` follows, its output is the activation).
    per_sample
        False: one gradient a batch. "mas": the absolute value of the batch's summed gradient; "empirical_fisher":
        the square of the mean gradient. The result then depends on the batches.
    forward
        ``forward(model, x)`` gives the outputs F(x), (B, C), such as ``model(**x).logits`` of a mapping of keywords;
        None: ``model(x)``.
    chunk
        Samples whose gradients are held at a time; None chooses by memory.

    Returns
    -------
    dict
        Detached tensors in the parameters' types, summed in float32 at least. The model is evaluated in eval mode and
        left as it was.

    Raises
    ------
    ValueError
        If there are no samples, every importance is zero, one is not finite, or the options do not go together.
    RuntimeError
        In ``torch.inference_mode``, where there are no gradients.
    """
    check_gradients("importance")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if not per_sample and kind in ("fisher", "local"):
        raise ValueError(f"kind {kind!r} has no form with one gradient a batch: per_sample=False goes with mas")
    run: Forward = forward or outputs
    chosen: Omega = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no trainable parameters")
    total: Omega = {n: torch.zeros_like(p, dtype=wide(p.dtype)) for n, p in chosen.items()}
    count = 0
    half = per_sample and any(total[n].dtype != p.dtype for n, p in chosen.items())
    with evaluating(model), torch.set_grad_enabled(not per_sample):  # torch.func takes its own gradients
        for x, y in _in_parts(data, 64) if half else batches_of(data):  # a batch is summed in the model's own type
            size = num_rows(x)
            if kind == "local":
                found = _local(model, x, run, chosen)
            elif per_sample:
                flat = _per_sample(model, x, y, kind, run, chunk)
                found = unflatten(flat.to(wide(flat.dtype)) * size, layout_of(chosen))
            else:
                found = _per_batch(model, x, y, kind, run, chosen)
            for name, value in found.items():
                total[name] += value.detach()
            count += size
    if not count:
        raise ValueError("no samples: the data are empty")
    result = {n: (t / count).to(chosen[n].dtype) for n, t in total.items()}
    for name, t in result.items():
        if not bool(torch.isfinite(t).all()):
            raise ValueError(
                f"the importance of {name} is not finite: the model diverged, an input is NaN, or the numbers are too "
                f"large for {t.dtype}"
            )
    if not any(bool(t.any()) for t in result.values()):
        raise ValueError("no samples that move the outputs: every importance is zero (dead ReLU? saturated softmax?)")
    return result


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to add up in: half precision loses small terms and overflows."""
    return torch.promote_types(dtype, torch.float32)


def batches_of(data: Any) -> Iterator[tuple[Any, Tensor | None]]:
    """(x, labels or None) of every batch that is not empty; a tensor, a `Split` or an (x, y) pair is one batch.

    x is a tensor, or a mapping of tensors for a net that takes one.

    Two tensors alike in type and in the shape of a row are two batches of inputs, as `Tensor.split` gives them; labels
    like that belong in a `Split`.
    """
    if isinstance(data, Tensor):
        pairs: Iterable[Any] = [data] if data.ndim else []
    elif isinstance(data, Mapping) or is_pair(data):
        pairs = [data]
    else:
        pairs = data
    for item in pairs:
        x, y = (item[0], item[1] if len(item) > 1 else None) if isinstance(item, tuple | list) else (item, None)
        columns = list(x.values()) if isinstance(x, Mapping) else [x]
        if not all(isinstance(c, Tensor) for c in columns):
            raise ValueError(
                "a batch must be a tensor of inputs, a mapping of such, or inputs with labels, got "
                f"{type(x).__name__}: use torch.as_tensor"
            )
        if num_rows(x):
            yield x, y


def num_rows(x: Any) -> int:
    """Rows of inputs: of a tensor, or of the tensors of a mapping."""
    return len(next(iter(x.values()), ())) if isinstance(x, Mapping) else len(x)


def _cut(x: Any, rows: slice) -> Any:
    return {n: t[rows] for n, t in x.items()} if isinstance(x, Mapping) else x[rows]


def _in_parts(data: Any, rows: int) -> Iterator[tuple[Any, Tensor | None]]:
    for x, y in batches_of(data):
        for at in range(0, num_rows(x), rows):
            part = slice(at, at + rows)
            yield _cut(x, part), None if y is None else y[part]


def shuffled(omega: Mapping[str, Tensor], generator: torch.Generator) -> Omega:
    """The same numbers on other parameters, all tensors together: what importance is worth if its place is lost."""
    layout = layout_of(omega)
    flat = torch.cat([omega[n].reshape(-1) for n in layout.names])
    order = torch.randperm(len(flat), generator=generator).to(flat.device)
    return {n: t.clone() for n, t in unflatten(flat[order], layout).items()}


def _per_sample(model: nn.Module, x: Any, y: Any, kind: Kind, run: Forward, chunk: int | None) -> Tensor:
    if kind == "mas":
        return per_sample_gradients(model, lambda m, b: run(m, b).square().sum(), x, mean_abs=True, chunk=chunk)
    if kind == "empirical_fisher":
        pair = (x, _given(y))
        return per_sample_gradients(
            model, lambda m, b: F.cross_entropy(run(m, b[0]), b[1]), pair, mean_square=True, chunk=chunk
        )
    with torch.no_grad():
        classes = run(model, _cut(x, slice(1))).shape[1]

    def weighted(c: int) -> Callable[[Any, Any], Tensor]:
        def loss(m: Any, b: Tensor) -> Tensor:  # its square is p_c (d log p_c)^2
            log_p = run(m, b).log_softmax(1)[:, c].sum()
            return log_p * (0.5 * log_p.detach()).exp()

        return loss

    parts = [per_sample_gradients(model, weighted(c), x, mean_square=True, chunk=chunk) for c in range(classes)]
    return torch.stack(parts).sum(0)


def _per_batch(model: nn.Module, x: Any, y: Any, kind: Kind, run: Forward, chosen: Omega) -> Omega:
    """Times the rows of the batch, as every part is divided by all rows in the end."""
    out = run(model, x)
    loss = out.square().sum() if kind == "mas" else F.cross_entropy(out, _given(y))
    grads = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    pairs = zip(chosen.items(), grads, strict=True)
    full = {n: torch.zeros_like(p) if g is None else g.to(wide(g.dtype)) for (n, p), g in pairs}
    return {n: g.abs() if kind == "mas" else g.square() * num_rows(x) for n, g in full.items()}


def _local(model: nn.Module, x: Any, run: Forward, chosen: Omega) -> Omega:
    """Sum over the rows of |input activation| x |output activation|, (out, in), for each linear layer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}  # input and output of each linear layer
    activated: dict[int, Tensor] = {}  # by what an nn.ReLU was given

    def keep(name: str) -> Any:
        return lambda _, args, out: seen.__setitem__(name, (args[0], out))

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if type(m) is nn.Linear]
    if not handles:
        raise ValueError(f"{type(model).__name__} has no linear layer, which kind 'local' is defined for")
    handles += [
        m.register_forward_hook(lambda _, args, out: activated.__setitem__(id(args[0]), out))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    try:
        with torch.no_grad():
            run(model, x)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, (y, z) in seen.items():
        prefix = f"{name}." if name else ""
        a, b = y.flatten(0, -2).abs(), activated.get(id(z), z).flatten(0, -2).abs()
        a, b = a.to(wide(a.dtype)), b.to(wide(b.dtype))
        for leaf, value in (("weight", b.T @ a), ("bias", b.sum(0))):
            if prefix + leaf in chosen:
                found[prefix + leaf] = value
    return found


def _given(y: Any) -> Tensor:
    if y is None:
        raise ValueError('"empirical_fisher" needs the labels: give (x, y) batches')
    return y  # type: ignore[no-any-return]

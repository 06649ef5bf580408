"""A network whose weights are generated from a condition by another network.

Sources: Chauhan et al. 2023, arXiv 2306.06955 (the frame); Ortiz, Guttag & Dalca 2023, arXiv 2304.07645 (encoding and
residual output); Chang, Flokas & Lipson 2020 (hyperfan-in).
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.layers.hypernetwork_buffers import BufferStacks, buffers_of
from etude.layers.hypernetwork_conditions import Condition, Encoding, ScalarCondition, TaskCondition, encode_magnitude
from etude.layers.hypernetwork_generators import Strategy, Unit, make_generator, widen_generator
from etude.layers.hypernetwork_magnitude import MagnitudeReport, magnitude_report
from etude.layers.hypernetwork_start import Init, Start, init_head
from etude.layers.hypernetwork_targets import check_target, select_targets
from etude.layers.modes import evaluating
from etude.layers.parameters import Layout, first_tensor, flatten, forward_with, layout_of, map_tensors, unflatten


@dataclass(frozen=True)
class ParameterReport:
    """`generated` weights of the target, `direct` ones that stay ordinary parameters, all that is `trainable`."""

    generated: int
    direct: int
    trainable: int
    unmatched: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Trainable parameters over the target's own number."""
        return self.trainable / (self.generated + self.direct)


class HyperNetwork(nn.Module):
    """theta = offset + gain * h(E(c)), or theta_0 + gain * h(E(c)) with `residual`; y = f(x; theta).

    Parameters
    ----------
    target
        Any module; a copy of it is kept, whose selected weights are no parameters any more. The row of an embedding's
        `padding_idx` is not generated: it stays what the target holds.
    condition
        What the weights depend on.
    strategy
        How they come out: "all" at once, by "split" heads, "layerwise", "chunk" by chunk, or by
        an "rnn", "attention" or "conv"-olution over the chunks.
    hidden
        Sizes of the generator's hidden layers, or the size of one; for "rnn" and "attention" one equal size a layer.
    targets
        Globs of parameter or module names that are generated; None: all.
    encoding
        Of a condition with a known range ("cos|sin", "z|1-z", None); other conditions are taken as they are.
    residual
        Learn theta_0 directly and generate a change of it; with the encoding this is MIP. A theta_0 of zeros would be a
        dead target, so it starts like an ordinary net. None: where the encoding applies, so that MIP is the default of
        scalar conditions, and a plain hypernetwork that of the others.
    init
        "default": kaiming-normal by fan-out, tensor by tensor where one head emits all; "gain": every tensor is
        rescaled by a fixed factor, measured once, to the size of an ordinary net's (biases: 0.01), a change of theta_0
        to a tenth of that; "scaled": the same
        start, with the factor in the head's own rows ("all" only), so that it does not magnify the optimiser's steps;
        "hyperfan": by the variance of the head's rows ("all" only). None: "default" where one head emits a change of
        theta_0 from scalars, as in MIP, else "gain". What starts at a constant (norm gains, slopes, scales): see
        `Start`.
    activation
        Of the generator, whose kaiming gain follows it (see `kaiming_kind`); "rnn" and "attention" have their own.
    norm
        Of the generator's hidden layers: "batch", "layer" or "weight" (norm and direction of each row apart), or None;
        for strategies "all", "split", "layerwise" and "chunk". "batch" is for the first two, and needs two conditions
        at once in training.
    num_heads
        Of "split".
    num_chunks, chunk_dim
        Chunks, and the size of the embedding of each one's place (for "layerwise" of each part's).
    cell
        Of "rnn".
    unit, feed_previous
        Of "rnn": a step a "chunk" (None) or a "layer"; whether a step is given a read-out of the weights before it.
        `unit` is of "layerwise", too: a call a "tensor" (None), a "layer", or a "channel", the weights of one output.
    buffers
        "shared", or "per_condition": a copy of the target's buffers for every task.

    Raises
    ------
    TypeError
        For a target that is no module or a condition that is no `Condition`.
    ValueError
        For numbers that do not fit, a target of mixed types, or one that cannot run with given weights, by module name.
    TargetError
        If `targets` match nothing.
    """

    theta0: nn.Parameter | None
    gain: Tensor
    offset: Tensor | None
    padding: Tensor
    stacks: BufferStacks

    def __init__(
        self,
        target: nn.Module,
        condition: Condition,
        *,
        strategy: Strategy = "all",
        hidden: Sequence[int] | int | None = None,
        targets: Sequence[str] | str | None = None,
        encoding: Encoding | None = "cos|sin",
        residual: bool | None = None,
        init: Init | None = None,
        activation: str = "leaky_relu",
        norm: str | None = None,
        num_heads: int = 4,
        num_chunks: int = 20,
        chunk_dim: int = 8,
        cell: Literal["lstm", "gru", "elman", "rnn"] = "lstm",
        unit: Unit | None = None,
        feed_previous: bool = False,
        buffers: Literal["shared", "per_condition"] = "shared",
    ) -> None:
        super().__init__()
        if not isinstance(target, nn.Module):
            raise TypeError(f"target must be a module, got a {type(target).__name__}")
        if not isinstance(condition, Condition):
            raise TypeError(f"condition must be such as TaskCondition(3, 8), got a {type(condition).__name__}")
        bounded = condition.bounded and encoding is not None
        residual = bounded if residual is None else residual
        if init is None:
            # embeddings and features have lengths of their own, with which "default" would drown theta_0
            init = "default" if residual and strategy == "all" and condition.bounded else "gain"
        if hidden is None:
            hidden = (32,) if strategy in ("rnn", "attention") else (16, 64, 128)
        hidden = (hidden,) if isinstance(hidden, int) else hidden
        if init not in ("gain", "scaled", "hyperfan", "default"):
            raise ValueError(f'init must be "gain", "scaled", "hyperfan" or "default", got {init!r}')
        if init in ("hyperfan", "scaled") and strategy != "all":
            raise ValueError(f'init="{init}" needs a head row for each weight (strategy="all"): take init="gain"')
        check_target(target, select_targets(target, targets))
        taken = {"self", "x", "shared", "weights"} & set(condition.names)
        if taken:
            raise ValueError(f"a condition cannot be called {sorted(taken)[0]!r}: calls have an argument of that name")
        self.target, self.condition, self.strategy, self.encoding = copy.deepcopy(target), condition, strategy, encoding
        chosen = select_targets(self.target, targets)
        self.layout: Layout = layout_of(chosen)
        start = Start(self.target, self.layout, chosen)
        for name, p in chosen.items():
            owner, _, leaf = name.rpartition(".")
            module = self.target.get_submodule(owner)
            if leaf in module._parameters:  # a module that stands under two names comes twice
                del module._parameters[leaf]
                module.register_buffer(leaf, p.detach(), persistent=False)
        self.bounded, self.norm = bounded, norm
        encode_magnitude(torch.zeros(1, 1), encoding)  # refuses an unknown one
        width = condition.width * (2 if self.bounded else 1)
        self.generator = make_generator(
            strategy, width, hidden, self.layout, activation=activation, norm=norm, num_heads=num_heads,
            num_chunks=num_chunks, chunk_dim=chunk_dim, cell=cell, bias=not residual, unit=unit,
            feed_previous=feed_previous,
        )  # fmt: skip
        self.theta0 = nn.Parameter(start.ordinary(self.layout)) if residual else None
        # made anew with every object: of it, a state holds only what the target's own values decided
        self.register_buffer("offset", None if residual else start.offset(), persistent=False)
        self._own = start.own
        self.register_buffer("padding", start.padding, persistent=False)
        self.register_buffer("gain", torch.ones(len(self.layout.names)))
        probe = None if init == "default" else self.encode(condition.probe().to(self.gain))
        init_head(self.generator, self.layout, init, activation, probe, self.gain, residual)
        generated = {*self.layout.names, *(n for n, _ in self.layout.tied)}
        self.stacks = buffers_of(self.target, generated, condition, buffers)
        like = next(iter(chosen.values()))
        self.to(device=like.device, dtype=like.dtype)

    @classmethod
    def from_pretrained(
        cls, net: nn.Module, condition: Condition, *, freeze_theta0: bool = False, **options: Any
    ) -> "HyperNetwork":
        """MIP around a trained net: theta_0 is its weights. `freeze_theta0`: train the change alone (an adapter).

        The change is not zero at first; ``init="gain"`` keeps it to a tenth of the size of an ordinary net's weights.

        ValueError for residual=False, which has no theta_0.
        """
        if options.get("residual") is False:
            raise ValueError("a trained net's weights become theta_0, which residual=False does without: leave it out")
        hyper = cls(net, condition, **{**options, "residual": True})
        hyper.load_theta0(dict(net.named_parameters(remove_duplicate=False)))
        assert hyper.theta0 is not None
        hyper.theta0.requires_grad_(not freeze_theta0)
        return hyper

    @torch.no_grad()
    def load_theta0(self, weights: dict[str, Tensor]) -> None:
        """Set theta_0 from tensors by name; ValueError for a missing or extra name, a wrong shape, NaN or infinity."""
        if self.theta0 is None:
            raise ValueError("there is no theta_0: build with residual=True")
        known = {*self.layout.names, *(n for n, _ in self.layout.tied)}
        direct = dict(self.target.named_parameters(remove_duplicate=False))
        missing, extra = set(self.layout.names) - set(weights), set(weights) - known - set(direct)
        if missing or extra:
            raise ValueError(f"weights do not fit: missing {sorted(missing)}, extra {sorted(extra)}")
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            if weights[name].shape != shape:
                raise ValueError(f"{name!r} must have shape {tuple(shape)}, got {tuple(weights[name].shape)}")
            if not torch.isfinite(weights[name]).all():
                raise ValueError(f"{name!r} holds NaN or infinite weights")
        self.theta0.copy_(flatten({n: weights[n] for n in self.layout.names})[0])

    def encode(self, z: Tensor) -> Tensor:
        """The generator's input of condition rows (C, width)."""
        return (encode_magnitude(z, self.encoding) if self.bounded else z).to(self.gain.dtype)

    def _condition(self, args: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        if args:
            if len(args) > len(self.condition.names):
                raise TypeError(f"{len(args)} conditions were given, there are {', '.join(self.condition.names)}")
            given = {**dict(zip(self.condition.names, args, strict=True)), **given}
        wide = torch.promote_types(self.gain.dtype, torch.float32)  # half is too coarse for an encoding
        return self.condition(**given).to(self.gain.device, wide)  # type: ignore[no-any-return]

    def weights(self, z: Tensor) -> Tensor:
        """The flat weights (C, P) of condition rows (C, width); ValueError where a batch norm would have one row."""
        if len(z) < 2 and self.norm == "batch" and any(m.training for m in self._batch_norms(self.generator)):
            raise ValueError(f'norm="batch" cannot train on {len(z)} conditions: give two or more, or hyper.eval()')
        scale = torch.repeat_interleave(self.gain, self._sizes())
        change, start = self.generator(self.encode(z)) * scale, self.offset if self.theta0 is None else self.theta0
        assert start is not None
        if len(self.padding):
            change = change.index_fill(1, self.padding, 0)
            start = start.index_copy(0, self.padding, start.detach()[self.padding])
        return change + start  # type: ignore[no-any-return]

    def generate_flat(self, *args: Any, **condition: Any) -> Tensor:
        """The weights of C conditions in one pass, (C, P)."""
        return self.weights(self._condition(args, condition))

    def generate(self, *args: Any, **condition: Any) -> dict[str, Tensor]:
        """The weights by name, tied ones under all names; a leading axis C if there is more than one condition."""
        flat = self.generate_flat(*args, **condition)
        return unflatten(flat[0] if len(flat) == 1 else flat, self.layout)

    def forward(self, x: Any, **condition: Any) -> Any:
        """f(x; theta(c)) for one condition, or for one a row of x (ValueError if their numbers differ).

        x is what the target takes: a tensor, or dicts, lists and tuples of tensors with a row each.
        """
        z = self._condition((), condition)
        if not len(z) and not len(
            first_tensor(x)
        ):  # the target alone knows the shape of no rows; a sum over no weight sets is 0
            return forward_with(self.target, unflatten(self.weights(z).sum(0), self.layout), x)
        if len(z) == 1:
            flat = self.weights(z)[0]
            out = self.forward_flat(x, flat, **condition)
            self._unwritten(flat, z)
            return out
        rows = len(first_tensor(x))
        if len(z) != rows:
            raise ValueError(f"{len(z)} conditions for {rows} rows: give one, or one for each row")
        out = self._stacked(z, map_tensors(lambda t: t[:, None], x), condition, shared=False)
        return map_tensors(lambda t: t[:, 0] if t.ndim > 1 else t, out)

    def forward_each(self, x: Any, *, shared: bool = False, **condition: Any) -> Any:
        """C conditions with batches of their own, x (C, B, ...), or one `shared` batch (B, ...): (C, B, ...)."""
        return self._stacked(self._condition((), condition), x, condition, shared=shared)

    def forward_flat(self, x: Any, weights: Tensor, **condition: Any) -> Any:
        """f(x; weights) for flat weights (P,) made before, with the buffers of one condition."""
        return forward_with(self.target, self._with_buffers(unflatten(weights, self.layout), condition, 0), x)

    def _stacked(self, z: Tensor, x: Any, condition: dict[str, Any], *, shared: bool) -> Any:
        flat = self.weights(z)
        params = self._with_buffers(unflatten(flat, self.layout), condition, None)
        out = forward_with(self.target, params, x, stacked=True, shared=shared, randomness="different")
        self._unwritten(flat, z)
        return out

    def _unwritten(self, flat: Tensor, z: Tensor) -> None:
        """ValueError if the target has written into the weights it was given: they would not be those of phi.

        Autograd's counter of writes is asked: it does not see those through ``.data``, and inference mode has none.
        """
        if flat.is_inference() or flat._version == 0:
            return
        with torch.no_grad():
            fresh = self.weights(z).view_as(flat)
        names = [n for n, part in self.layout.slices().items() if not torch.equal(flat[..., part], fresh[..., part])]
        where = ", ".join(sorted({n.rpartition(".")[0] or "the target" for n in names})) or "the target"
        raise ValueError(f"{where} changes its weights in place ({', '.join(names)}): generated weights are read only")

    def export(self, **condition: Any) -> nn.Module:
        """An ordinary, frozen copy of the target with the weights of one condition, as in eval mode.

        For many batches under one condition: the weights are made once here, and at every call of the hypernetwork.
        """
        with torch.no_grad(), evaluating(self.condition, *self._batch_norms(self.generator)):
            flat = self.generate_flat(**condition)
        if len(flat) != 1:
            raise ValueError(f"export takes one condition, got {len(flat)}")
        out, made = copy.deepcopy(self.target), unflatten(flat[0], self.layout)
        held: dict[int, nn.Parameter] = {}
        for name, value in made.items():
            owner, _, leaf = name.rpartition(".")
            module = out.get_submodule(owner)
            if leaf not in module._buffers:  # a module of two names
                continue
            del module._buffers[leaf]
            module.register_parameter(leaf, held.setdefault(id(value), nn.Parameter(value.clone())))
        own = self._with_buffers({}, condition, 0)
        for name, buffer in out.named_buffers():
            if name in own:
                buffer.copy_(own[name])
        return out.requires_grad_(False).train(self.training)

    def generated_l2(self, **condition: Any) -> Tensor:
        """Squared norm of the generated weights, mean over conditions: weight decay on phi is not decay on theta."""
        return self.generate_flat(**condition).square().sum(1).mean()

    def parameter_report(self) -> ParameterReport:
        """What is generated, what is not, what is trained."""
        direct = {n: p.numel() for n, p in self.target.named_parameters()}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return ParameterReport(self.layout.size, sum(direct.values()), trainable, tuple(direct))

    def magnitude_report(self, grid: int = 21) -> MagnitudeReport:
        """`magnitude_report` over the range of one scalar condition (brought to [0, 1]), with gradients.

        Batch norms in the generator work as in eval mode.
        """
        if not isinstance(self.condition, ScalarCondition) or len(self.condition.names) != 1:
            raise ValueError("magnitude_report sweeps one scalar: for other conditions pass the function a grid")
        if self.encoding is None and self.theta0 is None:
            warnings.warn("neither encoding nor residual: expect weights proportional to the condition", stacklevel=2)

        def made(c: float) -> dict[str, Tensor]:
            return unflatten(self.weights(self.gain.new_full((1, 1), c))[0], self.layout)

        with evaluating(*self._batch_norms(self.generator)):
            return magnitude_report(made, grid, parameters=self.parameters())

    def add_condition(self, count: int = 1, generator: torch.Generator | None = None) -> range:
        """Room for more tasks; their ids. New parameters: rebuild the optimiser or add them to it."""
        if not isinstance(self.condition, TaskCondition):
            raise ValueError(f"only a TaskCondition grows, this is a {type(self.condition).__name__}")
        ids = self.condition.add(count, generator)
        self.stacks.add(count, self.target)
        return ids

    def widen(self, n: int) -> None:
        """n more units in the last hidden layer ("rnn": in every one); no generated weight changes by it."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        widen_generator(self.generator, n)

    def _sizes(self) -> Tensor:
        return torch.tensor([math.prod(s) for s in self.layout.shapes], device=self.gain.device)

    @staticmethod
    def _batch_norms(*parts: nn.Module) -> list[nn.Module]:
        return [m for part in parts for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.offset is not None and len(self._own):
            destination[f"{prefix}own_offset"] = self.offset[self._own]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Files of before hold the whole offset under its own name; of an object with theta_0 it was zeros."""
        whole, own = state_dict.pop(f"{prefix}offset", None), state_dict.pop(f"{prefix}own_offset", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if self.offset is None or (whole is None and not len(self._own)):
            return
        value, at = (own, self._own) if whole is None else (whole, slice(None))
        missing, errors = rest[2], rest[4]
        if value is None:
            missing.append(f"{prefix}own_offset")
        elif value.shape != self.offset[at].shape:
            errors.append(f"the offset must have shape {tuple(self.offset[at].shape)}, got {tuple(value.shape)}")
        else:
            self.offset[at] = value.to(self.offset)

    def _with_buffers(self, params: dict[str, Tensor], condition: dict[str, Any], row: int | None) -> dict[str, Tensor]:
        if not self.stacks.names:
            return params
        (task,) = self.condition.take(condition)
        ids = torch.as_tensor(task).reshape(-1).long()
        at: Any = ids if row is None else int(ids[row])  # a view, so that training updates the task's own statistics
        return {**params, **self.stacks.at(at)}

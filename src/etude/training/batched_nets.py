"""The losses of many seeds at once: the net as stacked linear layers, or the user's module under vmap."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from etude.layers.stacked import NotStackable, StackedDropout, lane_tensors, stack_modules
from etude.training.batched_feed import CannotBatch, flatten_batch, lane_batches
from etude.training.run import Problem
from etude.training.updater import freeze_batchnorm, noise_generator, total_loss

MAX_LANES_APART = 16  # with more seeds the losses are computed by one vmap instead of one after another


class Net:
    """The stacked parameters and buffers of all seeds, and their losses."""

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]

    def losses(self, batch: Any) -> Tensor:
        """(S,) losses whose sum is to be minimised."""
        raise CannotBatch("no losses")

    def views(self, lane: int) -> dict[str, Tensor]:
        raise CannotBatch("no views")

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """With other values (the moving averages) in the parameters' places."""
        live = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = values[name]
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = live[name]

    def keep(self, index: Tensor, lanes: list[int]) -> None:
        for p in self.parameters.values():
            p.data = p.data.index_select(0, index)
            p.grad = None

    def train_mode(self, frozen_batchnorm: bool) -> None:
        raise CannotBatch("no mode")


class Stacked(Net):
    """Linear layers by `baddbmm`. The loss function is the user's, called with each seed's output."""

    def __init__(self, problem: Problem, modules: list[nn.Module], seeds: Sequence[int]) -> None:
        if problem.penalty is not None:
            raise CannotBatch("penalty(model) reads a module's own weights: use vmap, processes or sequential")
        assert problem.loss is not None
        try:
            self.net = stack_modules(modules)
        except NotStackable as error:
            raise CannotBatch(str(error)) from error
        self.loss = problem.loss
        self.parameters = dict(self.net.named_parameters())
        self.buffers = dict(self.net.named_buffers())
        self.dropouts = [m for m in self.net.modules() if isinstance(m, StackedDropout)]
        if self.dropouts and problem.device.type != "cpu":
            raise CannotBatch("dropout draws inside the net, and its masks can be repeated on a CPU only")
        self.generators = [noise_generator(seed) for seed in seeds]
        for dropout in self.dropouts:
            dropout.generators = self.generators
        self.apart: bool | None = None  # unknown before the first loss
        net = self.net

        class Forward(torch.autograd.Function):  # the whole stack as one operation under vmap
            @staticmethod
            def forward(x: Tensor) -> Tensor:
                raise CannotBatch("the loss calls the model outside of its seed")

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                return None

            @staticmethod
            def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
                x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
                return net(x), 0

        self.inside = _Inside(Forward.apply)

    def views(self, lane: int) -> dict[str, Tensor]:
        return lane_tensors(self.net, lane)

    def keep(self, index: Tensor, lanes: list[int]) -> None:
        super().keep(index, lanes)
        for module in self.net.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer.index_select(0, index))
        self.buffers = dict(self.net.named_buffers())
        self.generators = [self.generators[i] for i in lanes]
        for dropout in self.dropouts:
            dropout.generators = self.generators

    def train_mode(self, frozen_batchnorm: bool) -> None:
        self.net.train()
        for module in self.net.modules():
            if frozen_batchnorm and "BatchNorm" in type(module).__name__:
                module.eval()

    def losses(self, batch: Any) -> Tensor:
        if self.apart is None:
            return self._first(batch)
        return self._apart(batch) if self.apart else self._together(batch)

    def _first(self, batch: Any) -> Tensor:
        """Find out how the loss calls the model; an attempt that is given up leaves no trace."""
        random = torch.get_rng_state()
        try:
            self.apart = len(batch[0]) <= MAX_LANES_APART and self._called_plainly(batch)
            value = self._attempt(batch) if self.apart else self._together(batch)
            if not torch.equal(random, torch.get_rng_state()):
                raise _refusal("loss", RuntimeError("random"))
        except CannotBatch:
            torch.set_rng_state(random)
            raise
        return value

    def _called_plainly(self, batch: Any) -> bool:
        """Whether the loss calls the model with batch.x as it is."""
        one = lane_batches(batch, len(batch[0]))[0]
        try:
            self.loss(_Inside(_note_call), one)
        except _Called as call:
            return call.x is one[0]
        return False

    def _attempt(self, batch: Any) -> Tensor:
        buffers = {name: b.clone() for name, b in self.buffers.items()}
        states = [g.get_state() for g in self.generators]
        try:
            return self._apart(batch)
        except _CallsOtherwise:  # more than once
            for name, b in self.buffers.items():
                b.copy_(buffers[name])
            for generator, state in zip(self.generators, states):
                generator.set_state(state)
            self.apart = False
            return self._together(batch)

    def _apart(self, batch: Any) -> Tensor:
        """One pass of the stack, then the loss of each seed with its part of the output."""
        outputs = self.net(batch[0]).unbind(0)
        ones = lane_batches(batch, len(outputs))
        return torch.stack([total_loss(self.loss(_Answer(one[0], out), one)) for out, one in zip(outputs, ones)])

    def _together(self, batch: Any) -> Tensor:
        """The loss under one vmap; inside it a call of the model is one pass of the stack."""
        try:
            return _over_seeds(lambda one: total_loss(self.loss(self.inside, one)), batch)
        except RuntimeError as error:
            raise _refusal("loss", error) from error


class _Inside:
    """The net as the loss sees it: something to call."""

    training = True

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def __call__(self, x: Any) -> Any:
        return self._call(x)

    def __getattr__(self, name: str) -> Any:
        raise CannotBatch(f"the loss reads model.{name}: only calls of the model can be stacked")

    def __getitem__(self, item: Any) -> Any:
        raise CannotBatch(f"the loss reads model[{item!r}]: only calls of the model can be stacked")


class _Called(Exception):
    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x = x


def _note_call(x: Any) -> Any:
    raise _Called(x)


class _CallsOtherwise(Exception):
    """The loss does not call the model once, on batch.x as it is."""


class _Answer(_Inside):
    """One seed's output on `x`, already computed."""

    def __init__(self, x: Tensor, output: Tensor) -> None:
        self._x: Tensor | None = x
        self._output = output

    def __call__(self, x: Any) -> Any:
        if x is not self._x:
            raise _CallsOtherwise
        self._x = None  # a second call would draw and count anew
        return self._output


class Vmapped(Net):
    """The user's module and loss under `torch.func.vmap`."""

    def __init__(self, problem: Problem, modules: list[nn.Module], seeds: Sequence[int]) -> None:
        assert problem.loss is not None
        first = modules[0]
        for name, module in first.named_modules():
            if isinstance(module, nn.RNNBase):
                raise CannotBatch(f"{type(module).__name__} {name!r} cannot run under vmap")
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
                raise CannotBatch(f"{type(module).__name__} {name!r} draws inside forward, which vmap cannot repeat")
        shapes = [[(n, t.shape, t.dtype) for n, t in m.state_dict(keep_vars=True).items()] for m in modules]
        if any(a != b for a, b in pairwise(shapes)):
            raise CannotBatch("the seeds' modules differ in their parameters")
        self.first = True
        # on a CPU the fused attention has no batching rule: vmap would go through it seed by seed
        self.attention = (lambda: sdpa_kernel(SDPBackend.MATH)) if problem.device.type == "cpu" else nullcontext
        base = copy.deepcopy(first)
        self.whole = _Whole(base, problem.loss, problem.penalty)
        self.parameters = {
            name: nn.Parameter(torch.stack([m.get_parameter(name).detach() for m in modules]), p.requires_grad)
            for name, p in first.named_parameters()
        }
        self.buffers = {name: torch.stack([m.get_buffer(name) for m in modules]) for name, _ in first.named_buffers()}

    def views(self, lane: int) -> dict[str, Tensor]:
        tensors = {n: p.detach()[lane] for n, p in self.parameters.items()}
        return tensors | {n: b[lane] for n, b in self.buffers.items()}

    def keep(self, index: Tensor, lanes: list[int]) -> None:
        super().keep(index, lanes)
        self.buffers = {name: b.index_select(0, index) for name, b in self.buffers.items()}

    def train_mode(self, frozen_batchnorm: bool) -> None:
        self.whole.train()
        if frozen_batchnorm:
            freeze_batchnorm(self.whole)

    def losses(self, batch: Any) -> Tensor:
        tensors = {f"net.{n}": t for part in (self.parameters, self.buffers) for n, t in part.items()}
        if self.first:
            self.first = False
            before = _plain_state(self.whole)
            value = self._call(batch, tensors)
            after = _plain_state(self.whole)
            changed = [name for name in after if name not in before or before[name] != after[name]]
            if changed:
                raise CannotBatch(f"forward keeps count in {changed[0]}, which vmap would share: make it a buffer")
            return value
        return self._call(batch, tensors)

    def _call(self, batch: Any, tensors: dict[str, Tensor]) -> Tensor:
        try:
            with self.attention():
                return _over_seeds(lambda one, t: functional_call(self.whole, t, (one,)), batch, tensors)
        except RuntimeError as error:
            raise _refusal("net or its loss", error) from error


class _Whole(nn.Module):
    """Net, loss and penalty as one module, so that the loss sees the swapped weights on the real module."""

    def __init__(self, net: nn.Module, loss: Any, penalty: Any) -> None:
        super().__init__()
        self.net, self.loss, self.penalty = net, loss, penalty

    def forward(self, batch: Any) -> Tensor:
        buffers = dict(self.net.named_buffers())
        loss = total_loss(self.loss(self.net, batch))
        for name, buffer in self.net.named_buffers():
            if buffer is not buffers.get(name):
                raise CannotBatch(f"forward puts a new tensor in the place of buffer {name!r}: write into it instead")
        return loss if self.penalty is None else loss + self.penalty(self.net)


def _plain_state(net: nn.Module) -> dict[str, Any]:
    """Attributes of all modules that are plain values."""
    return {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in net.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str)) and name != "training"
    }


def _refusal(what: str, error: RuntimeError) -> CannotBatch:
    if "random" in str(error):
        return CannotBatch(f"the {what} draws random numbers, which have to be each seed's own")
    return CannotBatch(f"vmap cannot run this {what}: {str(error).splitlines()[0]}")


def _over_seeds(fn: Callable[..., Tensor], batch: Any, *stacked: Any) -> Tensor:
    """vmap over the leading axis of every tensor in the batch; what is no tensor stays as it is."""
    leaves, rebuild = flatten_batch(batch)
    return torch.vmap(lambda parts, *rest: fn(rebuild(list(parts)), *rest))(tuple(leaves), *stacked)

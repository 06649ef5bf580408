"""One update of one model: loss, gradient, clipping, schedule, optimiser, moving average."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from etude.data.randomness import stream
from etude.layers.modes import gradients_on
from etude.training.averaging import EMA
from etude.training.config import TrainConfig
from etude.training.optimizers import make_optimizer, parameter_groups
from etude.training.schedules import make_schedule

Loss = Callable[[Any, Any], Any]


def noise_generator(seed: int) -> torch.Generator:
    """The generator that a seed's dropout draws from on a CPU."""
    return torch.Generator().manual_seed(_noise_number(seed))


def _noise_number(seed: int) -> int:
    return int(torch.randint(2**62, (1,), generator=stream(seed, "noise")))


class Noise:
    """The global generators as one seed's stream: inside `with noise.on():` they go on where they were left."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.states = [noise_generator(seed).get_state()]
        if device.type == "cuda":
            self.states.append(torch.Generator(device).manual_seed(_noise_number(seed)).get_state())

    def _get(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)

    def capture(self) -> None:
        """Inside `on`: note where the stream stands."""
        self.states = self._get()

    @contextmanager
    def on(self) -> Iterator[None]:
        outside = self._get()
        self._set(self.states)
        try:
            yield
        finally:
            self.states = self._get()
            self._set(outside)


def total_loss(value: Any) -> Tensor:
    """A scalar from what a loss function returned: itself, or the sum of its terms."""
    if isinstance(value, Mapping):
        value = sum(value.values())
    if not isinstance(value, Tensor) or value.ndim != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss must return a scalar tensor or a dictionary of them, got {shape}")
    return value


def freeze_batchnorm(model: nn.Module) -> None:
    """Put every batch norm into eval mode: stored statistics, not changed."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class Updater:
    """Updates one model batch by batch; `train` is a loop over it. For online use on its own.

    Parameters
    ----------
    model
        Any module; its trainable parameters are updated in place.
    loss
        ``loss(model, batch)`` returns a scalar, or a dictionary of terms whose sum is minimised.
    config
        No length is needed unless the schedule asks for one.
    seed
        Dropout and other draws inside the update come from ``stream(seed, "noise")``.
    penalty
        ``penalty(model)`` is added to the loss.

    Raises
    ------
    ValueError
        If nothing is trainable, the loss is no scalar, or the schedule lacks the run's length.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        config: TrainConfig,
        *,
        seed: int = 0,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.model, self.loss, self.config, self.penalty, self.seed = model, loss, config, penalty, seed
        groups = parameter_groups(model, config.weight_decay, decay=config.decay)
        self.parameters = [p for group in groups for p in group["params"]]
        self.device = self.parameters[0].device
        if isinstance(config.lr, Mapping):
            raise ValueError("lr as a mapping goes with step= and several nets: give one number")
        self.optimizer = make_optimizer(groups, config)
        self._setup(total_steps)

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer]

    def _setup(self, total_steps: int | None) -> None:
        config = self.config
        self.groups = [(g, float(g["lr"])) for o in self._all_optimizers() for g in o.param_groups]
        self.schedule = make_schedule(
            config.schedule,
            total_steps or config.steps,
            warmup_steps=config.warmup_steps,
            boundaries=config.boundaries,
        )
        self.constant = config.schedule == "constant" and config.warmup_steps == 0
        self.ema = None if config.ema_decay is None else EMA(self.model, config.ema_decay)
        self.noise = Noise(self.seed, self.device)
        self.step = 0
        self.skipped = False  # the last update did not happen: its loss was not finite
        self.precision = "fp32" if config.precision == "auto" else config.precision
        self._waits = self.device.type == "cuda"  # do not wait for the loss of every update

    def update(self, batch: Any) -> dict[str, float]:
        """One update on one batch (or on a list of `accumulate` batches); returns the loss and its terms."""
        batches = batch if isinstance(batch, list) else [batch]
        with gradients_on(), self.noise.on():
            loss, terms = self.apply(batches)
        return {"loss": float(loss), **{name: float(value) for name, value in terms.items()}}

    def train_mode(self) -> None:
        """The model in training mode, but for what the configuration freezes."""
        self.model.train()
        if self.config.freeze_batchnorm:
            freeze_batchnorm(self.model)

    def apply(self, batches: list[Any]) -> tuple[Any, Mapping[str, Tensor]]:
        """The update itself, drawing from the global generators as they are.

        A loss that is not finite is returned without an update (on a GPU, where the loss is not waited
        for, the update happens and the caller finds out later).
        """
        if not self.model.training:
            self.train_mode()
        for p in self.parameters:
            p.grad = None
        self.skipped = False
        total: Any = 0.0
        terms: Mapping[str, Tensor] = {}
        share = 1.0 / len(batches)
        for batch in batches:
            with self._autocast():
                value = self.loss(self.model, batch)
                loss = total_loss(value)
                if self.penalty is not None:
                    loss = loss + self.penalty(self.model)
            if isinstance(value, Mapping):
                terms = {name: term.detach() for name, term in value.items()}
            number = loss.detach() if self._waits else loss.item()
            total = number if len(batches) == 1 else total + number * share
            if not self._waits and not math.isfinite(number):
                self.skipped = True
                return number, terms
            (loss if len(batches) == 1 else loss * share).backward()
        self.descend()
        return total, terms

    def descend(self) -> None:
        """Clip, set the learning rate, let the optimiser step, average."""
        config = self.config
        if config.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, config.clip_value)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self._set_lr()
        self.optimizer.step()
        self._done()

    def _set_lr(self) -> None:
        if not self.constant:
            factor = self.schedule(self.step)
            for group, lr in self.groups:
                group["lr"] = lr * factor

    def _done(self) -> None:
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self._all_optimizers()],
            "ema": None if self.ema is None else self.ema.state_dict(),
            "noise": list(self.noise.states),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of an updater with the same model and configuration."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._all_optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        groups = [g for o in self._all_optimizers() for g in o.param_groups]  # loading makes new dictionaries
        self.groups = [(g, lr) for g, (_, lr) in zip(groups, self.groups, strict=True)]
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.noise.states = [s.clone() for s in state["noise"]]
        self.step = int(state["step"])


class StepUpdater(Updater):
    """Updates by the caller's own ``step(nets, optimizers, batch, generator)``.

    `optimizers` is one optimiser, or for an `nn.ModuleDict` a dictionary with one for each net that has
    something to train. `generator` stands on the parameters' device and is the seed's stream "step". What `step`
    returns (a scalar, a dictionary of terms, or None) is booked as the loss. It clips for itself.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[..., Any],
        config: TrainConfig,
        *,
        seed: int = 0,
        total_steps: int | None = None,
    ) -> None:
        if config.clip_norm is not None or config.clip_value is not None:
            raise ValueError("clip inside step: it calls the optimisers, so clip_norm and clip_value cannot act")
        parts = dict(model.items()) if isinstance(model, nn.ModuleDict) else {"": model}
        parts = {name: net for name, net in parts.items() if any(p.requires_grad for p in net.parameters())}
        if not parts:
            raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient")
        self.optimizers = {name: self._optimizer(net, config, name) for name, net in parts.items()}
        self.model, self.config, self.seed, self.call = model, config, seed, step
        self.parameters = [p for o in self.optimizers.values() for g in o.param_groups for p in g["params"]]
        self.device = self.parameters[0].device
        self._setup(total_steps)
        number = int(torch.randint(2**62, (1,), generator=stream(seed, "step")))
        self.generator = torch.Generator(self.device).manual_seed(number)

    @staticmethod
    def _optimizer(net: nn.Module, config: TrainConfig, name: str) -> torch.optim.Optimizer:
        lr = None
        if isinstance(config.lr, Mapping):
            if name not in config.lr:
                raise ValueError(f"lr has no entry for {name!r}, only for {sorted(config.lr)}")
            lr = config.lr[name]
        return make_optimizer(parameter_groups(net, config.weight_decay, decay=config.decay), config, lr)

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        return list(self.optimizers.values())

    def apply(self, batches: list[Any]) -> tuple[Any, Mapping[str, Tensor]]:
        if not self.model.training:
            self.train_mode()
        self._set_lr()
        optimizers = self.optimizers if isinstance(self.model, nn.ModuleDict) else self.optimizers[""]
        batch = batches[0] if self.config.accumulate == 1 else batches
        with self._autocast():
            value = self.call(self.model, optimizers, batch, self.generator)
        terms = {k: torch.as_tensor(v).detach() for k, v in value.items()} if isinstance(value, Mapping) else {}
        total: Any = sum(terms.values()) if terms else 0.0 if value is None else torch.as_tensor(value).detach()
        if not self._waits:
            total = float(total)
        self.skipped = not self._waits and not math.isfinite(total)
        self._done()
        return total, terms

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])

"""Penalties that keep important parameters where earlier tasks left them: MAS, EWC, synaptic intelligence, plain L2.

    loss = task loss + lam * sum_i Omega_i (theta_i - theta*_i)^2,   Omega summed over the tasks so far

Sources: Aljundi 2019, arXiv 1910.02718 (MAS; lam = 1 there); Kirkpatrick et al. 2017, arXiv 1612.00796 (EWC, here with
one anchor for all tasks and without its factor 1/2); Zenke et al. 2017, arXiv 1703.04200 (SI); Aljundi et al. 2019,
arXiv 1812.03596 (running mean). The quadratic itself is `etude.training.QuadraticPenalty`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.continual.importance import Forward, Kind, Omega, importance
from etude.layers.parameters import Anchor
from etude.training.anchors import QuadraticPenalty

Combine = Literal["sum", "mean"]


class Consolidation:
    """Omega and theta* of a model, and the penalty that they make. Base of the methods below.

    Parameters
    ----------
    model
        Any module; kept by reference.
    lam
        Weight of the penalty. The useful range depends on the kind of importance: search each on its own grid.
    lr
        Learning rate of plain gradient descent: `update` warns where 2 lr lam max(Omega) >= 2 would diverge.
    combine
        "sum": Omega += Omega_new. "mean": the running mean over updates, so that early tasks fade.

    Attributes
    ----------
    omega
        Importance by parameter name; empty before the first update.
    num_updates
        Updates so far.
    """

    def __init__(
        self, model: nn.Module, lam: float = 1.0, *, lr: float | None = None, combine: Combine = "sum"
    ) -> None:
        if combine not in ("sum", "mean"):
            raise ValueError(f'combine must be "sum" or "mean", got {combine!r}')
        if not 0 <= lam < float("inf"):
            raise ValueError(f"lam must be at least 0 and finite, got {lam}")
        self.model, self.lam, self.lr, self.combine = model, lam, lr, combine
        self.omega: Omega = {}
        self.num_updates = 0
        self._quadratic: QuadraticPenalty | None = None

    @property
    def anchor(self) -> Omega:
        """theta*: where the parameters stood at the last update; empty before it."""
        return {} if self._quadratic is None else self._quadratic.anchor

    def penalty(self, model: nn.Module | None = None) -> Tensor:
        """lam * sum Omega (theta - theta*)^2, a scalar; 0 before the first update. Fits `penalty=` of `train`.

        Parameters that were added after the last update, such as a new head, are not penalised.
        """
        model = self.model if model is None else model
        if self._quadratic is None:
            first = next(model.parameters(), None)
            return torch.zeros(()) if first is None else first.new_zeros(())
        return self._quadratic(model)

    def consolidate(self, new: Mapping[str, Tensor]) -> None:
        """Add the importance of what was learned last, and take the present parameters as theta*."""
        k = self.num_updates
        merged = dict(self.omega)
        for name, value in new.items():
            old = merged.get(name, torch.zeros_like(value))
            if old.shape != value.shape:
                raise ValueError(f"the importance of {name!r} had shape {tuple(old.shape)}, now {tuple(value.shape)}")
            merged[name] = old + value if self.combine == "sum" else (k * old + value) / (k + 1)
        if self.combine == "mean":  # a name that is new now was of no importance before, and the other way round
            merged |= {n: k * t / (k + 1) for n, t in self.omega.items() if n not in new}
        self.omega = {n: t.detach().clone() for n, t in merged.items()}
        self.num_updates = k + 1
        self._anchored(Anchor(self.model).start)

    def _anchored(self, anchor: Mapping[str, Tensor]) -> None:
        self._quadratic = QuadraticPenalty(anchor, self.omega, self.lam, lr=self.lr)

    def state_dict(self) -> dict[str, Tensor]:
        """Omega, theta* and the number of updates, as tensors."""
        omega = {f"omega.{n}": t.clone() for n, t in self.omega.items()}
        anchor = {f"anchor.{n}": t.clone() for n, t in self.anchor.items()}
        return {**omega, **anchor, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.omega = {n.removeprefix("omega."): t.clone() for n, t in state.items() if n.startswith("omega.")}
        anchor = {n.removeprefix("anchor."): t for n, t in state.items() if n.startswith("anchor.")}
        self.num_updates = int(state["num_updates"])
        self._quadratic = None
        if anchor:
            self._anchored(anchor)


class MAS(Consolidation):
    """Memory aware synapses: importance from unlabelled data, any iterable of inputs.

    Parameters
    ----------
    per_sample
        True: mean of each sample's absolute gradient, as defined. False: of each batch's, as the published code has it.
    forward
        ``forward(model, x)`` gives the outputs; None: ``model(x)``.
    local
        The Hebbian form without a backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        per_sample: bool = True,
        *,
        forward: Forward | None = None,
        local: bool = False,
        lr: float | None = None,
        combine: Combine = "sum",
    ) -> None:
        super().__init__(model, lam, lr=lr, combine=combine)
        self.per_sample, self.forward, self.local = per_sample, forward, local

    def update(self, data: Any) -> Omega:
        """Importance of the present function on `data` (labels are ignored), added to Omega; theta* moves here.

        Raises
        ------
        ValueError
            "no samples" if `data` are empty or move no output.
        """
        kind: Kind = "local" if self.local else "mas"
        per_sample = self.per_sample or self.local
        new = importance(self.model, data, kind, per_sample=per_sample, forward=self.forward)
        self.consolidate(new)
        return new


class EWC(Consolidation):
    """Elastic weight consolidation: the Fisher diagonal as importance.

    Parameters
    ----------
    empirical
        Gradients of the given labels instead of the mean over the net's own predictions.
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float = 1.0,
        *,
        empirical: bool = False,
        forward: Forward | None = None,
        lr: float | None = None,
        combine: Combine = "sum",
    ) -> None:
        super().__init__(model, lam, lr=lr, combine=combine)
        self.empirical, self.forward = empirical, forward

    def update(self, data: Any) -> Omega:
        """Fisher diagonal on `data`, added to Omega; theta* moves here."""
        kind: Kind = "empirical_fisher" if self.empirical else "fisher"
        new = importance(self.model, data, kind, forward=self.forward)
        self.consolidate(new)
        return new


class L2(Consolidation):
    """A pull of one strength on every parameter that was there: Omega = 1, however many tasks there were."""

    def update(self, data: Any = None) -> Omega:
        """theta* moves here. `data` are not looked at."""
        new = {n: torch.ones_like(p) for n, p in self.model.named_parameters() if p.requires_grad}
        self.omega = new if self.combine == "mean" else {}  # a mean of ones is 1, also of parameters that are new
        self.consolidate(new)
        return new


class SynapticIntelligence(Consolidation):
    """SI: how much of the loss's fall each parameter brought about along its way.

    omega_i = - sum over updates of g_i (theta_i after - theta_i before), g the task loss's gradient;
    Omega_i += max(omega_i, 0) / ((theta_i at the end - at the start)^2 + xi) at the end of a task.

    To be called after every update, or passed to `train` as a callback (which calls `on_step`); gradients must still
    stand in `p.grad`. The penalty's own gradient is taken off them, so clipping falsifies the sums.

    Parameters
    ----------
    xi
        Keeps the denominator away from 0.
    """

    one_seed = True

    def __init__(self, model: nn.Module, lam: float = 1.0, *, xi: float = 0.1, lr: float | None = None) -> None:
        super().__init__(model, lam, lr=lr)
        if not xi > 0:
            raise ValueError(f"xi must be positive, got {xi}")
        self.xi = xi
        self.begin_task()

    def begin_task(self) -> None:
        """Start new sums from where the parameters stand."""
        self._before = {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}
        self._start = {n: t.clone() for n, t in self._before.items()}
        self._path = {n: torch.zeros_like(t) for n, t in self._before.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Book the update that has just been made."""
        for name, p in self.model.named_parameters():
            if p.grad is None or name not in self._before:
                continue
            g, before = p.grad, self._before[name]
            if name in self.omega and name in self.anchor:
                g = g - 2 * self.lam * self.omega[name] * (before - self.anchor[name])
            self._path[name] -= g * (p - before)
            before.copy_(p)

    def on_step(self, state: Any) -> None:
        self.step()

    def update(self, data: Any = None) -> Omega:
        """End the task: its importance is added to Omega and theta* moves here. `data` are not looked at."""
        named = dict(self.model.named_parameters())
        new = {
            n: path.clamp_min(0) / ((named[n].detach() - self._start[n]).square() + self.xi)
            for n, path in self._path.items()
            if n in named
        }
        self.consolidate(new)
        self.begin_task()
        return new

    def state_dict(self) -> dict[str, Tensor]:
        kept = {"before": self._before, "start": self._start, "path": self._path}
        return {**super().state_dict(), **{f"{k}.{n}": t.clone() for k, d in kept.items() for n, t in d.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        for name in ("before", "start", "path"):
            part = {n.removeprefix(f"{name}."): t.clone() for n, t in state.items() if n.startswith(f"{name}.")}
            setattr(self, f"_{name}", part)

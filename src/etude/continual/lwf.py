"""Learning without forgetting, and its encoder-based form EBLL: old outputs, and codes of old features, stay put.

    LwF     + lam * sum_{old t} T^2 KL(old head t of the earlier net || head t), on the new task's inputs
    EBLL    + (alpha / 2) sum_{old t} || s(W_t F(x)) - s(W_t F*(x)) ||^2,   F the trunk, F* the trunk as it was

For EBLL a task ends with an undercomplete autoencoder s(W_t f) -> f of its trunk features f, trained on
||r(f) - f||^2 + weight * (loss of the task's head on r(f)): it keeps what the task needs of them.

Sources: Li & Hoiem 2016, arXiv 1606.09282; Triki, Aljundi et al. 2017, arXiv 1704.01920, eq. 3 to 6 (Aljundi 2019,
arXiv 1910.02718). The distillation is `etude.training.distillation_kl`.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.heads import TaskHeads, check_labels
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.layers.autoencoders import Autoencoder, autoencoder
from etude.layers.modes import evaluating, statistics_kept
from etude.training.config import TrainConfig
from etude.training.distillation import distillation_kl
from etude.training.engine import train


class LwF:
    """Distils every old head of `model` on the inputs of the new task.

    Parameters
    ----------
    lam
        Weight of the sum over old heads.
    temperature
        Softens both sides.
    """

    def __init__(self, model: TaskHeads, lam: float = 1.0, temperature: float = 2.0) -> None:
        if not lam >= 0 or not temperature > 0:
            raise ValueError(f"lam must be at least 0 and temperature positive, got {lam} and {temperature}")
        self.model, self.lam, self.temperature = model, lam, temperature
        self.teacher: TaskHeads | None = None

    def begin_task(self) -> None:
        """Keep a frozen copy of the net as it is, with the heads that it has.

        Call it before the new task's head is added, or the random start of that head is kept as if it had been learned.
        With `learn_tasks`, `after` of the task before is the place; `before` comes too late.
        """
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False) if len(self.model.heads) else None

    def penalty(self, x: Tensor) -> Tensor:
        """The distillation term on inputs (B, ...), a scalar; 0 before the first `begin_task`."""
        if self.teacher is None:
            return x.new_zeros(())
        with torch.no_grad():
            old = self.teacher.trunk(x)
        return self.lam * self._kept(self.model.trunk(x), old)

    def _kept(self, new: Tensor, old: Tensor) -> Tensor:
        assert self.teacher is not None
        terms = [
            distillation_kl(self.model.heads[t](new), head(old), temperature=self.temperature)
            for t, head in enumerate(self.teacher.heads)
        ]
        return torch.stack(terms).sum()

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy of the task in use, and the term; fits `loss=` of `train`. Batch norm counts a batch once."""
        out = model(batch[0])
        check_labels(out, batch[1])
        with statistics_kept(self.model.trunk):
            kept = self.penalty(batch[0])
        return {"task": F.cross_entropy(out, batch[1]), "kept": kept}

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights by name."""
        return {} if self.teacher is None else {f"teacher.{n}": t.clone() for n, t in self.teacher.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, on a model with at least the teacher's heads."""
        mine = {n.removeprefix("teacher."): t for n, t in state.items() if n.startswith("teacher.")}
        self.teacher = None
        if mine:
            count = 1 + max(int(n.split(".")[1]) for n in mine if n.startswith("heads."))
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
            self.teacher.heads = self.teacher.heads[:count]
            self.teacher.load_state_dict(mine)


class EBLL(LwF):
    """LwF that also keeps the codes of what each old task needs of the trunk's features.

    Parameters
    ----------
    code_dim
        Width of the codes, below the trunk's width.
    alpha
        Weight of the codes' squared movement (mean over rows).
    task_weight
        Of the head's loss on reconstructed features, when an autoencoder is trained.
    """

    def __init__(
        self,
        model: TaskHeads,
        lam: float = 1.0,
        temperature: float = 2.0,
        *,
        code_dim: int = 10,
        alpha: float = 1e-2,
        task_weight: float = 1.0,
    ) -> None:
        super().__init__(model, lam, temperature)
        if not 1 <= code_dim < model.feature_dim:
            raise ValueError(f"code_dim must lie in 1..{model.feature_dim - 1}, got {code_dim}")
        if not alpha >= 0 or not task_weight >= 0:
            raise ValueError(f"alpha and task_weight must be at least 0, got {alpha} and {task_weight}")
        self.code_dim, self.alpha, self.task_weight = code_dim, alpha, task_weight
        self.autoencoders: list[Autoencoder] = []

    def _fresh(self) -> Autoencoder:
        made = autoencoder((self.model.feature_dim,), self.code_dim, hidden=(), code_activation="sigmoid")
        return made.to(next(self.model.parameters()))  # its dtype and device

    def end_task(self, data: Split, config: TrainConfig, *, seed: int = 0) -> Autoencoder:
        """Train the autoencoder of the task in use on its rows; the net stays as it is."""
        head, where = self.model.heads[self.model.task], data.x.device
        with evaluating(self.model), torch.no_grad():
            rows = Split(self.model.trunk(data.x), data.y)

        def loss(net: Any, batch: Split) -> dict[str, Tensor]:
            back = net(batch.x).output
            check_labels(head(back), batch.y)
            kept = (back - batch.x).square().sum(1).mean()
            return {"features": kept, "task": self.task_weight * F.cross_entropy(head(back), batch.y)}

        required = [p.requires_grad for p in head.parameters()]
        head.requires_grad_(False)
        try:
            done = train(lambda _: self._fresh(), rows, loss=loss, config=config, seeds=(seed,), device=where)
        finally:
            for p, needed in zip(head.parameters(), required, strict=True):
                p.requires_grad_(needed)
        net: Autoencoder = done[0].module.requires_grad_(False)
        self.autoencoders.append(net)
        return net

    def penalty(self, x: Tensor) -> Tensor:
        """Distillation and movement of the codes on inputs (B, ...), a scalar."""
        if self.teacher is None:
            return x.new_zeros(())
        with torch.no_grad():
            old = self.teacher.trunk(x)
        new = self.model.trunk(x)
        moved = [(a.encode(new) - a.encode(old)).square().sum(1).mean() for a in self.autoencoders]
        codes = torch.stack(moved).sum() if moved else x.new_zeros(())
        return self.lam * self._kept(new, old) + 0.5 * self.alpha * codes

    def state_dict(self) -> dict[str, Tensor]:
        codes = {f"code.{t}.{n}": v.clone() for t, a in enumerate(self.autoencoders) for n, v in a.state_dict().items()}
        return {**super().state_dict(), **codes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.autoencoders = []
        while mine := {
            n.split(".", 2)[2]: t for n, t in state.items() if n.startswith(f"code.{len(self.autoencoders)}.")
        }:
            net = seeded_build(self._fresh, stream(0, "load")).requires_grad_(False)
            net.load_state_dict(mine)
            self.autoencoders.append(net)

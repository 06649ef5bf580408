"""Expert Gate: one expert a task and one small autoencoder a task, which finds out whose input it is.

    gate     er_t(x) = KL(z || A_t(z)),  z = s(standardised phi(x));   p = softmax(-er / temperature)
    kinship  Rel(k, a) = 1 - (Er_a - Er_k) / Er_k, on validation inputs of the new task k

A_t: Linear(D, code) - ReLU - Linear(code, D) - sigmoid, on features phi standardised with task t's own statistics and
put through a sigmoid. Source: Aljundi, Chakravarty & Tuytelaars 2017, arXiv 1611.06194, sections 3.1 to 3.3
(Aljundi 2019, arXiv 1910.02718). Errors are summed over the D features. Differs from it in the divergence, see `error`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.heads import check_labels
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split, split
from etude.layers.autoencoders import Autoencoder, autoencoder
from etude.layers.modes import evaluating
from etude.training.config import TrainConfig
from etude.training.distillation import distillation_kl
from etude.training.engine import train


class Routed(NamedTuple):
    """What the chosen experts say (labels where they give scores), and the tasks chosen; (n,), or (n, k)."""

    y: Tensor
    task: Tensor


class Kinship(NamedTuple):
    """The most related earlier task, how related it is, and whether its old answers should be distilled."""

    task: int
    relatedness: float
    distill: bool


def _prepared(f: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return torch.sigmoid((f - mean) / std)


class _Gate(nn.Module):
    """One task's autoencoder with the statistics of its features."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Autoencoder, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def prepared(self, f: Tensor) -> Tensor:
        return _prepared(f, self.mean, self.std)

    def errors(self, f: Tensor, kind: str) -> Tensor:
        """(n,) reconstruction errors."""
        z = self.prepared(f)
        found = F.binary_cross_entropy(self.net(z).output, z, reduction="none").sum(1)
        return found - F.binary_cross_entropy(z, z, reduction="none").sum(1) if kind == "divergence" else found


class ExpertGate:
    """Routes inputs to the expert of the task that they look like.

    Parameters
    ----------
    feature_fn
        A fixed backbone, inputs to (n, ...) features, called without gradient; None: the inputs themselves, tensors,
        arrays or data frames.
    code_dim
        Width of the autoencoders' codes; the paper has 100, and 10 works.
    temperature
        Of the softmax over errors.
    error
        "cross_entropy", or "divergence": less the target's own entropy. That is what a perfect reconstruction leaves,
        and it differs between tasks, as each standardises with its own statistics: with it a gate of wide features
        wins every row.
    distill_above
        Relatedness from which a new expert should be trained with the old one's answers. The paper's 0.85 is a share of
        cross-entropies, which hold the target's entropy; of divergences the same tasks have less.
    config
        How autoencoders are trained; None: at most 50 epochs of Adam (1e-3, batch 64), until the error on a tenth of
        the rows has not fallen for 5.
    seed
        Of initialisation and order.

    Attributes
    ----------
    experts
        What `add_task` was given, by task number.
    """

    def __init__(
        self,
        feature_fn: Callable[[Any], Tensor] | None = None,
        code_dim: int = 100,
        *,
        temperature: float = 2.0,
        error: Literal["divergence", "cross_entropy"] = "divergence",
        distill_above: float = 0.85,
        config: TrainConfig | None = None,
        seed: int = 0,
    ) -> None:
        if code_dim < 1 or not temperature > 0:
            raise ValueError(f"code_dim must be at least 1 and temperature positive, got {code_dim} and {temperature}")
        self.feature_fn, self.code_dim, self.temperature = feature_fn, code_dim, temperature
        if error not in ("cross_entropy", "divergence"):
            raise ValueError(f'error must be "cross_entropy" or "divergence", got {error!r}')
        self.error, self.distill_above, self.seed = error, distill_above, seed
        self.config = config or TrainConfig(epochs=50, batch_size=64, patience=5)
        self.gates: list[_Gate] = []
        self.experts: list[Any] = []

    def __len__(self) -> int:
        return len(self.gates)

    def features(self, x: Any) -> Tensor:
        """phi(x), (n, D)."""
        fn = self.feature_fn
        with torch.no_grad(), evaluating(fn) if isinstance(fn, nn.Module) else nullcontext():
            f = x if fn is None else fn(x)
        return _tensor(f).detach().flatten(1).float()

    def add_task(self, X: Any, expert: Any = None) -> int:
        """Train a task's autoencoder on its inputs and keep its expert; the task's number.

        Raises
        ------
        ValueError
            For fewer than two rows, or features that are not finite or of another width than before.
        """
        f = self._checked(X)
        if len(f) < 2:
            raise ValueError(f"no samples to speak of: a gate needs at least 2 rows, got {len(f)}")
        std = f.std(0)
        constant = std <= 1e-6 * f.abs().amax(0)  # each against its own size: features may differ in scale
        std = torch.where(constant, torch.ones_like(std), std)
        mean = f.mean(0)
        rows, val = Split(_prepared(f, mean, std)), None
        if self.config.patience is not None:
            rows, val = split(rows, (0.9, 0.1) if len(f) >= 20 else (len(f) - 1, 1), seed=self.seed)
        done = train(
            lambda _: self._fresh(f.shape[1]), rows, loss=lambda net, b: net.loss(b.x), config=self.config, val=val,
            seeds=(self.seed,), device=f.device,
        )  # fmt: skip
        gate = _Gate(done[0].module, mean, std)
        self.gates.append(gate.requires_grad_(False).eval())
        self.experts.append(expert)
        return len(self.gates) - 1

    def _checked(self, x: Any) -> Tensor:
        """The features; ValueError if they are not finite or of another width than those of the tasks so far."""
        f = self.features(x)
        if not bool(torch.isfinite(f).all()):
            raise ValueError("features hold NaN or infinity")
        if self.gates and len(self.gates[0].mean) != f.shape[1]:
            raise ValueError(f"features have width {f.shape[1]}, those of earlier tasks {len(self.gates[0].mean)}")
        return f

    def _fresh(self, width: int) -> Autoencoder:
        made = autoencoder(
            (width,), self.code_dim, hidden=(), code_activation="relu", output="sigmoid", likelihood="bernoulli"
        )
        return made.float()  # as `features` are, whatever torch's default type is

    def errors(self, x: Any) -> Tensor:
        """Reconstruction errors (n, T); ValueError without a task, or for features that `add_task` would refuse."""
        self._check()
        f = self._checked(x)
        return torch.stack([g.errors(f, self.error) for g in self.gates], 1)

    def probabilities(self, x: Any) -> Tensor:
        """softmax(-errors / temperature), (n, T)."""
        return (-self.errors(x) / self.temperature).softmax(1)

    def route(self, x: Any, k: int = 1) -> Tensor:
        """Task numbers of the `k` most likely experts, (n, k), most likely first."""
        self._check()
        if not 1 <= k <= len(self):
            raise ValueError(f"k must lie in 1..{len(self)}, got {k}")
        return self.errors(x).topk(k, dim=1, largest=False).indices

    def predict(self, x: Any, k: int = 1) -> Routed:
        """Run each row's `k` most likely experts, and no other: ``y, task = gate.predict(x)``.

        An expert that gives scores (n, C) answers with the label of the largest, any other with what it gives.

        Raises
        ------
        ValueError
            If there is no task, or a chosen one has no expert.
        """
        task = self.route(x, k)
        answers: list[Tensor | None] = [None] * task.numel()
        flat = task.flatten()
        for t in flat.unique().tolist():
            expert = self.experts[t]
            if expert is None:
                raise ValueError(f"task {t} has no expert: give add_task one")
            places = (flat == t).nonzero()[:, 0]
            said = _ask(expert, _take(x, places // k))
            for place, value in zip(places.tolist(), said, strict=True):
                answers[place] = value
        y = torch.stack([a for a in answers if a is not None]) if answers else torch.zeros(0, dtype=torch.long)
        return Routed(y, task[:, 0]) if k == 1 else Routed(y.view(-1, k, *y.shape[1:]), task)

    def relatedness(self, X_val: Any, task: int = -1) -> Tensor:
        """Rel(task, a) of every other task a, on validation inputs of `task` (the newest by default); 1 at itself.

        Raises
        ------
        ValueError
            If there is no such task, or no input.
        """
        errors = self.errors(X_val)
        if not -len(self) <= task < len(self):
            raise ValueError(f"there is no task {task}: there are {len(self)}")
        if not len(errors):
            raise ValueError("no samples: relatedness is a mean over validation inputs")
        mean = errors.mean(0)
        return 1 - (mean - mean[task]) / mean[task]

    def kinship(self, X_val: Any, task: int = -1) -> Kinship:
        """Which earlier task a new expert should start from, and how it should be trained.

        Raises
        ------
        ValueError
            As `relatedness`, and if there is no other task.
        """
        if len(self) < 2:
            raise ValueError("there is no other task to be related to")
        rel = self.relatedness(X_val, task)
        rel[task] = -torch.inf
        best = int(rel.argmax())
        return Kinship(best, float(rel[best]), float(rel[best]) > self.distill_above)

    def _check(self) -> None:
        if not self.gates:
            raise ValueError("the gate knows no task: call add_task first")

    def state_dict(self) -> dict[str, Tensor]:
        """Autoencoders, statistics and the weights of experts that are modules."""
        state = {f"gate.{t}.{n}": v.clone() for t, g in enumerate(self.gates) for n, v in g.state_dict().items()}
        for t, expert in enumerate(self.experts):
            if isinstance(expert, nn.Module):
                state |= {f"expert.{t}.{n}": v.clone() for n, v in expert.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any], experts: Sequence[Any] = ()) -> None:
        """Go on where `state_dict` was taken.

        Parameters
        ----------
        experts
            Experts by task; modules among them get their weights. Fewer than there are gates: the rest have none.
        """
        self.gates = []
        while mine := _part(state, f"gate.{len(self.gates)}."):
            net = seeded_build(partial(self._fresh, len(mine["mean"])), stream(self.seed, "load"))
            gate = _Gate(net, mine["mean"].clone(), mine["std"].clone())
            gate.load_state_dict(mine)
            self.gates.append(gate.requires_grad_(False).eval())
        self.experts = [experts[t] if t < len(experts) else None for t in range(len(self.gates))]
        for t, expert in enumerate(self.experts):
            if isinstance(expert, nn.Module):
                expert.load_state_dict(_part(state, f"expert.{t}."))


def train_expert(
    expert: nn.Module,
    data: Split,
    config: TrainConfig,
    *,
    old_head: tuple[nn.Module, nn.Module] | None = None,
    temperature: float = 2.0,
    seed: int = 0,
) -> nn.Module:
    """A new expert, trained in place on its task's rows.

    Parameters
    ----------
    expert
        Started from the most related one (a copy with a new head), or new.
    old_head
        (net, earlier net): LwF. ``net(x)`` must share what it can with `expert`, such as the old head on the
        expert's trunk; its answers are kept near those of the earlier net.
    """
    kept = None if old_head is None else (old_head[0], copy.deepcopy(old_head[1]).eval().requires_grad_(False))

    def loss(net: Any, batch: Split) -> Tensor:
        out = net(batch.x)
        check_labels(out, batch.y)
        total = F.cross_entropy(out, batch.y)
        if kept is not None:
            with torch.no_grad():
                old = kept[1](batch.x)
            total = total + distillation_kl(kept[0](batch.x), old, temperature=temperature)
        return total

    train(expert, data, loss=loss, config=config, seeds=(seed,), device=data.x.device)
    return expert


def _tensor(rows: Any) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


def _take(x: Any, rows: Tensor) -> Any:
    """The given rows of a tensor, an array, a data frame or a list."""
    if isinstance(x, list | tuple):
        return [x[i] for i in rows.tolist()]
    return x.iloc[rows.cpu().numpy()] if hasattr(x, "iloc") else x[rows]


def _ask(expert: Any, x: Any) -> Tensor:
    if isinstance(expert, nn.Module):
        if not isinstance(x, Tensor):  # an array: in the module's own precision and place
            x = _tensor(x)
            like = next(expert.parameters(), x)
            x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
        with evaluating(expert), torch.no_grad():
            said = expert(x)
    else:
        said = torch.as_tensor(expert.predict(x) if hasattr(expert, "predict") else expert(x))
    return said.argmax(1) if said.ndim == 2 and said.is_floating_point() else said


def _part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}

"""Learning tasks in sequence with a weight generator: what it generates for old tasks must not move.

    loss_t = task loss(theta(e_t, phi)) + (beta / #old) sum_j R_j,
    R_j = sum_k Omega_jk (theta_k(e_j, phi*) - theta_k(e_j, phi + d))^2         a sum over weights, not a mean

phi*: the generator when task t began; e_j: the frozen embedding of an old task; d: 0, or with `lookahead` the step that
the optimiser would take for the task loss alone (detached). Omega_j = 1, or the importance of the generated weights for
task j at its end, brought to mean 1 so that beta keeps its meaning.

Sources: von Oswald et al. 2020, arXiv 1906.00695, eq. 2 (output regulariser); Dupati et al. 2022, arXiv 2209.07712
(recurrent generator, importance, growth: the abstract names them, the exact forms are ours).
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.heads import check_labels
from etude.continual.hypernet_growth import Growth, ManagedOptimizer, UntrainedWatch, grow, hold, labelled_rows, warm_up
from etude.continual.hypernet_heads import checked_rows, head_mask
from etude.continual.hypernet_state import held_state, take_state
from etude.continual.importance import importance as importance_of
from etude.data.randomness import stream
from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_conditions import TaskCondition
from etude.layers.hypernetwork_generators import widenable
from etude.layers.modes import evaluating

CrossEntropy = Callable[[Tensor, Tensor], Tensor]


class ContinualHypernet(nn.Module):
    """A hypernetwork conditioned on tasks that come one after the other.

    Parameters
    ----------
    hyper
        Any `HyperNetwork` with a `TaskCondition`, such as `RecurrentHyperNetwork`; its table of tasks grows. With
        ``init="gain"`` the scales of generated tensors are measured at the embeddings it was made with; over many
        normal draws the deviation of weights is within about a fifth of what was wanted.
    beta
        Weight of the regulariser; 0: none.
    importance
        "mas" or "fisher": weigh generated weights by their importance for their task; None: all alike.
    growth
        When and by how much the generator is widened; None: never.
    lookahead
        Regularise where the next step leads: `penalty` then takes the task loss, and the optimiser must come from
        `make_optimizer`.
    max_tasks
        Old tasks in each penalty, drawn at random (without bias); None: all.
    allow_revisit
        `begin_task` may go back to a task.
    cache_dtype
        Type that the old weights are kept in, e.g. ``torch.bfloat16``; None: as generated.
    generator
        Draws of old tasks and of new embeddings; None: torch's global one.

    Attributes
    ----------
    task
        The task in hand, None before the first.
    parameters_changed
        Functions without arguments, called after parameters were added or replaced.
    growth_history
        (task, new units) of every widening.

    Raises
    ------
    ValueError
        For a hypernetwork without tasks, a negative beta, an unknown importance, or growth of a generator that cannot
        be widened.
    """

    def __init__(
        self,
        hyper: HyperNetwork,
        beta: float = 1e-2,
        importance: Literal["mas", "fisher"] | None = None,
        growth: Growth | None = None,
        *,
        lookahead: bool = False,
        max_tasks: int | None = None,
        allow_revisit: bool = False,
        cache_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(hyper.condition, TaskCondition):
            raise ValueError(f"tasks need a TaskCondition, this is a {type(hyper.condition).__name__}")
        if not 0 <= beta < float("inf") or importance not in (None, "mas", "fisher"):
            raise ValueError(f'need beta >= 0 and importance None, "mas" or "fisher", got {beta} and {importance!r}')
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
        if growth is not None:
            widenable(hyper.generator)
        self.hyper, self.beta, self.importance, self.growth = hyper, beta, importance, growth
        self.lookahead, self.max_tasks, self.allow_revisit = lookahead, max_tasks, allow_revisit
        self.cache_dtype, self.generator = cache_dtype, generator
        self.task: int | None = None
        self.done: list[int] = []  # tasks that were ended
        self.outputs: dict[int, tuple[int, ...]] = {}
        self.omega: dict[int, Tensor] = {}
        self.warm_losses: list[float] = []
        self.growth_history: list[tuple[int, int]] = []
        self.parameters_changed: list[Callable[[], None]] = []
        self._old: list[int] = []
        self._targets: Tensor | None = None
        self._weighing: Tensor | None = None  # (old tasks, P) importances
        self._ready: tuple[int, Tensor] | None = None
        self._masks: dict[str, Tensor] = {}  # of `Growth.freeze_old`
        self._watch = UntrainedWatch()
        self._optimizer: ManagedOptimizer | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # inside another module, too

    @property
    def condition(self) -> TaskCondition:
        """The table of embeddings."""
        assert isinstance(self.hyper.condition, TaskCondition)
        return self.hyper.condition

    # Tasks

    def begin_task(
        self,
        task: int,
        data: Any = None,
        *,
        outputs: Sequence[int] | None = None,
        loss_fn: CrossEntropy = F.cross_entropy,
    ) -> None:
        """A new embedding for the task; the weights of all old tasks are generated once more and kept as targets.

        Parameters
        ----------
        task
            The next number, from 0.
        data
            An (x, y) pair or `Split`, or an iterable of these: needed where growth hangs on the loss after a warm-up.
        outputs
            Rows of the target's last layer that are this task's head; `forward` gives these alone, and the other rows
            are left out of its regulariser. None: all.

        Raises
        ------
        ValueError
            For a task out of order: revisited without `allow_revisit`, or beyond the next; for outputs that the target
            lacks, or data without labelled rows, or with labels outside the head, where growth needs them. The task was
            not begun then.
        RuntimeError
            If the task in hand was not ended: its weights would not be kept.
        """
        known = self.condition.num_tasks
        revisit = task in self.done or (self.task is not None and task <= self.task)
        after = max([*self.done, -1 if self.task is None else self.task]) + 1
        if revisit and not self.allow_revisit:
            raise ValueError(f"task {task} was begun before: pass allow_revisit=True to go on with it")
        if task < 0 or (not revisit and task != after):
            raise ValueError(f"tasks come in order: the next is {after}, got {task}")
        if self.task not in (None, task, *self.done):
            raise RuntimeError(f"task {self.task} is still in hand: call end_task before begin_task({task})")
        head = None if outputs is None else checked_rows(self.hyper.layout, outputs)
        by_loss = self.growth is not None and self.growth.trigger is not None and not revisit
        labelled = labelled_rows(data) if by_loss else None
        if labelled is not None and loss_fn is F.cross_entropy:
            with torch.no_grad(), evaluating(self):
                out = self.hyper(labelled[0][:1], task=0)  # as wide as any task's
            check_labels(out if head is None else out[:, list(head)], labelled[1])
        if task >= known:
            self.hyper.add_condition(1, self.generator)
        self.condition.rows[task].requires_grad_(True)
        self.done = [t for t in self.done if t != task]
        self.task, self._old = task, sorted(self.done)
        if head is not None:
            self.outputs[task] = head
        if self.growth is not None and not revisit:
            self._maybe_grow(task, labelled, loss_fn)
        self._retarget()
        self._changed([self.condition.rows[task]])

    def end_task(self, data: Any = None) -> None:
        """Freeze the embedding, and take the importance of its weights on `data` (inputs, labels are ignored).

        Raises
        ------
        RuntimeError
            Without a task in hand.
        ValueError
            If importance is asked for and `data` are missing or empty ("no samples").
        """
        task = self._current()
        if self.importance is not None:
            if data is None:
                raise ValueError("no samples: importance needs the task's data")
            self.omega[task] = self._importance(task, data, self.importance)
        self.condition.freeze(task)
        self.done = sorted({*self.done, task})

    def _current(self) -> int:
        if self.task is None:
            raise RuntimeError("no task in hand: call begin_task first")
        return self.task

    @torch.no_grad()
    def _retarget(self) -> None:
        self._ready = None
        self._targets = self._weighing = None
        if self._old:
            flat = self.hyper.weights(self.condition.table[self._old])
            self._weighing = self._weights(self._old, flat)
            self._targets = flat if self.cache_dtype is None else flat.to(self.cache_dtype)

    # Generation

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """f(x; theta(e_task)), (B, outputs of the task); None: the task in hand.

        For the task in hand in training the old tasks' weights are generated in the same pass, for `penalty`.
        """
        number = self._current() if task is None else task
        if not 0 <= number < self.condition.num_tasks:
            raise ValueError(f"there is no task {number}: there are {self.condition.num_tasks}")
        together = self.training and torch.is_grad_enabled() and number == self.task and self.beta > 0
        if together and self._old and self.max_tasks is None and not self.lookahead:
            flat = self.hyper.weights(self.condition.table[[number, *self._old]])
            self._ready = (self._stamp(), flat[1:])
            weights = flat[0]
            if weights.requires_grad:
                weights.register_hook(self._used)
        else:
            weights = self.hyper.weights(self.condition.table[[number]])[0]
        out = self.hyper.forward_flat(x, weights, task=number)
        return out[:, list(self.outputs[number])] if number in self.outputs else out  # type: ignore[no-any-return]

    def _used(self, _: Tensor) -> None:
        """A backward pass went through the weights of `forward`: the penalty needs a pass of its own."""
        self._ready = None

    def penalty(self, loss: Tensor | nn.Module | None = None) -> Tensor:
        """(beta / #old) sum R_j, a scalar; 0 while there is no old task. Fits ``penalty=`` of `train`.

        Parameters
        ----------
        loss
            The task loss of this step, for `lookahead` (a module, as the engine passes, is ignored).

        Raises
        ------
        RuntimeError
            Before `begin_task`; when new parameters are not trained, as the optimiser was made before them.
        ValueError
            With `lookahead` and no loss.
        """
        self._current()
        self._watch.check(self.named_parameters())
        some = next(self.hyper.generator.parameters())
        if not self._old or self.beta == 0:
            return some.new_zeros(())
        if self.lookahead:
            if not isinstance(loss, Tensor):
                raise ValueError("lookahead needs the task loss of this step: penalty(loss)")
            return self._ahead(loss)
        return self.beta * self._moved()

    def _moved(self) -> Tensor:
        """Mean of R_j over old tasks, or over a random part of them."""
        assert self._targets is not None
        if self._ready is not None and self._ready[0] == self._stamp():
            made, rows = self._ready[1], list(range(len(self._old)))
            self._ready = None
        else:
            rows = list(range(len(self._old)))
            if self.max_tasks is not None and len(rows) > self.max_tasks:
                rows = torch.randperm(len(rows), generator=self.generator)[: self.max_tasks].tolist()
            made = self.hyper.weights(self.condition.table[[self._old[r] for r in rows]])
        moved = (made - self._targets[rows].to(made)).square()
        if self._weighing is not None:
            weight = self._weighing if len(rows) == len(self._weighing) else self._weighing[rows]
            moved = moved * weight.to(moved)
        return moved.sum() / len(rows)

    def _weights(self, tasks: list[int], like: Tensor) -> Tensor | None:
        """(tasks, P) importances; weights of other tasks' heads count 0."""
        if not self.omega and not self.outputs:
            return None
        ones = like.new_ones(like.shape[1])
        return torch.stack([self.omega[t].to(like) if t in self.omega else ones * self._mask(t, like) for t in tasks])

    def _stamp(self) -> int:
        return sum(p._version for p in self.hyper.parameters())

    def _ahead(self, loss: Tensor) -> Tensor:
        """The regulariser one step of the optimiser ahead: its value, with its gradient there (first order)."""
        if self._optimizer is None:
            raise RuntimeError("lookahead asks the optimiser for its step: make it with make_optimizer")
        params = self._trainable()
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        step = self._optimizer.rehearse(params, grads)
        start = [p.detach().clone() for p in params]
        for p, d in zip(params, step):
            p.data.add_(d)  # .data: the graph of the task loss stands for the present weights
        try:
            with torch.enable_grad():
                value = self.beta * self._moved()
            found = torch.autograd.grad(value, params, allow_unused=True)
        finally:
            for p, s in zip(params, start):
                p.data.copy_(s)
        pulls = [((p - p.detach()) * g).sum() for p, g in zip(params, found) if g is not None]
        return value.detach() + torch.stack(pulls).sum()

    def export(self, task: int) -> nn.Module:
        """An ordinary, frozen copy of the target with the weights of one task (with all output rows)."""
        return self.hyper.export(task=task)

    # Importance

    def _importance(self, task: int, data: Any, kind: Literal["mas", "fisher"]) -> Tensor:
        net = self.export(task).requires_grad_(True)
        rows = self.outputs.get(task)
        found = importance_of(net, data, kind, forward=None if rows is None else lambda m, x: m(x)[:, list(rows)])
        flat = torch.cat([found[n].reshape(-1) for n in self.hyper.layout.names])
        mask = self._mask(task, flat)
        flat = flat * mask
        return flat * mask.sum() / flat.sum()

    def _mask(self, task: int, like: Tensor) -> Tensor:
        return head_mask(self.hyper.layout, self.outputs.get(task), like)

    # Growth and optimisers

    def _maybe_grow(self, task: int, rows: tuple[Tensor, Tensor] | None, loss_fn: CrossEntropy) -> None:
        assert self.growth is not None
        wanted = self.growth.scheduled(task)
        if self.growth.trigger is not None and rows is not None:
            value = warm_up(self, task, rows, self.growth, loss_fn)
            earlier = self.warm_losses
            wanted |= bool(earlier) and value > self.growth.trigger * sum(earlier) / len(earlier)
            self.warm_losses.append(value)
        room = self.growth.max_times is None or len(self.growth_history) < self.growth.max_times
        if wanted and room:
            rng = stream(task, "growth") if self.generator is None else self.generator
            self._masks = grow(self.hyper, self.growth, rng)
            self.growth_history.append((task, self.growth.step))
            self._changed(list(self.hyper.generator.parameters()))

    def _changed(self, fresh: list[nn.Parameter]) -> None:
        self._watch.expect(fresh, self.named_parameters())
        if self._optimizer is not None:
            self._optimizer.rebuild()
            if self._masks and any(g.get("weight_decay") for g in self._optimizer.param_groups):
                warnings.warn("weight decay moves what freeze_old keeps: take an optimiser without it", stacklevel=3)
        for call in self.parameters_changed:
            call()

    def make_optimizer(self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> ManagedOptimizer:
        """An optimiser that is made anew, ``make(parameters)``, at every task and growth.

        New parameters are then trained, and momentum of an earlier task does not move old weights. A copy of this
        object has an optimiser of its own; pickling asks for a `make` such as ``partial(torch.optim.Adam, lr=1e-3)``.
        """
        self._optimizer = ManagedOptimizer(self._trainable, make)
        return self._optimizer

    def _trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    # State

    def __getstate__(self) -> dict[str, Any]:
        mine = {"_ready": None, "_watch": UntrainedWatch()}  # a graph, and numbers of these very objects
        return {**self.__dict__, **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        hold(self.hyper.generator, self._masks)  # copies of parameters have no hooks

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """phi, embeddings, importances, heads and the history of growth; targets are made anew on loading."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + n: t for n, t in held_state(self).items()})

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *problems: Any
    ) -> None:
        """Go on where the state was taken, on an object built alike: it grows to the state's tasks and width."""
        absent, masks = take_state(self, state_dict, prefix)
        self._masks = masks or self._masks
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *problems)
        missing.extend(absent)

    def _loaded(self) -> None:
        """The parameters have come in, too."""
        for t, row in enumerate(self.condition.rows):
            row.requires_grad_(t not in self.done)
        self._old = [t for t in self.done if t != self.task]
        self._retarget()
        self._changed([])


def _after_loading(cl: ContinualHypernet, _: Any) -> None:
    cl._loaded()

"""Learning tasks in sequence with a weight generator: what it generates for old tasks must not move.

    loss_t = task loss(theta(e_t, phi)) + (beta / #old) sum_j R_j,
    R_j = sum_k Omega_jk (theta_k(e_j, phi*) - theta_k(e_j, phi + d))^2         a sum over weights, not a mean

phi*: the generator when task t began; e_j: the frozen embedding of an old task; d: 0, or with `lookahead` the step that
the optimiser would take for the task loss alone (detached). Omega_j = 1, or the importance of the generated weights for
task j at its end, brought to mean 1 so that beta keeps its meaning.

Sources: von Oswald et al. 2020, arXiv 1906.00695, eq. 2 (output regulariser); Dupati et al. 2022, arXiv 2209.07712
(recurrent generator, importance, growth: the abstract names them, the exact forms are ours).
"""

import operator
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.continual.heads import check_labels
from etude.continual.hypernet_growing import CrossEntropy, GrowingHypernet
from etude.continual.hypernet_growth import Growth, hold, labelled_rows
from etude.continual.hypernet_heads import checked_rows
from etude.continual.hypernet_optimizer import UntrainedWatch
from etude.continual.hypernet_regulariser import KeptWeights, generated_importance, one_step_ahead, weighing_of
from etude.continual.hypernet_state import held_state, take_state
from etude.layers.hypernetwork import HyperNetwork
from etude.layers.hypernetwork_conditions import TaskCondition
from etude.layers.modes import evaluating


class ContinualHypernet(GrowingHypernet):
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
        Regularise where the next step leads: `penalty` then needs the task loss, and the optimiser must come from
        `make_optimizer`.
    max_tasks
        Old tasks in each penalty, drawn at random (without bias); None: all.
    allow_revisit
        `begin_task` may go back to a task.
    cache_dtype
        Type that the old weights and importances are kept in, e.g. ``torch.bfloat16``; None: as generated.
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

    Weights of the target that `hyper` does not generate are trained by every task, and nothing keeps them for old ones:
    a warning says so when the second task begins.

    Raises
    ------
    TypeError
        If `hyper` is no `HyperNetwork`.
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
        if not isinstance(hyper, HyperNetwork):
            raise TypeError(f"hyper must be a HyperNetwork, got a {type(hyper).__name__}")
        if not isinstance(hyper.condition, TaskCondition):
            raise ValueError(f"tasks need a TaskCondition, this is a {type(hyper.condition).__name__}")
        if not 0 <= beta < float("inf") or importance not in (None, "mas", "fisher"):
            raise ValueError(f'need beta >= 0 and importance None, "mas" or "fisher", got {beta} and {importance!r}')
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
        super().__init__(hyper, growth, generator)
        self.beta, self.importance, self.cache_dtype = beta, importance, cache_dtype
        self.lookahead, self.max_tasks, self.allow_revisit = lookahead, max_tasks, allow_revisit
        self.task: int | None = None
        self.done: list[int] = []  # tasks that were ended
        self.outputs: dict[int, tuple[int, ...]] = {}
        self.omega: dict[int, Tensor] = {}
        self._kept = KeptWeights()
        self._warned = False
        self._ready: tuple[int, Tensor] | None = None
        self.register_load_state_dict_post_hook(_after_loading)  # inside another module, too

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
            An (x, y) pair or `Split`, or an iterable of these, for the warm-up of growth by loss. None: growth is then
            decided while the task is learned, by the losses that `penalty(loss)` is given.
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
        task, known = operator.index(task), self.condition.num_tasks
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
        labelled = labelled_rows(data) if by_loss and data is not None else None
        if labelled is not None and loss_fn is F.cross_entropy:
            with torch.no_grad(), evaluating(self):
                out = self.hyper(labelled[0][:1], task=0)  # as wide as any task's
            check_labels(out if head is None else out[:, list(head)], labelled[1])
        if task >= known:
            self.hyper.add_condition(1, self.generator)
        self.condition.rows[task].requires_grad_(True)
        self.done = [t for t in self.done if t != task]
        self.task = task
        self._losses, self._grow_next = [] if by_loss and labelled is None else None, False
        if head is not None:
            self.outputs[task] = head
        if self.growth is not None and not revisit:
            self._maybe_grow(task, labelled, loss_fn)
        self._retarget()
        self._changed([self.condition.rows[task]])
        direct = [n for n, p in self.hyper.target.named_parameters() if p.requires_grad]
        if direct and self._kept.tasks and self.beta > 0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"{direct[0]} is not generated: every task trains it, and nothing keeps it for old ones. Generate it, "
                "or freeze it after the first task", stacklevel=2,
            )  # fmt: skip

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
            net, rows = self.export(task).requires_grad_(True), self.outputs.get(task)
            found = generated_importance(net, self.hyper.layout, data, self.importance, rows)
            self.omega[task] = found if self.cache_dtype is None else found.to(self.cache_dtype)
        if self._losses is not None and self.growth is not None and self.growth.every is None:
            warnings.warn(
                f"growth by loss was not decided in task {task}: give begin_task the task's data, or penalty(loss) the "
                f"loss of each of its first {self.growth.warm_up} updates ({len(self._losses)} were)", stacklevel=2,
            )  # fmt: skip
        self._losses = None
        self.condition.freeze(task)
        self.done = sorted({*self.done, task})

    def _current(self) -> int:
        if self.task is None:
            raise RuntimeError("no task in hand: call begin_task first")
        return self.task

    @torch.no_grad()
    def _retarget(self) -> None:
        self._ready, self._kept = None, KeptWeights()
        old = tuple(t for t in sorted(self.done) if t != self.task)
        if old:
            flat = self.hyper.weights(self.condition.table[list(old)])
            weighing = weighing_of(old, self.omega, self.outputs, self.hyper.layout, flat)
            if self.cache_dtype is not None:
                flat, weighing = flat.to(self.cache_dtype), None if weighing is None else weighing.to(self.cache_dtype)
            self._kept = KeptWeights(old, flat, weighing)

    # Generation

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """f(x; theta(e_task)), (B, outputs of the task); None: the task in hand.

        For the task in hand in training the old tasks' weights are generated in the same pass, for `penalty`.
        """
        if isinstance(task, Tensor) and task.numel() != 1:
            raise ValueError(f"task must be one number, got {tuple(task.shape)}: hyper(x, task=ids) takes one a row")
        number = self._current() if task is None else operator.index(task)
        if not 0 <= number < self.condition.num_tasks:
            raise ValueError(f"there is no task {number}: there are {self.condition.num_tasks}")
        learning = self.training and torch.is_grad_enabled() and number == self.task
        if learning and self._grow_next:
            self._ready = None
            self._grow(number)
        if learning and self.beta > 0 and self._kept.tasks and self.max_tasks is None and not self.lookahead:
            flat = self.hyper.weights(self.condition.table[[number, *self._kept.tasks]])
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
            The task loss of this step: for `lookahead`, and for growth by loss where `begin_task` had no data (a
            module, as the engine passes, is ignored).

        Raises
        ------
        RuntimeError
            Before `begin_task`; when new parameters are not trained, as the optimiser was made before them.
        ValueError
            With `lookahead` and no loss.
        """
        self._current()
        self._watch.check(self.named_parameters())
        if isinstance(loss, Tensor):
            self._heed(float(loss.detach()))
        some = next(self.hyper.generator.parameters())
        if not self._kept.tasks or self.beta == 0:
            return some.new_zeros(())
        if self.lookahead:
            if not isinstance(loss, Tensor):
                raise ValueError("lookahead needs the task loss of this step: penalty(loss)")
            if self._optimizer is None:
                raise RuntimeError("lookahead asks the optimiser for its step: make it with make_optimizer")
            return one_step_ahead(loss, lambda: self.beta * self._moved(), self._trainable(), self._optimizer)
        return self.beta * self._moved()

    def _moved(self) -> Tensor:
        """Mean of R_j over old tasks, or over a random part of them."""
        rows = list(range(len(self._kept.tasks)))
        if self._ready is not None and self._ready[0] == self._stamp():
            made, self._ready = self._ready[1], None
        else:
            if self.max_tasks is not None and len(rows) > self.max_tasks:
                rows = torch.randperm(len(rows), generator=self.generator)[: self.max_tasks].tolist()
            made = self.hyper.weights(self.condition.table[[self._kept.tasks[r] for r in rows]])
        return self._kept.distance(made, rows)

    def _stamp(self) -> int:
        return sum(p._version for p in self.hyper.parameters())

    def export(self, task: int) -> nn.Module:
        """An ordinary, frozen copy of the target with the weights of one task (with all output rows)."""
        return self.hyper.export(task=task)

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
        self._retarget()
        self._changed([])


def _after_loading(cl: ContinualHypernet, _: Any) -> None:
    cl._loaded()

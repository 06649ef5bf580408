"""Guidance: train a net while its layers are pulled towards those of a frozen guide.

Source: Subramaniam et al. 2024, arXiv 2410.20035, section 3 and the official code. The loss is the task's plus
``alpha * sum_i (1 - similarity_i)`` over pairs of layers, the similarity being linear CKA of the batch.
Differs from the official code: the target's activations are those of the pass that computes its logits (there it runs
twice), and a guide layer that is not called is an error if it was asked for.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.layers.surgery import Hook, Record, TargetError
from etude.training.alignment import Alignment, Index
from etude.training.frozen_guide import FrozenGuide
from etude.training.layer_maps import (
    Pairs,
    check_called,
    check_comparable,
    check_mask,
    choose_layers,
    even_map,
    looks_time_first,
    without_logits,
)
from etude.training.similarity import same_rows


@dataclass(frozen=True)
class GuidanceReport:
    """What the guidance saw. `similarity` is (steps, pairs); `share` (steps,) the alignment's part of the loss,
    where the task's loss was given, else empty."""

    pairs: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    similarity: Tensor
    share: Tensor

    def records(self) -> list[dict[str, Any]]:
        """One record a step and pair: step, target, guide, similarity."""
        return [
            {"step": step, "target": target, "guide": guide, "similarity": float(value)}
            for step, row in zip(self.steps, self.similarity, strict=True)
            for (target, guide), value in zip(self.pairs, row, strict=True)
        ]


class Guidance:
    """Pulls a target's layers towards a guide's, for any two torch models and any training loop.

    Call the target on a batch, then add ``guidance.loss(x)`` to the task's loss. Hooks on the target keep what its
    own forward pass computes (a copy of the target is not guided); the guide runs without gradient and in eval mode.

    Parameters
    ----------
    target, guide
        Two different modules. Only the target gets gradients.
    map
        "even", or pairs (target layer, guide layer).
    layers
        Names or globs in both models (each must match in one of them). None: what the models call of convolutions,
        linear and recurrent layers, embeddings, attention, layer norms and pooling, without a last linear layer
        (the logits).
    guide_layers
        Of the guide alone; `layers` then is for the target.
    index
        "cka", or of the paper's ablations "rsa", "svcca", "ridge" (the guide's layer predicted from the target's); or
        ``index(X, Y) -> scalar`` with the target's (n, p) and the guide's (n, q), 1 = alike.
    alpha
        Weight of the sum over pairs. It grows with the number of pairs: with ten or more on a small net start
        at 0.1, and keep a norm in the target, as CKA does not see activations die out.
    until_step
        Guide the first updates only; then the hooks are taken off and the loss is 0.
    debiased
        The unbiased estimator, safer for small batches; the paper uses the biased one.
    max_samples
        Rows of a batch that the similarity is computed on.
    guide_input
        Makes the guide's input from the target's: ``guide_input(x)``.
    noise
        A generator: the guide sees standard normal noise of the input's shape (does the data matter?).
    per_position
        Sequences (n, time, d) position by position, averaged, instead of flattened; every layer must put out such.
    item
        Part of an output that is a tuple (recurrent layers, attention).

    Raises
    ------
    ValueError
        For unfit settings, a wrapped model whose hooks do not see its layers, or target and guide being one.
    TargetError
        For layers that are not there.

    Examples
    --------
    >>> target, guide = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), nn.Linear(4, 3)
    >>> guidance = Guidance(target, guide, map=[("0", "")])
    >>> x = torch.arange(32.0).view(8, 4).sin()
    >>> loss = target(x).square().mean() + guidance.loss(x)
    >>> guidance.report().pairs
    (('0', ''),)
    """

    def __init__(
        self,
        target: nn.Module,
        guide: nn.Module,
        map: Literal["even"] | Pairs = "even",
        layers: str | Sequence[str] | None = None,
        index: Index = "cka",
        alpha: float = 1.0,
        until_step: int | None = None,
        debiased: bool = False,
        max_samples: int | None = 128,
        *,
        guide_layers: str | Sequence[str] | None = None,
        guide_input: Callable[[Any], Any] | None = None,
        noise: torch.Generator | None = None,
        per_position: bool = False,
        item: int | str = 0,
    ) -> None:
        for name, model in (("target", target), ("guide", guide)):
            _check_hookable(name, model)
        if target is guide:
            raise ValueError("target and guide are one module: a guide is a frozen other net")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
        if until_step is not None and (until_step < 1 or int(until_step) != until_step):
            raise ValueError(f"until_step must be a whole number of at least 1, got {until_step}")
        self.target, self.guide = target, guide
        self.alpha, self.until_step, self.step = float(alpha), until_step, 0
        self.alignment = Alignment(index, debiased, max_samples, per_position)
        self._frozen = FrozenGuide(guide, guide_input, noise)
        self._pairs: tuple[tuple[str, str], ...] | None = None
        mine, theirs = choose_layers(target, guide, map, layers, guide_layers)
        if map != "even":
            self._pairs = tuple((t, g) for t, g in map)
        unnamed = layers is None and self._pairs is None
        self._default = (unnamed, unnamed and guide_layers is None)
        self._record = Record(target, mine, item=item)
        self._guide_record = Record(guide, theirs, item=item, detach=True)
        self._similarity: list[Tensor] = []
        self._share: list[Tensor] = []
        self._steps: list[int] = []
        self._grams: dict[Hashable, dict[str, Tensor]] = {}
        self._input: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._order_checked = False
        self._attach()

    def _attach(self) -> None:
        self._record.__enter__()
        note = Hook(_note_input(weakref.ref(self)))
        self._handle = self.target.register_forward_pre_hook(note, with_kwargs=True)
        self._attached = True

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks and the last batch: a copy (deepcopy, pickle) guides the copy of the target, from its next."""
        state = {k: v for k, v in vars(self).items() if k not in ("_handle", "_input")}
        return state | {
            name: (list(vars(self)[name].layers), vars(self)[name].item) for name in ("_record", "_guide_record")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _input=None)
        (mine, item), (theirs, other) = state["_record"], state["_guide_record"]
        self._record = Record(self.target, mine, item=item)
        self._guide_record = Record(self.guide, theirs, item=other, detach=True)
        if self._attached:
            self._attach()

    def loss(
        self, x: Any = None, *, mask: Tensor | None = None, task: Tensor | None = None, key: Hashable = None
    ) -> Tensor:
        """``alpha * sum (1 - similarity)`` for the batch that the target has just seen; counts one step.

        Parameters
        ----------
        x
            The guide's input. None: what the target was called with.
        mask
            (n, time), True = real token; features of that shape, (n, time, ...), are set to 0 elsewhere before they
            are compared. At least one layer of the target must have it.
        task
            The task's loss, for the share in `report` only.
        key
            Name of a batch that comes again unchanged: the guide's Gram matrices are kept for it.

        Raises
        ------
        ValueError
            If the target has not run since, a batch is smaller than four, or rows, positions or mask do not fit.
        TargetError
            If a layer that was asked for is not called.
        """
        if not self._attached:
            return next(self.target.parameters()).new_zeros(())
        features = dict(self._record.features)
        self._record.clear()
        if not features:
            raise ValueError("the target has not run on this batch: call target(x) before loss(x), once for each loss")
        guided = self._grams.get(key) if key is not None else None
        fresh = guided is None
        if guided is None:
            guided = self._frozen.features(self._guide_record, x, self._input)
            if self._pairs is None:
                self._pairs = self._even(features, guided)
            for side, record, seen, default in (
                ("target", self._record, features, self._default[0]),
                ("guide", self._guide_record, guided, self._default[1]),
            ):
                if not default:
                    check_called(side, list(record.layers), list(seen))
            check_comparable(self._pairs, features, guided, per_position=self.alignment.per_position)
            self._check_order(features)
        assert self._pairs is not None
        if mask is not None:
            check_mask(mask, {t: features[t] for t, _ in self._pairs})
        if fresh:
            with torch.no_grad():
                guided = self.alignment.prepared(guided, (g for _, g in self._pairs), mask)
            if key is not None:
                self._grams[key] = guided
        mine = self.alignment.prepared(features, (t for t, _ in self._pairs), mask)
        similar = self.alignment.similarities(self._pairs, mine, guided)
        value = self.alpha * (1 - similar).sum()
        self._note(similar.detach(), value.detach(), task)
        return value

    def _note(self, similar: Tensor, value: Tensor, task: Tensor | None) -> None:
        self._similarity.append(similar)
        self._steps.append(self.step)
        if task is not None:
            self._share.append(value / (value + task.detach()))
        self.step += 1
        if self.until_step is not None and self.step >= self.until_step:
            self.remove()

    def _even(self, mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
        target, guide = list(mine), list(theirs)
        if self._default[0]:
            target = without_logits(self.target, list(same_rows(mine)))
        if self._default[1]:
            guide = without_logits(self.guide, list(same_rows(theirs)))
        return tuple((target[j], g) for g, j in zip(guide, even_map(len(guide), len(target)), strict=True))

    def _check_order(self, features: Mapping[str, Tensor]) -> None:
        """Warn once where the batch seems to stand second: the similarity would be one of time steps."""
        if self._order_checked or self._input is None or self._pairs is None:
            return
        self._order_checked = True
        args, kwargs = self._input
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        late = [t for t, _ in self._pairs if x is not None and looks_time_first(features[t], x)]
        if late:
            warnings.warn(
                f"{late[0]!r} puts out {tuple(features[late[0]].shape)}, time first as it seems: its time steps are "
                "compared in place of the rows of the batch. Set batch_first=True",
                stacklevel=3,
            )

    def wrap(self, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`loss` plus the guidance on the target's last batch, with the same arguments.

        For trainers that own the loop: Hugging Face's ``Trainer(compute_loss_func=guidance.wrap(f))``, or a
        Lightning module's loss. Without gradient, as in an evaluation, it is the task's loss alone and counts no step.
        """

        def guided(*args: Any, **kwargs: Any) -> Tensor:
            task = loss(*args, **kwargs)
            return task + self.loss(task=task) if torch.is_grad_enabled() else task

        return guided

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(target layer, guide layer); with "even" they are known after the first loss."""
        return self._pairs or ()

    def report(self) -> GuidanceReport:
        """Similarity of each pair over the steps so far, and the alignment's share of the loss."""
        similarity = torch.stack(self._similarity).cpu() if self._similarity else torch.empty(0, len(self.pairs))
        share = torch.stack(self._share).cpu() if self._share else torch.empty(0)
        return GuidanceReport(self.pairs, tuple(self._steps), similarity, share)

    def remove(self) -> None:
        """Take the hooks off the target; the loss is 0 from here on."""
        if self._attached:
            self._record.__exit__()
            self._record.clear()
            self._handle.remove()
            self._attached, self._input = False, None

    def state_dict(self) -> dict[str, Any]:
        """alpha, the step counter and the pairs."""
        return {"alpha": self.alpha, "step": self.step, "pairs": [list(p) for p in self.pairs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: past `until_step` the hooks come off, before it they come back.

        Raises
        ------
        TargetError
            For pairs of layers that this guidance does not look at; nothing is changed then.
        """
        pairs = tuple((t, g) for t, g in state["pairs"])
        for side, record, names in zip(("target", "guide"), (self._record, self._guide_record), zip(*pairs)):
            if strange := [n for n in names if n.partition(":")[0] not in record.layers]:
                raise TargetError(f"the state pairs {strange[0]!r} of the {side}; here it is {list(record.layers)}")
        self.alpha, self.step = float(state["alpha"]), int(state["step"])
        self._pairs = pairs or self._pairs
        if self.until_step is not None and self.step >= self.until_step:
            self.remove()
        elif not self._attached:
            self._attach()


def _note_input(owner: "weakref.ref[Guidance]") -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        guidance = owner()
        if guidance is not None:
            guidance._input = (args, kwargs)

    return note


def _check_hookable(name: str, model: nn.Module) -> None:
    if isinstance(model, nn.DataParallel):
        raise ValueError(f"the {name} is a DataParallel, whose replicas the hooks do not see: give its .module")
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(f"the {name} is compiled, and hooks may be lost in it: guide the module before torch.compile")

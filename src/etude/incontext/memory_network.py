"""A memory network whose controllers learn within an episode by synthetic gradients.

    q_t = R([x_t; y_{t-1}]),  a_t = softmax(cos(q_t, M) / tau),  r_t = sum_j a_tj M_j
    o_t = O([q_t; r_t]),  yhat_t = head(o_t)
    then the label comes:  w_t = W([o_t; y_t]),  g_t = sigmoid(gate([q_t; r_t; y_t])),  M is written
    fast step on the last layer of R, O and W:  theta_f <- theta_f - eta m_t S(h, c) i^T,  m_t = sigmoid(mod([h; c]))

Source: Fernando et al. 2020, arXiv 2011.05438. **Reconstruction**: only the abstract was available to us. It fixes that
a memory network's controllers learn within an episode by synthetic gradients, as by a neuromodulator; the equations
are those of the literature it builds on (see `etude.layers.memory`, `etude.incontext.synthetic_gradients`).
"""

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.incontext.episode_labels import (
    KINDS,
    TaskKind,
    check_items,
    encode_labels,
    item_losses,
    prediction_error,
    previous_labels,
)
from etude.incontext.memory_session import MemorySession
from etude.incontext.memory_state import EpisodeState, Pending, Record, padded_state
from etude.incontext.synthetic_gradients import CONTROLLERS, Feedback, Tape, synthetic_loss, true_gradients
from etude.layers import ContentMemory, FastLinear
from etude.layers.fast_weights import Fast


class EpisodeOutput(NamedTuple):
    """Train on ``loss + synthetic_loss``."""

    predictions: Tensor
    """(B, T, out) logits or values, each made before its label was seen."""
    loss: Tensor | None
    """Mean over the labelled items; None without labels."""
    synthetic_loss: Tensor
    """L_syn; 0 where gradients are off, nothing was labelled or the net has none."""
    memory: Tensor
    """(B, l, k) after the episode."""
    attention: Tensor
    """(B, T, l) read weights."""
    gates: Tensor
    """(B, T) how far each step's label was written, 0 without label."""
    writes: Tensor
    """(B, T, l) how much of each slot the step's label replaced: write weights times gate."""
    fast_norm: Tensor
    """(B, 3) Frobenius norms of the fast weights of R, O and W after the episode."""
    state: EpisodeState


class FastSlowMemory(nn.Module):
    """Few-shot learner that reads an episode item by item and is told each label after its prediction.

    Parameters
    ----------
    input_size, output_size
        Features (of the encoder, where one is given) and classes or values.
    slots, width, hidden_size
        Memory (l, k) and width of the controllers. The defaults are those of memory-augmented networks (MANN).
    feedback
        "per_controller", "shared", another net's `Feedback` (then it is trained with both), or None: the plain memory
        network without fast weights.
    task
        "classification" (labels of whole numbers, -1 missing) or "regression" (floats, NaN missing).
    write
        "lru": also at the least used slot, as new classes need; "content": where it was read.
    meta
        Gradients of the episode's loss flow through the fast weights into S, modulator, step sizes and h. False: the
        fast weights are constants and only L_syn trains S.
    synthetic
        Whether there is an L_syn.
    bootstrap
        S at the end of the episode stands for what would have come after it, for truncated episodes.
    controller
        "mlp", or "lstm" for a read controller that remembers.
    rate
        First step size eta of each controller; learned.
    max_fast_norm
        Bound of each row's fast weight in each controller.
    task_id
        Which task this is to a `Feedback` of several.
    encoder
        From (n, ...) to (n, input_size).

    Raises
    ------
    ValueError
        For unknown names, sizes below 1 or that do not fit a given feedback, a task_id that the feedback does not have,
        or a rate that is not positive and finite.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        slots: int = 128,
        width: int = 40,
        *,
        hidden_size: int = 200,
        feedback: str | Feedback | None = "per_controller",
        task: TaskKind = "classification",
        write: Literal["lru", "content"] = "lru",
        meta: bool = True,
        synthetic: bool = True,
        bootstrap: bool = False,
        controller: Literal["mlp", "lstm"] = "mlp",
        rate: float = 0.1,
        temperature: float = 0.1,
        max_fast_norm: float | None = 10.0,
        task_id: int = 0,
        num_tasks: int = 1,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if task not in KINDS:
            raise ValueError(f"task must be one of {', '.join(KINDS)}, got {task!r}")
        if controller not in ("mlp", "lstm"):
            raise ValueError(f"controller must be 'mlp' or 'lstm', got {controller!r}")
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be positive and finite, got {rate}")
        if min(input_size, output_size, hidden_size) < 1:
            raise ValueError(f"sizes must be at least 1, got {input_size}, {output_size}, {hidden_size}")
        self.input_size, self.output_size, self.task = input_size, output_size, task
        self.meta, self.synthetic, self.bootstrap, self.task_id = meta, synthetic, bootstrap, task_id
        self.encoder = encoder
        self.cells = ContentMemory(slots, width, write, temperature=temperature)
        if task == "classification" and slots < output_size:
            warnings.warn(f"{slots} slots for {output_size} classes: some must share a slot", stacklevel=2)
        read_in = input_size + output_size
        self.read_body = nn.LSTMCell(read_in, hidden_size) if controller == "lstm" else nn.Linear(read_in, hidden_size)
        self.output_body, self.write_body = (
            nn.Linear(2 * width, hidden_size), nn.Linear(hidden_size + output_size, hidden_size)
        )  # fmt: skip
        outs = {"read": width, "output": hidden_size, "write": width}
        self.controllers = nn.ModuleDict(
            {name: FastLinear(nn.Linear(hidden_size, size), max_fast_norm) for name, size in outs.items()}
        )
        self.head, self.gate = nn.Linear(hidden_size, output_size), nn.Linear(2 * width + output_size, 2)
        self.feedback: Feedback | None = None
        if feedback is not None:
            if not isinstance(feedback, Feedback):
                feedback = Feedback(outs, width, output_size, feedback, num_tasks=num_tasks)  # type: ignore[arg-type]
            if feedback.sizes != outs or feedback.width != width or feedback.output_size < output_size:
                raise ValueError(
                    f"a feedback for controllers {feedback.sizes} and {feedback.output_size} outputs does not fit "
                    f"{outs} and {output_size}"
                )
            tasks = 1 if feedback.task is None else feedback.task.num_embeddings
            if not 0 <= task_id < tasks:
                raise ValueError(f"task_id must lie in 0..{tasks - 1}, the tasks of the feedback, got {task_id}")
            self.feedback = feedback
            self.modulators = nn.ModuleDict(
                {name: nn.Linear(size + feedback.context_size, 1) for name, size in outs.items()}
            )
            raw = math.log(math.expm1(rate)) if rate < 30 else rate  # equal from there on, and expm1 overflows
            self.raw_rates = nn.Parameter(torch.full((len(outs),), raw))

    @property
    def rates(self) -> Tensor:
        """(3,) step sizes eta of the fast steps of R, O and W; empty without a fast path."""
        return F.softplus(self.raw_rates) if self.feedback is not None else torch.zeros(0)

    def forward(
        self, x: Tensor, y: Tensor | None = None, label_delay: int = 1, *, mask: Tensor | None = None,
        reveal: Tensor | None = None, allow_leak: bool = False, state: EpisodeState | None = None,
    ) -> EpisodeOutput:  # fmt: skip
        """Read episodes (B, T, input), or (B, T, ...) with an encoder.

        Parameters
        ----------
        y
            (B, T), or (B, T, out) for regression. A missing label is neither written nor learned from, and not in the
            loss. None: plain reading.
        label_delay
            Steps from an item to its label's arrival: 1, the label follows the prediction and is an input at the next
            item. 0 shows it with the item.
        mask
            (B, T) bool, True = real; for episodes of unequal length, padded in front or behind. Padding changes
            nothing, but time goes on in it: labels on their way arrive.
        reveal
            (B, T) bool, labels that the net is shown; the loss has all. False everywhere: nothing can be learned.
        allow_leak
            Allows a label_delay of 0, with which the net can see what it is asked.
        state
            `EpisodeOutput.state` of the items before: this call goes on as if the episode had not been cut. It keeps
            the graph of those items; None: a new episode.

        Raises
        ------
        ValueError
            For shapes or a state that do not fit, features that are not finite (padding may be anything), classes
            beyond the outputs, or a leak.
        """
        if label_delay < 0 or label_delay != int(label_delay):
            raise ValueError(f"label_delay must be a whole number of items, at least 0, got {label_delay}")
        if label_delay == 0 and not allow_leak:
            raise ValueError(f"label_delay={label_delay} shows the answer with its item: allow_leak=True allows 0")
        x = self._features(x)
        batch, time = x.shape[:2]
        for name, given in (("y", y), ("mask", mask), ("reveal", reveal)):
            if given is not None and tuple(given.shape[:2]) != (batch, time):
                raise ValueError(f"{name} must have shape ({batch}, {time}), got {tuple(given.shape)}")
            if given is not None and name != "y" and given.dtype != torch.bool:
                raise ValueError(f"{name} must be Boolean, got {given.dtype}")
        self._check(state, batch, label_delay)
        target, known = x.new_zeros(batch, time, self.output_size), torch.zeros(batch, time, dtype=torch.bool)
        if y is not None:
            target, known = encode_labels(y, self.output_size, self.task)
            target = target.to(x.dtype)
        known = known.to(x.device)
        if mask is not None:
            known, x = known & mask, x.masked_fill(~mask[..., None], 0.0)
        check_items(x)
        shown = known if reveal is None else known & reveal
        seen = target * shown[..., None]
        predictions, traces, tape, state = self._episode(x, seen, shown, label_delay, state, mask)
        loss = None
        synthetic = predictions.new_zeros(())
        if bool(known.any()):
            items = item_losses(predictions, target, self.task) * known
            loss = items.sum() / known.sum()
            if self._wants_targets(tape):
                total = items.sum()
                synthetic = synthetic_loss(self.feedback, tape, self._gradients(total, tape), self.task_id)  # type: ignore[arg-type]
        norms = torch.stack([f.norm() if f.inputs.shape[1] else f.bound.new_zeros(batch) for f in state.fast], 1) if (
            state.fast) else x.new_zeros(batch, len(CONTROLLERS))  # fmt: skip
        return EpisodeOutput(predictions, loss, synthetic, state.memory, *traces, norms.detach(), state)

    def gradient_tape(self, x: Tensor, y: Tensor) -> tuple[Tape, dict[str, list[Tensor]]]:
        """Outputs of the controllers in labelled episodes, and the true gradient at each; for diagnostics."""
        if self.feedback is None:
            raise ValueError("a net without feedback takes no fast steps: there is nothing to compare")
        target, known = encode_labels(y, self.output_size, self.task)
        with torch.enable_grad():
            predictions, _, tape, _ = self._episode(self._features(x), target.to(x.dtype), known.to(x.device), 1, None)
            return tape, self._gradients((item_losses(predictions, target, self.task) * known).sum(), tape)

    def _check(self, state: EpisodeState | None, batch: int, delay: int) -> None:
        if state is None:
            return
        wanted = (batch, self.cells.slots, self.cells.width)
        if tuple(state.memory.shape) != wanted:
            raise ValueError(f"state has a memory of {tuple(state.memory.shape)}, these episodes need {wanted}")
        if state.previous is not None and state.previous.shape[1] != delay:
            raise ValueError(f"state was left with label_delay={state.previous.shape[1]}: go on with it, not {delay}")

    def _features(self, x: Tensor) -> Tensor:
        if x.ndim > 1 and x.shape[1] == 0:
            raise ValueError(f"episodes need at least one item, got {tuple(x.shape)}")
        if self.encoder is not None and x.ndim > 2:
            x = self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        if x.ndim != 3 or x.shape[-1] != self.input_size:
            raise ValueError(f"episodes must be (B, T, {self.input_size}), got {tuple(x.shape)}")
        return x

    def _wants_targets(self, tape: Tape) -> bool:
        return bool(self.synthetic and self.feedback is not None and tape.contexts and torch.is_grad_enabled())

    def _gradients(self, total: Tensor, tape: Tape) -> dict[str, list[Tensor]]:
        if self.bootstrap:
            assert self.feedback is not None
            for name in CONTROLLERS:
                h = tape.outputs[name][-1]
                ahead = self.feedback(name, h.detach(), tape.contexts[-1].detach(), self.task_id).detach()
                total = total + (ahead * h * tape.known[-1][:, None]).sum()
        return true_gradients(total, tape)

    def _episode(
        self, x: Tensor, seen: Tensor, shown: Tensor, delay: int, state: EpisodeState | None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tape, EpisodeState]:  # fmt: skip
        """All steps: predictions, (attention, gates, writes), where fast steps were taken, the last state."""
        batch, time = x.shape[:2]
        state = self.begin(batch) if state is None else state
        tape = Tape({name: [] for name in CONTROLLERS}, [], [])
        old = state.pending  # items of the part before, whose labels come now
        records = [p.record for p in old]
        if old:
            seen = torch.cat([torch.stack([p.label for p in old], 1), seen], 1)
            shown = torch.cat([torch.stack([p.known for p in old], 1), shown], 1)
        n = len(old)
        own = seen[:, n:]
        before = (previous_labels(own, delay) if state.previous is None else
                  torch.cat([state.previous, own], 1)[:, :time]).unbind(1)  # fmt: skip
        labels, there = seen.unbind(1), shown.unbind(1)
        some, every = shown.any(0).tolist(), shown.all(0).tolist()
        real = [True] * time if mask is None else mask.all(0).tolist()
        gates = [x.new_zeros(batch)] * (n + time)
        places = [x.new_zeros(batch, self.cells.slots)] * (n + time)
        for t, x_t in enumerate(x.unbind(1)):
            ahead, record = self.step(state, x_t, before[t])
            state = ahead if real[t] or mask is None else padded_state(state, ahead, mask[:, t, None])
            records.append(record)
            s = n + (t if delay == 0 else t - delay + 1)  # whose label has just come
            if s >= 0 and some[s]:
                known = None if every[s] else there[s]
                kept = tape if s >= n or records[s].q.requires_grad else None  # the part before may have had no graph
                state, gates[s], places[s] = self.learn(state, records[s], labels[s], known, kept)
        predictions = torch.stack([r.prediction for r in records[n:]], 1)
        attention = torch.stack([r.attention for r in records[n:]], 1).detach()
        gate = torch.stack(gates[n:], 1)
        writes = torch.stack(places[n:], 1) * gate[..., None]
        late = range(max(0, n + time - delay + 1) if delay else n + time, n + time)
        state = state._replace(
            previous=_last(own, delay, state.previous),
            pending=tuple(Pending(records[s], labels[s], there[s]) for s in late),
        )
        return predictions, (attention, gate, writes), tape, state

    def begin(self, batch_size: int) -> EpisodeState:
        """The state before an episode."""
        memory = self.cells.start(batch_size)
        usage, cell = memory.new_zeros(batch_size, self.cells.slots), None
        if isinstance(self.read_body, nn.LSTMCell):
            zero = memory.new_zeros(batch_size, self.read_body.hidden_size)
            cell = (zero, zero)
        layers: Any = self.controllers.values() if self.feedback is not None else ()
        return EpisodeState(memory, usage, tuple(layer.start(batch_size) for layer in layers), cell)

    def step(self, state: EpisodeState, x_t: Tensor, previous: Tensor) -> tuple[EpisodeState, Record]:
        """Read and predict; x_t (B, input), previous (B, out) the last label as a vector, zeros if unknown."""
        fast: tuple[Fast | None, ...] = state.fast or (None, None, None)
        z = torch.cat([x_t, previous], -1)
        if isinstance(self.read_body, nn.LSTMCell):
            cell = self.read_body(z, state.cell)
            i_r, state = cell[0], state._replace(cell=cell)
        else:
            i_r = torch.relu(self.read_body(z))
        q = self.controllers["read"](i_r, fast[0])
        r, attention = self.cells.read(q, state.memory)
        i_o = torch.relu(self.output_body(torch.cat([q, r], -1)))
        o = self.controllers["output"](i_o, fast[1])
        usage = self.cells.used(state.usage, attention.detach())
        return state._replace(usage=usage), Record(i_r, q, r, attention, i_o, o, self.head(o))

    def learn(
        self, state: EpisodeState, record: Record, y: Tensor, known: Tensor | None, tape: Tape | None = None
    ) -> tuple[EpisodeState, Tensor, Tensor]:
        """Write the label and take the fast steps; returns the gates (B,) and the write weights (B, l), too.

        y (B, out) as a vector; known (B,) bool, rows whose label is there (None: all); nothing changes in other rows.
        """
        fast: list[Fast | None] = list(state.fast) or [None, None, None]
        i_w = torch.relu(self.write_body(torch.cat([record.o, y], -1)))
        w = self.controllers["write"](i_w, fast[2])
        gate, mix = torch.sigmoid(self.gate(torch.cat([record.q, record.r, y], -1))).split(1, -1)
        real = None if known is None else known[:, None].to(w.dtype)
        place = self.cells.where(record.attention, state.usage, mix)
        gate = gate if real is None else gate * real
        memory = self.cells.write(state.memory, place, w, gate)
        used = state.usage + (place if real is None else place * real).detach()
        state = state._replace(memory=memory, usage=used)
        if self.feedback is None:
            return state, gate.detach()[:, 0], place.detach()
        c = self.feedback.context(record.r, y, prediction_error(record.prediction, y, self.task))
        rates, steps = self.rates, []
        pairs = ((record.q, record.read_input), (record.o, record.output_input), (w, i_w))
        for j, (name, (h, i)) in enumerate(zip(CONTROLLERS, pairs, strict=True)):
            both = torch.cat([h, c], -1)
            guess = self.feedback(name, h, c, self.task_id, both=both)
            rate = rates[j] * torch.sigmoid(self.modulators[name](both))
            rate = rate if real is None else rate * real
            if not self.meta:
                guess, rate, i = guess.detach(), rate.detach(), i.detach()
            layer: Any = self.controllers[name]
            steps.append(layer.update(fast[j], guess, i, rate))
            if tape is not None:
                tape.outputs[name].append(h)
        if tape is not None:
            tape.contexts.append(c)
            tape.known.append(torch.ones_like(y[:, 0], dtype=torch.bool) if known is None else known)
        return state._replace(fast=tuple(steps)), gate.detach()[:, 0], place.detach()

    def start(self, batch_size: int = 1) -> MemorySession:
        """An online learner in its own session: ``observe(x, y)`` learns, ``predict(x)`` does not."""
        return MemorySession(self, batch_size)

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets."""
        kind = "none" if self.feedback is None else self.feedback.kind
        return f"{self.input_size}, {self.output_size}, task={self.task}, feedback={kind}, meta={self.meta}"


def _last(labels: Tensor, delay: int, before: Tensor | None) -> Tensor:
    """(B, delay, out) the labels that are fed after the last item, zeros where the episode is shorter."""
    if before is None:
        before = labels.new_zeros(len(labels), delay, labels.shape[2])
    whole = torch.cat([before, labels], 1)
    return whole[:, whole.shape[1] - delay :]

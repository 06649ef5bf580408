"""Recoding: after each step of a recurrent net, move its *activations* a little down the gradient of an error signal.

    (h, c) = cell(x_t, h, c);  o_t = decode(h)
    delta_t = signal(o_t, ...);  G = d delta_t / d(h, c) within the step
    (h, c) <- (h, c) - alpha * stopgrad(G);  o_t = decode(h) again where the signal looked at no target

The signal is read off the top h. If it is L-smooth there, ``delta(h') <= delta(h) - alpha (1 - L alpha / 2) ||g||^2``
with g = d delta / d h at the top: for alpha < 2 / L it falls at this step. Below the top, and in c, the step acts on
what is read later only, and nothing is said of the loss there.

Source: Ulmer 2019, arXiv 2101.00674. Differs: gradients are in closed form through the cells and the decoder
(`etude.layers.recoding_cells`, `etude.layers.recoding_signals`), `-log p` is the default surprise instead of
`p^(-p) - 1`, and a token that a state was recoded with is never predicted from that state.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.data.randomness import fork_global
from etude.layers.recoding_cells import CellStack, State
from etude.layers.recoding_signals import (
    AnchoredEnsemble,
    Custom,
    HeadSignal,
    MeanDecoder,
    Pull,
    Score,
    Surprisal,
    custom_value,
    ensemble_entropy,
    predictive_entropy,
    surprisal,
)
from etude.layers.recoding_stats import IGNORE, RecodingStats, StepLog
from etude.layers.recoding_steps import StepSizes
from etude.layers.recurrent_truncation import detach


class Recoder(nn.Module):
    """A recurrent language model whose states are recoded while it runs, in training as in evaluation.

    Parameters
    ----------
    rnn
        `nn.LSTM`, `nn.GRU` or `nn.RNN` of one direction, or one of their cells; used as it is, not copied.
    decoder
        From (..., hidden) to logits (..., vocabulary). A linear one is differentiated in closed form. None: the mean
        of the decoders of `ensemble_entropy`.
    signal
        "surprisal", "predictive_entropy" (10 masks of dropout 0.2), "ensemble_entropy" (of a decoder with members,
        such as `AnchoredEnsemble`), a signal made by the functions of these names, or any differentiable
        ``signal(logits (B, V), state, target (B,) or None) -> (B,)``; `state` is as `torch.nn` has it.
    step, step_size
        "fixed"; "learned": a scalar for each layer's h and c; "mlp": predicted from the layer's h. All start at
        `step_size`, which scales them ever after; 0 is the plain network.
    score, target
        Of the surprisal: "nll" or "official" (see `surprisal`). "gold": the targets of the call, which become the
        next inputs; "argmax": the most likely token, also where targets are given; "auto": gold where given.
        Targets of -100 are padding: no step.
    redecode
        Whether outputs are decoded again from the recoded state. None: for signals that see no target.
    layers
        "all", or only the "top" one is recoded.
    direction
        "gradient", or "random": a step of the same length in a random direction, as a control.
    embedding
        Turns what `forward` gets into vectors (B, T, input).
    dropout
        On the hidden state before the decoder, in training. That between the layers of `rnn` is its own and acts while
        `rnn` is in training mode.
    track
        Keep `last_stats`; False saves the second measurement of the signal.

    Attributes
    ----------
    step_size
        May be set at any time.
    last_stats
        `RecodingStats` of the last call, None after a call without recoding.

    Raises
    ------
    ValueError
        For unknown names, a negative step size, two directions, or `redecode=True` with gold targets: the output
        would have seen its own answer.
    """

    def __init__(
        self,
        rnn: nn.Module,
        decoder: nn.Module | None = None,
        signal: str | HeadSignal | Custom = "surprisal",
        step: Literal["fixed", "learned", "mlp"] = "fixed",
        step_size: float = 0.1,
        *,
        score: Score = "nll",
        target: Literal["auto", "gold", "argmax"] = "auto",
        redecode: bool | None = None,
        layers: Literal["all", "top"] = "all",
        direction: Literal["gradient", "random"] = "gradient",
        embedding: nn.Module | None = None,
        dropout: float = 0.0,
        track: bool = True,
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("target", target, ("auto", "gold", "argmax")),
            ("layers", layers, ("all", "top")),
            ("direction", direction, ("gradient", "random")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.stack = CellStack(rnn)
        self.rnn = rnn
        made = _signal(signal, score, decoder)
        own = made.decoders if decoder is None and hasattr(made, "decoders") else None
        if decoder is None and own is None:
            raise ValueError("give a decoder (only ensemble_entropy brings its own)")
        self.decoder: nn.Module = MeanDecoder(own) if own is not None else decoder  # type: ignore[arg-type,assignment]
        self.signal = made
        self.supervised = bool(getattr(made, "supervised", True))  # a user's signal may look at the target
        if redecode and target == "gold" and self.supervised:
            raise ValueError("redecode=True with gold targets leaks the answer into the output: keep the first output")
        self.target, self.redecode, self.layers, self.direction = target, redecode, layers, direction
        self.embedding, self.dropout, self.track = embedding, dropout, track
        self.steps = StepSizes(step, self.stack.num_layers, self.stack.num_parts, self.stack.hidden_size)
        self.step_size = step_size
        self.last_stats: RecodingStats | None = None

    @property
    def step_size(self) -> float:
        """Scale of all steps; setting a negative or infinite one raises ValueError."""
        return self._step_size

    @step_size.setter
    def step_size(self, value: float) -> None:
        if not 0 <= float(value) < float("inf"):
            raise ValueError(f"step_size must be finite and at least 0, got {value}")
        self._step_size = float(value)

    def forward(
        self, x: Tensor, state: Any = None, targets: Tensor | None = None, *, recode: Tensor | None = None,
        generator: torch.Generator | None = None, detach_state: bool = True,
    ) -> tuple[Tensor, Any]:  # fmt: skip
        """Logits (B, T, V), each made before its own target was looked at, and the state after the last step.

        Parameters
        ----------
        x
            (B, T, input), or whatever `embedding` takes, (B, T) first. Batch first also for modules that are not.
        state
            As the wrapped module has it; None: zeros.
        targets
            (B, T) ids. The recoded state knows them, so targets[:, t] must be known when step t + 1 is read.
        recode
            (T,) bool, steps after which to recode; None: all.
        generator
            Of dropout and random directions; None: torch's global one.
        detach_state
            The returned state is cut from its history, as windows of truncated back-propagation need it.

        Raises
        ------
        ValueError
            For shapes that do not fit, missing targets with "gold", targets that are no token of the vocabulary and not
        -100, or a signal of a wrong shape.
        RuntimeError
            Under `torch.inference_mode()`, where no gradient can be taken; `torch.no_grad()` is fine.
        """
        vectors = x if self.embedding is None else self.embedding(x)
        if vectors.ndim != 3 or vectors.shape[1] < 1:
            raise ValueError(f"the net reads (batch, time, input) with time >= 1, got {tuple(vectors.shape)}")
        gold = self._gold(vectors, targets)
        if recode is not None and tuple(recode.shape) != (vectors.shape[1],):
            raise ValueError(f"recode must have shape ({vectors.shape[1]},), one a step, got {tuple(recode.shape)}")
        if self.step_size == 0 or (recode is not None and not bool(recode.any())):
            logits, state = self._plain(vectors, state, generator)
        else:
            if torch.is_inference_mode_enabled():
                raise RuntimeError("recoding takes gradients: use torch.no_grad() instead of torch.inference_mode()")
            logits, state = self._recoded(vectors, state, gold, recode, generator)
        return logits, detach(state) if detach_state else state

    def _gold(self, x: Tensor, targets: Tensor | None) -> Tensor | None:
        if targets is None:
            if self.target == "gold" and self.supervised:
                raise ValueError('target="gold" needs targets (B, T): the tokens that the steps should have predicted')
            return None
        if tuple(targets.shape) != tuple(x.shape[:2]) or targets.is_floating_point():
            raise ValueError(f"targets must be ids of shape {tuple(x.shape[:2])}, got {tuple(targets.shape)}")
        if not self.supervised or self.target == "argmax":
            return None
        if self.redecode:
            raise ValueError("redecode=True with gold targets leaks the answer into the output: keep the first output")
        return targets

    def _mask(self, like: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
        return (torch.rand(like.shape, generator=generator, device=like.device) >= rate).to(like.dtype) / (1 - rate)

    def _plain(self, x: Tensor, state: Any, generator: torch.Generator | None) -> tuple[Tensor, Any]:
        self.last_stats = None
        if self.stack.single:
            hidden, layers = [], self.stack.split(state, x)
            for u in self.stack.inputs(x).unbind(1):
                layers, _ = self.stack.step(u, layers, None)
                hidden.append(layers[0][0])
            y, state = torch.stack(hidden, 1), self.stack.join(layers)
        else:
            self.stack.split(state, x)  # its shape is checked
            own = self.stack.dropout and generator is not None  # dropout of torch's own
            with fork_global(generator) if own and generator is not None else nullcontext():
                y, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1), state)
            y = y if self.rnn.batch_first else y.transpose(0, 1)
        if self.training and self.dropout:
            y = y * self._mask(y, self.dropout, generator)
        return self.decoder(y), state

    def _recoded(
        self, x: Tensor, state: Any, gold: Tensor | None, recode: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Any]:
        stack, layers, log = self.stack, self.stack.split(state, x), StepLog(self.stack)
        again = self.redecode
        if again is None:  # a surprise keeps its output also where it is that of the net's own guess
            again = gold is None and not isinstance(self.signal, Surprisal)
        outputs, hidden, reads = [], [], []
        for t, u in enumerate(stack.inputs(x).unbind(1)):
            masks = None
            if stack.dropout:
                masks = [self._mask(layers[0][0], stack.dropout, generator) for _ in range(stack.num_layers - 1)]
            layers, caches = stack.step(u, layers, masks)
            top = layers[-1][0]
            read = self._mask(top, self.dropout, generator) if self.training and self.dropout else None
            active = recode is None or bool(recode[t])
            if again and active:
                with torch.no_grad():
                    logits = self.decoder(top if read is None else top * read)
            else:
                logits = self.decoder(top if read is None else top * read)
            if t == 0 and gold is not None:
                _check_ids(gold, logits.shape[-1])
            if active:
                target = None if gold is None else gold[:, t]
                layers = self._move(layers, caches, masks, read, logits.detach(), target, generator, log)
            else:
                log.skip()
            hidden.append(layers[-1][0])
            reads.append(read)
            outputs.append(logits)
        after = torch.stack(hidden, 1)
        read_all = None if reads[0] is None else torch.stack(reads, 1)  # type: ignore[arg-type]
        logits = torch.stack(outputs, 1)
        if again:
            new = self.decoder(after if read_all is None else after * read_all)
            logits = new if recode is None else torch.where(recode.to(new.device)[None, :, None], new, logits)
        self.last_stats = log.stats(self.signal, self.decoder, after.detach(), read_all) if self.track else None
        return logits, stack.join(layers)

    def _move(
        self, layers: list[State], caches: Sequence[tuple[Tensor, ...]], masks: list[Tensor] | None,
        read: Tensor | None, logits: Tensor, target: Tensor | None, generator: torch.Generator | None, log: StepLog,
    ) -> list[State]:  # fmt: skip
        """One step down the signal: the recoded layers."""
        states = [tuple(p.detach() for p in parts) for parts in layers]
        direct: list[list[Tensor | None]] = [[None] * self.stack.num_parts for _ in states]
        known = None if target is None else target.clamp_min(0)
        pulled: Pull | None = None
        with torch.no_grad():
            if isinstance(self.signal, HeadSignal):
                outside = None if self.signal.own_dropout else read
                seen = states[-1][0] if outside is None else states[-1][0] * outside
                pulled = self.signal.pull(seen, self.decoder, logits, known, generator)
                direct[-1][0] = pulled.grad if outside is None else pulled.grad * outside
                delta = pulled.delta
            else:
                delta, direct = self._custom(states, read, known)
            lowest = self.stack.num_layers - 1 if self.layers == "top" else 0
            grads = self.stack.pull_back([tuple(c.detach() for c in cache) for cache in caches], direct, masks, lowest)
            if target is not None:
                real = (target != IGNORE).to(logits.dtype)
                delta, grads = delta * real, [tuple(g * real[:, None] for g in parts) for parts in grads]
            grads = [tuple(torch.where(g.isnan(), 0.0, g) for g in parts) for parts in grads]
            if self.direction == "random":
                grads = [tuple(_random_like(g, generator) for g in parts) for parts in grads]
        new = list(layers)
        sizes = logits.new_zeros(self.stack.num_layers, self.stack.num_parts)
        for layer, parts in enumerate(grads, start=lowest):
            moved = []
            for part, (s, g) in enumerate(zip(layers[layer], parts, strict=True)):
                alpha = self.steps(layer, part, states[layer][0], self.step_size)
                moved.append(s - alpha * g)
                if self.track:
                    sizes[layer, part] = alpha.detach().mean() if isinstance(alpha, Tensor) else alpha
            new[layer] = tuple(moved)
        if self.track:
            after = None
            if pulled is None:
                with torch.no_grad():
                    final = [tuple(p.detach() for p in parts) for parts in new]
                    top = final[-1][0] if read is None else final[-1][0] * read
                    after = custom_value(self.signal, self.decoder(top), self.stack.join(final), known)  # type: ignore[arg-type]
                    after = after if target is None else after * (target != IGNORE)
            log.add(delta, grads, lowest, sizes, None if pulled is None else pulled.kept, target, after)
        return new

    def _custom(
        self, states: list[State], read: Tensor | None, target: Tensor | None
    ) -> tuple[Tensor, list[list[Tensor | None]]]:
        with torch.enable_grad():
            leaves = [tuple(p.detach().requires_grad_(True) for p in parts) for parts in states]
            top = leaves[-1][0] if read is None else leaves[-1][0] * read
            delta = custom_value(self.signal, self.decoder(top), self.stack.join(leaves), target)  # type: ignore[arg-type]
            if not delta.requires_grad:
                raise ValueError("the signal must be differentiable: a tensor of shape (B,) that keeps its graph")
            flat = [p for parts in leaves for p in parts]
            found = torch.autograd.grad(delta.sum(), flat, allow_unused=True)
        n = self.stack.num_parts
        return delta.detach(), [list(found[i * n : (i + 1) * n]) for i in range(len(states))]

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets."""
        return f"step={self.steps.kind}, step_size={self.step_size}, target={self.target}, layers={self.layers}"


def _signal(signal: Any, score: Score, decoder: nn.Module | None) -> Any:
    if signal == "surprisal" or signal is surprisal:
        return Surprisal(score)
    if signal in ("predictive_entropy", "ensemble_entropy"):
        if signal == "predictive_entropy":
            return predictive_entropy()
        if not hasattr(decoder, "decoders"):
            raise ValueError("signal 'ensemble_entropy' needs a decoder with members, such as AnchoredEnsemble")
        assert decoder is not None
        ensemble_entropy(decoder.decoders)  # type: ignore[arg-type]  # at least two members
        return predictive_entropy(0.0, 1)
    if isinstance(signal, str) or not callable(signal):
        known = "surprisal, predictive_entropy, ensemble_entropy"
        raise ValueError(f"signal must be one of {known}, or a function, got {signal!r}")
    return signal


def _check_ids(gold: Tensor, vocab_size: int) -> None:
    """ValueError unless every target is a token or padding."""
    wrong = ((gold < 0) | (gold >= vocab_size)) & (gold != IGNORE)
    if bool(wrong.any()):
        row, step = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"targets[{row}, {step}] is {int(gold[row, step])}, not in 0..{vocab_size - 1}; padding must be {IGNORE}"
        )


def _random_like(g: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows of random direction and the same norms."""
    noise = torch.randn(g.shape, generator=generator, device=g.device, dtype=g.dtype)
    return noise * (g.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12))


__all__ = [
    "AnchoredEnsemble",
    "Recoder",
    "RecodingStats",
    "ensemble_entropy",
    "predictive_entropy",
    "surprisal",
]

"""Recurrent encoder-decoders: the frame of pointer networks and of the fixed-vocabulary nets they are compared with.

With teacher forcing the whole decoder is one LSTM call and all output scores one batched step; only `generate` loops.

Source: Sutskever, Vinyals & Le 2014 (no attention); Bahdanau et al. 2014 and Vinyals et al. 2015, arXiv 1506.03134,
section 2.2 (attention over the inputs).
Names: slot 0 of every output distribution is END, slot j + 1 is input position (or symbol) j.
Differs from the paper: generation starts from a learned vector and ends at END; the attention's context goes to the
output only, not back into the decoder, so that training stays one call.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.layers.cross_entropy import masked_cross_entropy
from etude.layers.decoding import check_allowed, decode
from etude.layers.recurrent import make_rnn, swap_rows
from etude.layers.recurrent_cells import check_lengths, reverse_padded

Mask = str | Callable[[Tensor], Tensor]
MASKS = ("none", "no_repeat", "permutation")
PADS = (-1, -100)
Init = Literal["scaled", "orthogonal", "uniform"] | None


class Seq2SeqOutput(NamedTuple):
    """What a training call returns."""

    loss: Tensor
    """Mean negative log-likelihood, nats, END included."""
    logits: Tensor
    """(batch, m, slots): scores of the m target steps. The step after a target that fills all m columns, where END
    is due, counts in the loss and is not shown."""


class Generated(NamedTuple):
    """What `generate` returns."""

    sequences: Tensor
    """(batch, m) int64, END left out, padded with -1."""
    scores: Tensor
    """(batch,): summed log-probability, END included."""
    finished: Tensor
    """(batch,) bool: END was reached within `max_steps`."""


class Memory(NamedTuple):
    """What the decoder looks at."""

    x: Tensor  # (batch, n, d)
    sizes: Tensor | None  # (batch,), None: all n
    encoded: Tensor  # (batch, n, h)
    state: Any
    slots: Tensor | None  # (batch, slots) bool: which slots exist, None: all


class EncoderDecoder(nn.Module, ABC):
    """LSTM encoder, LSTM decoder started from its last state; a subclass scores the output slots."""

    feeds_back_inputs = True
    reverse_source = False

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1,
        init: Init = "scaled",
    ) -> None:  # fmt: skip
        super().__init__()
        if init not in ("scaled", "orthogonal", "uniform", None):
            raise ValueError(f"init must be scaled, orthogonal, uniform or None, got {init!r}")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        recurrent = "orthogonal" if init == "scaled" else init
        self.encoder = make_rnn("lstm", input_size, hidden_size, num_layers=num_layers, init=recurrent)
        self.decoder = make_rnn("lstm", input_size, hidden_size, num_layers=num_layers, init=recurrent)
        self.start = nn.Parameter(torch.empty(input_size).uniform_(-0.1, 0.1))
        if init == "uniform":  # of the paper's nets the forget biases too, which make_rnn sets apart
            for p in (*self.encoder.parameters(), *self.decoder.parameters()):
                nn.init.uniform_(p, -0.08, 0.08)
        if init == "scaled":
            bound = 2 * input_size**-0.5  # torch's bound shrinks with hidden_size, whatever the input's width
            for rnn in (self.encoder, self.decoder):
                nn.init.uniform_(rnn.get_parameter("weight_ih_l0"), -bound, bound)

    @abstractmethod
    def _prepare(self, memory: Memory) -> Any:
        """What `_score` needs of the memory, computed once a batch."""

    @abstractmethod
    def _score(self, query: Tensor, memory: Memory, prepared: Any, mask: Tensor | None) -> Tensor:
        """Logits (batch, q, slots) of decoder states (batch, q, h), -inf where mask (batch[, q], slots) is False."""

    def _slots(self, n: int) -> int:
        return n + 1

    def _embed(self, x: Tensor) -> Tensor:
        return x

    def _feedback(self, memory: Memory, index: Tensor) -> Tensor:
        """Decoder inputs (batch, q, d) after outputs (batch, q): a copy of the chosen input."""
        at = index.clamp(0, memory.x.shape[1] - 1)[..., None].expand(-1, -1, memory.x.shape[-1])
        return memory.x.gather(1, at)

    def encode(self, x: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Memory:
        """Read the inputs; ValueError for NaN, infinite or misshapen x and for lengths outside 1..n."""
        self._check_input(x)
        sizes = None if lengths is None else check_lengths(lengths, x).to(x.device)
        if sizes is not None and bool((sizes == x.shape[1]).all()):
            sizes = None
        x = self._embed(x)
        encoded, state = self.encoder(reverse_padded(x, sizes) if self.reverse_source else x, None, sizes)
        slots = None
        if self.feeds_back_inputs and (sizes is not None or self._slots(x.shape[1]) > x.shape[1] + 1):
            last = torch.full((x.shape[0],), x.shape[1], device=x.device) if sizes is None else sizes
            slots = torch.arange(self._slots(x.shape[1]), device=x.device) <= last[:, None]
        return Memory(x, sizes, encoded, state, slots)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.input_size or x.shape[1] < 1:
            raise ValueError(f"x must have shape (batch, n >= 1, {self.input_size}), got {tuple(x.shape)}")
        bad = ~torch.isfinite(x)
        if bool(bad.any()):
            raise ValueError(f"row {int(bad.nonzero()[0, 0])} of x holds a NaN or infinite value")

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        target_lengths: Tensor | Sequence[int] | None = None,
        mask: Mask = "none",
        check_targets: bool = False,
        reduction: Literal["tokens", "sequence"] = "tokens",
    ) -> Seq2SeqOutput:
        """Teacher forcing: the loss of a target sequence, all steps at once.

        Parameters
        ----------
        x
            Inputs (batch, n, input_size).
        target
            (batch, m) int64, END left out, padded with -1 or -100 at the end.
        lengths, target_lengths
            Real entries of each row of x and of target; None: all of x, and the target up to its padding.
        mask
            As in `generate`; what it forbids gets -inf in training as well. A target that it forbids stays possible,
            so that the loss is finite, unless `check_targets`.
        check_targets
            Raise where a target breaks a named mask (a repeat; for "permutation" also a missing index).
        reduction
            "tokens": every step weighs the same; "sequence": every row does.

        Raises
        ------
        ValueError
            For an index outside its row (row, index and length are named) and everything that `encode` refuses.
        """
        memory = self.encode(x, lengths)
        target, sizes = self._check_target(target, target_lengths, memory)
        if check_targets:
            self._check_mask(target, sizes, memory, mask)
        m = target.shape[1]
        steps = torch.arange(m + 1, device=target.device)
        shifted = torch.nn.functional.pad(target.clamp_min(-1) + 1, (0, 1))
        labels = torch.where(steps < sizes[:, None], shifted, torch.where(steps == sizes[:, None], 0, -100))
        first = self.start.expand(x.shape[0], 1, -1)
        fed = torch.cat([first, self._feedback(memory, target)], dim=1)
        states, _ = self.decoder(fed, memory.state)
        allowed = self._training_mask(memory, target, labels, mask)
        logits = self._score(states, memory, self._prepare(memory), memory.slots if allowed is None else allowed)
        return Seq2SeqOutput(masked_cross_entropy(logits, labels, reduction=reduction), logits[:, :m])

    @torch.no_grad()
    def generate(
        self,
        x: Tensor,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        beam_size: int = 1,
        mask: Mask = "none",
        max_steps: int | None = None,
    ) -> Generated:
        """Decode greedily, or by beam search (summed log-probability).

        Parameters
        ----------
        mask
            "none"; "no_repeat"; "permutation" (no repeat, END exactly when all inputs are used); or a function
            ``mask(prefix (R, t)) -> bool (R, slots)``, True = may come next: prefix holds the outputs so far (-1
            after END), R = batch * beam_size, the beams of a row side by side, column 0 is END.
        max_steps
            Most steps, END included; None: 2 n + 1. Rows that found no END are reported in `finished`.
        """
        self._check_mask_name(mask)
        memory = self.encode(x, lengths)
        batch, n = x.shape[0], x.shape[1]
        if batch == 0:
            nothing = torch.zeros(0, device=x.device)
            return Generated(nothing.long().view(0, 0), nothing, nothing.bool())
        prepared = self._prepare(memory)

        def step(last: Tensor, state: Any) -> tuple[Tensor, Any]:
            last = last.view(batch, -1)
            fed = torch.where((last < 0)[..., None], self.start, self._feedback(memory, last - 1))
            q = last.shape[1]
            d, state = self.decoder(fed.reshape(batch * q, 1, -1), swap_rows(state))
            logits = self._score(d.view(batch, q, -1), memory, prepared, memory.slots)
            return logits.view(batch * q, -1), swap_rows(state)

        def allowed(prefix: Tensor) -> Tensor:
            outputs = torch.where(prefix >= 0, prefix - 1, -1)
            if callable(mask):
                return mask(outputs)
            used = torch.zeros(len(prefix), self._slots(n), dtype=torch.bool, device=prefix.device)
            return self._named(mask, used.scatter_(1, (outputs + 1).clamp_min(0), True), memory)

        start = torch.full((batch,), -1, dtype=torch.int64, device=x.device)
        found = decode(
            step, (start, swap_rows(memory.state)), max_steps=2 * n + 1 if max_steps is None else max_steps,
            beam_size=beam_size, end_id=0, allowed=None if mask == "none" else allowed,
        )  # fmt: skip
        best = found.sequences[:, 0]
        best = torch.where(best >= 0, best - 1, -1)
        width = int((best >= 0).sum(1).max()) if best.numel() else 0
        return Generated(best[:, :width], found.scores[:, 0], found.finished[:, 0])

    def _check_target(
        self, target: Tensor, target_lengths: Tensor | Sequence[int] | None, memory: Memory
    ) -> tuple[Tensor, Tensor]:
        batch, n = memory.x.shape[:2]
        if target.dim() != 2 or target.shape[0] != batch or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f"target must be integers of shape ({batch}, m), got {target.dtype} {tuple(target.shape)}")
        target = target.long()
        real = target >= 0
        if target_lengths is None:
            sizes = real.sum(1)
        else:
            given = torch.as_tensor(target_lengths, device=target.device)
            sizes = given.to(torch.int64)
            if given.is_floating_point() and bool((given != sizes).any()):
                raise ValueError(f"target_lengths must be whole numbers of steps, got {given.tolist()}")
            if sizes.shape != (batch,) or bool(((sizes < 0) | (sizes > target.shape[1])).any()):
                raise ValueError(
                    f"target_lengths must be {batch} integers in 0..{target.shape[1]}, got {sizes.tolist()}"
                )
        inside = torch.arange(target.shape[1], device=target.device) < sizes[:, None]
        limit = n if self.feeds_back_inputs else self._slots(n) - 1
        most = memory.sizes if memory.sizes is not None and self.feeds_back_inputs else sizes.new_full((batch,), limit)
        pads = (target == PADS[0]) | (target == PADS[1])
        wrong = (inside & ((target < 0) | (target >= most[:, None]))) | (~inside & ~pads & (target < 0))
        if bool(wrong.any()):
            row, at = (int(v) for v in wrong.nonzero()[0])
            raise ValueError(
                f"row {row}: target {int(target[row, at])} at step {at} is not an index below the row's length "
                f"{int(most[row])} (padding is -1 and stands at the end)"
            )
        return torch.where(inside, target, -1), sizes

    def _check_mask_name(self, mask: Mask) -> None:
        if not callable(mask) and mask not in MASKS:
            raise ValueError(f"mask must be one of {', '.join(MASKS)} or a function, got {mask!r}")
        if mask in MASKS[1:] and not self.feeds_back_inputs:
            raise ValueError(f"mask={mask!r} is about input positions, but the outputs here are symbols")

    def _check_mask(self, target: Tensor, sizes: Tensor, memory: Memory, mask: Mask) -> None:
        self._check_mask_name(mask)
        if callable(mask) or mask == "none":
            return
        ordered = (
            torch.where(target >= 0, target, -1 - torch.arange(target.shape[1], device=target.device)).sort(1).values
        )
        twice = ordered[:, 1:] == ordered[:, :-1]
        if bool(twice.any()):
            row, at = (int(v) for v in twice.nonzero()[0])
            raise ValueError(f"row {row}: target {int(ordered[row, at])} stands twice, which mask={mask!r} forbids")
        want = memory.x.shape[1] if memory.sizes is None else memory.sizes
        short = sizes != want
        if mask == "permutation" and bool(short.any()):
            row = int(short.nonzero()[0])
            raise ValueError(f"row {row}: {int(sizes[row])} targets are no permutation of the row's inputs")

    def _training_mask(self, memory: Memory, target: Tensor, labels: Tensor, mask: Mask) -> Tensor | None:
        self._check_mask_name(mask)
        if mask == "none":
            return None
        (batch, m), slots = target.shape, self._slots(memory.x.shape[1])
        if callable(mask):
            each = [check_allowed(mask(target[:, :i]), (batch, slots)) for i in range(m + 1)]
            allowed = torch.stack(each, dim=1)
        else:
            used = torch.zeros(batch, m + 1, slots, dtype=torch.int32, device=target.device)
            used[:, 1:].scatter_(2, (target + 1).clamp_min(0)[..., None], 1)
            allowed = self._named(mask, used.cumsum(1) > 0, memory)
        if memory.slots is not None:
            allowed = allowed & memory.slots[:, None]
        due = labels.clamp_min(0)[..., None]
        return allowed.scatter(2, due, True)

    def _named(self, mask: str, used: Tensor, memory: Memory) -> Tensor:
        """What a named mask allows where the slots `used` (R, ..., slots) are taken; R is batch or batch * beams."""
        used[..., 0] = False
        allowed = ~used
        if mask == "permutation":
            want: Any = memory.x.shape[1]
            if memory.sizes is not None:
                want = memory.sizes.repeat_interleave(used.shape[0] // memory.sizes.shape[0])
                want = want.view(-1, *[1] * (used.dim() - 2))
            allowed[..., 0] = used.sum(-1) == want
        return allowed

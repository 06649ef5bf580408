"""Error signals of recoding and their gradients at the logits, in closed form.

Source: Ulmer 2019, arXiv 2101.00674. With p = softmax(o)[target] the thesis' code descends ``p^(-p) - 1``, which is
0 at p = 0 and p = 1 and highest at p = 1/e: for a token of p < 1/e a step downhill makes it *less* likely. The plain
surprise ``-log p`` is monotone. Gradients at the logits o, y the target's one-hot row:

    -log p          p_all - y
    p^(-p) - 1      -p^(-p) (log p + 1) p (y - p_all)
    entropy of a mean m of S softmaxes p_s    p_s * (v - sum(p_s v)) / S,  v = -log m
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from etude.data.randomness import fork_global
from etude.layers.uncertainty import entropy

Score = Literal["nll", "official"]
TINY = 1e-30


class Pull(NamedTuple):
    """A signal at one step."""

    delta: Tensor
    """(batch,)"""
    grad: Tensor
    """(batch, hidden): with respect to the hidden state that the decoder reads."""
    kept: Tensor | None
    """What stays as it is when the signal is measured again (target, dropout masks), batch first."""


def surprisal(logits: Tensor, state: Any, target: Tensor | None, *, score: Score = "nll") -> Tensor:
    """How surprising the next token was, (batch,): ``-log p`` or, with "official", ``p^(-p) - 1``.

    Parameters
    ----------
    logits
        (batch, vocabulary).
    state
        Not looked at: signals have one form, ``signal(logits, state, target)``.
    target
        (batch,) token ids. None: the most likely token.

    Raises
    ------
    ValueError
        For an unknown score, or targets that are not whole numbers of shape (batch,).
    """
    check_score(score)
    target = logits.argmax(-1) if target is None else target
    if target.shape != logits.shape[:1] or target.is_floating_point():
        raise ValueError(f"target must be ids of shape {tuple(logits.shape[:1])}, got {tuple(target.shape)}")
    log_p = logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    return _score(log_p, score)


def check_score(score: str) -> None:
    """ValueError unless `score` is one that `surprisal` knows."""
    if score not in ("nll", "official"):
        raise ValueError(f"score must be 'nll' or 'official', got {score!r}")


def _score(log_p: Tensor, score: str) -> Tensor:
    if score == "nll":
        return -log_p
    log_p = log_p.clamp_min(-80)  # p = 0 gives 0, not NaN
    return torch.expm1(-log_p.exp() * log_p)


class HeadSignal(nn.Module, ABC):
    """A signal that reads the top hidden state through a decoder. Called, it is ``signal(logits, state, target)``."""

    supervised = False
    """Whether it uses the target: then outputs must not be decoded again from the recoded state."""
    own_dropout = False
    """It reads the hidden state under masks of its own, not under the dropout before the decoder."""

    @abstractmethod
    def pull(
        self, hidden: Tensor, decoder: nn.Module, logits: Tensor, target: Tensor | None,
        generator: torch.Generator | None,
    ) -> Pull:  # fmt: skip
        """Value and gradient at one step; hidden (batch, hidden)."""

    @abstractmethod
    def measure(self, hidden: Tensor, decoder: nn.Module, kept: Tensor | None) -> Tensor:
        """The same signal, (batch,), at another hidden state."""


class Surprisal(HeadSignal):
    """`surprisal` of a target, as a signal."""

    supervised = True

    def __init__(self, score: Score = "nll") -> None:
        super().__init__()
        check_score(score)
        self.score = score

    def forward(self, logits: Tensor, state: Any = None, target: Tensor | None = None) -> Tensor:
        """See `surprisal`."""
        return surprisal(logits, state, target, score=self.score)

    def pull(
        self, hidden: Tensor, decoder: nn.Module, logits: Tensor, target: Tensor | None,
        generator: torch.Generator | None,
    ) -> Pull:  # fmt: skip
        target = logits.argmax(-1) if target is None else target
        log_all = logits.log_softmax(-1)
        log_p = log_all.gather(-1, target[:, None])
        down = log_all.exp()
        down.scatter_add_(-1, target[:, None], torch.full_like(log_p, -1.0))  # gradient of -log p
        if self.score == "official":
            p = log_p.exp()
            down *= torch.exp(-p * log_p) * (log_p + 1) * p
        return Pull(_score(log_p[:, 0], self.score), through(decoder, hidden, down), target)

    def measure(self, hidden: Tensor, decoder: nn.Module, kept: Tensor | None) -> Tensor:
        return surprisal(decoder(hidden), None, kept, score=self.score)


class MixtureEntropy(HeadSignal):
    """Entropy of the mean of several predictions: dropout masks on the hidden state, or several decoders.

    Parameters
    ----------
    mc_dropout, samples
        Rate and number of the masks, each on the whole hidden state.
    decoders
        Their own heads instead of the net's; None: the net's, or its members where it is a `MeanDecoder`.
    """

    def __init__(self, mc_dropout: float = 0.0, samples: int = 1, decoders: Sequence[nn.Module] | None = None) -> None:
        super().__init__()
        if not 0 <= mc_dropout < 1:
            raise ValueError(f"mc_dropout must lie in [0, 1), got {mc_dropout}")
        if samples < 1 or samples != int(samples):
            raise ValueError(f"samples must be a whole number of at least 1, got {samples}")
        self.rate, self.samples = mc_dropout, samples if mc_dropout else 1
        self.own_dropout = mc_dropout > 0
        self.decoders = None if decoders is None else nn.ModuleList(decoders)

    def forward(self, logits: Tensor, state: Any = None, target: Tensor | None = None) -> Tensor:
        """Entropy (batch,) of one prediction: logits alone say nothing of masks or other decoders."""
        return entropy(logits.softmax(-1))

    def heads(self, decoder: nn.Module) -> list[nn.Module]:
        """The decoders whose predictions are averaged."""
        own = self.decoders if self.decoders is not None else getattr(decoder, "decoders", None)
        return [decoder] if own is None else list(own)

    def pull(
        self, hidden: Tensor, decoder: nn.Module, logits: Tensor, target: Tensor | None,
        generator: torch.Generator | None,
    ) -> Pull:  # fmt: skip
        kept = None
        if self.rate:
            shape = (hidden.shape[0], self.samples, hidden.shape[1])
            draw = torch.rand(shape, generator=generator, device=hidden.device, dtype=hidden.dtype)
            kept = (draw >= self.rate).to(hidden.dtype) / (1 - self.rate)
        heads, views = self.heads(decoder), self._views(hidden, kept)
        alone = len(heads) == 1 and kept is None and self.decoders is None
        each = [logits[None]] if alone else [head(views) for head in heads]
        probs = torch.cat(each).softmax(-1)  # (S * K, batch, vocabulary)
        mean = probs.mean(0)
        v = -mean.clamp_min(max(TINY, torch.finfo(mean.dtype).tiny)).log()  # half precision has no such number
        down = probs * (v - (probs * v).sum(-1, keepdim=True)) / len(probs)
        grad = torch.zeros_like(hidden)
        for head, part in zip(heads, down.chunk(len(heads)), strict=True):
            back = through(head, views, part)
            grad += back.sum(0) if kept is None else (back * kept.transpose(0, 1)).sum(0)
        return Pull((mean * v).sum(-1), grad, kept)

    def measure(self, hidden: Tensor, decoder: nn.Module, kept: Tensor | None) -> Tensor:
        views = self._views(hidden, kept)
        return entropy(torch.cat([head(views).softmax(-1) for head in self.heads(decoder)]).mean(0))

    @staticmethod
    def _views(hidden: Tensor, kept: Tensor | None) -> Tensor:
        """(S, batch, hidden): the state under each mask."""
        return hidden[None] if kept is None else hidden * kept.transpose(0, 1)


def predictive_entropy(mc_dropout: float = 0.2, samples: int = 10) -> MixtureEntropy:
    """Signal: entropy of the mean prediction under `samples` dropout masks on the top hidden state.

    Rate 0: the plain entropy of the prediction. The masks come from the generator that the recoder is called with.

    Raises
    ------
    ValueError
        For a rate outside [0, 1) or fewer than 1 sample.
    """
    return MixtureEntropy(mc_dropout, samples)


def ensemble_entropy(decoders: Sequence[nn.Module]) -> MixtureEntropy:
    """Signal: entropy of the mean prediction of several decoders, each from (..., hidden) to (..., vocabulary).

    Raises
    ------
    ValueError
        For fewer than two decoders: one has nothing to disagree with.
    """
    members = list(getattr(decoders, "decoders", decoders))
    if len(members) < 2:
        raise ValueError(f"an ensemble needs at least 2 decoders, got {len(members)}")
    return MixtureEntropy(decoders=members)


class MeanDecoder(nn.Module):
    """Prediction of several decoders: the mean of their logits."""

    def __init__(self, decoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(decoders)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., vocabulary)."""
        return torch.stack([decoder(hidden) for decoder in self.decoders]).mean(0)


class AnchoredEnsemble(MeanDecoder):
    """K linear decoders, each pulled to an anchor of its own, so that they stay different where data are few.

    Anchors are drawn from N(0, prior_scale), the variance; `penalty` is (lambda / N) sum_k ||theta_k - anchor_k||^2
    with lambda = data_noise / prior_scale. Source: Pearce et al. 2018, arXiv 1810.05546, as the thesis uses it.

    Raises
    ------
    ValueError
        For fewer than 2 members or a scale that is not positive.
    """

    def __init__(
        self, hidden_size: int, vocab_size: int, members: int = 10, *, data_noise: float = 0.1,
        prior_scale: float = 0.286, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        if members < 2 or data_noise <= 0 or prior_scale <= 0:
            raise ValueError(f"need 2 members and positive scales, got {members}, {data_noise} and {prior_scale}")
        with nullcontext() if generator is None else fork_global(generator):
            decoders = [nn.Linear(hidden_size, vocab_size) for _ in range(members)]
        super().__init__(decoders)
        self.strength = data_noise / prior_scale
        for k, decoder in enumerate(self.decoders):
            for name, p in decoder.named_parameters():
                anchor = torch.randn(p.shape, generator=generator) * prior_scale**0.5
                self.register_buffer(f"anchor_{k}_{name}", anchor)

    def penalty(self, num_rows: int) -> Tensor:
        """To be added to the mean loss over `num_rows` training rows."""
        terms = [
            (p - self.get_buffer(f"anchor_{k}_{name}")).square().sum()
            for k, decoder in enumerate(self.decoders)
            for name, p in decoder.named_parameters()
        ]
        return self.strength / num_rows * torch.stack(terms).sum()


def through(decoder: nn.Module, hidden: Tensor, down: Tensor) -> Tensor:
    """Gradient at `hidden` of a gradient `down` at the decoder's output: one matmul where the decoder is linear."""
    if type(decoder) is nn.Linear:
        return down @ decoder.weight
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_(True)
        return torch.autograd.grad(decoder(leaf), leaf, down, allow_unused=True, materialize_grads=True)[0]


Custom = Callable[[Tensor, Any, Tensor | None], Tensor]


def custom_value(signal: Custom, logits: Tensor, state: Any, target: Tensor | None) -> Tensor:
    """A user's signal, checked: a tensor (batch,).

    Raises
    ------
    ValueError
        If it is no tensor or has another shape.
    """
    delta = signal(logits, state, target)
    batch = logits.shape[0]
    if not isinstance(delta, Tensor) or tuple(delta.shape) != (batch,):
        got = tuple(delta.shape) if isinstance(delta, Tensor) else type(delta).__name__
        raise ValueError(f"the signal must return a tensor of shape (B,) = ({batch},), got {got}")
    return delta

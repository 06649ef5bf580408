"""Language models that carry their state, and how they read the test text with and without recoding."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from etude.layers import AnchoredEnsemble, Recoder, make_rnn, masked_cross_entropy
from etude.studies._recoding_problems import Window, windows
from etude.training import TrainConfig, Updater


class StatefulLM(nn.Module):
    """A recoder that goes on from where the last window ended."""

    def __init__(self, recoder: Recoder) -> None:
        super().__init__()
        self.recoder, self.state = recoder, None  # type: ignore[assignment]

    def forward(self, window: Window) -> Tensor:
        """Logits (rows, length, vocabulary)."""
        state = None if window.first else self.state
        logits, self.state = self.recoder(window.ids, state, window.targets)
        return logits


def lm_loss(model: StatefulLM, window: Window) -> Tensor:
    """Mean negative log-probability of a window."""
    return masked_cross_entropy(model(window), window.targets)


def language_model(vocab_size: int, c: Any, **recoding: Any) -> StatefulLM:
    """LSTM of the study's size; without options a plain one (step size 0)."""
    rnn = make_rnn("lstm", c.hidden_size, c.hidden_size, num_layers=c.num_layers)
    members = recoding.pop("members", 0)
    head = AnchoredEnsemble(c.hidden_size, vocab_size, members) if members else nn.Linear(c.hidden_size, vocab_size)
    dropout = recoding.pop("dropout", c.dropout)
    embedding = nn.Sequential(nn.Embedding(vocab_size, c.hidden_size), nn.Dropout(dropout))
    options = {"step_size": 0.0, "track": False} | recoding
    return StatefulLM(Recoder(rnn, head, embedding=embedding, dropout=dropout, **options))


def recoded(lm: StatefulLM, **options: Any) -> Recoder:
    """The same weights under another recoding."""
    old = lm.recoder
    made = Recoder(old.rnn, old.decoder, embedding=old.embedding, **options)
    return made.eval()


class Reading(NamedTuple):
    """Every test step, (rows, steps)."""

    nll: Tensor
    confidence: Tensor
    """Probability of the most likely token."""
    right: Tensor
    before: Tensor | None
    after: Tensor | None

    @property
    def perplexity(self) -> float:
        return float(self.nll.double().mean().exp())


@torch.no_grad()
def read(model: Recoder, test: list[Window], generator: torch.Generator, every: int = 1) -> Reading:
    """Run through the test windows, recoding after each `every`-th step."""
    columns: list[tuple[Tensor, ...]] = []
    state, t0, stats = None, 0, model.step_size > 0 and model.track
    for window in test:
        where = (
            (torch.arange(t0, t0 + window.ids.shape[1], device=window.ids.device) % every == 0) if every > 1 else None
        )
        logits, state = model(window.ids, state, window.targets, recode=where, generator=generator)
        log_p = logits.log_softmax(-1)
        best, guess = log_p.max(-1)
        row = (-log_p.gather(-1, window.targets[..., None])[..., 0], best.exp(), guess == window.targets)
        extra = (model.last_stats.delta_before, model.last_stats.delta_after) if stats and model.last_stats else ()
        columns.append((*row, *extra))
        t0 += window.ids.shape[1]
    joined = [torch.cat(c, 1).cpu() for c in zip(*columns, strict=True)]
    return Reading(joined[0], joined[1], joined[2], *(joined[3:] if stats else (None, None)))


def dynamic_evaluation(lm: StatefulLM, test: Tensor, rows: int, length: int, lr: float, seed: int) -> float:
    """Test perplexity when the *weights* take a step of gradient descent after every window (Krause et al. 2017)."""
    model = copy.deepcopy(lm)
    model.recoder.dropout = 0.0
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    updater = Updater(model, lm_loss, TrainConfig(optimizer="sgd", lr=lr), seed=seed)
    losses = [(updater.update(w)["loss"], w.targets.numel()) for w in windows(test, rows, length)]
    total = sum(n for _, n in losses)
    return float(torch.tensor(sum(loss * n for loss, n in losses) / total).exp())

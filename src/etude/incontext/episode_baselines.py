"""Learners to set beside a memory network: an LSTM over the episode, MAML on every prefix, class means.

All answer ``net(x, y)`` with predictions (B, T, out), each made from the items before it, and a loss.
Sources: Hochreiter, Younger & Conwell 2001 (LSTM that is fed the last label); Finn, Abbeel & Levine 2017, arXiv
1703.03400 (MAML); Snell, Swersky & Zemel 2017, arXiv 1703.05175 (prototypes).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.incontext.episode_labels import TaskKind, encode_labels, item_losses, previous_labels
from etude.layers import mlp
from etude.layers.modes import gradients_on

UNSEEN = -1e4


class Answer(NamedTuple):
    """What every learner returns."""

    predictions: Tensor
    """(B, T, out)"""
    loss: Tensor
    """Mean over labelled items."""


def _answer(predictions: Tensor, target: Tensor, known: Tensor, task: TaskKind) -> Answer:
    return Answer(predictions, (item_losses(predictions, target, task) * known).sum() / known.sum().clamp_min(1))


class EpisodeLSTM(nn.Module):
    """An LSTM that reads each item with the label of the one before."""

    def __init__(
        self, input_size: int, output_size: int, hidden_size: int = 96, task: TaskKind = "classification",
        encoder: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_size, self.task, self.encoder = output_size, task, encoder
        self.rnn = nn.LSTM(input_size + output_size, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor, y: Tensor) -> Answer:
        """x (B, T, input) or what the encoder takes, y (B, T)."""
        x = x if self.encoder is None else self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        target, known = encode_labels(y, self.output_size, self.task)
        hidden, _ = self.rnn(torch.cat([x, previous_labels(target, 1).to(x.dtype)], -1))
        return _answer(self.head(hidden), target, known, self.task)


class EpisodeMAML(nn.Module):
    """An MLP whose start is learned so that a few steps of gradient descent on the items so far fit them.

    Parameters
    ----------
    steps, inner_lr
        Inner updates, and their learned step size (one number).
    first_order
        The inner gradient is a constant in training.

    Raises
    ------
    ValueError
        For fewer than 1 step or a step size that is not positive.
    """

    def __init__(
        self, input_size: int, output_size: int, steps: int = 1, *, hidden_size: int = 40, inner_lr: float = 0.01,
        task: TaskKind = "regression", first_order: bool = False, prefixes: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        if steps < 1 or not inner_lr > 0 or prefixes < 1:
            raise ValueError(f"need steps and prefixes >= 1 and inner_lr > 0, got {steps}, {prefixes}, {inner_lr}")
        self.output_size, self.task, self.steps, self.first_order = output_size, task, steps, first_order
        self.prefixes = prefixes
        self.start = mlp((input_size, hidden_size, hidden_size, output_size))
        self.log_lr = nn.Parameter(torch.tensor(inner_lr).log())

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Answer:
        """In training a few random prefixes, the loss over all items after them; else every prefix and its next item.

        x (B, T, input), y (B, T). In training the predictions are those of the last prefix drawn.
        generator
            Draws the prefixes in training; None: the global generator.
        """
        if not y.numel():
            raise ValueError(f"need at least one episode of one item, got labels {tuple(y.shape)}")
        target, known = encode_labels(y, self.output_size, self.task)
        time = x.shape[1]
        if not self.training:
            each = self.adapted(x, target, known, torch.arange(time))  # (B, P, T, out)
            index = torch.arange(time)
            return _answer(each[:, index, index].detach(), target, known, self.task)
        chosen = torch.randint(time, (self.prefixes,), generator=generator)
        each = self.adapted(x, target, known, chosen)
        later = (torch.arange(time) >= chosen[:, None]).to(x.device) & known[:, None]
        wide = target[:, None].expand(-1, len(chosen), -1, -1)
        items = item_losses(each.flatten(0, 1), wide.flatten(0, 1), self.task).view_as(later)
        return Answer(each[:, -1], (items * later).sum() / later.sum().clamp_min(1))

    def adapted(self, x: Tensor, target: Tensor, known: Tensor, prefixes: Tensor) -> Tensor:
        """Predictions (B, P, T, out) for all items by nets that learned from the first p of them, p in `prefixes`."""
        batch, time = x.shape[:2]
        wide = x[:, None].expand(-1, len(prefixes), -1, -1).flatten(0, 1)
        goal = target[:, None].expand(-1, len(prefixes), -1, -1).flatten(0, 1)
        before = (torch.arange(time) < prefixes[:, None]).to(x.device) & known[:, None]
        weight = before.flatten(0, 1).to(x.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        graph = self.training and not self.first_order
        # whatever the caller switched off; copies, as what was made in inference mode gives no gradients
        with gradients_on():
            wide, goal, weight = wide.clone(), goal.clone(), weight.clone()
            params = [p.expand(len(wide), *p.shape) for p in self.start.parameters()]
            if not self.training:
                params = [p.detach().requires_grad_(True) for p in params]
            for _ in range(self.steps):
                loss = (item_losses(_run(params, wide), goal, self.task) * weight).sum()
                grads = torch.autograd.grad(loss, params, create_graph=graph)
                params = [p - self.log_lr.exp() * g for p, g in zip(params, grads, strict=True)]
            out = _run(params, wide)
        return out.view(batch, len(prefixes), time, -1)


def _run(params: list[Tensor], x: Tensor) -> Tensor:
    """An MLP with weights (E, out, in) and biases (E, out) for every row of x (E, n, in)."""
    for i in range(0, len(params), 2):
        x = torch.baddbmm(params[i + 1][:, None], x, params[i].transpose(1, 2))
        x = torch.relu(x) if i + 2 < len(params) else x
    return x


class OnlinePrototypes(nn.Module):
    """The nearest mean of the labelled items so far; a class not seen yet is only guessed when none has been.

    The loss leaves out the first item of each class, which nobody can know.
    """

    def __init__(self, output_size: int, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.output_size, self.encoder = output_size, encoder
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor) -> Answer:
        """x (B, T, d) or what the encoder takes, y (B, T) classes, -1 missing."""
        z = x if self.encoder is None else self.encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        target, known = encode_labels(y, self.output_size, "classification")
        before = previous_labels(target, 1)
        items = F.pad(z, (0, 0, 1, 0))[:, :-1]
        count = before.cumsum(1)  # (B, T, C)
        means = torch.einsum("btc,btd->btcd", before, items).cumsum(1) / count.clamp_min(1)[..., None]
        distance = (z[:, :, None] - means).square().sum(-1)
        logits = torch.where(count > 0, -self.log_scale.exp() * distance, UNSEEN)
        return _answer(logits, target, known & (count * target).any(-1), "classification")

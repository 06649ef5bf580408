"""Gradient-based sample selection, greedy form: keep samples whose gradients point away from those of others.

The score C of a sample is the largest cosine between its gradient and those of `num_gradients` random replay batches.
While there is room every sample is kept. A batch whose own largest cosine is below the threshold brings something new:
candidates for removal are drawn with probability proportional to (C - min C) / (max C - min C + 0.01), and candidate i
gives way to new sample s with probability (C_i + 1) / (C_i + 1 + r_s + 1), r_s being the new sample's score.

Source: Aljundi et al. 2019, arXiv 1903.08671, algorithm 2 (Aljundi 2019, arXiv 1910.02718); the very first samples
score 0.1 as in the published code. Differs from it: samples that no longer fit when the buffer fills up meet the rule
at once instead of being dropped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from etude.continual.buffers import warn_if_few
from etude.continual.gradient_directions import Directions, FlatGradients, factored_gradients, linear_chain
from etude.continual.heads import check_labels, check_rows
from etude.continual.importance import check_gradients
from etude.data.randomness import stream
from etude.layers.modes import evaluating
from etude.training.gradients import per_sample_gradients

FIRST_SCORE = 0.1
LossFn = Callable[[Tensor, Tensor], Tensor]


def replacement_probability(old: Tensor, new: Tensor) -> Tensor:
    """(C + 1) / (C + 1 + r + 1): a candidate of score `old` gives way to a sample of score `new`, both in [-1, 1]."""
    weight = (old + 1) / 2
    total = weight + (new + 1) / 2
    return torch.where(total > 0, weight / total.clamp_min(1e-12), torch.full_like(total, 0.5))


def candidate_weights(scores: Tensor) -> Tensor:
    """(C - min C) / (max C - min C + 0.01): how likely each kept sample is a candidate for removal."""
    return (scores - scores.min()) / (scores.max() - scores.min() + 0.01)


class GSSBuffer:
    """GSS-Greedy.

    Parameters
    ----------
    size
        Samples held at most.
    model
        Any module whose gradients are compared; kept by reference.
    loss_fn
        ``loss_fn(model(x), y)``, the mean over a batch, such as ``nn.CrossEntropyLoss()``.
    num_gradients, batch_size
        Random replay batches compared with, and samples in each.
    threshold
        Largest cosine up to which a batch counts as new.
    parameters, project
        As for `etude.training.per_sample_gradients`: "last" compares the last layer's gradients alone; a number
        projects all of them to that many dimensions, so that less is held.
    generator
        CPU generator of every draw, part of `state_dict`; None: one of its own with a fixed seed.

    Attributes
    ----------
    scores
        (held,) score of every kept sample.
    num_rejected
        Samples refused so far, as their gradient was not finite.
    """

    def __init__(
        self,
        size: int,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        num_gradients: int = 10,
        batch_size: int = 10,
        threshold: float = 0.0,
        parameters: str | Sequence[str] = "all",
        project: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if min(size, num_gradients, batch_size) < 1:
            raise ValueError(f"size, num_gradients and batch_size must be at least 1, got {size}, {num_gradients}, "
                             f"{batch_size}")  # fmt: skip
        if math.isnan(threshold) or (project is not None and project < 1):
            raise ValueError(f"threshold must be a number and project at least 1, got {threshold} and {project}")
        self.size, self.model, self.loss_fn = size, model, loss_fn
        self.num_gradients, self.batch_size, self.threshold = num_gradients, batch_size, threshold
        self.parameters, self.project = parameters, project
        self.generator = stream(0, "gss") if generator is None else generator
        self._projection: Tensor | None = None
        self._x: Tensor | None = None
        self._y: Tensor | None = None
        self.scores = torch.zeros(0)
        self.num_rejected = 0

    def __len__(self) -> int:
        return len(self.scores)

    def gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradient of each sample's loss at the model's present weights, (B, P) or (B, project)."""
        return self._gradients(x[:, None], y[:, None])

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Offer a batch; the place that every sample took, -1 where it was not kept.

        Samples whose gradient is not finite are rejected and counted in `num_rejected`.

        Raises
        ------
        ValueError
            If x and y are no tensors of one length, or a label lies outside the model's outputs.
        RuntimeError
            In ``torch.inference_mode``, where there are no gradients.
        """
        self._check_offer(x, y)
        places = torch.full((len(x),), -1)
        if not len(x):
            return places
        g = self._directions(x[:, None], y[:, None])
        fine = g.finite().nonzero()[:, 0]
        self.num_rejected += len(x) - len(fine)
        room = fine[: max(0, self.size - len(self))]
        rest = fine[len(room) :]
        if len(room):
            scores = torch.full((len(room),), FIRST_SCORE)
            if len(self):
                scores = self._scores(g[room])
            places[room] = torch.arange(len(self), len(self) + len(room))
            self._append(x[room], y[room], scores)
        if len(rest):
            places[rest] = self._replace(x[rest], y[rest], g[rest])
            held = places[room]  # a sample that filled the last room may have been replaced within the batch
            places[room] = torch.where(torch.isin(held, places[rest]), -1, held)
        return places

    def _check_offer(self, x: Tensor, y: Tensor) -> None:
        check_gradients(f"{type(self).__name__}.observe")
        check_rows(x, y)
        if len(x):
            with evaluating(self.model), torch.no_grad():
                check_labels(self.model(x[:1]), y)

    def sample(self, n: int) -> tuple[Tensor, Tensor]:
        """`n` different samples (x, y), uniformly; all of them, with a warning, if there are fewer."""
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if self._x is None or self._y is None:
            raise ValueError("the buffer is empty: observe a batch first")
        warn_if_few(len(self), n)
        return self.rows(self.draw(n))

    def draw(self, n: int) -> Tensor:
        """Places of `n` different samples, or of all in random order if there are fewer."""
        return torch.randperm(len(self), generator=self.generator)[:n]

    def rows(self, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The samples at the given places, or all that are held."""
        if self._x is None or self._y is None:
            raise ValueError("the buffer is empty: observe a batch first")
        pick = torch.arange(len(self)) if places is None else places
        return self._x[pick.to(self._x.device)], self._y[pick.to(self._y.device)]

    def _append(self, x: Tensor, y: Tensor, scores: Tensor) -> None:
        x, y = x.detach().clone(), y.detach().clone()
        self._x = x if self._x is None else torch.cat([self._x, x.to(self._x)])
        self._y = y if self._y is None else torch.cat([self._y, y.to(self._y)])
        self.scores = torch.cat([self.scores, scores])

    def _replace(self, x: Tensor, y: Tensor, g: Directions) -> Tensor:
        """The rule for a full buffer."""
        assert self._x is not None and self._y is not None
        memory = self._memory()
        places = torch.full((len(x),), -1)
        if float(g.mean().cosines(memory).max()) >= self.threshold:
            return places
        weights = candidate_weights(self.scores) + 1e-9  # equal scores: any sample may go
        count = min(len(x), len(self))
        chosen = torch.multinomial(weights, count, generator=self.generator)
        new = g[torch.arange(count)].cosines(memory).max(1).values.float().cpu()
        p = replacement_probability(self.scores[chosen], new)
        taken = torch.rand(count, generator=self.generator) < p
        at, rows = chosen[taken], taken.nonzero()[:, 0]
        self._x[at.to(self._x.device)] = x[rows.to(x.device)].detach().to(self._x)
        self._y[at.to(self._y.device)] = y[rows.to(y.device)].detach().to(self._y)
        self.scores[at] = new[taken]
        places[rows] = at
        return places

    def _scores(self, g: Directions) -> Tensor:
        return g.cosines(self._memory()).max(1).values.float().cpu()

    def _memory(self) -> Directions:
        """Gradients of random replay batches, `num_gradients` groups."""
        n = min(self.batch_size, len(self))
        places = torch.stack([self.draw(n) for _ in range(self.num_gradients)])
        x, y = self.rows(places)
        return self._directions(x, y)

    def _directions(self, x: Tensor, y: Tensor) -> Directions:
        """What is compared, of G groups (G, n, ...): factors where the net allows, else flat gradients."""
        chain = linear_chain(self.model) if self.parameters == "all" and self.project is None else None
        if chain is None:
            return FlatGradients(self._gradients(x, y))
        with evaluating(self.model):
            return factored_gradients(chain, self.loss_fn, x, y)

    def _gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Gradients of the mean loss of G groups (G, n, ...), (G, P)."""

        def loss(model: Any, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.loss_fn(model(pair[0][0]), pair[1][0])

        with evaluating(self.model), torch.no_grad():  # gradients of gradients are not needed
            g = per_sample_gradients(self.model, loss, (x, y), parameters=self.parameters)
        if self.project is None:
            return g
        if self._projection is None:
            rng = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=stream(0, "projection"))))
            drawn = torch.randn(g.shape[1], self.project, generator=rng) / self.project**0.5
            self._projection = drawn.to(g)
        return g @ self._projection

    def state_dict(self) -> dict[str, Tensor]:
        """Samples, scores and the generator's state, as tensors; the model is not part of it."""
        held = {} if self._x is None or self._y is None else {"x": self._x.clone(), "y": self._y.clone()}
        counted = {"num_rejected": torch.tensor(self.num_rejected), "generator": self.generator.get_state()}
        return {**held, "scores": self.scores.clone(), **counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if len(state["scores"]) > self.size:
            raise ValueError(f"the state holds {len(state['scores'])} samples, the buffer at most {self.size}")
        self._x = state["x"].clone() if "x" in state else None
        self._y = state["y"].clone() if "y" in state else None
        self.scores = state["scores"].clone()
        self.num_rejected = int(state.get("num_rejected", 0))  # states of before had none
        self.generator.set_state(state["generator"])

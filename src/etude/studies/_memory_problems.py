"""Episodes, nets, training and scores of the study of fast and slow learning."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.data import sampled, stream
from etude.incontext import EpisodeLSTM, EpisodeMAML, FastSlowMemory, Feedback, OnlinePrototypes
from etude.incontext.few_shot_tasks import (
    Episodes,
    image_episodes,
    label_counts,
    presentation_accuracy,
    prototype_episodes,
    sinusoid_episodes,
)
from etude.incontext.synthetic_gradients import cosines
from etude.lab.study import Artifact, Job, Measurement
from etude.layers import convnet
from etude.training import TrainConfig, Trained, train

MEMORY: dict[str, dict[str, Any]] = {
    "plain": {"feedback": None}, "fast": {}, "labels_hidden": {"feedback": None},
    "fast_no_synthetic_loss": {"synthetic": False}, "fast_no_meta": {"meta": False},
}  # fmt: skip
LAST, EVERY = 50, 5
"""The cosine is averaged over the last updates, on a fresh batch at every fifth."""
Draw = Callable[[torch.Generator, int, int], Episodes]


@dataclass(frozen=True)
class Problem:
    """What a protocol asks; draws are ``draw(generator, batch, steps)``."""

    draw: Draw
    test: Draw
    input_size: int
    output_size: int
    kind: str
    steps: int
    test_steps: int
    images: tuple[int, ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()


def sinusoids(c: Any, family: Any = "sine") -> Problem:
    """Points of a sinusoid in order; tested on twice as many as were trained on."""

    def draw(g: torch.Generator, batch: int, steps: int) -> Episodes:
        return sinusoid_episodes(batch, steps, g, family=family)

    return Problem(draw, draw, 1, 1, "regression", c.points, 2 * c.points)


def classes(c: Any) -> Problem:
    """Items around three prototypes, labels drawn by Zipf's law."""

    def draw(g: torch.Generator, batch: int, steps: int) -> Episodes:
        return prototype_episodes(batch, steps, g)

    return Problem(draw, draw, 16, 3, "classification", c.items, c.items)


def images(data: Any, c: Any, ways: int, steps: int, exponent: float) -> Problem:
    """Episodes of a labelled image set; half of its classes are only seen in the tests."""
    kinds = data.y.unique()
    if len(kinds) < 2 * ways:
        raise ValueError(f"the set has {len(kinds)} classes and needs {2 * ways}: half are kept for the tests")
    order = kinds[torch.randperm(len(kinds), generator=stream(0, "classes"))]
    halves = (torch.isin(data.y, part) for part in (order[: len(order) // 2], order[len(order) // 2 :]))
    parts = [image_episodes(data.x[rows], data.y[rows], ways, steps, exponent=exponent) for rows in halves]

    def drawn(part: Callable[[torch.Generator, int], Episodes]) -> Draw:
        return lambda g, batch, n: part(g, batch)

    shape = tuple(data.x.shape[1:])
    return Problem(drawn(parts[0]), drawn(parts[1]), 64, ways, "classification", steps, steps, shape, data.provenance)


def build(arm: str, problem: Problem, c: Any) -> nn.Module:
    """The net of an arm."""
    shared: dict[str, Any] = {}
    if problem.images:
        shared["encoder"] = convnet(problem.images, (c.channels,) * 4, 64, norm="batch")
    sizes = (problem.input_size, problem.output_size)
    if arm == "lstm":
        return EpisodeLSTM(*sizes, c.lstm_size, task=problem.kind, **shared)  # type: ignore[arg-type]
    if arm == "prototypes":
        return OnlinePrototypes(problem.output_size, **shared)
    if arm.startswith("maml"):
        flat = 1
        for n in problem.images or (problem.input_size,):
            flat *= n
        inner = 0.01 if problem.kind == "regression" else 0.1
        return EpisodeMAML(flat, problem.output_size, int(arm[5:]), inner_lr=inner, task=problem.kind)  # type: ignore[arg-type]
    options: dict[str, Any] = {"hidden_size": c.hidden_size, "task": problem.kind} | MEMORY[arm] | shared
    return FastSlowMemory(problem.input_size, problem.output_size, c.slots, c.width, **options)


def answer(arm: str, net: Any, batch: Episodes) -> Any:
    """Predictions and losses of any arm; the control is shown no label."""
    if arm == "labels_hidden":
        return net(batch.x, batch.y, reveal=torch.zeros_like(batch.y, dtype=torch.bool))
    x = batch.x.flatten(2) if isinstance(net, EpisodeMAML) else batch.x
    return net(x, batch.y)


def loss_of(arm: str) -> Callable[[Any, Episodes], Any]:
    def loss(net: Any, batch: Episodes) -> Any:
        out = answer(arm, net, batch)
        terms = {"task": out.loss}
        if getattr(net, "feedback", None) is not None and net.synthetic:
            terms["synthetic"] = out.synthetic_loss
        return terms

    return loss


class CosineTrace:
    """Cosine of synthetic and true gradients along training: S as it is, and S with its inputs permuted, twice."""

    def __init__(self, problem: Problem, batch: int, device: str) -> None:
        self.problem, self.batch, self.device = problem, batch, device
        self.found: dict[int, list[tuple[int, list[float]]]] = {}

    def on_step(self, state: Any) -> None:
        late = state.step > state.total - LAST and state.step % EVERY == 0
        if not late and state.step % max(1, state.total // 20):
            return
        draws = stream(state.seed, "cosine", state.step)
        e = self.problem.draw(draws, self.batch, self.problem.steps)
        values = gradient_cosines(state.model, e.x.to(self.device), e.y.to(self.device), draws)
        self.found.setdefault(state.seed, []).append((state.step, values))

    def measurements(self, arm: str, seed: int, total: int) -> Iterator[Measurement]:
        names = ("gradient_cosine", "gradient_cosine_permuted", "gradient_cosine_permuted_redraw")
        points = self.found[seed]
        for j, name in enumerate(names):
            for step, values in points:
                yield Measurement(arm, seed, name, values[j], step=step)
            late = [values[j] for step, values in points if step > total - LAST]
            yield Measurement(arm, seed, name, sum(late) / len(late))


def gradient_cosines(net: FastSlowMemory, x: Tensor, y: Tensor, draws: torch.Generator) -> list[float]:
    """As it is, and under two permutations of the rows."""
    tape, gradients = net.gradient_tape(x, y)
    rows = [None, *(torch.randperm(len(x), generator=draws).to(x.device) for _ in range(2))]
    assert net.feedback is not None
    return [float(cosines(net.feedback, tape, gradients, net.task_id, p)) for p in rows]


def trained(
    job: Job, problem: Problem, make: Any, *, arm: str, callbacks: Any = (), every: int | None = None
) -> list[Trained]:
    c = job.config
    config = TrainConfig(steps=c.steps, lr=c.lr, clip_norm=1.0, eval_every=every)
    source = sampled(lambda g, t: problem.draw(g, c.batch_size, problem.steps))
    return train(
        make, source, loss=loss_of(arm), config=config, seeds=job.seeds, device=job.device, callbacks=callbacks,
        plan="sequential",  # targets of S take gradients inside the loss
    )  # fmt: skip


def scores(job: Job, problem: Problem, arm: str, net: Any, seed: int) -> Iterator[Measurement | Artifact]:
    """Errors by point, or accuracy by presentation, on new episodes."""
    c = job.config
    e = problem.test(stream(seed, "test"), c.test_episodes, problem.test_steps)
    predictions = predict(arm, net, e, job.device)
    if problem.kind == "regression":
        errors = (predictions[..., 0] - e.y).square().mean(0)
        for t, value in enumerate(errors.tolist(), 1):
            yield Measurement(arm, seed, "mse_by_point", value, step=t)
        for t in (t for t in (6, 10, 20) if t <= len(errors)):
            yield Measurement(arm, seed, f"ln_mse_point_{t}", float(errors[t - 1].log()), "nats")
        return
    floor = label_counts(e.y, problem.output_size)
    for name, guess in ((arm, predictions), *((("label_counter", floor),) if arm == "plain" else ())):
        for metric, value in by_presentation(guess, e, job.protocol).items():
            yield Measurement(name, seed, metric, value, "points")
        for k in range(1, 11):
            if (value := 100 * presentation_accuracy(guess, e.y, k)) == value:
                yield Measurement(name, seed, "accuracy_by_presentation", value, "points", k)


def by_presentation(predictions: Tensor, e: Episodes, protocol: str) -> Mapping[str, float]:
    if protocol == "omniglot":
        return {"omniglot_accuracy_fifth": 100 * presentation_accuracy(predictions, e.y, 5)}
    return {
        "accuracy_second": 100 * presentation_accuracy(predictions, e.y, 2),
        "accuracy_rarest_second": 100 * presentation_accuracy(predictions, e.y, 2, e.rarest),
    }


@torch.no_grad()
def predict(arm: str, net: Any, e: Episodes, device: str) -> Tensor:
    parts = [
        answer(arm, net, Episodes(x.to(device), y.to(device), e.rarest)).predictions.cpu()
        for x, y in zip(e.x.split(250), e.y.split(250), strict=True)
    ]
    return torch.cat(parts)


@torch.no_grad()
def switched(job: Job, arm: str, net: Any, seed: int) -> Iterator[Measurement | Artifact]:
    """Other prototypes from the middle of an episode on: accuracy after the switch, and what is written where."""
    c = job.config
    steps, at = 2 * c.items, c.items
    e = prototype_episodes(c.test_episodes, steps, stream(seed, "switch"), switch_at=at)
    right = (predict(arm, net, e, job.device).argmax(-1) == e.y).float().mean(0)
    for t, value in enumerate(right.tolist()):
        yield Measurement(arm, seed, "accuracy_by_step_from_switch", 100 * value, "points", t - at)
    yield Measurement(arm, seed, "accuracy_after_switch", 100 * float(right[at + 3]), "points")
    if isinstance(net, FastSlowMemory) and arm != "labels_hidden":
        out = net(e.x[:1].to(job.device), e.y[:1].to(job.device))
        yield Artifact(arm, seed, "writes", out.writes[0].cpu().T.tolist())


class PermutedFeedback(Feedback):
    """A feedback that is shown the neighbouring row: right in kind, wrong in content."""

    def forward(self, name: str, h: Tensor, c: Tensor, task_id: int = 0, *, both: Tensor | None = None) -> Tensor:
        """ghat of the row before."""
        return super().forward(name, h.roll(1, 0), c.roll(1, 0), task_id)

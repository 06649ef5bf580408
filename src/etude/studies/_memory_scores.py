"""What the study of fast and slow learning measures: errors by item, accuracy after a switch, cosines of gradients."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from etude.data import stream
from etude.incontext import FastSlowMemory
from etude.incontext.few_shot_tasks import Episodes, label_counts, presentation_accuracy, prototype_episodes
from etude.incontext.synthetic_gradients import cosines
from etude.lab.study import Artifact, Job, Measurement
from etude.studies._memory_nets import answer
from etude.studies._memory_problems import Problem

LAST, EVERY = 50, 5
"""The cosine is averaged over the last updates, on a fresh batch at every fifth."""


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

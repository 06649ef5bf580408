"""The nets that the arms of the study of rich representations train, and the features they put out."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude import training
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.lab.study import Job
from etude.layers import mlp, resnet
from etude.studies._rich_problems import Representation, Transfer
from etude.training import CatClassifier, CatRepresentation, TrainConfig, accuracy, train

CATS = {"cat5": 5, "cat5_p8": 5, "cat5_adam_p8": 5, "logit_ensemble5": 5, "cat10": 10}
ALONE = ("wide5", "deep")  # the arms whose net has no four others to be joined with


def _loss(net: Any, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


def _config(c: Any, arm: str, **changes: Any) -> TrainConfig:
    if "adam" in arm and not arm.startswith("distill"):
        return TrainConfig(steps=c.steps, batch_size=64, lr=1e-3)
    made = TrainConfig(
        steps=c.steps, batch_size=64, optimizer="sgd", momentum=0.9, lr=c.lr, weight_decay=c.weight_decay, decay="all"
    )
    return replace(made, **changes)


class Form(NamedTuple):
    """What an arm's net looks like."""

    features: int
    wide: bool = False
    """Five times the features, and of residual nets about five times the parameters."""
    deep: bool = False

    @classmethod
    def of(cls, c: Any, arm: str) -> "Form":
        return cls(8 if arm.endswith("p8") else c.features, arm.startswith("wide5"), arm == "deep")


def make_net(c: Any, data: Transfer, form: Form) -> nn.Module:
    """Rows (n, d) to logits of the source's classes; the features stand before the last linear layer."""
    features = form.features * (5 if form.wide else 1)
    if c.net == "perceptron":
        inner = [c.hidden_size * (5 if form.wide else 1)] * (3 if form.deep else 1)
        return mlp((data.source.x.shape[1], *inner, features, data.classes))
    depth = c.depth + 12 if form.deep else c.depth
    width = round(c.hidden_size * 5**0.5) if form.wide else c.hidden_size
    body = resnet(data.shape, depth, width, features)
    return nn.Sequential(nn.Unflatten(1, data.shape), *body, nn.ReLU(), nn.Linear(features, data.classes))


_trained: dict[Any, list[nn.Module]] = {}  # of this process: arms share their nets


def nets_of(job: Job, data: Transfer, seed: int, arm: str, count: int, **changes: Any) -> list[nn.Module]:
    """`count` nets that differ in their seed only; an arm with fewer takes the first of them.

    Five are always trained, and together, whichever arm asks first: the numbers of a seed do not hang on a choice of
    plan by the clock, nor on the order of the arms. Ten are these five and five more.
    """
    c, form = job.config, Form.of(job.config, arm)
    config, alone = _config(c, arm, **changes), arm.startswith(ALONE)
    found: list[nn.Module] = []
    for first in range(0, count, 5):
        key = (job.protocol, seed, data.source.x.shape, data.classes, form, config, c.digest(), job.device, first)
        if key not in _trained:
            while len(_trained) >= 60:
                _trained.pop(next(iter(_trained)))
            seeds = [100 * seed + first + i for i in range(1 if alone else 5)]
            plan = "sequential" if alone else _plan(job)
            rows = Split(data.source.x, data.source.y).to(job.device)
            made = train(
                lambda s: make_net(c, data, form), rows, loss=_loss, config=config, seeds=seeds, plan=plan,
                device=job.device,
            )  # fmt: skip
            _trained[key] = [t.module for t in made]
        found += _trained[key]
    return found[:count]


def _plan(job: Job) -> str:
    """How five nets are trained together; not by what is quickest, which may differ from run to run."""
    if job.config.net == "perceptron":
        return "stacked"
    return "vmap" if job.device.startswith("cuda") else "sequential"


def ensemble(nets: Sequence[nn.Module]) -> CatClassifier:
    """One net whose output is the mean of the nets' logits; of logits, not of softmax, because this is the head
    ``[W_1 ... W_n] / n`` on the joined features: all that a probe on these adds is a choice of the head."""
    return CatClassifier(nets).eval()


def joined(nets: Sequence[nn.Module], data: Transfer, layer: str | None = None) -> Representation:
    """The nets' joined features, standardised on the source rows."""
    cat = CatRepresentation(nets, layer).fit(data.source.x)
    return lambda x: cat.transform(x).cpu()


def representation(job: Job, data: Transfer, seed: int) -> Representation:
    c, arm = job.config, job.arm
    if arm.startswith("random_features"):
        return joined([_random(data, seed, 5 * (8 if arm.endswith("p8") else c.features))], data)
    if arm == "five_copies":
        (net,) = nets_of(job, data, seed, "single", 1)
        rep = joined([net], data)
        return lambda x: torch.cat([rep(x)] * 5, 1)
    if arm == "logit_ensemble5":
        return joined([ensemble(nets_of(job, data, seed, arm, 5))], data, "head")
    if arm.startswith("distill"):
        return joined([_student(job, data, seed).net], data)
    if arm == "snapshots5":
        kept = training.Snapshots([c.steps * i // 5 for i in range(6, 11)])
        config = _config(c, arm, steps=2 * c.steps)
        rows = data.source.to(job.device)
        train(
            lambda s: make_net(c, data, Form.of(c, arm)), rows, loss=_loss, config=config, seeds=(100 * seed,),
            callbacks=[kept], device=job.device,
        )  # fmt: skip
        return joined(kept.nets, data)
    return joined(nets_of(job, data, seed, arm, CATS.get(arm, 1)), data)


def _random(data: Transfer, seed: int, width: int) -> nn.Module:
    sizes = (data.source.x.shape[1], width, 1)
    return seeded_build(lambda: mlp(sizes), stream(seed, "random_features")).eval()


def _student(job: Job, data: Transfer, seed: int) -> training.MultiHead:
    c = job.config
    teachers = nets_of(job, data, seed, "cat5", 5)
    if not job.arm.startswith("distill5"):
        teachers = teachers[:1] * (5 if "copies" in job.arm else 1)
    adam = TrainConfig(steps=c.steps, batch_size=64)
    return training.distill_representations(
        teachers, lambda s: make_net(c, data, Form.of(c, job.arm)), data.source.to(job.device), seed=100 * seed + 50,
        device=job.device, config=adam if job.arm.endswith("adam") else _config(c, job.arm, lr=c.student_lr),
    )  # fmt: skip


def tuned_accuracy(job: Job, data: Transfer, seed: int) -> float:
    """Accuracy in points of nets that are tuned on the few labelled rows of the target."""
    assert data.target is not None
    assert data.target_test is not None
    c, rows = job.config, data.target.to(job.device)
    classes = int(data.target.y.max()) + 1
    config = TrainConfig(steps=c.tune_steps, batch_size=64, optimizer="sgd", momentum=0.9, lr=0.01, schedule="cosine")
    nets = nets_of(job, data, seed, "cat5", 5)
    if job.arm == "two_stage":
        net: nn.Module = training.two_stage_finetune(
            nets, rows, classes, config=config, second=TrainConfig(steps=50, lr=1e-3), seed=100 * seed,
            device=job.device,
        )  # fmt: skip
    else:
        copies = [
            seeded_build(partial(training.with_new_head, n, classes), stream(100 * seed, "head", i))
            for i, n in enumerate(nets)
        ]  # type: ignore[misc]
        start = CatClassifier(copies) if job.arm == "joint_fine_tuning" else copies[0]
        (done,) = train(start, rows, loss=_loss, config=config, seeds=(100 * seed,), device=job.device)
        net = done.module
    with torch.no_grad():
        return 100 * accuracy(net(data.target_test.x.to(job.device)), data.target_test.y)

"""Rich representations: do several equally trained nets together know more than one wide net, when the task changes?

All nets of a repeat see the same source rows; a net's seed decides its start and the order of the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from etude import training
from etude.data import load_images
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers import mlp
from etude.studies._rich_plots import rich_plots
from etude.studies._rich_problems import Representation, Transfer, reduced, ridge_probe, scores, transfer
from etude.training import CatClassifier, CatRepresentation, TrainConfig, accuracy, train

IMAGES = ("mnist_5k", "digits")  # every arm; elsewhere those of the claims about shifts and features
CATS = {"cat5": 5, "cat5_p8": 5, "cat5_adam_p8": 5}
SWEEP = (0.0, 1e-4, 1e-3, 5e-3)


class RichConfig(StudyConfig):
    """Perceptrons of 64 and `features` hidden units; SGD with momentum 0.9 and weight decay unless an arm says Adam."""

    n_seeds: int = 6
    protocols: tuple[str, ...] = ("mnist_5k", "mnist1d", "blocks")
    features: PositiveInt = 32
    hidden_size: PositiveInt = 64
    steps: PositiveInt = 1500
    lr: float = 0.05
    weight_decay: float = 5e-3
    student_lr: float = 0.005
    labels: PositiveInt = 50
    """Labelled rows of each target class."""
    tune_steps: PositiveInt = 300
    signal_rows: PositiveInt = 4000
    block_rows: PositiveInt = 4000


class RichStudy(Study):
    """Probes on new classes, five-shot, shifted rows and ranks; fine-tuning and distillation."""

    configs: ClassVar = {
        "quick": RichConfig(n_seeds=3, protocols=("digits", "blocks"), steps=400, tune_steps=100, block_rows=1000),
        "laptop": RichConfig(),
        "gpu": RichConfig(n_seeds=10, protocols=("mnist_5k", "mnist1d"), hidden_size=512, features=128, steps=10_000),
    }
    arms: ClassVar = {
        "single": Arm("one net", role="baseline"),
        "wide5": Arm("one net, five times as wide", role="baseline"),
        "cat5": Arm("five nets joined"),
        "deep": Arm("one deeper net", role="ablation", protocols=IMAGES),
        "snapshots5": Arm("five states of one run of twice the length joined", role="ablation", protocols=IMAGES),
        "distill5": Arm("one student of five nets", protocols=IMAGES),
        "distill5_adam": Arm("the same, trained by Adam", role="ablation", protocols=IMAGES),
        "distill1": Arm("one student of one net", role="control", protocols=IMAGES),
        "distill1_adam": Arm("the same, trained by Adam", role="baseline", protocols=IMAGES),
        "distill_copies_adam": Arm("one student of one net with five heads, by Adam", role="control", protocols=IMAGES),
        "single_p8": Arm("one net of 8 features", role="ablation", protocols=IMAGES),
        "cat5_p8": Arm("five nets of 8 features joined", role="ablation"),
        "cat5_adam_p8": Arm("the same, Adam without weight decay", role="ablation", protocols=IMAGES),
        "wide5_adam_p8": Arm("a wide net of 40 features, Adam without decay", role="baseline", protocols=IMAGES),
        "two_stage": Arm("five nets tuned one by one, then joined", protocols=IMAGES),
        "joint_fine_tuning": Arm("five nets joined, then tuned as a whole", role="baseline", protocols=IMAGES),
        "single_fine_tuned": Arm("one net tuned", role="control", protocols=IMAGES),
        "random_features": Arm("random features, as many as five nets have", role="reference"),
        "random_features_p8": Arm("random features, as many as five nets of 8", role="control"),
        "five_copies": Arm("one net joined with itself", role="control"),
    }  # fmt: skip
    kinds: ClassVar = ("images", "table")

    def task(self, protocol: str, config: RichConfig) -> Any:
        """The image set itself; rows, and the generators' data, are drawn for each seed."""
        return load_images(protocol, pool=2 if protocol == "mnist_5k" else None) if protocol in IMAGES else None

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the nets of an arm on the source and score what they put out on source, target and shifted rows."""
        for seed in job.seeds:
            data = transfer(job.protocol, job.task, seed, job.config)
            if job.arm in ("two_stage", "joint_fine_tuning", "single_fine_tuned"):
                yield Measurement(job.arm, seed, "target_accuracy_fine_tuned", _tuned(job, data, seed), "points")
                continue
            rep = _representation(job, data, seed)
            for name, value in scores(rep, data, seed).items():
                yield Measurement(job.arm, seed, name, value, "1" if name == "effective_rank" else "points")
            if job.arm in ("cat5", "wide5", "single"):
                yield from _more(job, data, seed, rep)

    def plots(self, results: Results) -> list[Plot]:
        """Target and source accuracy by number of nets, by features and by weight decay; CKA between seeds."""
        return rich_plots(results, list(self.arms))


def _loss(net: Any, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch.x), batch.y)


def _config(c: RichConfig, arm: str, **changes: Any) -> TrainConfig:
    if "adam" in arm and not arm.startswith("distill"):
        return TrainConfig(steps=c.steps, batch_size=64, lr=1e-3)
    made = TrainConfig(
        steps=c.steps, batch_size=64, optimizer="sgd", momentum=0.9, lr=c.lr, weight_decay=c.weight_decay, decay="all"
    )
    return replace(made, **changes)


_trained: dict[Any, list[nn.Module]] = {}  # of this process: arms share their nets


def _nets(job: Job, data: Transfer, seed: int, arm: str, count: int, **changes: Any) -> list[nn.Module]:
    """`count` nets that differ in their seed only; an arm with fewer takes the first of them."""
    c = job.config
    p = 8 if arm.endswith("p8") else c.features
    wide = 5 if arm.startswith("wide5") else 1
    inner = [c.hidden_size] * (3 if arm == "deep" else 1)
    sizes = (data.source.x.shape[1], *(wide * h for h in inner), wide * p, data.classes)
    config = _config(c, arm, **changes)
    key = (job.protocol, seed, sizes, config, c.digest(), job.device)
    if len(_trained.get(key, ())) < count:
        while len(_trained) >= 40:
            _trained.pop(next(iter(_trained)))
        seeds = [100 * seed + i for i in range(count)]
        rows = Split(data.source.x, data.source.y).to(job.device)
        made = train(lambda s: mlp(sizes), rows, loss=_loss, config=config, seeds=seeds, device=job.device)
        _trained[key] = [t.module for t in made]
    return _trained[key][:count]


def _cat(nets: Sequence[nn.Module], data: Transfer) -> Representation:
    """The nets' joined features, standardised on the source rows."""
    cat = CatRepresentation(nets).fit(data.source.x)
    return lambda x: cat.transform(x).cpu()


def _representation(job: Job, data: Transfer, seed: int) -> Representation:
    c, arm = job.config, job.arm
    if arm.startswith("random_features"):
        return _cat([_random(data, seed, 5 * (8 if arm.endswith("p8") else c.features))], data)
    if arm == "five_copies":
        (net,) = _nets(job, data, seed, "single", 1)
        rep = _cat([net], data)
        return lambda x: torch.cat([rep(x)] * 5, 1)
    if arm.startswith("distill"):
        return _cat([_student(job, data, seed).net], data)
    if arm == "snapshots5":
        kept = training.Snapshots([c.steps * i // 5 for i in range(6, 11)])
        config = _config(c, arm, steps=2 * c.steps)
        sizes = (data.source.x.shape[1], c.hidden_size, c.features, data.classes)
        rows = data.source.to(job.device)
        train(
            lambda s: mlp(sizes), rows, loss=_loss, config=config, seeds=(100 * seed,), callbacks=[kept],
            device=job.device,
        )  # fmt: skip
        return _cat(kept.nets, data)
    return _cat(_nets(job, data, seed, arm, CATS.get(arm, 1)), data)


def _random(data: Transfer, seed: int, width: int) -> nn.Module:
    sizes = (data.source.x.shape[1], width, 1)
    return seeded_build(lambda: mlp(sizes), stream(seed, "random_features")).eval()


def _student(job: Job, data: Transfer, seed: int) -> training.MultiHead:
    c = job.config
    teachers = _nets(job, data, seed, "cat5", 5)
    if not job.arm.startswith("distill5"):
        teachers = teachers[:1] * (5 if "copies" in job.arm else 1)
    sizes = (data.source.x.shape[1], c.hidden_size, c.features, data.classes)
    adam = TrainConfig(steps=c.steps, batch_size=64)
    return training.distill_representations(
        teachers, lambda s: mlp(sizes), data.source.to(job.device), seed=100 * seed + 50, device=job.device,
        config=adam if job.arm.endswith("adam") else _config(c, job.arm, lr=c.student_lr),
    )  # fmt: skip


def _tuned(job: Job, data: Transfer, seed: int) -> float:
    """Accuracy in points of nets that are tuned on the few labelled rows of the target."""
    assert data.target is not None
    assert data.target_test is not None
    c, rows = job.config, data.target.to(job.device)
    classes = int(data.target.y.max()) + 1
    config = TrainConfig(steps=c.tune_steps, batch_size=64, optimizer="sgd", momentum=0.9, lr=0.01, schedule="cosine")
    nets = _nets(job, data, seed, "cat5", 5)
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


def _more(job: Job, data: Transfer, seed: int, rep: Representation) -> Iterator[Measurement | Artifact]:
    """Accuracy by number of features (all arms) and, for the first seed, by weight decay; CKA between members."""
    if data.target is None or data.target_test is None:
        return
    y, y_test = data.target.y, data.target_test.y
    few, test = rep(data.target.x), rep(data.target_test.x)
    for dims in (8, 16, 32, 64, 128):
        if dims <= few.shape[1]:
            small = reduced(few, test, test, dims)
            yield Measurement(
                job.arm, seed, "probe_by_features", ridge_probe(small[0], y, small[1], y_test), "points", dims
            )
    if job.arm == "cat5":
        for n in range(1, 6):
            end = n * job.config.features
            value = ridge_probe(few[:, :end], y, test[:, :end], y_test)
            yield Measurement(job.arm, seed, "probe_by_nets", value, "points", n)
        parts = {str(i): p for i, p in enumerate(test.split(job.config.features, 1))}
        values = training.cka_matrix(parts, debiased=True).values
        yield Measurement(job.arm, seed, "cka_between_members", float(values[~torch.eye(5, dtype=torch.bool)].mean()))
        if seed == job.config.seeds[0] and job.protocol in IMAGES:
            rows: list[Any] = [{"a": i, "b": j, "cka": float(values[i, j])} for i in range(5) for j in range(5)]
            yield Artifact(job.arm, seed, "members", rows)
            yield Artifact(job.arm, seed, "decay", _sweep(job, data, seed))


def _sweep(job: Job, data: Transfer, seed: int) -> list[Any]:
    assert data.target is not None
    assert data.target_test is not None
    found: list[Any] = []
    for decay in SWEEP:
        for arm, count in (("cat5", 5), ("wide5", 1)):
            rep = _cat(_nets(job, data, seed, arm, count, weight_decay=decay), data)
            value = ridge_probe(rep(data.target.x), data.target.y, rep(data.target_test.x), data.target_test.y)
            found.append({"arm": arm, "weight decay": str(decay), "value": round(value, 2)})
    return found

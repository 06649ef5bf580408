"""Physical local learning: can layers between black boxes be trained one by one, without the boxes' derivatives?

Four simulated boxes; all arms of a seed see the same rows and as many updates of each layer. Their boxes are of one
kind and from one stream of the seed, but not the same: PhyLL's first box is wider by the label, so its draw and those
after it differ from those of the other arms.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from etude.data import load_images
from etude.data.randomness import stream
from etude.data.tasks import Task
from etude.data.vowels import vowels
from etude.lab.study import Arm, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies import _physical_arms as arms_of
from etude.studies import _physical_rivals as rivals
from etude.studies._physical_measures import measurements
from etude.studies._physical_plots import physical_plots
from etude.training.physical_boxes import BOXES, BoxKind

VOWELS, ONE_NET = ("vowels",), ("no_physics", "ridge")
DRIFTING = (*VOWELS, "user")  # where the claims of drift are judged
GRADIENTS = {"ideal_bp": ("ideal",), "pat": ("pat", "in_silico"), "spsa": ("spsa",)}


class PhysicalConfig(StudyConfig):
    """Sizes of the paper's acoustic net; digits have layers of their own."""

    protocols: tuple[str, ...] = ("vowels", "digits")
    boxes: tuple[BoxKind, ...] = Field(BOXES, min_length=1)
    """Kinds of physics."""
    hidden: tuple[PositiveInt, ...] = Field((20, 20), min_length=1)
    box_width: PositiveInt | None = None
    """Outputs of a box; None: as many as inputs."""
    bypass: bool = True
    theta: PositiveFloat = 4.0
    """Steepness of the local loss."""
    epochs: PositiveInt = 100
    inner_steps: PositiveInt = 10
    batch_size: PositiveInt | None = None
    """Rows a batch; None: all."""
    lr: PositiveFloat = 5e-3
    bp_lr: PositiveFloat = 5e-3
    recovery_epochs: PositiveInt = 30
    curve_every: PositiveInt = 5
    """Epochs between two points of the curve of accuracy against cost."""
    twin_pairs: PositiveInt = 9000
    """Runs of its box that a digital twin is fitted to."""
    twin_steps: PositiveInt = 1000
    """Updates of a digital twin."""
    digits_hidden: tuple[PositiveInt, ...] = Field((200, 200), min_length=1)
    digits_epochs: PositiveInt = 12
    digits_inner_steps: PositiveInt = 5
    layers: tuple[PositiveInt, ...] = ()
    """Numbers of layers, each as wide as the last, that local learning is also tried with."""
    train_speakers: PositiveInt = 30
    test_speakers: PositiveInt = 200

    def for_digits(self) -> "PhysicalConfig":
        """Wider layers without a bypass, in batches: the physics must be used."""
        return self.model_copy(update={
            "hidden": self.digits_hidden, "bypass": False, "epochs": self.digits_epochs, "batch_size": 128,
            "inner_steps": self.digits_inner_steps, "curve_every": max(1, self.digits_epochs // 6),
        })  # fmt: skip


class PhysicalStudy(Study):
    """Accuracy, cost and recovery from drift of local learning and its rivals."""

    configs: ClassVar = {
        "quick": PhysicalConfig(
            n_seeds=3, protocols=("vowels",), boxes=("optics", "microwave"), epochs=14, recovery_epochs=14,
            curve_every=7, twin_steps=100, test_speakers=30,
        ),
        "laptop": PhysicalConfig(),
        "gpu": PhysicalConfig(
            epochs=200, protocols=("vowels", "digits", "mnist"), digits_hidden=(1000, 1000), digits_epochs=40,
            digits_inner_steps=20, box_width=676, twin_steps=8000, layers=(2, 3, 4, 6),
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "phyll": Arm("physical local learning"),
        "ideal_bp": Arm("back-propagation through the simulator", role="baseline"),
        "in_silico_stale": Arm("back-propagation through a digital twin", role="baseline", derived=True),
        "pat": Arm("physics-aware training: box forwards, twin backwards", role="baseline", protocols=VOWELS),
        "spsa": Arm("gradients estimated from two runs", role="reference", protocols=VOWELS),
        "read_out_only": Arm("random layers, ridge read-out", role="baseline"),
        "no_physics": Arm("local learning without boxes", role="baseline"),
        "ridge": Arm("ridge regression on the raw features", role="baseline"),
        "gradual": Arm("local learning while the boxes turn", role="ablation", protocols=VOWELS),
        "layers": Arm("local learning by number of layers", role="ablation", derived=True),
        "shuffled_labels": Arm("local learning on shuffled labels", role="control"),
    }
    kinds: ClassVar = ("table", "images")

    def task(self, protocol: str, config: PhysicalConfig) -> Any:
        """Images; vowels are drawn for each seed."""
        return None if protocol == "vowels" else load_images(protocol)

    def measure(self, job: Job) -> Iterator[Measurement]:
        """Train the arm on every box and score it on new speakers or test images."""
        config = job.config if job.protocol == "vowels" else job.config.for_digits()
        for seed in job.seeds:
            twin = rivals.twin_maker()
            for how in GRADIENTS.get(job.arm, ("",)):
                kinds = config.boxes[:1] if job.arm in ONE_NET else config.boxes
                found = {kind: _outcome(job, config, seed, kind, how, twin) for kind in kinds}
                if job.arm in ONE_NET:
                    found = dict.fromkeys(config.boxes, found[kinds[0]])
                if job.arm == "phyll":
                    yield from arms_of.by_layers(_task(job, config, seed), config, seed)
                yield from measurements("in_silico_stale" if how == "in_silico" else job.arm, seed, found)

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy by arm, accuracy against physical runs, digital work, the drift in time."""
        return physical_plots(results)


def _task(job: Job, config: PhysicalConfig, seed: int) -> Task:
    if job.protocol == "vowels":
        task = vowels(config.train_speakers, config.test_speakers, seed=seed)
    else:
        official = getattr(job.task, "test", None) is not None
        task = job.task.task(seed, (len(job.task.y), 0) if official else (0.7, 0.0, 0.3))
        flat = [part._replace(x=part.x.flatten(1)) for part in (task.train, task.test)]
        task = Task(task.name, task.kind, flat[0], test=flat[1], num_classes=task.num_classes)
    if job.arm == "shuffled_labels":
        order = torch.randperm(task.train.n, generator=stream(seed, "shuffle"))
        train = task.train._replace(y=task.train.y[order])
        task = Task(task.name, task.kind, train, test=task.test, num_classes=task.num_classes)
    return arms_of.scaled(task)


def _outcome(
    job: Job, config: PhysicalConfig, seed: int, kind: str, how: str, twin: rivals.TwinMaker
) -> arms_of.Outcome:
    task, drift = _task(job, config, seed), job.protocol in DRIFTING
    if how:
        return rivals.back_propagation(task, kind, config, seed, how=how, drift=drift, twin=twin)
    if job.arm == "read_out_only":
        return rivals.reservoir(task, kind, config, seed)
    if job.arm == "ridge":
        return rivals.ridge(task)
    physics = None if job.arm == "no_physics" else kind
    gradual = job.arm == "gradual"
    return arms_of.local_learning(task, physics, config, seed, drift=drift and not gradual, gradual=gradual)

"""Rich representations: do several equally trained nets together know more than one wide net, when the task changes?

All nets of a repeat see the same source rows; a net's seed decides its start and the order of the rows.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from etude.data import load_images
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._rich_measures import by_heads, by_size, pictures
from etude.studies._rich_nets import representation, tuned_accuracy
from etude.studies._rich_plots import rich_plots
from etude.studies._rich_problems import IMAGES, scores, transfer


class RichConfig(StudyConfig):
    """Perceptrons of `hidden_size` and `features` hidden units, or residual nets; SGD with momentum 0.9 and weight
    decay unless an arm says Adam."""

    n_seeds: int = 6
    protocols: tuple[str, ...] = ("mnist_5k", "mnist1d", "blocks")
    net: Literal["perceptron", "resnet"] = "perceptron"
    depth: PositiveInt = 20
    """Layers of a residual net, 6 n + 2; the deeper one has 12 more."""
    features: PositiveInt = 32
    hidden_size: PositiveInt = 64
    """Of a residual net the channels of the first stage."""
    classes: Annotated[int, Field(ge=4)] | None = None
    """Of a set with more, so many are drawn for each seed: half for the source, half for the target."""
    steps: PositiveInt = 1500
    lr: PositiveFloat = 0.05
    weight_decay: NonNegativeFloat = 5e-3
    student_lr: PositiveFloat = 0.005
    labels: PositiveInt = 50
    """Labelled rows of each target class."""
    tune_steps: PositiveInt = 300
    strengths: tuple[PositiveFloat, ...] = Field((1e-3, 1e-2, 0.1, 1.0, 10.0), min_length=1)
    """Of logistic probes, chosen by three folds."""
    signal_rows: PositiveInt = 4000
    block_rows: PositiveInt = 4000


class RichStudy(Study):
    """Probes on new classes, five-shot, shifted rows and ranks; fine-tuning and distillation."""

    configs: ClassVar = {
        "quick": RichConfig(
            n_seeds=3,
            protocols=("digits", "blocks"),
            steps=120,
            tune_steps=30,
            block_rows=400,
            strengths=(0.1, 1.0),
        ),
        "laptop": RichConfig(),
        "gpu": RichConfig(
            n_seeds=10,
            protocols=("omniglot", "cifar10_full", "mnist1d"),
            net="resnet",
            hidden_size=16,
            features=64,
            classes=100,
            steps=2000,
            signal_rows=50_000,
        ),
    }
    arms: ClassVar = {
        "single": Arm("one net", role="baseline"),
        "wide5": Arm("one net, five times as wide", role="baseline"),
        "cat5": Arm("five nets joined"),
        "cat10": Arm("these five and five more joined", role="ablation"),
        "logit_ensemble5": Arm("the mean of five nets' logits", role="reference"),
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
        if protocol not in IMAGES:
            return None
        return load_images(protocol, pool={"mnist_5k": 2}.get(protocol), size={"omniglot": 28}.get(protocol))

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train the nets of an arm on the source and score what they put out on source, target and shifted rows."""
        for seed in job.seeds:
            data = transfer(job.protocol, job.task, seed, job.config)
            if job.arm in ("two_stage", "joint_fine_tuning", "single_fine_tuned"):
                yield Measurement(
                    job.arm, seed, "target_accuracy_fine_tuned", tuned_accuracy(job, data, seed), "points"
                )
                continue
            rep = representation(job, data, seed)
            for name, value in scores(rep, data, seed, job.config).items():
                yield Measurement(job.arm, seed, name, value, "1" if name == "effective_rank" else "points")
            yield from by_heads(job, data, seed)
            yield from by_size(job, data, seed, rep)
            yield from pictures(job, data, seed, rep)

    def plots(self, results: Results) -> list[Plot]:
        """Target and source accuracy by number of nets, by features and by weight decay; CKA between seeds."""
        return rich_plots(results, list(self.arms))

"""A thesis of continual-learning tools: penalties, codes that leave room, a gate, plateaus, and what a memory keeps.

Arms of one setting share a seed's data, order and start. Permuted tasks come with a head each and several epochs;
streams of disjoint classes once, in batches of ten, with one head.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from etude.data import load_images
from etude.data.images import ImageSet
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies import _continual_problems as problems
from etude.studies._continual_online import border_free_accuracy, memory_accuracy
from etude.studies._continual_plots import continual_plots
from etude.studies._continual_routing import gate_scores, subset_accuracy
from etude.studies._continual_tasks import TASKS, task_accuracy

MEMORIES = ("single", "reservoir", "mir", "gss_greedy")
FREE = ("task_free_mas", "online", "random_detector", "known_borders")
SUBSET = ("mas_user_subset", "mas_all_data", "mas_subset_shuffled")
GATES = ("autoencoder_gate", "classifier_gate", "gate_shuffled_tasks")


class ContinualConfig(StudyConfig):
    """Images of 14 x 14; the weight of each penalty was searched on pilot seeds, on a grid of its own."""

    n_seeds: int = 10
    protocols: tuple[str, ...] = ("mnist_5k",)
    rows: tuple[PositiveInt, PositiveInt] = (4000, 1000)
    """Training and test rows."""
    tasks: PositiveInt = 10
    epochs: PositiveInt = 3
    width: Annotated[int, Field(ge=2)] = 64
    small_width: PositiveInt = 32
    importance_rows: PositiveInt = 1000
    large: PositiveInt = 800
    """Rows of a large segment of two classes; a small one has a tenth. A class with fewer gives what it has."""
    memory: PositiveInt = 100
    iterations: PositiveInt = 3
    """Updates on each batch of a stream."""
    gate_rows: tuple[PositiveInt, PositiveInt] = (500, 100)
    gate_epochs: PositiveInt = 30
    l2_weight: NonNegativeFloat = 0.03
    ewc_weight: NonNegativeFloat = 10.0
    mas_weight: NonNegativeFloat = 0.03
    si_weight: NonNegativeFloat = 1.0
    lwf_weight: NonNegativeFloat = 1.0
    """Of the distillation in LwF and EBLL."""
    slnid_weight: NonNegativeFloat = 1e-3
    """Of the inhibition beside MAS."""
    ebll_weight: NonNegativeFloat = 1.0
    """Of the codes' movement."""
    subset_weight: NonNegativeFloat = 0.3
    """Of MAS between the two tasks of the user's subset."""
    free_weight: NonNegativeFloat = 0.1
    """Of MAS on a stream without borders."""


class ContinualStudy(Study):
    """Forgetting and accuracy of each tool against its rivals and a control."""

    kinds: ClassVar = ("images",)
    configs: ClassVar = {
        "quick": ContinualConfig(
            n_seeds=3, protocols=("digits",), rows=(800, 400), tasks=3, epochs=10, width=32, small_width=16,
            importance_rows=300, large=140, memory=20, gate_rows=(150, 50), gate_epochs=15,
        ),
        "laptop": ContinualConfig(),
        "gpu": ContinualConfig(
            protocols=("mnist", "fashion_mnist"), rows=(60_000, 10_000), tasks=20, width=256, small_width=64,
            large=1000, gate_rows=(2000, 500), n_seeds=15,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "fine_tune": Arm("permuted tasks, no protection", role="control"),
        "l2": Arm("pull to the last task's weights", role="baseline"),
        "ewc": Arm("EWC, exact Fisher diagonal", role="baseline"),
        "mas": Arm("MAS, gradients of single samples"),
        "mas_batch": Arm("MAS, gradients of batches of 50", role="ablation"),
        "mas_shuffled": Arm("MAS with its importances on other parameters", role="control"),
        "mas_slnid": Arm("MAS and local inhibition"),
        "si": Arm("synaptic intelligence", role="reference"),
        "lwf": Arm("learning without forgetting", role="reference"),
        "ebll": Arm("encoder-based lifelong learning", role="reference"),
        "mas_user_subset": Arm("importance from the user's classes"),
        "mas_all_data": Arm("importance from all training rows", role="baseline"),
        "mas_subset_shuffled": Arm("the user's importances on other parameters", role="control"),
        "autoencoder_gate": Arm("gate by reconstruction error"),
        "classifier_gate": Arm("classifier of all tasks' rows", role="baseline"),
        "gate_shuffled_tasks": Arm("autoencoders of rows mixed over tasks", role="control"),
        "task_free_mas": Arm("MAS updated at plateaus"),
        "online": Arm("the same stream and hard samples, no MAS", role="baseline"),
        "random_detector": Arm("MAS updated at random batches", role="control"),
        "known_borders": Arm("MAS updated at the true borders", role="reference"),
        "gss_greedy": Arm("gradient-based sample selection"),
        "mir": Arm("reservoir, most interfered samples replayed"),
        "reservoir": Arm("reservoir, random samples replayed", role="baseline"),
        "single": Arm("stream without a memory", role="control"),
    }

    def task(self, protocol: str, config: ContinualConfig) -> ImageSet:
        """Images brought to 14 x 14."""
        return problems.small(load_images(protocol, grey=True))

    def user_task(self, data: ImageSet, config: ContinualConfig) -> ImageSet:
        """The user's images, brought to 14 x 14; ValueError where they are too few."""
        problems.check_enough(data)
        return problems.small(data)

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """The arm's own setting."""
        setting = {**dict.fromkeys(TASKS, task_accuracy), **dict.fromkeys(SUBSET, subset_accuracy),
                   **dict.fromkeys(GATES, gate_scores), **dict.fromkeys(FREE, border_free_accuracy),
                   **dict.fromkeys(MEMORIES, memory_accuracy)}[job.arm]  # fmt: skip
        for seed in job.seeds:
            yield from setting(job, seed)

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy of each task over time, accuracy at the end, memories, plateaus."""
        return continual_plots(results)

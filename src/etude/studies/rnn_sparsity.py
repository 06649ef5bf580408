"""Sparsity in recurrent nets: how much of a trained net can go, what brings it back, and does its wiring tell?

Four kinds of cell learn to accept strings of a small grammar; every pruned net comes from the same trained one.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from etude.compression.graph_rnn import Cell
from etude.compression.sparsity import PARTS
from etude.data.reber import has_legal_pairs
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.studies._sparsity_cells import NAMED, RETRAINED, prune_cell, summary
from etude.studies._sparsity_graphs import graph_measurements
from etude.studies._sparsity_nets import strings_for
from etude.studies._sparsity_plots import sparsity_plots

CELLS = ("tanh", "relu", "gru", "lstm")


class SparsityConfig(StudyConfig):
    """Sizes of the nets, of the grammar's strings and of the sweep."""

    protocols: tuple[str, ...] = ("reber",)
    hidden_size: PositiveInt = 32
    num_layers: PositiveInt = 2
    embedding_dim: PositiveInt = 50
    train_rows: PositiveInt = 6000
    test_rows: PositiveInt = 2000
    longest: Annotated[int, Field(ge=11)] = 30
    """Longest string; the shortest has 11 letters."""
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 3e-3
    epochs: PositiveInt = 8
    retrain_steps: PositiveInt = 376
    """Updates after pruning, with an optimiser of its own; the thesis' epoch has 586."""
    graphs: Annotated[int, Field(ge=2)] = 8
    """Randomly wired nets a seed, half of each family."""
    graph_nodes: tuple[Annotated[int, Field(ge=10)], Annotated[int, Field(ge=10)]] = (10, 24)
    graph_epochs: PositiveInt = 2
    graph_rows: PositiveInt = 3000
    graph_lr: PositiveFloat = 1e-2
    graph_cell: Cell = "gru"

    @field_validator("graph_nodes")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"fewest and most nodes, in this order; got {list(value)}")
        return value


class SparsityStudy(Study):
    """Pruned nets against the same net whole; randomly wired nets against each other."""

    kinds: ClassVar = ("documents",)
    configs: ClassVar = {
        "quick": SparsityConfig(
            n_seeds=3, hidden_size=24, num_layers=1, embedding_dim=16, train_rows=1000, test_rows=500, longest=24,
            batch_size=32, lr=1e-2, epochs=4, retrain_steps=80, graphs=4, graph_nodes=(10, 14), graph_epochs=1,
            graph_rows=600,
        ),
        "laptop": SparsityConfig(),
        "gpu": SparsityConfig(
            hidden_size=50, num_layers=3, train_rows=18_750, test_rows=6250, longest=53, batch_size=32, lr=1e-3,
            epochs=50, retrain_steps=586, graphs=60, graph_nodes=(10, 50), graph_epochs=15, graph_rows=18_750,
            graph_lr=1e-3,
        ),
    }  # fmt: skip
    arms: ClassVar = {
        "dense": Arm("the trained nets, nothing removed", role="baseline"),
        **{name: Arm(f"{100 * a:.0f} % of weights removed, {part}", derived=True) for name, (part, a) in NAMED.items()},
        **{name: Arm(f"{100 * a:.0f} % removed, {part}, retrained", derived=True)
           for name, (part, a) in RETRAINED.items()},
        "untrained": Arm("the same nets before training", role="control", derived=True),
        "letter_pairs": Arm("accepts whatever has legal pairs of letters only", role="reference", derived=True),
        "graph_rnn": Arm("randomly wired nets", protocols=("reber",)),
        "watts_strogatz": Arm("small-world wirings", derived=True),
        "barabasi_albert": Arm("scale-free wirings", role="baseline", derived=True),
        "graph_forest": Arm("random forest on the graph's properties", derived=True),
        "mean_predictor": Arm("predicts the mean", role="baseline", derived=True),
        "shuffled_features": Arm("properties of another graph", role="control", derived=True),
        "shuffled_families": Arm("family names exchanged at random", role="control", derived=True),
    }  # fmt: skip

    def task(self, protocol: str, config: SparsityConfig) -> Any:
        """Strings are drawn for each seed."""
        return None if protocol == "reber" else super().task(protocol, config)

    def user_task(self, data: Any, config: SparsityConfig) -> Any:
        """The user's labelled documents, read letter by letter."""
        if data.labels is None or len(data.classes) < 2:
            raise ValueError("accuracy is scored by labels: bring documents of at least two classes")
        return data

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train every cell, prune and retrain copies of it; or train the randomly wired nets."""
        tasks = {s: strings_for(job, s) for s in job.seeds}
        if job.arm == "graph_rnn":
            yield from graph_measurements(job, tasks)
            return
        scores: dict[tuple[int, str], dict[str, float]] = {}
        for cell in CELLS:
            yield from prune_cell(job, cell, tasks, scores)
        for (seed, arm), by_cell in scores.items():
            yield from summary(arm, seed, by_cell, scores[seed, "dense"])
        for seed, task in tasks.items() if job.protocol == "reber" else ():
            assert task.test is not None
            right = [has_legal_pairs(t) == bool(y) for t, y in zip(task.meta["test"], task.test.y.tolist())]
            yield Measurement("letter_pairs", seed, "mean_accuracy", 100 * sum(right) / len(right), "points")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy against the share removed, recovery, randomly wired nets."""
        return sparsity_plots(results, CELLS, tuple(PARTS))

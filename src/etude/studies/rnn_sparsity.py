"""Sparsity in recurrent nets: how much of a trained net can go, what brings it back, and does its wiring tell?

Four kinds of cell learn to accept strings of a small grammar; every pruned net comes from the same trained one.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import nn

from etude.compression.pruning import prepared
from etude.compression.sparsity import PARTS
from etude.data import Task, seeded_build, stream
from etude.data.reber import has_legal_pairs
from etude.lab.study import Arm, Artifact, Job, Measurement, Plot, Results, Study, StudyConfig
from etude.layers.masks import apply_masks
from etude.studies._sparsity_graphs import graph_measurements
from etude.studies._sparsity_nets import accuracy, classifier, string_loss, strings_for
from etude.studies._sparsity_plots import sparsity_plots
from etude.training import TrainConfig, train

CELLS = ("tanh", "relu", "gru", "lstm")
GROUPS = {"": CELLS, "_gated": ("gru", "lstm"), "_plain": ("tanh", "relu"), "_recovering": ("relu", "gru", "lstm")}
NAMED = {  # arms of the claims: part and share removed; pruned_input_80 removes 70 % from ReLU
    "pruned_both_40": ("both", 0.4), "pruned_both_60": ("both", 0.6), "pruned_both_65": ("both", 0.65),
    "pruned_both_90": ("both", 0.9), "pruned_input_70": ("input", 0.7), "pruned_input_80": ("input", 0.8),
    "pruned_recurrent_70": ("recurrent", 0.7), "no_input": ("input", 1.0),
}  # fmt: skip
RETRAINED = {"pruned_both_90_retrained": ("both", 0.9), "no_recurrent_retrained": ("recurrent", 1.0)}
AMOUNTS = (0.4, 0.6, 0.65, 0.7, 0.8, 0.9, 0.95, 1.0)


class SparsityConfig(StudyConfig):
    """Sizes of the nets, of the grammar's strings and of the sweep."""

    protocols: tuple[str, ...] = ("reber",)
    hidden_size: PositiveInt = 32
    num_layers: PositiveInt = 2
    embedding_dim: PositiveInt = 50
    train_rows: PositiveInt = 6000
    test_rows: PositiveInt = 2000
    longest: PositiveInt = 30
    """Longest string; the shortest has 11 letters."""
    batch_size: PositiveInt = 64
    lr: float = 3e-3
    epochs: PositiveInt = 8
    retrain_steps: PositiveInt = 376
    """Updates after pruning, with an optimiser of its own; the thesis' epoch has 586."""
    graphs: PositiveInt = 8
    """Randomly wired nets a seed, half of each family."""
    graph_nodes: tuple[int, int] = (10, 24)
    graph_epochs: PositiveInt = 2
    graph_rows: PositiveInt = 3000
    graph_lr: float = 1e-2
    graph_cell: str = "gru"


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
            epochs=50, retrain_steps=5860, graphs=60, graph_nodes=(10, 50), graph_epochs=15, graph_rows=18_750,
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

    def measure(self, job: Job) -> Iterator[Measurement | Artifact]:
        """Train every cell, prune and retrain copies of it; or train the randomly wired nets."""
        tasks = {s: strings_for(job, s) for s in job.seeds}
        if job.arm == "graph_rnn":
            yield from graph_measurements(job, tasks)
            return
        scores: dict[tuple[int, str], dict[str, float]] = {}
        for cell in CELLS:
            yield from _cell(job, cell, tasks, scores)
        for (seed, arm), by_cell in scores.items():
            yield from _summary(arm, seed, by_cell, scores[seed, "dense"])
        for seed, task in tasks.items() if job.protocol == "reber" else ():
            assert task.test is not None
            right = [has_legal_pairs(t) == bool(y) for t, y in zip(task.meta["test"], task.test.y.tolist())]
            yield Measurement("letter_pairs", seed, "mean_accuracy", 100 * sum(right) / len(right), "points")

    def plots(self, results: Results) -> list[Plot]:
        """Accuracy against the share removed, recovery, randomly wired nets."""
        return sparsity_plots(results, CELLS, tuple(PARTS))


def _cell(
    job: Job, cell: str, tasks: Mapping[int, Task], scores: dict[tuple[int, str], dict[str, float]]
) -> Iterator[Measurement]:
    """One kind of cell: whole, pruned by every amount, retrained."""
    c = job.config

    def build(seed: int) -> nn.Module:
        return classifier(cell, c, tasks[seed].num_classes)

    common: dict[str, Any] = dict(loss=string_loss, seeds=job.seeds, device=job.device)
    fit = dict(batch_size=c.batch_size, lr=c.lr, clip_norm=5.0)
    nets = train(build, lambda s: tasks[s].train, config=TrainConfig(epochs=c.epochs, **fit), **common)
    pruned: dict[str, dict[int, nn.Module]] = {arm: {} for arm in RETRAINED}
    for done in nets:
        seed, test = done.seed, tasks[done.seed].test
        assert test is not None
        raw = seeded_build(lambda seed=seed: build(seed), stream(seed, "init"))  # type: ignore[misc]
        scores.setdefault((seed, "dense"), {})[cell] = accuracy(done.module, test)
        scores.setdefault((seed, "untrained"), {})[cell] = accuracy(raw, test)
        for part, targets in PARTS.items():
            ranked, curve = prepared(done.module, targets), {0.0: scores[seed, "dense"][cell]}
            for amount in AMOUNTS:
                net = copy.deepcopy(done.module)
                apply_masks(net, ranked.masks(amount))
                curve[amount] = accuracy(net, test)
                for arm in [a for a, what in RETRAINED.items() if what == (part, amount)]:
                    pruned[arm][seed] = net
            for amount, value in curve.items():
                yield Measurement("dense", seed, f"accuracy_{cell}_{part}", value, "points", step=amount)
            for arm, (which, amount) in NAMED.items():
                if which == part:
                    amount = 0.7 if (arm, cell) == ("pruned_input_80", "relu") else amount
                    scores.setdefault((seed, arm), {})[cell] = curve[amount]
    retraining = TrainConfig(steps=c.retrain_steps, eval_every=max(1, c.retrain_steps // 4), **fit)
    for arm, by_seed in pruned.items():
        again = train(
            lambda s, nets=by_seed: copy.deepcopy(nets[s]), lambda s: tasks[s].train,  # type: ignore[misc]
            config=retraining,
            val=lambda s: tasks[s].test, metric=accuracy, **common,
        )  # fmt: skip
        for done in again:
            test = tasks[done.seed].test
            assert test is not None
            scores.setdefault((done.seed, arm), {})[cell] = accuracy(done.module, test)
            yield Measurement(arm, done.seed, f"retraining_{cell}", accuracy(by_seed[done.seed], test), "points", 0.0)
            for point in done.curve:
                yield Measurement(arm, done.seed, f"retraining_{cell}", point["metric"], "points", point["step"])


def _summary(arm: str, seed: int, by_cell: Mapping[str, float], dense: Mapping[str, float]) -> Iterator[Measurement]:
    for cell, value in by_cell.items():
        yield Measurement(arm, seed, f"accuracy_{cell}", value, "points")
    for suffix, cells in GROUPS.items():
        mean = sum(by_cell[cell] for cell in cells) / len(cells)
        worst = min(by_cell[cell] - dense[cell] for cell in cells)
        yield Measurement(arm, seed, "mean_accuracy" if not suffix else f"accuracy{suffix}", mean, "points")
        yield Measurement(arm, seed, f"worst_accuracy_change{suffix}", worst, "points")

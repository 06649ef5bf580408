"""Randomly wired nets of the study of sparse recurrent nets: what their graphs say of their accuracy."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from etude.compression.graph_rnn import GraphRNN
from etude.compression.graphs import correlation, graph_properties, predict_from_graphs, random_graph
from etude.data import Task, stream
from etude.lab.study import Artifact, Job, Measurement
from etude.layers.sequence_classifier import SequenceClassifier
from etude.studies._sparsity_nets import accuracy, string_loss
from etude.training import TrainConfig, train

FAMILIES = ("watts_strogatz", "barabasi_albert")
FOREST_GRAPHS = 40  # fewer say nothing of a forest on 23 features
BATCH = 128  # as in the thesis


def graph_measurements(job: Job, tasks: Mapping[int, Task]) -> Iterator[Measurement | Artifact]:
    """Train one net a graph, the same number of each family, and relate accuracy to the graphs' properties."""
    c = job.config
    rows: dict[int, list[dict[str, Any]]] = {s: [] for s in job.seeds}
    config = TrainConfig(epochs=c.graph_epochs, batch_size=BATCH, lr=c.graph_lr, clip_norm=5.0)
    for number in range(c.graphs):
        family = FAMILIES[number % 2]
        graphs = {s: _graph(s, number, family, c.graph_nodes) for s in job.seeds}

        def build(seed: int, graphs: Mapping[int, Any] = graphs) -> nn.Module:
            sources = int(graph_properties(graphs[seed])["sources"])  # embeddings as wide as the first layer
            return SequenceClassifier(GraphRNN(graphs[seed], c.graph_cell, sources), 128, tasks[seed].num_classes)

        done = train(
            build, lambda s: tasks[s].train.take(range(min(c.graph_rows, tasks[s].train.n))), loss=string_loss,
            config=config, seeds=job.seeds, device=job.device,
        )  # fmt: skip
        for net in done:
            test = tasks[net.seed].test
            assert test is not None
            score = accuracy(net.module, test)
            properties = graph_properties(graphs[net.seed])
            rows[net.seed].append({"family": family, "accuracy": score, **properties})
    for seed, found in rows.items():
        yield Artifact("graph_rnn", seed, "graphs", [*found])
        yield from _relations(seed, found)


def _graph(seed: int, number: int, family: str, nodes: tuple[int, int]) -> Any:
    generator = stream(seed, "graph", number)
    n = int(torch.randint(nodes[0], nodes[1] + 1, (1,), generator=generator))
    return random_graph(family, n, generator)  # type: ignore[arg-type]


def _relations(seed: int, rows: list[dict[str, Any]]) -> Iterator[Measurement]:
    y = [r["accuracy"] for r in rows]
    names = [n for n in rows[0] if n not in ("family", "accuracy")]
    other = torch.randperm(len(rows), generator=stream(seed, "shuffle")).tolist()
    columns = {n: [r[n] for r in rows] for n in names}
    for name in names:
        yield Measurement("graph_rnn", seed, f"correlation_with_{name}", correlation(columns[name], y))
    mixed = [columns["sources"][i] for i in other]
    yield Measurement("shuffled_features", seed, "correlation_with_sources", correlation(mixed, y))
    small_world = [float(r["family"] == FAMILIES[0]) for r in rows]
    partial = correlation(small_world, y, given=columns["sources"])
    yield Measurement("watts_strogatz", seed, "correlation_at_equal_sources", partial)
    for arm in FAMILIES:
        own = [r["accuracy"] for r in rows if r["family"] == arm]
        yield Measurement(arm, seed, "mean_accuracy_graphs", sum(own) / len(own), "points")
    named = [y[i] for i, j in enumerate(other) if rows[j]["family"] == FAMILIES[0]]
    yield Measurement("shuffled_families", seed, "mean_accuracy_graphs", sum(named) / len(named), "points")
    if len(rows) >= FOREST_GRAPHS:
        features = [{n: r[n] for n in names} for r in rows]
        scores = predict_from_graphs(features, y, seed=seed)
        yield Measurement("graph_forest", seed, "r_squared", scores["random_forest"])
        yield Measurement("mean_predictor", seed, "r_squared", scores["mean"])
        for name in ("bayesian_ridge", "adaboost"):
            yield Measurement("graph_forest", seed, f"r_squared_{name}", scores[name])
        mixed_scores = predict_from_graphs([features[i] for i in other], y, seed=seed)
        yield Measurement("shuffled_features", seed, "r_squared", mixed_scores["random_forest"])

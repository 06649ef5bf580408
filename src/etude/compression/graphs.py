"""Random graphs as wirings of a net, their properties, and how far these tell accuracy.

Sources: Darji 2021, arXiv 2407.20601; Watts & Strogatz 1998, Nature 393; Barabasi & Albert 1999, Science 286.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

if TYPE_CHECKING:  # networkx and scikit-learn's forests load slowly, and pruning needs neither
    import networkx as nx

Graph = Any  # a networkx graph, or pairs of nodes


def random_graph(
    family: Literal["watts_strogatz", "barabasi_albert"], nodes: int, generator: torch.Generator
) -> "nx.Graph":
    """A connected graph as the thesis draws it.

    Parameters
    ----------
    family
        "watts_strogatz": a ring of n // 5 neighbours with every edge rewired (p = 1, so next to nothing of the ring is
        left). "barabasi_albert": every new node gets n // 10 edges.
    nodes
        At least 10.
    """
    import networkx as nx

    if nodes < 10:
        raise ValueError(f"nodes must be at least 10, got {nodes}")
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    if family == "watts_strogatz":
        return nx.connected_watts_strogatz_graph(nodes, nodes // 5, 1.0, tries=100_000, seed=seed)
    if family == "barabasi_albert":
        return nx.barabasi_albert_graph(nodes, nodes // 10, seed=seed)
    raise ValueError(f'family must be "watts_strogatz" or "barabasi_albert", got {family!r}')


def oriented(graph: Graph) -> tuple[list[Hashable], list[tuple[int, int]]]:
    """Nodes in their order, and edges as pairs of places in it that run from lower to higher: never a cycle.

    Raises
    ------
    ValueError
        For no nodes, an edge from a node to itself, nodes that have no order among them, or a graph of several parts
        (a graph without any edge is one layer, and allowed).
    """
    import networkx as nx

    graph = nx.Graph(graph if isinstance(graph, nx.Graph) else list(graph))  # parallel edges become one
    if len(graph) == 0:
        raise ValueError("the graph has no nodes")
    try:
        nodes = sorted(graph.nodes)
    except TypeError as error:
        raise ValueError(f"nodes are ordered to orient the edges, and these have no order: {error}") from None
    place = {node: i for i, node in enumerate(nodes)}
    if loops := [node for node, other in graph.edges if node == other]:
        raise ValueError(f"node {loops[0]!r} has an edge to itself; recurrence within a layer is there anyway")
    edges = sorted({tuple(sorted((place[a], place[b]))) for a, b in graph.edges})
    if edges and not nx.is_connected(graph):
        parts = nx.number_connected_components(graph)
        raise ValueError(f"the graph falls into {parts} parts; give a connected one")
    return nodes, edges  # type: ignore[return-value]


def node_layers(graph: Graph) -> list[int]:
    """Layer of each node in node order: 0 for sources, else one more than its deepest parent."""
    nodes, edges = oriented(graph)
    return depths(len(nodes), edges)


def depths(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """`node_layers` of what `oriented` returned."""
    layer = [0] * nodes
    for a, b in edges:  # sorted by the lower end: a node's parents are done before it is one
        layer[b] = max(layer[b], layer[a] + 1)
    return layer


def graph_properties(graph: Graph) -> dict[str, float]:
    """The thesis' features: counts, distances and centralities of the undirected graph, layers of the directed one."""
    import networkx as nx

    nodes, edges = oriented(graph)
    if len(nodes) > 1 and not edges:
        raise ValueError("distances need a connected graph, and this one has no edges")
    g = nx.Graph(edges)
    g.add_nodes_from(range(len(nodes)))
    layer = depths(len(nodes), edges)
    out = {
        "layers": max(layer) + 1, "nodes": len(nodes), "edges": len(edges), "sources": layer.count(0),
        "sinks": len(nodes) - len({a for a, _ in edges}), "diameter": nx.diameter(g), "density": nx.density(g),
        "mean_shortest_path": nx.average_shortest_path_length(g) if len(g) > 1 else 0.0,
    }  # fmt: skip
    columns: dict[str, Iterable[float]] = {
        "eccentricity": nx.eccentricity(g).values(), "degree": (d for _, d in g.degree()),
        "closeness": nx.closeness_centrality(g).values(), "node_betweenness": nx.betweenness_centrality(g).values(),
        "edge_betweenness": nx.edge_betweenness_centrality(g).values(),
    }  # fmt: skip
    for name, values in columns.items():
        v = np.array(list(values) or [0.0], dtype=float)
        out |= {f"{name}_mean": v.mean(), f"{name}_var": v.var(), f"{name}_std": v.std()}
    return {name: float(value) for name, value in out.items()}


def predict_from_graphs(
    features: Sequence[Mapping[str, float]], y: Sequence[float], *, folds: int = 20, repeats: int = 5, seed: int = 0
) -> dict[str, float]:
    """R2 of accuracy predicted from properties of the graph, out of fold, by name of regressor.

    The thesis splits once 90/10, a test set of 20 rows; here every graph is predicted by models that have not seen
    it, in `folds` parts, and R2 over all rows is averaged over `repeats` shuffles. Features are scaled to [0, 1] on
    training rows.
    """
    from sklearn.base import clone
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import AdaBoostRegressor, RandomForestRegressor
    from sklearn.linear_model import BayesianRidge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    regressors = {
        "mean": DummyRegressor(), "bayesian_ridge": BayesianRidge(), "random_forest": RandomForestRegressor(100),
        "adaboost": AdaBoostRegressor(),
    }  # fmt: skip
    if len(features) != len(y) or len(y) < max(folds, 4):
        raise ValueError(f"need as many rows as folds and one y a row, got {len(features)} rows and {len(y)} y")
    names = list(features[0])
    x, target = np.array([[row[n] for n in names] for row in features]), np.asarray(y, dtype=float)
    scores: dict[str, list[float]] = {name: [] for name in regressors}
    for r in range(repeats):
        parts = KFold(folds, shuffle=True, random_state=seed + r)
        for name, regressor in regressors.items():
            model = clone(regressor)
            if "random_state" in model.get_params():
                model.set_params(random_state=seed + r)
            predicted = cross_val_predict(make_pipeline(MinMaxScaler(), model), x, target, cv=parts)
            scores[name].append(float(r2_score(target, predicted)))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float] | None = None) -> float:
    """Pearson's r, with `given` partialled out of both; 0 where one of them does not vary."""
    a, b = (np.asarray(v, dtype=float) for v in (x, y))
    if given is not None:
        basis = np.c_[np.ones(len(a)), np.asarray(given, dtype=float)]
        a, b = (v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0] for v in (a, b))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-12 else 0.0

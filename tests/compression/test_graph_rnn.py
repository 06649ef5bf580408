"""Nets wired as graphs against cells run one by one; properties by hand; what tells accuracy."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

from etude.compression import GraphRNN, graph_properties, random_graph, sparsity
from etude.compression.graphs import correlation, node_layers, predict_from_graphs
from etude.data.randomness import stream
from etude.layers.masks import current_masks

EDGES = [(0, 2), (1, 2), (0, 3), (2, 3), (2, 4), (1, 4), (3, 5)]  # layers: {0, 1}, {2}, {3, 4}, {5}


def test_layers_and_orientation():
    assert node_layers(EDGES) == [0, 0, 1, 2, 2, 3]
    assert node_layers([(b, a) for a, b in EDGES]) == node_layers(EDGES)
    cycle = nx.DiGraph([(0, 1), (1, 2), (2, 0)])
    assert node_layers(cycle) == [0, 1, 2]  # oriented by node order, so no cycle is left


@pytest.mark.parametrize("cell, kind", [("gru", nn.GRU), ("lstm", nn.LSTM), ("elman", nn.RNN)])
def test_equal_to_the_sum_of_single_masked_cells(cell, kind):
    net = GraphRNN(EDGES, cell, 3, generator=stream(0, "init"))
    assert net.sizes == (2, 1, 2, 1) and net.sources == [(), (0,), (0, 1), (2,)]
    x = torch.randn(4, 6, 3, generator=stream(0, "x"))
    outs = [net.layers[0](x)[0]]
    for sources, n, wide in zip(net.sources[1:], net.sizes[1:], net.layers[1:]):
        gates = wide.weight_ih_l0.shape[0] // (len(sources) * n)
        total, offset = 0, 0
        for k, s in enumerate(sources):
            one, width = kind(net.sizes[s], n, batch_first=True), net.sizes[s]
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                block = getattr(wide, name).detach().view(gates, len(sources), n, -1)[:, k]
                if name == "weight_ih_l0":
                    block = block[..., offset : offset + width]
                if name == "weight_hh_l0":
                    block = block[..., k * n : (k + 1) * n]
                getattr(one, name).data = block.reshape(getattr(one, name).shape)
            total, offset = total + one(outs[s])[0], offset + width
        outs.append(total)
    assert torch.allclose(net(x), outs[-1], atol=1e-6)


def test_only_edges_carry_input_and_training_keeps_it_so():
    net = GraphRNN(EDGES, "gru", 3, generator=stream(0, "init"))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(2, 4, 3)).sum().backward()
    optimizer.step()
    wide = (
        net.layers[2].weight_ih_l0.detach().view(3, 2, 2, 3)
    )  # gate, cell from layer 0 or 1, node 3 or 4, nodes 0 1 2
    assert (wide[:, 0] != 0).all(0).tolist() == [[True, False, False], [False, True, False]]  # 0 -> 3, 1 -> 4 skip
    assert (wide[:, 1] != 0).all(0).tolist() == [[False, False, True], [False, False, True]]  # 2 -> 3, 2 -> 4
    edges = sum(int(m.sum()) for n, m in current_masks(net).items() if "ih" in n) // 3
    assert edges == len(EDGES)


def test_what_comes_later_does_not_reach_back():
    net, x = GraphRNN(EDGES, "lstm", 3), torch.randn(1, 6, 3, generator=stream(0, "x"))
    assert torch.allclose(net(x)[:, :4], net(x[:, :4]), atol=1e-6)


def test_properties_of_a_path_and_a_star():
    path = graph_properties([(0, 1), (1, 2), (2, 3)])
    assert (path["layers"], path["sources"], path["sinks"], path["diameter"]) == (4, 1, 1, 3)
    assert path["mean_shortest_path"] == pytest.approx(10 / 6)
    star = graph_properties([(0, i) for i in range(1, 5)])
    assert (star["layers"], star["sources"], star["sinks"], star["edges"]) == (2, 1, 4, 4)
    assert star["degree_mean"] == pytest.approx(8 / 5)
    assert star["degree_var"] == pytest.approx(np.var([4, 1, 1, 1, 1]))
    assert star["node_betweenness_mean"] == pytest.approx(1 / 5)  # the hub lies on every path, the rest on none
    assert sparsity.graph_properties is graph_properties


def test_random_graphs_are_what_they_say():
    for family, edges in (("watts_strogatz", 40), ("barabasi_albert", 2 * (20 - 2))):
        g = random_graph(family, 20, stream(0, "graph"))
        assert nx.is_connected(g) and (len(g), g.number_of_edges()) == (20, edges)
        again = random_graph(family, 20, stream(0, "graph"))
        assert set(again.edges) == set(g.edges)


@pytest.mark.parametrize("again", [nx.MultiGraph, nx.MultiDiGraph, iter, lambda e: zip(*map(list, zip(*e)))])
def test_graphs_of_other_forms_are_the_graph(again):
    twice = [*EDGES, EDGES[0]]
    assert GraphRNN(again(twice), "gru", 3).sizes == GraphRNN(EDGES, "gru", 3).sizes
    assert graph_properties(again(twice)) == graph_properties(EDGES)


def test_bad_graphs():
    with pytest.raises(ValueError, match="2 parts"):
        GraphRNN([(0, 1), (2, 3)], "gru", 4)
    with pytest.raises(ValueError, match="itself"):
        GraphRNN([(0, 1), (1, 1)], "gru", 4)
    with pytest.raises(ValueError, match="no nodes"):
        GraphRNN([], "gru", 4)
    with pytest.raises(ValueError, match="no order"):
        GraphRNN([(0, "a")], "gru", 4)
    with pytest.raises(ValueError, match="cell"):
        GraphRNN(EDGES, "transformer", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(batch, time, 4\)"):
        GraphRNN(EDGES, "gru", 4)(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="at least 10"):
        random_graph("watts_strogatz", 9, stream(0, "g"))
    with pytest.raises(ValueError, match="family"):
        random_graph("erdos", 12, stream(0, "g"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no edges"):
        graph_properties(nx.empty_graph(3))
    alone = GraphRNN(nx.empty_graph(3), "gru", 4)  # one layer and no edges is a plain layer
    assert alone.sizes == (3,) and alone(torch.zeros(1, 2, 4)).shape == (1, 2, 3)


def test_regression_sees_a_signal_and_no_noise():
    rng = np.random.default_rng(0)
    rows = [{"a": float(a), "b": float(b)} for a, b in rng.normal(size=(40, 2))]
    signal = predict_from_graphs(rows, [2 * r["a"] for r in rows], folds=3, repeats=1)
    noise = predict_from_graphs(rows, rng.normal(size=40).tolist(), folds=3, repeats=1)
    assert signal["bayesian_ridge"] > 0.95 and signal["random_forest"] > 0.7
    assert max(noise.values()) < 0.2 and signal["mean"] < 0.05
    with pytest.raises(ValueError, match="as many rows as folds"):
        predict_from_graphs(rows, [1.0] * 40, folds=100)


def test_partial_correlation():
    z = np.arange(30.0)
    noise = np.random.default_rng(0).normal(size=(2, 30))
    x, y = z + noise[0], z + noise[1]
    assert correlation(x, y) > 0.95
    assert correlation(x, y, given=z) == pytest.approx(
        np.corrcoef(x - np.polyval(np.polyfit(z, x, 1), z), y - np.polyval(np.polyfit(z, y, 1), z))[0, 1]
    )
    assert correlation([1, 1, 1], [1, 2, 3]) == 0


def test_the_generator_is_all_that_is_drawn_from_and_tanh_is_elman():
    state = torch.get_rng_state()
    graph = [(0, 1), (0, 2), (1, 2)]
    nets = [GraphRNN(graph, cell, 4, generator=torch.Generator().manual_seed(0)) for cell in ("tanh", "elman")]
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(nets[0](x), nets[1](x))

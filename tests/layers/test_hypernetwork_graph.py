"""One generator for every architecture: graphs of known nets, symmetries, sizes, and learning that carries over."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import seeded_build, stream
from etude.hypernetworks import ArchitectureGraph, GraphHyperNetwork, architecture_graph
from etude.layers import mlp


class Residual(nn.Module):
    """a, then b and c beside each other, then d of their sum with a's output."""

    def __init__(self, names: str = "abcd") -> None:
        super().__init__()
        self.order = names
        for n in sorted(names):
            self.add_module(n, nn.Linear(6, 6))

    def forward(self, x):
        a, b, c, d = (getattr(self, n) for n in self.order)
        x = torch.relu(a(x))
        return d(torch.tanh(b(x)) + torch.tanh(c(x)) + x)


def ghn(seed: int = 0, **options) -> GraphHyperNetwork:
    return seeded_build(lambda: GraphHyperNetwork(16, chunk_size=10, **options), stream(seed, "ghn"))


def test_edges_run_from_a_layer_to_the_next_that_holds_weights():
    graph = architecture_graph(Residual())
    assert graph.nodes == ("a", "b", "c", "d")
    assert set(graph.edges) == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    chain = architecture_graph(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    )
    assert (chain.nodes, chain.edges) == (("0", "1", "4"), ((0, 1), (1, 2)))
    layer = nn.Linear(3, 3)
    assert architecture_graph(nn.Sequential(layer, nn.Tanh(), layer)).edges == ((0, 0),)


def test_every_shape_is_generated_and_every_parameter_learns():
    nets = [mlp((5, 7, 3)), mlp((5, 4, 9, 3), norm="batch"), nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3),
            nn.LayerNorm(3), nn.Flatten(), nn.Linear(12, 3, bias=False))]  # fmt: skip
    g, x = ghn(), torch.randn(8, 5)
    for net in nets:
        made = g.generate(net)
        assert {n: t.shape for n, t in made.items()} == {n: p.shape for n, p in net.named_parameters()}
        state = copy.deepcopy(net.state_dict())
        out = g(net, x)
        assert out.shape == (8, 3)
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())  # statistics of batch norm, too
        torch.testing.assert_close(g.export(net)(x), out)
        out.square().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in g.parameters())


def test_weights_follow_the_graph_and_not_the_names():
    g = ghn()
    one, other = g.generate(Residual("abcd")), g.generate(Residual("dcba"))
    for mine, theirs in zip("abcd", "dcba", strict=True):
        torch.testing.assert_close(one[f"{mine}.weight"], other[f"{theirs}.weight"])
    torch.testing.assert_close(one["b.weight"], one["c.weight"])  # they stand alike in the graph
    assert float((one["a.weight"] - one["d.weight"]).abs().max()) > 1e-3


def test_a_round_carries_what_a_node_knows_one_edge_further():
    short, long = mlp((5, 5, 5, 5, 5)), mlp((5, 5, 5, 5, 9))
    for rounds, reach in ((0, 0), (1, 1), (2, 2)):
        a, b = (ghn(rounds=rounds).generate(net) for net in (short, long))
        for i, name in enumerate(("4.weight", "2.weight", "0.weight"), 1):  # i edges before the layer that differs
            assert torch.equal(a[name], b[name]) == (i > reach)


def test_tensors_of_one_layer_are_told_apart():
    net = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
    g = ghn()
    made = g.generate(net, ArchitectureGraph(("",), ()))
    assert float((made["linear1.weight"] - made["linear2.weight"]).abs().max()) > 1e-2
    assert float((made["linear1.weight"] - made["self_attn.out_proj.weight"]).abs().max()) > 1e-2
    assert g(nn.Sequential(net, nn.Linear(8, 3)), torch.randn(2, 5, 8)).shape == (2, 5, 3)


def test_new_generators_give_the_sizes_of_ordinary_nets():
    net = mlp((300, 200, 40), norm="layer")
    sizes: dict[str, list[float]] = {}
    for seed in range(10):
        for name, t in ghn(seed).generate(net).items():
            start = 1.0 if name == "1.weight" else 0.0
            sizes.setdefault(name, []).append(float((t - start).square().mean()))
    for name, found in sizes.items():
        wanted = {"0.weight": 2 / 300, "3.weight": 2 / 200}.get(name, 1e-4)
        assert sum(found) / len(found) == pytest.approx(wanted, rel=0.5)


def test_what_is_learned_on_some_architectures_helps_one_never_seen():
    g, widths, draws = ghn(), [w for w in range(8, 33) if w != 20], stream(0, "rows")
    opt = torch.optim.Adam(g.parameters(), 5e-3)

    def loss(net: nn.Module) -> torch.Tensor:
        x = torch.randn(128, 4, generator=draws)
        return F.cross_entropy(g(net, x), x[:, :3].argmax(1))

    unseen = mlp((4, 20, 3))
    before = float(loss(unseen).detach())
    for _ in range(150):
        opt.zero_grad()
        loss(mlp((4, widths[int(torch.randint(len(widths), (), generator=draws))], 3))).backward()
        opt.step()
    assert before > 0.9
    assert float(loss(unseen).detach()) < 0.6 * before


def test_nets_that_cannot_be_traced_take_a_graph():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(x) if float(x.sum()) > 0 else self.b(x)

    with pytest.raises(ValueError, match="cannot be traced"):
        ghn()(Chooses(), torch.ones(2, 3))
    assert ghn()(Chooses(), torch.ones(2, 3), ArchitectureGraph(("a", "b"), ())).shape == (2, 3)
    with pytest.raises(ValueError, match="'b.weight' lies in none"):
        ghn().generate(Chooses(), ArchitectureGraph(("a",), ()))
    with pytest.raises(ValueError, match="edge .0, 2. leaves the 2 nodes"):
        ArchitectureGraph(("a", "b"), ((0, 2),))
    with pytest.raises(ValueError, match="at least 1"):
        GraphHyperNetwork(0)
    with pytest.raises(ValueError, match="0 is a LSTM"):
        ghn().generate(nn.Sequential(nn.LSTM(2, 2)), ArchitectureGraph(("0",), ()))
    odd = nn.Module()
    odd.scale = nn.Parameter(torch.ones(3))
    odd.forward = lambda x: x * odd.scale
    with pytest.raises(ValueError):
        architecture_graph(odd)

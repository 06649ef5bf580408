"""Factored gradients compare as the gradients themselves do; nets that they do not fit keep flat ones."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from etude.continual import GSSBuffer
from etude.continual.gradient_directions import FlatGradients, factored_gradients, linear_chain
from etude.data.randomness import seeded_build, stream
from etude.layers import mlp
from etude.training import per_sample_gradients


def frozen() -> nn.Module:
    net = mlp((6, 5, 4))
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


NETS = {
    "one layer": (lambda: nn.Linear(6, 4), (6,)),
    "tanh": (lambda: mlp((6, 5, 5, 4), activation="tanh"), (6,)),
    "dropout is off": (lambda: mlp((6, 5, 4), dropout=0.5), (6,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), nn.Linear(5, 4, bias=False)), (6,)),
    "images": (lambda: nn.Sequential(nn.Flatten(), mlp((6, 5, 4))), (2, 3)),
    "positions": (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9, 4)), (3, 2)),
    "frozen parts": (frozen, (6,)),
}


def drawn(shape, groups, rows, seed=0):
    g = stream(seed, "rows")
    return torch.randn(groups, rows, *shape, generator=g), torch.randint(4, (groups, rows), generator=g)


def flat(net, x, y):
    return FlatGradients(per_sample_gradients(net, lambda m, b: F.cross_entropy(m(b[0][0]), b[1][0]), (x, y)).double())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("mine", "others"), [((4, 1), (3, 5)), ((2, 5), (2, 5))])
def test_cosines_are_those_of_the_gradients(name, mine, others):
    build, shape = NETS[name]
    net = seeded_build(build, stream(1, "init")).eval()
    chain = linear_chain(net)
    assert chain is not None
    (x, y), (u, v) = drawn(shape, *mine), drawn(shape, *others, seed=1)
    ours, memory = factored_gradients(chain, F.cross_entropy, x, y), factored_gradients(chain, F.cross_entropy, u, v)
    expected, held = flat(net, x, y), flat(net, u, v)
    torch.testing.assert_close(ours.cosines(memory), expected.cosines(held), atol=2e-6, rtol=0)
    torch.testing.assert_close(ours.mean().cosines(memory), expected.mean().cosines(held), atol=2e-6, rtol=0)
    some = torch.tensor([1, 0])
    torch.testing.assert_close(ours[some].cosines(ours), expected[some].cosines(expected), atol=2e-6, rtol=0)
    assert all(p.grad is None for p in net.parameters())


def test_gradients_of_zeros_and_without_numbers():
    net = nn.Linear(3, 2, bias=False)
    x = torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 2.0, 3.0]], [[torch.nan, 0.0, 0.0]], [[torch.inf, 0.0, 0.0]]])
    y = torch.zeros(4, 1).long()
    found = factored_gradients(linear_chain(net), F.cross_entropy, x, y)
    assert found.finite().tolist() == flat(net, x, y).finite().tolist() == [True, True, False, False]
    fine = found[torch.tensor([0, 1])]
    torch.testing.assert_close(fine.cosines(fine), torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double())


def test_tiny_gradients_keep_their_direction():
    net = nn.Linear(3, 2, bias=False)
    x = torch.full((2, 1, 3), 1e-30)
    x[1] *= -1
    found = factored_gradients(linear_chain(net), F.cross_entropy, x, torch.zeros(2, 1).long())
    torch.testing.assert_close(found.cosines(found), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())


def pruned() -> nn.Module:
    net = mlp((6, 5, 4))
    prune.random_unstructured(net[0], "weight", 0.5)
    return net


def hooked() -> nn.Module:
    net = mlp((6, 5, 4))
    net[1].register_forward_hook(lambda m, x, out: 2 * out)
    return net


def twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 4))


def tied() -> nn.Module:
    net = mlp((6, 6, 6, 4))
    net[2].weight = net[0].weight
    return net


def extra() -> nn.Module:
    net = mlp((6, 5, 4))
    net.scale = nn.Parameter(torch.ones(()))
    return net


OTHERS = {
    "batch norm": lambda: mlp((6, 5, 4), norm="batch"),
    "layer norm": lambda: mlp((6, 5, 4), norm="layer"),
    "in place": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)),
    "pruned": pruned,
    "hooked": hooked,
    "used twice": twice,
    "tied weights": tied,
    "normalised": lambda: nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_nets_keep_flat_gradients(name):
    net = seeded_build(OTHERS[name], stream(0, "init"))
    assert linear_chain(net) is None
    buffer = GSSBuffer(4, net, F.cross_entropy, num_gradients=2, batch_size=2)
    x, y = drawn((6,), 1, 8)
    assert buffer.observe(x[0], y[0]).shape == (8,)
    assert len(buffer) == 4


def test_no_trained_weight_is_no_chain():
    assert linear_chain(mlp((6, 5, 4)).requires_grad_(False)) is None
    assert linear_chain(extra()) is None


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_the_buffer_decides_as_with_flat_gradients(threshold, monkeypatch):
    def run() -> tuple[torch.Tensor, torch.Tensor]:
        net = seeded_build(lambda: mlp((6, 16, 4)), stream(0, "init"))
        buffer = GSSBuffer(12, net, F.cross_entropy, threshold=threshold, generator=stream(5, "draws"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        places = []
        for step in range(25):
            x, y = drawn((6,), 1, 10, seed=step)
            places.append(buffer.observe(x[0], y[0]))
            optimizer.zero_grad()
            F.cross_entropy(net(x[0]), y[0]).backward()
            optimizer.step()
        return torch.cat(places), buffer.scores

    places, scores = run()
    monkeypatch.setattr("etude.continual.gss.linear_chain", lambda model: None)
    by_vectors, their_scores = run()
    assert torch.equal(places, by_vectors)
    assert (places[12:] >= 0).sum() > 20 or threshold == 0
    torch.testing.assert_close(scores, their_scores, atol=1e-5, rtol=0)

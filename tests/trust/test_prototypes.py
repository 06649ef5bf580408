"""The prototype network's loss, heads and report against hand-made cases."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data.randomness import fork_global, seeded_build, stream
from etude.trust import Lambdas, PrototypeNetwork, prototype_loss, prototype_network, prototype_report


def identity_network(prototypes, weight) -> PrototypeNetwork:
    """Codes are the inputs, pictures the prototypes themselves."""
    width = len(prototypes[0])
    net = PrototypeNetwork(nn.Identity(), nn.Identity(), (width,), len(weight[0]), len(prototypes))
    with torch.no_grad():
        net.layer.prototypes.copy_(torch.tensor(prototypes))
        net.head.weight.copy_(torch.tensor(weight).T)
    return net


def test_logits_are_raw_squared_distances_times_weights_and_nothing_else():
    net = identity_network([[0.0, 0.0], [3.0, 4.0]], [[-1.0, 2.0], [0.5, -3.0]])
    out = net.evidence(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert out.distances.tolist() == [[0.0, 25.0], [9.0, 16.0]]
    assert out.logits.tolist() == [[12.5, -75.0], [-9.0 + 8.0, 18.0 - 48.0]]
    assert net.head.bias is None
    assert net.prototype_classes().tolist() == [0, 1]


def test_the_four_terms_by_hand():
    net = identity_network([[0.0, 0.0], [3.0, 4.0], [0.0, 9.0]], [[-1.0, 2.0], [0.5, -3.0], [0.0, 0.0]])
    net.decoder = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.decoder.weight.zero_()
    x, y = torch.tensor([[0.0, 1.0], [3.0, 3.0]]), torch.tensor([0, 1])
    terms = prototype_loss(net, x, y, Lambdas(20.0, 0.5, 2.0, 3.0))
    assert terms["class"].item() == pytest.approx(20 * F.cross_entropy(net(x), y).item())
    assert terms["reconstruction"].item() == pytest.approx(0.5 * (1 + 18) / 2)  # summed over pixels, mean of rows
    assert terms["r1"].item() == pytest.approx(2.0 * (1 + 1 + 45) / 3)
    assert terms["r2"].item() == pytest.approx(3.0 * (1 + 1) / 2)
    assert set(prototype_loss(net, x, y, Lambdas(1.0, 0.0, 0.0, 0.0))) == {"class"}
    assert set(prototype_loss(net, x, y)) == {"class", "reconstruction", "r1", "r2"}


def test_start_of_the_paper():
    net = seeded_build(lambda: prototype_network((1, 28, 28), 10, 15, init="paper"), stream(0, "init"))
    assert net.layer.prototypes.shape == (15, 40)
    assert net.head.weight.min() >= 0
    assert net.head.weight.max() < 1
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            assert m.weight.std().item() == pytest.approx(0.01, rel=0.25)
            assert m.bias.abs().max() == 0
    assert net.encode(torch.rand(3, 1, 28, 28)).min() >= 0  # the encoder ends in a ReLU
    with pytest.raises(ValueError, match="unknown init 'xavier'"):
        prototype_network((4,), 2, init="xavier")


def test_scaling_lies_inside_and_prototypes_come_back_in_the_inputs_unit():
    low, span = torch.tensor([10.0, -2.0]), torch.tensor([5.0, 4.0])
    net = PrototypeNetwork(nn.Identity(), nn.Identity(), (2,), 2, 3, low=low, span=span)
    x = torch.tensor([[15.0, -2.0]])
    assert net.scaled(x).tolist() == [[1.0, 0.0]]
    assert torch.allclose(net.decode_prototypes(), net.layer.prototypes * span + low)
    terms = prototype_loss(net, x, torch.tensor([0]))
    assert terms["reconstruction"].item() == 0
    assert {"low", "span"} <= set(net.state_dict())


def test_deformation_follows_the_global_generator():
    net = prototype_network((1, 28, 28), 3, 4)
    x, y = torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 0])

    def value(seed):
        with fork_global(stream(seed, "noise")):
            return float(prototype_loss(net, x, y, deform=True)["reconstruction"].detach())

    assert value(0) == value(0)
    assert value(0) != value(1)
    assert value(0) != float(prototype_loss(net, x, y)["reconstruction"].detach())


def test_report_by_hand():
    rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0], [20.0, 0.0], [20.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    # two prototypes sit 0.5 from class 0 and 1; both call themselves class 1; a third is far from everything
    net = identity_network([[0.0, -0.5], [10.0, -0.5], [10.0, 300.0]], [[0.0, -1.0, 0.0]] * 3)
    report = prototype_report(net, rows, y)
    assert report.latent_ratio == pytest.approx(0.5)
    assert report.pixel_ratio == pytest.approx(0.5)
    assert report.classes_covered == 2
    assert report.own_class == pytest.approx(2 / 3)
    assert report.usage.tolist() == [2, 4, 0]
    assert report.nearest.tolist()[:2] == [0, 2]


def test_rows_that_stand_there_twice_count_once_in_the_spacing():
    rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [10.0, 0.0], [10.0, 1.0]])
    net = identity_network([[0.0, -0.5], [10.0, -0.5]], [[0.0, -1.0]] * 2)
    once = prototype_report(net, rows, torch.tensor([0, 0, 1, 1]))
    twice = prototype_report(net, rows.repeat(2, 1), torch.tensor([0, 0, 1, 1]).repeat(2))
    assert (twice.latent_ratio, twice.pixel_ratio) == (once.latent_ratio, once.pixel_ratio) == pytest.approx((0.5, 0.5))
    assert twice.usage.tolist() == [4, 4]
    assert twice.nearest.tolist() == once.nearest.tolist() == [0, 2]


def test_nearest_neighbours_of_codes_leave_out_the_row_itself():
    rows = torch.arange(2500.0)[:, None].repeat(1, 2) * 3  # more rows than one block
    net = identity_network([[0.0, 0.0]], [[0.0, -1.0]])
    report = prototype_report(net, rows, torch.zeros(2500, dtype=torch.long))
    assert report.latent_ratio == pytest.approx(0.0)
    shifted = identity_network([[3.0 * 2**0.5, -3.0 * 2**0.5]], [[0.0, -1.0]])
    assert prototype_report(shifted, rows, torch.zeros(2500, dtype=torch.long)).latent_ratio == pytest.approx(
        6 / (3 * 2**0.5), rel=1e-3
    )


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_term_of_weight_zero_is_left_out(name):
    net, x = identity_network([[0.0, 0.0], [1.0, 1.0]], [[0.0, 1.0]] * 2), torch.rand(3, 2)
    assert name not in prototype_loss(net, x, torch.zeros(3, dtype=torch.long), Lambdas(**{name: 0.0}))


def test_wrong_decoder_and_counts_are_named():
    with pytest.raises(ValueError, match=r"shape \(5,\), but the input has shape \(4,\)"):
        PrototypeNetwork(nn.Linear(4, 2), nn.Linear(2, 5), (4,), 3)
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        PrototypeNetwork(nn.Linear(4, 2), nn.Linear(2, 4), (4,), 3, 0)
    with pytest.raises(ValueError, match="at least two different rows, got 1 among 3"):
        prototype_report(prototype_network((4,), 3), torch.ones(3, 4), torch.tensor([0, 1, 2]))

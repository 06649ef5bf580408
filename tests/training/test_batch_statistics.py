"""Running statistics measured anew."""

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.training import GhostBatchNorm1d, reestimate_batchnorm


def test_one_batch_gives_its_own_statistics_layer_by_layer():
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2), nn.BatchNorm1d(2)
    )
    x = torch.randn(50, 3, generator=stream(0, "x"))
    weights = [p.detach().clone() for p in net.parameters()]
    net[0].eval()
    assert reestimate_batchnorm(net, x) == 2
    h = net[0](x)
    assert torch.allclose(net[1].running_mean, h.mean(0), atol=1e-6)
    assert torch.allclose(net[1].running_var, h.var(0), atol=1e-6)
    h = net[4]((h - h.mean(0)).div((h.var(0, unbiased=False) + 1e-5).sqrt()).relu())  # without dropout
    assert torch.allclose(net[5].running_mean, h.mean(0), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights))
    assert [m.training for m in net] == [False, True, True, True, True, True]
    assert net[1].momentum == 0.1


def test_batches_are_averaged_with_equal_weight_and_the_old_value_is_gone():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(1e6)
    x = torch.arange(40.0)[:, None]
    reestimate_batchnorm(norm, x, batch_size=10)
    assert norm.running_mean.item() == pytest.approx(19.5)
    assert int(norm.num_batches_tracked) == 4
    assert norm.running_var.item() == pytest.approx(torch.arange(10.0).var().item())
    again = nn.BatchNorm1d(1)
    reestimate_batchnorm(again, [(part, None) for part in x.split(10)])
    assert torch.equal(again.running_mean, norm.running_mean)


def test_ghosts_take_whole_batches_here():
    plain, ghost = nn.BatchNorm1d(2), GhostBatchNorm1d(2, 4)
    x = torch.randn(32, 2, generator=stream(0, "x"))
    reestimate_batchnorm(plain, x)
    reestimate_batchnorm(ghost, x)
    assert torch.equal(plain.running_var, ghost.running_var)
    assert (ghost.ghost_size, ghost.momentum) == (4, 0.1)


def test_settings_come_back_after_an_exception():
    net = nn.Sequential(GhostBatchNorm1d(2, 4))
    net(torch.randn(8, 2, generator=stream(0, "x")))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="expected 2D or 3D"):
        reestimate_batchnorm(net, [torch.zeros(3, 2), torch.zeros(3, 2, 2, 2)])
    assert (net[0].ghost_size, net[0].momentum, net[0].training) == (4, 0.1, True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="Linear has no batch norm with running statistics"):
        reestimate_batchnorm(nn.Linear(1, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="0 rows"):
        reestimate_batchnorm(nn.BatchNorm1d(1), torch.zeros(0, 1))
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(3.0)
    with pytest.raises(ValueError, match="no batches"):
        reestimate_batchnorm(norm, [])
    assert norm.running_mean.item() == 3.0  # not thrown away for nothing

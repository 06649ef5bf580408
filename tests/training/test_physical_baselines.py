"""The rivals: whose gradient they use, and that they learn."""

import pytest
import torch
from torch.nn import functional as F

from etude.data.randomness import stream
from etude.training import TrainConfig, train
from etude.training.blackbox import amplitude
from etude.training.physical_baselines import (
    PhysicalNet,
    PhysicsAware,
    fit_twin,
    read_out_only,
    spsa_gradient,
    spsa_step,
)
from etude.training.physical_boxes import PhysicalBox


def box(kind="optics", m=8, p=6, seed=0):
    return PhysicalBox(kind, m, p, generator=stream(seed, "box"))


def data(n=120):
    g = stream(0, "rows")
    y = torch.arange(n) % 3
    x = 0.5 * torch.randn(n, 8, generator=g)
    x[torch.arange(n), y] += 3
    return x, y


def test_pat_runs_the_box_forwards_and_the_twin_backwards():
    real, twin = box(), torch.nn.Linear(8, 6)
    x = torch.rand(5, 8, requires_grad=True)
    y = PhysicsAware(real, twin)(x)
    assert torch.equal(y, real(x))
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope, twin.weight.sum(0).expand(5, 8))


def test_a_twin_is_close_to_its_box_where_it_was_fitted():
    real = box("acoustic", m=4, p=3)
    twin = fit_twin(real, 4, seed=0, pairs=2000, steps=400)
    x = amplitude(torch.randn(200, 4, generator=stream(1, "x")))
    y = real(x)
    assert F.mse_loss(twin(x), y) < 0.1 * y.var()
    assert not any(p.requires_grad for p in twin.parameters())


def test_ideal_gradient_goes_through_the_box_and_leaves_it_alone():
    net = PhysicalNet(8, (5, 4), 3, [box(), box(m=5, p=5, seed=1)], [6, 5])
    assert [tuple(p.shape) for p in net.parameters()] == [(5, 14), (5,), (4, 10), (4,), (3, 4), (3,)]
    assert net.linear_widths == [(5, 14), (4, 10), (3, 4)]
    x, y = data()
    F.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    turned = net.on([b.rotated(90) for b in net.boxes])
    assert turned.layers is net.layers
    assert not torch.allclose(turned(x), net(x))
    with pytest.raises(ValueError, match="a box and a width a layer"):
        PhysicalNet(8, (5,), 3, [], [])


def test_spsa_is_unbiased_on_a_quadratic():
    theta = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = spsa_gradient(lambda t: t.square().sum(), theta, stream(0, "s"), samples=4000)
    assert torch.allclose(found, 2 * theta, atol=0.4)
    one = spsa_gradient(lambda t: 3 * t[0], theta[:1], stream(0, "s"))
    assert one.item() == pytest.approx(3)


def test_all_of_them_learn():
    x, y = data()
    boxes, widths = [box(), box(m=5, p=5, seed=1)], [6, 5]

    def build(_):
        return PhysicalNet(8, (5, 5), 3, boxes, widths)

    def loss(net, batch):
        return F.cross_entropy(net(batch.x), batch.y)

    config = TrainConfig(steps=150, batch_size=40, lr=0.02)
    for more in ({"loss": loss}, {"step": spsa_step(loss)}):
        (done,) = train(build, (x, y), config=config, plan="sequential", **more)
        assert (done.module(x).argmax(1) == y).float().mean() > 0.8
    predict = read_out_only(build(0), x, y)
    assert (predict(x) == y).float().mean() > 0.9

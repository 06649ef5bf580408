"""The registration task of the study of magnitude-invariant hypernetworks: warping, pairs, losses, the gpu tier's field."""

import pytest
import torch

from etude.data import load_images
from etude.data.randomness import seeded_build, stream
from etude.hypernetworks import HyperNetwork, ScalarCondition
from etude.lab.registry import study
from etude.lab.study import Job
from etude.studies._magnitude_problems import Drawn
from etude.studies._magnitude_registration import Registration, SmallUNet, roughness, warped


def images(n=3, size=9):
    return torch.rand(n, 1, size, size, generator=stream(0, "images"))


def test_no_displacement_leaves_an_image_as_it_is():
    x = images()
    torch.testing.assert_close(warped(x, torch.zeros(3, 2, 9, 9)), x)


@pytest.mark.parametrize(("axis", "dim"), [(0, -1), (1, -2)])
def test_a_displacement_is_in_pixels_along_x_then_y(axis, dim):
    x, u = images(), torch.zeros(3, 2, 9, 9)
    u[:, axis] = 2.0  # reads two pixels further on
    expected = x.roll(-2, dim)
    inside = [slice(None)] * 4
    inside[dim] = slice(0, 7)
    torch.testing.assert_close(warped(x, u)[tuple(inside)], expected[tuple(inside)])
    edge = [slice(None)] * 4
    edge[dim] = slice(7, 9)
    last = [slice(None)] * 4
    last[dim] = slice(8, 9)
    torch.testing.assert_close(warped(x, u)[tuple(edge)], x[tuple(last)].expand_as(x[tuple(edge)]))


def test_roughness_is_that_of_the_differences():
    u = torch.zeros(2, 2, 4, 5)
    u[1, 0] = torch.arange(5.0)  # rises by one a pixel along x in one of two parts
    assert roughness(u).tolist() == [0.0, 0.5]


@pytest.mark.parametrize("size", [8, 9, 14, 28])
def test_the_net_keeps_the_size(size):
    assert SmallUNet()(torch.zeros(2, 2, size, size)).shape == (2, 2, size, size)


@pytest.fixture(scope="module")
def problem():
    return Registration.of(load_images("digits"), 3)


def test_pairs_are_of_one_class_and_cover_it(problem):
    pairs, g = problem.train, stream(0, "pairs")
    rows = torch.arange(len(pairs.y)).repeat(4)
    x, y = pairs.of(rows, g)
    assert torch.equal(x[:, 1:], y) and torch.equal(y, pairs.x[rows])
    known = {tuple(image.flatten().tolist()): int(label) for image, label in zip(pairs.x, pairs.y)}
    partners = [known[tuple(image.flatten().tolist())] for image in x[:, :1]]
    assert partners == pairs.y[rows].tolist()
    assert len({tuple(image.flatten().tolist()) for image in x[:, :1]}) > 0.9 * len(pairs.y)


def test_the_losses_weigh_likeness_and_smoothness(problem):
    class Still:
        def forward_each(self, x, gamma):
            return torch.zeros(*x.shape[:2], 2, *x.shape[-2:])

    batch = problem.draw(stream(0, "batch"))
    gap = (batch.x[:, :, :1] - batch.y).square().flatten(1).mean(1)
    torch.testing.assert_close(Registration.losses(Still(), batch, batch.gamma), (1 - batch.gamma) * gap)

    class Ramp(Still):
        def forward_each(self, x, gamma):
            return super().forward_each(x, gamma) + 3 * torch.arange(8.0)[:, None]

    smooth = Drawn(batch.x, batch.y, torch.ones(4))
    torch.testing.assert_close(Registration.losses(Ramp(), smooth, smooth.gamma), torch.full((4,), 9.0))


def test_generated_weights_learn_to_register(problem):
    net = seeded_build(lambda: HyperNetwork(problem.target(), ScalarCondition(["gamma"])), stream(0, "net"))
    told = torch.zeros(1)
    test = Drawn(problem.test.x[:1], problem.test.y[:1], told)
    still = float((test.x[:, :, :1] - test.y).square().mean())
    optimizer, draws = torch.optim.Adam(net.parameters(), lr=3e-3), stream(0, "draws")
    for _ in range(60):
        batch = problem.draw(draws)
        optimizer.zero_grad()
        Registration.losses(net, batch, batch.gamma).mean().backward()
        optimizer.step()
    with torch.no_grad():
        moved = float(Registration.losses(net, test, told).mean())
    assert moved < 0.8 * still


def test_the_gpu_tiers_field_adds_the_measurement():
    it = study("mip-hypernetworks")
    assert it.configs["gpu"].steps_registration > 0 == it.configs["laptop"].steps_registration
    short = {f"steps{end}": 2 for end in ("", "_sgd", "_denoiser", "_cnn", "_cell", "_registration")}
    config = it.configs["quick"].model_copy(update=short | {"grid_seeds": 0, "noise_steps": 1})
    job = Job("digits", "default", (1005,), config, it.task("digits", config))
    found = {m.arm: m.value for m in it.measure(job) if getattr(m, "metric", "") == "ln_test_loss_registration"}
    assert set(found) == {"default", "mip", "mip_shuffled_condition"}

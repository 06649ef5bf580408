"""Perceptrons, convolutional nets, and their stacked forms."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from etude.data import seeded_build, stream
from etude.layers import StackedLinear, convnet, mlp, resnet
from etude.layers.stacked import NotStackable, StackedDropout, lane_tensors, stack_modules


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=stream(seed, "x"))


def test_mlp_layers() -> None:
    net = mlp((5, 7, 6, 3), activation="tanh", norm="batch", dropout=0.1)
    kinds = [type(m).__name__ for m in net]
    hidden = ["Linear", "BatchNorm1d", "Tanh", "Dropout"]
    assert kinds == [*hidden, *hidden, "Linear"]
    assert net(rand(4, 5)).shape == (4, 3)
    assert [type(m) for m in mlp((5, 3))] == [nn.Linear]
    assert mlp((2, 9, 4), norm="layer")(rand(2, 2)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"sizes": (4,)}, "input and an output"),
        ({"sizes": (4, 0, 2)}, "at least 1"),
        ({"sizes": (4, 2), "activation": "rely"}, "unknown activation 'rely'"),
        ({"sizes": (4, 2), "norm": "instance"}, "unknown norm 'instance'"),
        ({"sizes": (4, 2), "dropout": 1.0}, r"\[0, 1\)"),
    ],
)
def test_bad_mlp(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        mlp(**arguments)


@pytest.mark.parametrize("norm", [None, "batch", "group"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (2, 1, 1)])
def test_convnet(norm: str | None, skip: bool, shape: tuple[int, int, int]) -> None:
    net = convnet(shape, (4, 6, 8), 5, norm=norm, skip=skip)
    assert net(rand(3, *shape)).shape == (3, 5)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [c.out_channels for c in convolutions] == [4, 6, 8]
    assert all((c.bias is None) == (norm is not None) for c in convolutions)
    kinds = {type(m) for m in net.modules()}
    assert (nn.BatchNorm2d in kinds, nn.GroupNorm in kinds) == (norm == "batch", norm == "group")


def test_the_skip_path_adds() -> None:
    plain = convnet((1, 4, 4), (3,), 2, skip=True)
    x = rand(2, 1, 4, 4)
    block = plain[0]
    wanted = block.pool(torch.relu(block.conv(x) + block.shortcut(x)))
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_resnet_has_its_depth(depth: int) -> None:
    net = resnet((3, 8, 8), depth, 4, 10)
    weighted = [
        m for m in net.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    ]
    assert len(weighted) == depth
    assert net(rand(2, 3, 8, 8)).shape == (2, 10)


def test_resnet_44_of_the_paper() -> None:
    """He et al. 2016, table 6: 0.66 M parameters with shortcuts that have none; ours add two 1 x 1 convolutions."""
    net = resnet((3, 32, 32), 44, 16, 10)
    own = sum(
        b.shortcut.weight.numel() for b in net.modules() if hasattr(b, "shortcut") and isinstance(b.shortcut, nn.Conv2d)
    )
    total = sum(p.numel() for p in net.parameters())
    assert own == 16 * 32 + 32 * 64
    assert round((total - own) / 1e6, 2) == 0.66


def test_resnet_without_shortcuts() -> None:
    net = resnet((1, 8, 8), 8, 4, 3, norm=None, skip=False)
    assert not any(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in net.modules())
    block = net[3]
    x = rand(2, 4, 8, 8)
    torch.testing.assert_close(block(x), torch.relu(block.conv2(torch.relu(block.conv1(x)))))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: convnet((8, 8), (4,), 2), "in_shape"),
        (lambda: convnet((1, 8, 8), (), 2), "at least one width"),
        (lambda: convnet((1, 8, 8), (0,), 2), "at least 1"),
        (lambda: convnet((1, 8, 8), (4,), 0), "num_classes"),
        (lambda: convnet((1, 8, 8), (4,), 2, norm="layer"), "unknown norm 'layer'"),
        (lambda: resnet((1, 8, 8), 10, 4, 2), "6 n"),
        (lambda: resnet((1, 8, 8), 2, 4, 2), "6 n"),
        (lambda: resnet((1, 8, 8), 8, 0, 2), "width"),
    ],
)
def test_bad_convnets(call: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        call()


# Stacked


@given(
    seeds=st.integers(1, 5), b=st.integers(1, 4), d_in=st.integers(1, 5), d_out=st.integers(1, 5), bias=st.booleans()
)
@settings(max_examples=25)
def test_stacked_linear_is_each_linear(seeds: int, b: int, d_in: int, d_out: int, bias: bool) -> None:
    linears = [nn.Linear(d_in, d_out, bias=bias) for _ in range(seeds)]
    x = rand(seeds, b, d_in)
    stacked = StackedLinear.from_linears(linears)
    torch.testing.assert_close(stacked(x), torch.stack([m(r) for m, r in zip(linears, x)]))
    torch.testing.assert_close(stacked(x[0]), torch.stack([m(x[0]) for m in linears]))
    deep = x[:, :, None, None].expand(seeds, b, 2, 3, d_in)
    torch.testing.assert_close(stacked(deep), torch.stack([m(r) for m, r in zip(linears, deep)]))


def test_stacked_linear_draws_as_linear_does() -> None:
    layer = seeded_build(lambda: StackedLinear(3, 400, 50), stream(0, "init"))
    assert layer.weight.shape == (3, 400, 50)
    assert layer.bias is not None
    assert layer.bias.shape == (3, 1, 50)
    bound = 1 / math.sqrt(400)
    assert float(layer.weight.detach().abs().max()) <= bound
    assert float(layer.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    with pytest.raises(ValueError, match="at least 1"):
        StackedLinear(0, 2, 2)
    with pytest.raises(ValueError, match="differ in shape"):
        StackedLinear.from_linears([nn.Linear(2, 3), nn.Linear(3, 3)])


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("training", [True, False])
def test_stacked_nets_are_the_nets(norm: str | None, training: bool) -> None:
    nets = [mlp((5, 7, 6, 3), norm=norm, activation="gelu").train(training) for _ in range(3)]
    x = rand(3, 8, 5)
    stacked = stack_modules(nets)
    wanted = torch.stack([n(r) for n, r in zip(nets, x)])
    torch.testing.assert_close(stacked(x), wanted)
    for s, net in enumerate(nets):
        views = lane_tensors(stacked, s)
        assert views.keys() == net.state_dict().keys()
        for name, value in net.state_dict().items():
            torch.testing.assert_close(views[name], value, msg=name)


def test_gradients_and_views_of_a_lane() -> None:
    nets = [mlp((5, 7, 3), norm="batch") for _ in range(3)]
    x = rand(3, 8, 5)
    stacked = stack_modules(nets)
    stacked(x).square().sum().backward()
    torch.stack([n(r) for n, r in zip(nets, x)]).square().sum().backward()
    gradient = stacked.get_parameter("0.weight").grad
    assert gradient is not None
    for s, net in enumerate(nets):
        torch.testing.assert_close(gradient[s].T, net[0].weight.grad, atol=1e-5, rtol=1e-4)
    lane_tensors(stacked, 1)["0.weight"].zero_()  # a view
    assert torch.equal(stacked.get_parameter("0.weight")[1], torch.zeros(5, 7))
    assert stacked.get_parameter("0.weight")[0].abs().sum() > 0


def test_stacked_dropout_draws_each_seeds_own_mask() -> None:
    dropout = StackedDropout(0.3)
    dropout.generators = [torch.Generator().manual_seed(s) for s in (5, 6)]
    x = torch.ones(2, 50, 40)
    got = dropout(x)
    for s, seed in enumerate((5, 6)):
        with torch.random.fork_rng():
            torch.random.manual_seed(seed)
            wanted = nn.functional.dropout(torch.ones(50, 40, requires_grad=True), 0.3)
        torch.testing.assert_close(got[s], wanted.detach())
    assert torch.equal(dropout.eval()(x), x)
    with pytest.raises(ValueError, match="2 seeds needs as many generators"):
        StackedDropout(0.5)(x)


class Strange(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda s: nn.Sequential(nn.Conv2d(1, 1, 1)), "no stacked form of Conv2d"),
        (lambda s: Strange(2, 2), "no stacked form of Strange"),
        (lambda s: mlp((2, 3 + s, 1)), "differs"),
        (lambda s: mlp((2, *[3] * (s + 1), 1)), "length"),
        (lambda s: nn.Linear(2, 2) if s else nn.Sequential(nn.Linear(2, 2)), "modules differ"),
        (lambda s: mlp((2, 2)).train(s == 0), "training mode"),
        (lambda s: mlp((2, 2)).requires_grad_(False), "frozen"),
        (lambda s: nn.Sequential(nn.Flatten(0)), "no stacked form of Flatten"),
        (lambda s: nn.Sequential(nn.BatchNorm1d(2, momentum=None)), "BatchNorm1d"),
        (lambda s: nn.Sequential(nn.LeakyReLU(0.1 * (s + 1))), "LeakyReLU differs"),
    ],
)
def test_what_cannot_be_stacked_is_named(make: Any, reason: str) -> None:
    with pytest.raises(NotStackable, match=reason):
        stack_modules([make(s) for s in range(2)])


def test_hooks_are_not_lost_silently() -> None:
    nets = [mlp((2, 2)) for _ in range(2)]
    nets[0][0].register_forward_hook(lambda *a: None)
    with pytest.raises(NotStackable, match="hooks"):
        stack_modules(nets)

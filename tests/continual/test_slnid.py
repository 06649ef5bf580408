import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.continual import MAS, SLNID, local_inhibition
from etude.data.randomness import seeded_build, stream
from etude.layers.surgery import TargetError
from etude.training import TrainConfig, train


def by_loop(h: torch.Tensor, sigma: float, alpha: torch.Tensor) -> float:
    total, (rows, width) = 0.0, h.shape
    for i in range(width):
        for j in range(width):
            if i != j:
                both = sum(float(h[m, i] * h[m, j]) for m in range(rows))
                total += math.exp(-float(alpha[i] + alpha[j])) * math.exp(-((i - j) ** 2) / (2 * sigma**2)) * both
    return total / rows


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 5))
def test_the_matrix_form_is_the_double_sum(seed: int, sigma: float) -> None:
    h = torch.rand(4, 5, generator=stream(seed, "h"))
    alpha = torch.rand(5, generator=stream(seed, "alpha"))
    assert float(local_inhibition(h, sigma, alpha)) == pytest.approx(by_loop(h, sigma, alpha), rel=1e-4)


def test_what_costs_nothing() -> None:
    one_hot = torch.eye(4)  # never two at once
    assert float(local_inhibition(one_hot, 2.0)) == 0
    assert float(local_inhibition(torch.ones(3, 4), 1e-3)) == pytest.approx(0, abs=1e-6)  # no reach
    used = torch.full((4,), 50.0)
    assert float(local_inhibition(torch.ones(3, 4), 2.0, used)) < 1e-20  # needed by earlier tasks
    everywhere = float(local_inhibition(torch.ones(3, 4), math.inf))
    assert everywhere == pytest.approx(4 * 3)  # all pairs alike


def test_neighbours_cost_more_than_distant_neurons() -> None:
    near, far = torch.zeros(2, 10), torch.zeros(2, 10)
    near[:, 3:5], far[:, [0, 9]] = 1, 1
    assert float(local_inhibition(near, 1.5)) > 100 * float(local_inhibition(far, 1.5))


def test_images_count_as_rows_of_channels() -> None:
    h = torch.rand(2, 3, 4, 5, generator=stream(0, "h"))
    rows = h.permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(local_inhibition(h, 1.0), local_inhibition(rows, 1.0))


def net() -> nn.Sequential:
    return seeded_build(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
                        stream(0, "init"))  # fmt: skip


def test_it_reads_the_latest_pass_of_every_relu() -> None:
    model, x = net(), torch.randn(7, 3, generator=stream(0, "x"))
    reg = SLNID(model, lam=0.5, sigma=2.0)
    model(torch.randn(9, 3))
    model(x)
    wanted = local_inhibition(model[1](model[0](x)), 2.0) + local_inhibition(model[:4](x), 2.0)
    assert float(reg.penalty().detach()) == pytest.approx(0.5 * float(wanted.detach()), rel=1e-5)
    with pytest.raises(RuntimeError, match="call it first"):
        reg.penalty()
    with torch.no_grad():
        model(x)
    with pytest.raises(RuntimeError):
        reg.penalty()
    reg.close()
    assert not model[1]._forward_hooks


def test_importance_of_neurons_is_the_loop_over_samples_and_adds_up() -> None:
    model, x = net(), torch.randn(5, 3, generator=stream(0, "x"))
    reg = SLNID(model, layers="1")
    found = reg.update([x[:2], x[2:]])["1"]
    total = torch.zeros(6)
    for row in x:
        h = model[:2](row[None]).detach().requires_grad_()
        (g,) = torch.autograd.grad(model[2:](h).square().sum(), h)
        total += g[0].abs()
    torch.testing.assert_close(found, total / 5)
    reg.update(x)
    torch.testing.assert_close(reg.alpha["1"], 2 * total / 5)
    other = SLNID(model, layers="1")
    other.load_state_dict(reg.state_dict())
    assert torch.equal(other.alpha["1"], reg.alpha["1"])


def test_training_with_it_makes_codes_sparser_and_goes_with_mas() -> None:
    x = torch.randn(128, 3, generator=stream(0, "x"))
    y = x[:, :2].abs()
    active = {}
    for lam in (0.0, 0.3):
        model = net()
        reg, mas = SLNID(model, lam), MAS(model)
        mas.update(x)
        both = lambda m, reg=reg, mas=mas: reg.penalty(m) + mas.penalty(m)
        loss = lambda m, b: (m(b.x) - b.y).square().mean()
        train(model, (x, y), loss=loss, config=TrainConfig(steps=150, lr=1e-2), penalty=both, plan="sequential")
        active[lam] = float((model[:4](x) > 1e-3).float().mean())
    assert active[0.3] < active[0.0] - 0.1


def test_bad_input() -> None:
    with pytest.raises(TargetError):
        SLNID(nn.Linear(2, 2))
    for bad in ({"lam": -1.0}, {"sigma": 0.0}):
        with pytest.raises(ValueError):
            SLNID(net(), **bad)
    with pytest.raises(ValueError, match="sigma"):
        local_inhibition(torch.ones(2, 2), 0.0)
    with pytest.raises(ValueError, match="alpha"):
        local_inhibition(torch.ones(2, 2), 1.0, torch.ones(3))
    with pytest.raises(ValueError, match="no rows"):
        local_inhibition(torch.ones(0, 2), 1.0)
    with pytest.raises(ValueError, match="no samples"):
        SLNID(net()).update([])
    with pytest.raises(RuntimeError, match="outside torch.inference_mode"), torch.inference_mode():
        SLNID(net()).update(torch.ones(2, 3))


def test_copies_of_the_model_are_kept_apart() -> None:
    model, x = net(), torch.randn(7, 3, generator=stream(0, "x"))
    reg = SLNID(model, lam=1.0, sigma=2.0)
    model(x)
    wanted = float(reg.penalty().detach())
    other = copy.deepcopy(model)
    model(x)
    other(3 * x)
    reg.penalty().backward()
    assert model[0].weight.grad is not None and other[0].weight.grad is None
    model(x)
    model(x)
    assert float(reg.penalty(nn.Sequential(model)).detach()) == pytest.approx(wanted)
    reg.penalty(other).backward()  # as `train` asks, which copies a model for several seeds
    assert other[0].weight.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copying_and_pickling(copied) -> None:
    model, x = net(), torch.randn(7, 3, generator=stream(0, "x"))
    reg = SLNID(model, lam=1.0, sigma=2.0)
    reg.update(x)
    model(x)
    assert copied(model)(x).shape == (7, 2)  # alone
    own = copied(reg)
    wanted = reg.penalty().detach()
    own.model(x)
    own.penalty().backward()
    assert own.model[0].weight.grad is not None and model[0].weight.grad is None
    own.model(x)
    torch.testing.assert_close(own.penalty().detach(), wanted)
    reg.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    relu, x = nn.ReLU(), torch.randn(7, 3, generator=stream(0, "x"))
    model = nn.Sequential(nn.Linear(3, 6), relu, nn.Linear(6, 4), relu, nn.Linear(4, 2))
    reg = SLNID(model, lam=1.0, sigma=2.0)
    assert {n: len(a) for n, a in reg.update(x).items()} == {"1": 6, "1:1": 4}
    parts = [local_inhibition(model[:n](x), 2.0, reg.alpha[key]) for n, key in ((2, "1"), (4, "1:1"))]
    for _ in range(2):  # the latest pass alone
        model(x)
    torch.testing.assert_close(reg.penalty(), sum(parts))
    for _ in range(2):  # a part of the model alone: each call replaces the one before
        model[1](torch.ones(2, 6, requires_grad=True))
    torch.testing.assert_close(reg.penalty(), local_inhibition(torch.ones(2, 6), 2.0, reg.alpha["1"]))


@pytest.mark.parametrize("autocast", [False, True])
def test_inhibition_in_half_precision(autocast: bool) -> None:
    h = torch.full((20_000, 8), 3.0)
    want = local_inhibition(h, 2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = local_inhibition(h if autocast else h.half(), 2.0)
    assert found.dtype == torch.float32 and torch.equal(found, want)


def test_importance_in_half_precision_is_summed_in_more() -> None:
    x = torch.randn(1000, 4, generator=stream(0, "x")).bfloat16()
    build = lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    model = seeded_build(build, stream(0, "init")).bfloat16()
    want = SLNID(copy.deepcopy(model).float()).update(x.float())["1"]
    found = SLNID(model).update(list(x.split(1)))["1"]
    assert float((found.float() - want).norm() / want.norm()) < 0.02

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.continual import importance, shuffled
from etude.data.randomness import seeded_build, stream
from etude.data.tasks import Split


def net(*sizes: int, seed: int = 0) -> nn.Sequential:
    def build() -> nn.Sequential:
        layers = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return seeded_build(build, stream(seed, "init"))


def conv() -> nn.Sequential:
    build = lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))
    return seeded_build(build, stream(0, "init"))


def loop(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The definition: one backward pass a sample."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row in x:
        grads = torch.autograd.grad(model(row[None]).square().sum(), list(model.parameters()))
        for name, g in zip(total, grads):
            total[name] += g.abs()
    return {n: t / len(x) for n, t in total.items()}


@pytest.mark.parametrize("model,shape", [(net(5, 7, 6, 3), (11, 5)), (conv(), (6, 1, 6, 6))])
def test_mas_is_the_loop_over_single_samples(model, shape) -> None:
    x = torch.randn(*shape, generator=stream(1, "x"))
    found, wanted = importance(model, x), loop(model, x)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-6)


def test_a_linear_net_in_closed_form() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0]]))
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])  # F = 3 and 1; d F^2 / d w = 2 F x
    torch.testing.assert_close(importance(model, x)["weight"], torch.tensor([[(6 + 2) / 2, (6 + 2) / 2]]))
    batch = importance(model, x, per_sample=False)["weight"]  # signs cancel: |6 - 2| and |6 + 2|, over two
    torch.testing.assert_close(batch, torch.tensor([[2.0, 4.0]]))


def test_batches_do_not_matter_for_samples_but_for_batches() -> None:
    model, x = net(4, 8, 3), torch.randn(12, 4, generator=stream(0, "x"))
    whole, parts = importance(model, x), importance(model, [x[:5], x[5:]])
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name])
    one_by_one = importance(model, [r[None] for r in x], per_sample=False)
    for name in whole:  # batches of one are single samples
        torch.testing.assert_close(whole[name], one_by_one[name], rtol=1e-5, atol=1e-6)
    by_batch = importance(model, x, per_sample=False)
    assert all((by_batch[n] <= whole[n] + 1e-6).all() for n in whole)  # cancelled, never more
    assert sum(float(t.sum()) for t in by_batch.values()) < 0.9 * sum(float(t.sum()) for t in whole.values())


def test_labels_are_ignored_in_every_form_of_data() -> None:
    model, x = net(4, 8, 3), torch.randn(6, 4, generator=stream(0, "x"))
    y = torch.zeros(6, dtype=torch.long)
    plain = importance(model, x)["0.weight"]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for data in ((x, y), Split(x, y), [(x, y)], loader, iter([x])):
        torch.testing.assert_close(importance(model, data)["0.weight"], plain)


def test_fisher_is_the_expectation_over_the_nets_own_classes() -> None:
    model, x = net(3, 4), torch.randn(5, 3, generator=stream(0, "x"))
    found = importance(model, x, "fisher")
    p = model(x).softmax(1).detach()
    # softmax regression: E (p - e_c)^2 = p (1 - p) for each logit
    torch.testing.assert_close(found["0.weight"], torch.einsum("nc,ni->ci", p * (1 - p), x.square()) / 5)
    torch.testing.assert_close(found["0.bias"], (p * (1 - p)).mean(0))


def test_empirical_fisher_is_the_mean_squared_gradient() -> None:
    model, x = net(3, 5, 4), torch.randn(5, 3, generator=stream(0, "x"))
    y = torch.tensor([0, 1, 2, 3, 0])
    found = importance(model, (x, y), "empirical_fisher")
    total = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(5):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        total = [t + g.square() / 5 for t, g in zip(total, torch.autograd.grad(loss, list(model.parameters())))]
    for value, wanted in zip(found.values(), total):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="labels"):
        importance(model, x, "empirical_fisher")


def test_local_form_is_input_times_output_activation() -> None:
    model, x = net(3, 4, 2), torch.randn(6, 3, generator=stream(0, "x"))
    found = importance(model, x, "local")
    hidden = model[0](x).relu()
    torch.testing.assert_close(found["0.weight"], torch.einsum("nj,ni->ji", hidden, x.abs()) / 6)
    torch.testing.assert_close(found["2.weight"], torch.einsum("nj,ni->ji", model[2](hidden).abs(), hidden) / 6)
    torch.testing.assert_close(found["0.bias"], hidden.mean(0))
    assert importance(nn.Linear(3, 2), x, "local").keys() == {"weight", "bias"}


def test_nothing_to_measure_is_an_error() -> None:
    model, x = net(3, 4, 2), torch.randn(6, 3)
    for empty in ([], torch.zeros(0, 3), (torch.zeros(0, 3), torch.zeros(0))):
        with pytest.raises(ValueError, match="no samples"):
            importance(model, empty)
    with torch.no_grad():
        model[0].bias.fill_(-1e3)  # dead units
        model[2].bias.zero_()
    with pytest.raises(ValueError, match="no samples"):
        importance(model, x)
    with pytest.raises(ValueError, match="finite"):
        importance(net(3, 2), torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="unknown kind"):
        importance(model, x, "other")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="per_sample"):
        importance(model, x, "fisher", per_sample=False)
    recurrent = nn.LSTM(3, 2)
    with pytest.raises(ValueError, match="gives tuple, not a tensor: .* forward="):
        importance(recurrent, x[None])
    assert len(importance(recurrent, x[:, None], forward=lambda model, x: model(x)[0])) == 4
    with pytest.raises(ValueError, match="trainable"):
        importance(net(3, 2).requires_grad_(False), x)


def test_modes_and_gradients_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[1].eval()
    before = {n: b.clone() for n, b in model.named_buffers()}
    first = importance(model, torch.ones(4, 3))
    assert model.training and not model[1].training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    second = importance(model, torch.ones(4, 3))  # dropout is off
    assert all(torch.equal(first[n], second[n]) for n in first)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 3))
def test_scaling_the_outputs_scales_mas_by_its_square(seed: int, factor: float) -> None:
    model, x = net(3, 5, 2, seed=seed), torch.randn(4, 3, generator=stream(seed, "x"))
    scaled = importance(model, x, forward=lambda m, v: factor * m(v))
    for name, value in importance(model, x).items():
        torch.testing.assert_close(scaled[name], factor**2 * value, rtol=1e-4, atol=1e-6)


def test_shuffling_keeps_the_numbers_and_loses_their_places() -> None:
    omega = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6.0, 10)}
    mixed = shuffled(omega, stream(0, "mix"))
    assert mixed["a"].shape == (2, 3) and mixed["b"].shape == (4,)
    flat = torch.cat([mixed["a"].flatten(), mixed["b"]])
    assert flat.sort().values.tolist() == list(range(10)) and flat.tolist() != list(range(10))
    again = shuffled(omega, stream(0, "mix"))
    assert torch.equal(again["a"], mixed["a"])


@pytest.mark.parametrize("per_sample", [True, False])
def test_there_is_none_where_autograd_is_off_for_good(per_sample: bool) -> None:
    model, x = net(3, 4, 2), torch.randn(5, 3, generator=stream(0, "x"))
    with torch.no_grad():
        found = importance(model, x, per_sample=per_sample)
    sum((found[n] * p**2).sum() for n, p in model.named_parameters()).backward()  # can be a penalty
    with pytest.raises(RuntimeError, match="outside torch.inference_mode"), torch.inference_mode():
        importance(model, x, per_sample=per_sample)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_tuple_of_batches_is_not_a_pair(size: int) -> None:
    model, x = net(4, 8, 3), torch.randn(12, 4, generator=stream(0, "x"))
    whole, found = importance(model, x), importance(model, x.split(size))
    for name in whole:
        torch.testing.assert_close(found[name], whole[name])
    alike = importance(model, Split(x[:6], x[6:]))  # said to be inputs and targets
    assert all(torch.equal(alike[n], t) for n, t in importance(model, x[:6]).items())


def test_half_precision_is_summed_in_more() -> None:
    model, x = net(4, 8, 3), torch.randn(1000, 4, generator=stream(0, "x"))
    want = importance(model.bfloat16().float(), x.bfloat16().float())
    found = importance(model.bfloat16(), list(x.bfloat16().split(1)))
    for name, t in found.items():
        assert t.dtype == torch.bfloat16
        assert float((t.float() - want[name]).norm() / want[name].norm()) < 0.02, name
    x = 10 * torch.ones(20_000, 4)
    want, found = importance(net(4, 3).half().float(), x), importance(net(4, 3).half(), x.half())
    assert all(float(t.max()) * len(x) > 65_504 for t in want.values())  # their sums are too large for float16
    for name, t in found.items():
        torch.testing.assert_close(t.float(), want[name], rtol=5e-3, atol=0.1)
    with pytest.raises(ValueError, match="0.weight is not finite.*float16"):
        importance(net(4, 3).half(), 3e3 * torch.ones(5, 4).half())


class Named(nn.Module):
    """Takes its inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.first(x["a"]) * self.second(x["b"])


@pytest.mark.parametrize("kind", ["mas", "fisher", "local"])
def test_a_net_that_takes_a_mapping(kind) -> None:
    model = seeded_build(Named, stream(0, "init"))
    x = {"a": torch.randn(9, 3, generator=stream(0, "a")), "b": torch.randn(9, 2, generator=stream(0, "b"))}
    whole = importance(model, x, kind)
    parts = importance(model, [{n: t[at] for n, t in x.items()} for at in (slice(4), slice(4, 9))], kind)
    assert all(torch.allclose(whole[n], parts[n], atol=1e-6) for n in whole)
    if kind == "mas":
        a, b = x["a"], x["b"]
        left, right = model.first(a), model.second(b)
        delta = 2 * left * right * right  # d |F|^2 / d first
        assert torch.allclose(whole["first.weight"], (delta.abs().T @ a.abs()) / 9, atol=1e-5)
    half = importance(model.bfloat16(), {n: t.bfloat16() for n, t in x.items()}, kind)
    assert half["first.weight"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="got dict: use torch.as_tensor"):
        importance(model, [{"a": [1.0]}])

"""Single-sample gradients against a loop of batches of one, and gradient noise against its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from etude.data import Split, seeded_build, stream
from etude.layers import flatten
from etude.training import gradient_statistics, per_sample_gradients


def _ce(model, batch):
    return F.cross_entropy(model(batch.x), batch.y)


def _mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def _conv():
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3))


class _Sequence(nn.Module):
    """A linear layer over positions, a layer norm, and a linear layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.twice, self.out = nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.norm(self.a(x.unflatten(1, (2, 2))))
        return self.out(self.twice(torch.tanh(self.twice(h))).mean(1))


class _Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(self.b(torch.tanh(self.a(x))))


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.rnn(x.unflatten(1, (2, 2)))[0][:, -1])


class _Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.out(x)


BUILDS = [_mlp, _conv, _Sequence, _Tied, _Recurrent, _Unused, lambda: nn.Linear(4, 3)]


def _case(build, n=7):
    g = stream(0, "rows")
    batch = Split(torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g))
    return seeded_build(build, stream(0, "init")).double(), batch


def _loop(model, loss, batch, names=None):
    chosen = {n: p for n, p in model.named_parameters() if names is None or n in names}
    rows = []
    for i in range(batch.n):
        one = loss(model, batch.take([i]))
        found = torch.autograd.grad(one, list(chosen.values()), allow_unused=True)
        filled = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(chosen.items(), found, strict=True)}
        rows.append(flatten(filled)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("build", BUILDS)
def test_equals_a_loop_of_batches_of_one(build):
    model, batch = _case(build)
    expected = _loop(model, _ce, batch)
    torch.testing.assert_close(per_sample_gradients(model, _ce, batch), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(per_sample_gradients(model, _ce, batch, chunk=3), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_reduced_forms_equal_the_reduced_loop(build, chunk):
    model, batch = _case(build)
    expected = _loop(model, _ce, batch)
    got = per_sample_gradients(model, _ce, batch, mean_abs=True, chunk=chunk)
    torch.testing.assert_close(got, expected.abs().mean(0), rtol=1e-9, atol=1e-12)
    got = per_sample_gradients(model, _ce, batch, mean_square=True, chunk=chunk)
    torch.testing.assert_close(got, expected.square().mean(0), rtol=1e-9, atol=1e-12)


def test_mean_over_samples_is_the_gradient_of_the_mean_loss():
    model, batch = _case(_Sequence)
    whole = torch.autograd.grad(_ce(model, batch), list(model.parameters()))
    torch.testing.assert_close(
        per_sample_gradients(model, _ce, batch).mean(0), torch.cat([g.reshape(-1) for g in whole])
    )


@pytest.mark.parametrize(
    ("parameters", "names"),
    [("last", {"2.weight", "2.bias"}), (["0.bias"], {"0.bias"}), ("*.weight", {"0.weight", "2.weight"})],
)
def test_a_choice_of_parameters(parameters, names):
    model, batch = _case(_mlp)
    got = per_sample_gradients(model, _ce, batch, parameters=parameters)
    torch.testing.assert_close(got, _loop(model, _ce, batch, names))


def test_frozen_parameters_do_not_count():
    model, batch = _case(_mlp)
    model[0].weight.requires_grad_(False)
    assert per_sample_gradients(model, _ce, batch).shape == (7, 6 + 18 + 3)


def test_loss_of_terms_and_a_plain_tensor_as_batch():
    model, batch = _case(_mlp)
    terms = per_sample_gradients(model, lambda m, x: {"a": m(x).sum(), "b": m(x).square().sum()}, batch.x)
    joint = _loop(model, lambda m, b: m(b.x).sum() + m(b.x).square().sum(), batch)
    torch.testing.assert_close(terms, joint)


def test_projection():
    model, batch = _case(_mlp)
    full = per_sample_gradients(model, _ce, batch)
    matrix = torch.randn(full.shape[1], 5, generator=stream(1, "p"), dtype=torch.float64)
    torch.testing.assert_close(per_sample_gradients(model, _ce, batch, project=matrix, chunk=3), full @ matrix)
    drawn = per_sample_gradients(model, _ce, batch, project=4000, generator=stream(2, "p"))
    assert drawn.shape == (7, 4000)
    torch.testing.assert_close(drawn @ drawn.T, full @ full.T, rtol=0.2, atol=0.2)


def test_the_model_is_left_alone():
    model, batch = _case(_mlp)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    per_sample_gradients(model, _ce, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_gone_after_an_exception():
    model, batch = _case(_mlp)
    with pytest.raises(ValueError, match="scalar"):
        per_sample_gradients(model, lambda m, b: m(b.x), batch)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"parameters": "head.*"}, r"no trainable parameter matches 'head\.\*'"),
        ({"mean_abs": True, "project": 3}, "exclude each other"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"project": torch.zeros(3, 2)}, r"project must have shape \(51, k\)"),
        ({"project": 3}, "needs a generator"),
    ],
)
def test_bad_options_are_named(kwargs, text):
    model, batch = _case(_mlp)
    with pytest.raises(ValueError, match=text):
        per_sample_gradients(model, _ce, batch, **kwargs)


def test_bad_batches_and_models_are_named():
    model, batch = _case(_mlp)
    with pytest.raises(ValueError, match="must hold tensors"):
        per_sample_gradients(model, _ce, Split(["a"]))
    with pytest.raises(ValueError, match=r"one first axis of at least 1, got \[3, 7\]"):
        per_sample_gradients(model, _ce, batch._replace(y=batch.y[:3]))
    with pytest.raises(ValueError, match=r"1 normalises over the batch"):
        per_sample_gradients(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double(), _ce, batch)
    with pytest.raises(ValueError, match="no trainable"):
        per_sample_gradients(nn.Tanh(), _ce, batch)


def test_noise_equals_its_definition():
    model, batch = _case(_mlp, n=24)
    batches = [batch.take(range(i, i + 4)) for i in range(0, 24, 4)]
    found = [torch.autograd.grad(_ce(model, b), list(model.parameters())) for b in batches]
    grads = torch.stack([torch.cat([g.reshape(-1) for g in one]) for one in found])
    noise = gradient_statistics(model, _ce, batches)
    torch.testing.assert_close(noise.mean, grads.mean(0))
    assert noise.trace == pytest.approx(float(grads.var(0).sum()))
    assert noise.n == 6
    assert noise.norm_variation == pytest.approx(float(grads.norm(dim=1).std() / grads.norm(dim=1).mean()))
    squared = float(grads.mean(0).square().sum()) - noise.trace / 6
    assert noise.noise_scale == pytest.approx(noise.trace / squared if squared > 0 else float("inf"))


def test_noise_falls_with_the_batch_size():
    model, batch = _case(_mlp, n=2000)
    small = gradient_statistics(model, _ce, [batch.take(range(i, i + 5)) for i in range(0, 2000, 5)])
    large = gradient_statistics(model, _ce, [batch.take(range(i, i + 50)) for i in range(0, 2000, 50)])
    assert small.trace / large.trace == pytest.approx(10, rel=0.35)


def test_noise_leaves_running_statistics_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    _, batch = _case(_mlp)
    before = model[1].running_mean.clone()
    gradient_statistics(model, _ce, [batch, batch])
    assert torch.equal(model[1].running_mean, before)


def test_equal_batches_have_no_noise_and_one_is_not_enough():
    model, batch = _case(_mlp)
    assert gradient_statistics(model, _ce, [batch, batch]).trace == pytest.approx(0, abs=1e-20)
    with pytest.raises(ValueError, match="at least 2 batches, got 1"):
        gradient_statistics(model, _ce, [batch])

"""Monte-Carlo dropout, predictive entropy, mutual information."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from etude.data.randomness import stream
from etude.layers.attention import MultiHeadAttention
from etude.layers.surgery import TargetError
from etude.layers.uncertainty import entropy, mc_dropout, mutual_information, predictive_entropy


def test_closed_forms():
    agree = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]])
    quarrel = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    for probs in (agree, quarrel):
        assert predictive_entropy(probs).item() == pytest.approx(math.log(2))
    assert mutual_information(agree).item() == 0
    assert mutual_information(quarrel).item() == pytest.approx(math.log(2))
    p = torch.tensor([[[0.2, 0.8]]])
    assert predictive_entropy(p).item() == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))
    assert mutual_information(p).item() == pytest.approx(0, abs=1e-6)


@given(seed=st.integers(0, 999), samples=st.integers(1, 6), classes=st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_bounds(seed, samples, classes):
    probs = torch.randn(samples, 4, classes, generator=stream(seed, "p")).mul(3).softmax(-1)
    total, shared = predictive_entropy(probs), mutual_information(probs)
    assert bool((shared >= 0).all() and (shared <= total + 1e-6).all() and (total <= math.log(classes) + 1e-5).all())


def test_gradient_of_the_entropy_is_the_formula():
    z = torch.randn(1, 3, 5, generator=stream(0, "z"), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: predictive_entropy(t.softmax(-1)), z)
    (grad,) = torch.autograd.grad(predictive_entropy(z.softmax(-1)).sum(), z)
    p = z.softmax(-1)
    assert torch.allclose(grad, -p * (p.log() + entropy(p)[..., None]))


def test_only_dropout_is_on_and_modes_come_back():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net.train()
    net[3].eval()
    x = torch.randn(6, 4, generator=stream(0, "x"))
    before = net[1].running_mean.clone()
    probs = mc_dropout(net, x, 5, stream(0, "mc"))
    assert probs.shape == (5, 6, 3) and torch.allclose(probs.sum(-1), torch.ones(5, 6))
    assert not torch.equal(probs[0], probs[1]) and torch.equal(net[1].running_mean, before)
    assert [m.training for m in net] == [True, True, True, False]
    assert torch.equal(probs, mc_dropout(net, x, 5, stream(0, "mc")))
    state = torch.get_rng_state()
    mc_dropout(net, x, 2, stream(1, "mc"))
    assert torch.equal(state, torch.get_rng_state())


def test_the_mean_of_many_samples_is_near_the_expectation():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    probs = mc_dropout(net, torch.ones(1, 1), 4000, stream(0, "mc"))  # the input is 0 or 2
    expected = (0.5 + 1 / (1 + math.exp(-2))) / 2
    assert probs.mean(0)[0, 0].item() == pytest.approx(expected, abs=0.02)


def test_dropout_inside_a_recurrent_net_counts():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(2, 3, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x, shift):
            return self.rnn(x)[0][:, -1] + shift

    probs = mc_dropout(Last(), (torch.ones(1, 4, 2), 1.0), 8, stream(0, "mc"))
    assert probs.std(0).max() > 0


class _Attends(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        out = self.part(x, x, x) if isinstance(self.part, nn.MultiheadAttention) else self.part(x)
        return (out[0] if isinstance(out, tuple) else out)[:, 0]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "made",
    [
        lambda: nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
        lambda: MultiHeadAttention(4, 2, dropout=0.5),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True),
    ],
)
def test_dropout_inside_attention_counts_with_and_without_gradients(made, gradients):
    net, x = _Attends(made()), torch.randn(2, 3, 4, generator=stream(0, "x"))
    with torch.set_grad_enabled(gradients):
        probs = mc_dropout(net, x, 8, stream(0, "mc"))
    assert probs.std(0).max() > 0
    assert all(m.training for m in net.modules())


def test_bad_input():
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="samples"):
        mc_dropout(net, torch.ones(1, 2), 0, stream(0, "mc"))
    with pytest.raises(TargetError, match="no dropout"):
        mc_dropout(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2)), torch.ones(1, 2), 3, stream(0, "mc"))
    with pytest.raises(ValueError, match=r"\(samples, batch, classes\)"):
        predictive_entropy(torch.ones(2, 3))
    with pytest.raises(ValueError, match="softmax"):
        mutual_information(torch.randn(2, 3, 4, generator=stream(0, "p")))
    net.train()
    with pytest.raises(RuntimeError):
        mc_dropout(net, torch.ones(1, 5), 2, stream(0, "mc"))
    assert net.training and net[0].training

"""Labellers by name: widths, losses, truncation, matched sizes."""

import math

import pytest
import torch

from etude.data.randomness import seeded_build, stream
from etude.layers import SequenceReadout, TimeWindow, make_readout, make_rnn, matched_hidden
from etude.layers.readout import READOUTS

X = torch.randint(5, (6, 9), generator=stream(0, "x"))
Y = torch.randint(3, (6, 9), generator=stream(0, "y")).masked_fill(torch.arange(9) % 2 == 0, -100)


def net(name):
    return seeded_build(lambda: make_readout(name, 5, 3, 8, window=4), stream(0, name))


@pytest.mark.parametrize("name", READOUTS)
def test_logits_and_loss_by_hand(name):
    model = net(name)
    logits = model(X)
    assert logits.shape == (6, 9, 3)
    logp = logits.log_softmax(-1)
    want = -torch.stack([logp[i, t, Y[i, t]] for i in range(6) for t in range(1, 9, 2)]).mean()
    assert model.loss(X, Y).item() == pytest.approx(want.item(), abs=1e-5)
    model.loss(X, Y).backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_jordan_feeds_its_own_labels_back():
    model = net("jordan")
    assert model.head is None
    y, _ = model.rnn(model.encode(X))
    assert torch.allclose(model(X).softmax(-1), y, atol=1e-6)
    assert net("bidirectional").head is not None


@pytest.mark.parametrize("truncate", [1, 3, 4, 9, 20])
def test_truncated_loss_has_the_same_value(truncate):
    model = net("gru")
    assert model.loss(X, Y, truncate=truncate).item() == pytest.approx(model.loss(X, Y).item(), abs=1e-5)


def test_truncation_cuts_the_gradient():
    target = torch.full_like(Y, -100)
    target[:, -1] = 0
    inputs = torch.nn.functional.one_hot(X, 5).float().requires_grad_(True)
    (g,) = torch.autograd.grad(net("lstm").loss(inputs, target, truncate=4), inputs)
    assert g.abs().sum((0, 2)).nonzero().flatten().tolist() == [8]  # the last window is [8, 9)
    (g,) = torch.autograd.grad(net("lstm").loss(inputs, target), inputs)
    assert g.abs().sum((0, 2)).nonzero().flatten().tolist() == list(range(9))


def test_regression_leaves_nan_out():
    model = SequenceReadout(make_rnn("gru", 2, 4), 2, 1)
    x = torch.rand(3, 5, 2, generator=stream(0, "r"))
    y = torch.full((3, 5), math.nan)
    y[:, -1] = 2.0
    want = (model(x)[:, -1, 0] - 2).square().mean()
    assert model.loss(x, y).item() == pytest.approx(want.item(), abs=1e-6)
    model.loss(x, y, truncate=2).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_lengths_reach_the_net():
    model = net("bidirectional")
    lengths = torch.tensor([9, 4, 7, 9, 2, 1])
    alone = model(X[1:2, :4])
    assert torch.allclose(model(X, lengths)[1, :4], alone[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_symbols_are_fed_in_the_nets_precision_and_torchs_own_net_takes_lengths(dtype):
    model = SequenceReadout(torch.nn.GRU(5, 8, batch_first=True), 5, 3).to(dtype)
    y = model(X, torch.tensor([9, 4, 1, 9, 9, 2]))
    assert y.dtype == dtype and y.shape == (6, 9, 3)
    torch.testing.assert_close(y[1, :4], model(X[1:2, :4])[0])


@pytest.mark.parametrize("hidden", [4, 16, 48])
def test_matched_parameters(hidden):
    def count(name):
        return sum(p.numel() for p in make_readout(name, 2, 4, hidden).parameters())

    one, two = count("unidirectional"), count("bidirectional")
    assert one <= two < 1.15 * one
    h = matched_hidden(2, 4, hidden)
    larger = sum(p.numel() for p in SequenceReadout(make_rnn("lstm", 2, h + 1), 2, 4).parameters())
    assert larger > two


def test_refusals():
    with pytest.raises(ValueError, match="name must be one of"):
        make_readout("transformer", 5, 3, 8)
    with pytest.raises(ValueError, match="width 4"):
        SequenceReadout(TimeWindow(4, 8, 2), 5, 3)
    with pytest.raises(ValueError, match="batch_first=True"):
        SequenceReadout(torch.nn.GRU(5, 8), 5, 3)
    with pytest.raises(ValueError, match="truncate=3.*4 inputs"):  # its pieces would begin in the dark
        net("window").loss(X, Y, truncate=3)


def test_nothing_asked_for_costs_nothing():
    nothing = torch.full_like(Y, -100)
    assert net("gru").loss(X, nothing, truncate=4).item() == net("gru").loss(X, nothing).item() == 0.0


@pytest.mark.parametrize("both", [False, True])
def test_a_projected_lstm_is_as_wide_as_its_projection(both):
    rnn = torch.nn.LSTM(5, 8, proj_size=2, batch_first=True, bidirectional=both)
    assert SequenceReadout(rnn, 5, 3)(X).shape == (6, 9, 3)

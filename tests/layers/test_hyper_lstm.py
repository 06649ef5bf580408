"""HyperLSTM: it starts as torch's LSTM, its scales act as the equations say, and it learns."""

import pytest
import torch
from torch import nn

from etude.layers.hyper_lstm import HyperLSTM, as_hyper_lstm


def test_a_fresh_one_equals_torchs_lstm_for_every_layer_and_length():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 5, num_layers=2, batch_first=True)
    net, x = as_hyper_lstm(lstm), torch.randn(4, 7, 3)
    y, (h, c) = lstm(x)
    ours, state = net(x)
    assert torch.allclose(ours, y, atol=1e-6)
    assert torch.allclose(state[0], h, atol=1e-6)
    assert torch.allclose(state[1], c, atol=1e-6)
    short = net(x, lengths=[7, 3, 5, 1])[0]
    assert torch.allclose(short[1, :3], y[1, :3], atol=1e-6)
    assert short[1, 3:].abs().max() == 0


def test_one_step_by_the_equations():
    torch.manual_seed(1)
    net = HyperLSTM(2, 3, hyper_size=4, embed_size=2)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    w = dict(net.named_parameters())
    x, h, c, hh, hc = torch.randn(1, 2), torch.randn(1, 3), torch.randn(1, 3), torch.randn(1, 4), torch.randn(1, 4)
    bias = w["bias_ih_l0"] + w["bias_hh_l0"]

    def lstm(gates, cell):
        i, f, g, o = gates.chunk(4, 1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell

    wx, wh = x @ w["weight_ih_l0"].T, h @ w["weight_hh_l0"].T
    nh, nc = lstm(wx[:, 12:] + wh[:, 12:] + hh @ w["weight_nn_l0"].T + bias[12:], hc)
    z = (nh @ w["weight_z_l0"].T).view(3, 4, 2)
    z[:2] += w["bias_z_l0"].view(2, 4, 2)
    gates = []
    for gate in range(4):
        part = slice(3 * gate, 3 * gate + 3)
        d_x, d_h, d_b = (w["weight_d_l0"][k, gate] @ z[k, gate] for k in range(3))
        gates.append(d_x * wx[0, part] + d_h * wh[0, part] + d_b + bias[part])
    want = lstm(torch.cat(gates)[None], c)
    _, got = net(x[:, None], tuple(s[None] for s in (h, c, hh, hc)))
    for a, b in zip(got, (*want, nh, nc), strict=True):
        assert torch.allclose(a[0], b, atol=1e-5)


def test_every_parameter_learns_in_both_directions():
    net = HyperLSTM(3, 4, bidirectional=True)
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    x = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss = (net(x)[0].sum(-1) - x.cumsum(1).sum(-1)).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="at least 1"):
        HyperLSTM(2, 3, hyper_size=0)
    with pytest.raises(ValueError, match="one direction"):
        as_hyper_lstm(nn.LSTM(2, 3, bidirectional=True))
    with pytest.raises(ValueError, match="set lstm.batch_first = True"):
        as_hyper_lstm(nn.LSTM(2, 3))
    with pytest.raises(ValueError, match="x must have shape"):
        HyperLSTM(2, 3)(torch.zeros(1, 2, 5))


def test_an_lstm_in_evaluation_stays_there():
    lstm = nn.LSTM(3, 4, num_layers=2, dropout=0.5, batch_first=True).eval()
    x, net = torch.randn(2, 5, 3), as_hyper_lstm(lstm)
    torch.testing.assert_close(net(x)[0], lstm(x)[0])
    assert as_hyper_lstm(lstm.train()).training


def test_a_double_lstm_stays_double():
    lstm = nn.LSTM(5, 7, batch_first=True).double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(as_hyper_lstm(lstm)(x)[0], lstm(x)[0])

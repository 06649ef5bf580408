"""Costs against counts by hand."""

import pytest
import torch
from torch import nn

from etude.layers import mlp
from etude.layers.profile import profile


def test_linear_and_convolution_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    found = profile(net, torch.rand(4, 3, 6, 6), repeats=2)
    convolution, linear = 4 * 8 * 36 * 3 * 9, 4 * 288 * 10
    assert found.macs == convolution + linear
    assert found.per_module["0"] == convolution
    assert found.per_module["3"] == linear
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.bytes == 4 * found.parameters
    assert found.seconds > 0
    assert found.spread >= 0
    assert found.peak_bytes >= 4 * 4 * 8 * 36


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_by_formula(cell, gates):
    net = nn.ModuleDict({"rnn": cell(5, 6, num_layers=2, bidirectional=True, batch_first=True)})
    net.forward = lambda x: net["rnn"](x)
    found = profile(net, torch.rand(2, 7, 5), repeats=1)
    assert found.macs == 14 * 2 * gates * 6 * ((5 + 6) + (12 + 6))
    assert found.per_module["rnn"] == found.macs


def test_attention_counts_its_two_products():
    net = nn.MultiheadAttention(8, 2, batch_first=True).train()
    x = torch.rand(3, 5, 8)
    found = profile(net, (x, x, x), repeats=1)
    assert found.macs == 3 * 5 * 8 * 8 * 4 + 2 * 3 * 5 * 5 * 8


def test_tied_buffers_nesting_and_the_models_own_word_on_its_cache():
    net = mlp((4, 4, 4), norm="batch")
    net[3].weight = net[0].weight
    net.kv_bytes = lambda x: 7 * len(x)
    found = profile(net.eval(), torch.rand(2, 4), repeats=1)
    assert found.parameters == 16 + 4 + 4 + 8
    assert found.kv_bytes == 14
    nested = profile(nn.Sequential(nn.Sequential(nn.Linear(2, 3))), torch.rand(1, 2), repeats=1)
    assert nested.macs == nested.per_module["0.0"] == 6


def test_the_model_is_left_as_it_was():
    net = mlp((4, 4, 4))
    profile(net, torch.rand(2, 4), repeats=1)
    assert not net._forward_hooks
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match="repeats"):
        profile(net, torch.rand(2, 4), repeats=0)

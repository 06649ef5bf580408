"""The class of a row is read at its last true step."""

import pytest
import torch
from torch import nn

from etude.layers.recurrent import GRU, make_rnn
from etude.layers.sequence_classifier import SequenceClassifier


def test_padding_changes_nothing_unless_it_is_read():
    net = SequenceClassifier(GRU(4, 5, batch_first=True), 10, 3)
    ids = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
    lengths = torch.tensor([3, 5])
    out = net(ids, lengths)
    assert torch.allclose(out[0], net(ids[:1, :3])[0], atol=1e-6)
    assert torch.allclose(out[1], net(ids)[1], atol=1e-6)
    other = ids.clone()
    other[0, 3:] = 9
    assert torch.allclose(out, net(other, lengths), atol=1e-6)
    net.pad_read = True
    assert torch.allclose(net(ids, lengths), net(ids), atol=1e-6)
    assert not torch.allclose(net(ids, lengths)[0], out[0], atol=1e-4)


def test_the_head_is_as_wide_as_what_the_net_returns():
    for rnn in (nn.LSTM(4, 5, proj_size=3, batch_first=True), make_rnn("jordan", 4, 5, output_size=3)):
        assert SequenceClassifier(rnn, 10, 2)(torch.zeros(2, 6, dtype=torch.long)).shape == (2, 2)


def test_bad_input():
    with pytest.raises(ValueError, match="bidirectional"):
        SequenceClassifier(nn.GRU(4, 5, bidirectional=True, batch_first=True), 10, 3)
    with pytest.raises(ValueError, match="batch_first=True"):
        SequenceClassifier(nn.GRU(4, 5), 10, 3)
    net, ids = SequenceClassifier(GRU(4, 5, batch_first=True), 10, 3), torch.zeros(1, 3, dtype=torch.long)
    for length in (0, 4):
        with pytest.raises(ValueError, match=rf"length {length} is not in 1\.\.3"):
            net(ids, torch.tensor([length]))
    assert torch.equal(net(ids, [2]), net(ids, torch.tensor([2])))

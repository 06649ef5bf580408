"""Scores of labellers and encoder-decoders."""

import math

import pytest
import torch
from torch import nn

from etude.data.randomness import seeded_build, stream
from etude.layers import RecurrentSeq2Seq, make_readout
from etude.training.sequence_scores import sequence_scores


class Fixed(nn.Module):
    """Says label 1 with probability 3/4 and label 0 with 1/4, everywhere."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.25, 0.75]).log())

    def forward(self, x):
        return self.logits.expand(*x.shape, 2)


def test_labeller_by_hand():
    y = torch.tensor([[1, 0, -100], [1, -100, 1]])
    scores = sequence_scores(Fixed(), torch.zeros(2, 3, dtype=torch.long), y)
    assert scores["accuracy"] == pytest.approx(75.0)
    assert scores["bits"] == pytest.approx(-(3 * math.log2(0.75) + math.log2(0.25)) / 4)
    assert set(scores) == {"accuracy", "bits"}


def test_numbers_by_hand():
    class Zero(Fixed):
        def forward(self, x):
            return 0 * self.logits[0] * x.sum(-1, keepdim=True)

    y = torch.tensor([[torch.nan, 0.039], [torch.nan, -0.5]])
    scores = sequence_scores(Zero(), torch.zeros(2, 2, 2), y)
    assert scores == pytest.approx({"accuracy": 50.0, "squared_error": (0.039**2 + 0.25) / 2})
    diverged = sequence_scores(Zero(), torch.full((2, 2, 2), torch.inf), y)
    assert math.isnan(diverged["accuracy"]) and math.isnan(diverged["squared_error"])


def test_passes_of_rows_change_nothing():
    net = make_readout("gru", 5, 3, 8)
    x, y = (torch.randint(n, (10, 6), generator=stream(n, "x")) for n in (5, 3))
    assert sequence_scores(net, x, y, rows=3) == pytest.approx(sequence_scores(net, x, y), abs=1e-5)


def test_encoder_decoder_by_hand():
    net = seeded_build(lambda: RecurrentSeq2Seq(4, 8, symbols=5), stream(0, "net"))
    x = torch.randint(5, (7, 6), generator=stream(0, "x"))
    scores = sequence_scores(net, x, x, rows=4)
    right = (net(x, x).logits.argmax(-1) - 1 == x).float().mean()
    assert scores["accuracy"] == pytest.approx(100 * float(right), abs=1e-4)
    written = net.generate(x, max_steps=7).sequences
    hits = sum(int((written[i, : x.shape[1]] == x[i, : written.shape[1]]).sum()) for i in range(7))
    assert scores["free_accuracy"] == pytest.approx(100 * hits / 42, abs=1e-4)

"""The recurrent language model: loss, lengths, generation, refusals."""

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.layers import RecurrentLM, make_rnn


def lm(cell="lstm", layers=2):
    return RecurrentLM(make_rnn(cell, 5, 6, num_layers=layers, generator=stream(0, cell)), vocab_size=9).eval()


IDS = torch.randint(9, (4, 7), generator=stream(0, "ids"))


def test_loss_by_hand():
    out = lm()(IDS)
    logp = out.logits.log_softmax(-1)
    want = -logp[:, :-1].gather(2, IDS[:, 1:, None]).mean()
    assert out.loss.item() == pytest.approx(want.item(), abs=1e-6)
    assert out.hidden.shape == (4, 7, 6) and out.logits.shape == (4, 7, 9)
    assert lm()(IDS[:, :1]).loss is None


def test_padding_is_left_out():
    model, lengths = lm(), torch.tensor([7, 3, 5, 2])
    out = model(IDS, lengths=lengths)
    rows = [model(IDS[i : i + 1, :n]).loss.item() * (n - 1) for i, n in enumerate(lengths.tolist())]
    assert out.loss.item() == pytest.approx(sum(rows) / (6 + 2 + 4 + 1), abs=1e-5)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru", "jordan", "outer_product", "memory"])
def test_greedy_generation_follows_the_argmax(cell):
    model = lm(cell)
    out = model.generate(IDS[:, :3], max_steps=4)
    ids = IDS[:, :3]
    for _ in range(4):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out.sequences[:, 0], ids[:, 3:])


@pytest.mark.parametrize("cell", ["elman", "lstm", "outer_product", "memory"])
def test_beams_and_samples_keep_their_states(cell):
    model = lm(cell)
    for options in ({"beam_size": 3}, {"method": "sample", "num_samples": 3, "generator": stream(1, "s")}):
        out = model.generate(IDS[:, :2], max_steps=4, **options)
        for row in range(4):
            for k in range(3):
                ids = torch.cat([IDS[row, :2], out.sequences[row, k]])[None]
                logp = model(ids).logits.log_softmax(-1)[0, 1:-1]
                score = logp.gather(1, ids[0, 2:, None]).sum()
                assert out.scores[row, k].item() == pytest.approx(score.item(), abs=1e-4)


def test_generation_is_free_of_dropout_and_leaves_the_mode_as_it_was():
    rnn = make_rnn("lstm", 5, 6, num_layers=2, dropout=0.5, generator=stream(0, "lstm"))
    model = RecurrentLM(rnn, vocab_size=9, dropout=0.5).eval()
    want = model.generate(IDS, max_steps=5)
    model.train()
    model.embed.eval()
    got = model.generate(IDS, max_steps=5)
    assert torch.equal(got.scores, want.scores) and torch.equal(got.sequences, want.sequences)
    assert model.training and model.rnn.training and not model.embed.training


def test_tied_weights():
    model = RecurrentLM(make_rnn("gru", 6, 6), vocab_size=9, tie=True)
    assert model.head.weight is model.embed.weight
    model(IDS).loss.backward()
    assert float(model.embed.weight.grad.abs().sum()) > 0


def test_torch_modules_are_taken_as_they_are():
    projected = nn.LSTM(5, 8, proj_size=3, batch_first=True)
    assert RecurrentLM(projected, 9)(IDS).hidden.shape == (4, 7, 3)
    model, lengths = RecurrentLM(nn.GRU(5, 6, batch_first=True), 9, 5), torch.tensor([7, 3, 5, 2])
    assert model(IDS).logits.shape == (4, 7, 9)
    ours = make_rnn("gru", 5, 6)
    ours.load_state_dict(model.rnn.state_dict())
    found = model(IDS, lengths=lengths)
    model.rnn = ours
    want = model(IDS, lengths=lengths)
    assert torch.equal(found.loss, want.loss) and torch.equal(found.state, want.state)


def test_refusals():
    with pytest.raises(ValueError, match="bidirectional"):
        RecurrentLM(make_rnn("lstm", 5, 6, bidirectional=True), 9)
    with pytest.raises(ValueError, match="batch_first=True"):
        RecurrentLM(nn.GRU(5, 6), 9)
    with pytest.raises(ValueError, match="input_size"):
        RecurrentLM(make_rnn("lstm", 5, 6), 9, embedding_dim=4)
    with pytest.raises(ValueError, match="tied"):
        RecurrentLM(make_rnn("lstm", 5, 6), 9, tie=True)
    with pytest.raises(ValueError, match=r"0\.\.8"):
        lm()(torch.tensor([[0, 9]]))
    with pytest.raises(ValueError, match="integers"):
        lm()(torch.rand(2, 3))
    with pytest.raises(ValueError, match="prompt"):
        lm().generate(IDS[:, :0], max_steps=3)

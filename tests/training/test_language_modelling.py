import math

import pytest
import torch

from etude.data.randomness import stream
from etude.data.tokens import train_tokenizer
from etude.layers.decoder import DecoderConfig, DecoderLM
from etude.training import TrainConfig
from etude.training.language_modelling import (
    bits_per_character,
    corrupt,
    lm_loss,
    token_rows,
    train_language_model,
)


def build(vocab_size=6, **options):
    return lambda seed: DecoderLM(
        DecoderConfig(num_layers=1, hidden_dim=16, num_heads=2, vocab_size=vocab_size, max_length=16, **options)
    )


def test_causal_targets_are_the_next_real_tokens():
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    batch = corrupt(ids, mask)
    assert torch.equal(batch.inputs, ids) and batch.prefix_lengths is None
    assert batch.targets.tolist() == [[2, 3, -100, -100], [5, 1, 2, -100]]


def test_prefix_targets_begin_after_the_prefix_and_every_row_has_one():
    ids = torch.arange(1, 9).repeat(500, 1)
    batch = corrupt(ids, None, "prefix", stream(0, "p"))
    for row, length in zip(batch.targets[:50], batch.prefix_lengths[:50], strict=True):
        counted = row[row != -100].tolist()
        assert counted == list(range(max(2, int(length) + 1), 9)) and counted
    assert batch.prefix_lengths.min() == 0 and batch.prefix_lengths.max() == 7


def test_masked_tokens_in_the_published_shares():
    ids = torch.randint(5, 100, (400, 50), generator=stream(0, "ids"))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 40:] = False
    batch = corrupt(ids, mask, "mlm", stream(1, "m"), mask_id=3, vocab_size=100)
    chosen = batch.targets != -100
    assert not chosen[:, 40:].any() and torch.equal(batch.targets[chosen], ids[chosen])
    assert chosen[:, :40].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (batch.inputs[chosen] == 3).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (batch.inputs[chosen] == ids[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(batch.inputs[~chosen], ids[~chosen])
    again = corrupt(ids, mask, "mlm", stream(2, "m"), mask_id=3, vocab_size=100)
    assert not torch.equal(again.targets, batch.targets)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((torch.zeros(3),), {}, r"\(B, T\)"),
        ((torch.zeros(1, 2).long(), torch.ones(1, 3)), {}, "does not fit"),
        ((torch.zeros(1, 2).long(), None, "span"), {}, "objective must be"),
        ((torch.zeros(1, 2).long(), None, "mlm"), {}, "mask_id and vocab_size"),
        ((torch.zeros(1, 2).long(), None, "mlm"), {"mask_id": 0, "vocab_size": 3, "rate": 0.0}, "rate"),
    ],
)
def test_bad_batches(arguments, options, text):
    with pytest.raises(ValueError, match=text):
        corrupt(*arguments, **options)


def test_loss_of_padded_rows_is_that_of_the_rows_without_padding():
    model = build()(0).eval()
    rows = token_rows([[1, 2, 3], [4, 5, 1, 2, 3]])
    assert rows.x.shape == (2, 5) and rows.lengths.tolist() == [3, 5]
    mask = torch.arange(5) < rows.lengths[:, None]
    padded = lm_loss(model, corrupt(rows.x, mask))
    alone = [lm_loss(model, corrupt(torch.tensor([r]))) for r in ([1, 2, 3], [4, 5, 1, 2, 3])]
    torch.testing.assert_close(padded, (2 * alone[0] + 4 * alone[1]) / 6)


def test_rows_from_texts_and_packing():
    texts = ["abab", "ba"]
    tokenizer = train_tokenizer(texts, "char", 10)
    rows = token_rows(texts, tokenizer)
    assert rows.n == 2 and rows.lengths[0] > rows.lengths[1]
    total = int(rows.lengths.sum())
    packed = token_rows(texts, tokenizer, max_length=3, pack=True)
    assert packed.x.shape == (total // 3, 3)
    assert token_rows(texts, tokenizer, max_length=2).x.shape[1] == 2
    for bad, options, text in [
        ([], {}, "no texts"), (texts, {}, "need a tokenizer"), (torch.zeros(3), {}, r"\(n, T\)"),
        ([[1, 2]], {"pack": True}, "max_length"), ([[1, 2]], {"pack": True, "max_length": 9}, "no full row"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=text):
            token_rows(bad, **options)


@pytest.mark.parametrize("objective", ["causal", "prefix"])
def test_a_periodic_text_is_learned(objective):
    ids = torch.tensor([[1, 2, 3, 1, 2, 3], [2, 3, 1, 2, 3, 1]]).repeat(16, 1)
    config = TrainConfig(steps=60, batch_size=16, lr=1e-2)
    (done,) = train_language_model(build(prefix=objective == "prefix"), ids, None, objective, config=config, val=ids)
    assert done.curve[-1]["val_loss"] < 0.5 * math.log(3) < done.curve[0]["val_loss"] + 1
    assert done.module.generate(torch.tensor([[1, 2]]), 3).tolist() == [[1, 2, 3, 1, 2]]


def test_seeds_have_their_own_texts_and_same_seed_same_net():
    def texts(seed):
        return torch.randint(1, 6, (20, 5), generator=stream(seed, "texts"))

    config = TrainConfig(steps=5, batch_size=8)
    one, two = train_language_model(build(), texts, config=config, seeds=(1, 2), val=texts)
    (again,) = train_language_model(build(), texts, config=config, seeds=(2,), val=texts)
    for a, b in zip(two.module.parameters(), again.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(one.module.embed.weight, two.module.embed.weight)


def test_bits_per_character():
    assert bits_per_character(math.log(2), 10, 40) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="characters"):
        bits_per_character(1.0, 1, 0)

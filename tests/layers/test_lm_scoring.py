import itertools
import math

import pytest
import torch

from etude.data.randomness import fork_global, stream
from etude.layers.decoder import DecoderConfig, DecoderLM
from etude.layers.lm_scoring import (
    combine_logits,
    enumerate_logits,
    enumerate_logprobs,
    label_logprobs,
    perplexity,
    token_logprobs,
)


@pytest.fixture(scope="module")
def lm():
    with fork_global(stream(0, "init")):
        model = DecoderLM(DecoderConfig(num_layers=2, hidden_dim=16, vocab_size=12, max_length=16, init="torch"))
        torch.nn.init.normal_(model.embed.weight, std=0.5)
    return model.eval()


def some_ids(rows=3, length=6):
    return torch.randint(12, (rows, length), generator=stream(0, "ids"))


def test_token_logprobs_are_those_of_growing_prefixes(lm):
    ids = some_ids()
    ours = token_logprobs(lm, ids)
    for t in range(5):
        expected = lm(ids[:, : t + 1])[:, -1].log_softmax(-1).gather(1, ids[:, t + 1 : t + 2])[:, 0]
        torch.testing.assert_close(ours[:, t], expected, atol=1e-5, rtol=1e-5)
    assert token_logprobs(lm, ids[:, :1]).shape == (3, 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_counts_nothing(lm, side):
    ids, fill = some_ids(), torch.zeros(3, 2, dtype=torch.long)
    padded = torch.cat([fill, ids] if side == "left" else [ids, fill], 1)
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:, 2 if side == "left" else 0 : 8 if side == "left" else 6] = True
    scores = token_logprobs(lm, padded, mask)
    torch.testing.assert_close(scores.sum(1), token_logprobs(lm, ids).sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(perplexity(lm, padded, mask), perplexity(lm, ids), atol=1e-4, rtol=1e-5)
    mask[1] = False
    with pytest.raises(ValueError, match="row 1 has no token to predict"):
        perplexity(lm, padded, mask)


def test_perplexity_of_a_uniform_model_is_the_vocabulary():
    torch.testing.assert_close(perplexity(lambda ids: torch.zeros(*ids.shape, 12), some_ids()), torch.full((3,), 12.0))
    assert perplexity(lambda ids: torch.zeros(*ids.shape, 12), some_ids()[:, :2]).shape == (3,)


def test_impossible_tokens_are_minus_infinity_never_nan():
    def model(ids):
        logits = torch.zeros(*ids.shape, 12)
        logits[..., 3:] = -math.inf
        return logits

    ids = torch.tensor([[0, 1, 2], [0, 5, 1]])
    assert token_logprobs(model, ids).tolist()[1][0] == -math.inf
    assert perplexity(model, ids)[1] == math.inf and not perplexity(model, ids).isnan().any()
    scores = enumerate_logprobs(model, [[1, 5], [6, 7]], prefix=torch.tensor([0]))
    assert not scores.isnan().any() and (scores == -math.inf).all()
    scores = enumerate_logprobs(model, [[1, 5], [1, 2]], prefix=torch.tensor([0]))
    torch.testing.assert_close(scores.exp(), torch.tensor([[0.5, 0.5], [0.0, 0.0]], dtype=torch.float64))


def test_labels_at_every_position_in_one_pass(lm):
    ids, labels = some_ids(), [4, 9]
    scores = label_logprobs(lm, ids, torch.tensor([1, 4]), labels)
    assert scores.shape == (3, 2, 2)
    torch.testing.assert_close(scores[:, 1], lm(ids[:, :5])[:, -1].log_softmax(-1)[:, labels], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="share a token id"):
        label_logprobs(lm, ids, torch.tensor([1]), [4, 4])
    with pytest.raises(ValueError, match="positions must lie in 0 .. 5"):
        label_logprobs(lm, ids, torch.tensor([6]), [4])


@pytest.mark.parametrize("batch_size", [4096, 2])
def test_enumeration_equals_scoring_every_sequence(lm, batch_size):
    slots, prefix = [[1, 2, 3], [4, 5], [6, 7, 8, 9]], torch.tensor([0, 11])
    every = torch.tensor(list(itertools.product(*slots)))
    ids = torch.cat([prefix.expand(len(every), 2), every], 1)
    expected = token_logprobs(lm, ids)[:, 1:].sum(1).reshape(3, 2, 4).double()
    ours = enumerate_logprobs(lm, slots, prefix=prefix, restrict=False, batch_size=batch_size)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    plain = enumerate_logprobs(lambda i: lm(i), slots, prefix=prefix, restrict=False, batch_size=batch_size)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    restricted = enumerate_logprobs(lm, slots, prefix=prefix)
    assert restricted.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    assert ours.exp().sum() < 0.5


def test_temperatures_reuse_the_logits_and_keep_the_order_of_single_tokens(lm):
    slots, prefix = [[1, 2, 3], [4, 5]], torch.tensor([0])
    logits = enumerate_logits(lm, slots, prefix=prefix)
    assert [tuple(x.shape) for x in logits] == [(12,), (3, 12)]
    for temperature in (0.5, 2.0):
        one = combine_logits(logits, slots, temperature=temperature)
        torch.testing.assert_close(one, enumerate_logprobs(lm, slots, prefix=prefix, temperature=temperature))
        assert one.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
        first = one.exp().sum(1)
        expected = (logits[0][[1, 2, 3]].double() / temperature).softmax(-1)
        torch.testing.assert_close(first, expected)
    with pytest.raises(ValueError, match="temperature"):
        combine_logits(logits, slots, temperature=0.0)


def test_bad_enumerations(lm):
    for slots, prefix in [([], [0]), ([[1, 1]], [0]), ([[]], [0]), ([[1]], [])]:
        with pytest.raises(ValueError, match="vocabulary|prefix"):
            enumerate_logprobs(lm, slots, prefix=torch.tensor(prefix, dtype=torch.long))


@pytest.mark.parametrize("token", [-1, 12])
def test_tokens_that_the_model_lacks_are_named(lm, token):
    text = rf"{token}: the tokens of the model are 0 \.\. 11"
    with pytest.raises(ValueError, match=f"label_ids holds {text}"):
        label_logprobs(lm, some_ids(), torch.tensor([1]), [3, token])
    for i, slots in enumerate(([[token], [1]], [[1], [2, token]])):
        with pytest.raises(ValueError, match=f"vocabulary {i} holds {text}"):
            enumerate_logprobs(lm, slots, prefix=torch.tensor([0]))
    with pytest.raises(ValueError, match=f"vocabulary 0 holds {text}"):
        combine_logits([torch.zeros(12)], [[token]])


def test_a_mask_has_the_shape_of_the_ids_and_a_batch_a_row(lm):
    with pytest.raises(ValueError, match=r"mask must have the shape of ids, \(3, 6\), got \(2, 6\)"):
        token_logprobs(lm, some_ids(), torch.ones(2, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        enumerate_logits(lm, [[1]], prefix=torch.tensor([0]), batch_size=0)


def test_scoring_is_in_eval_mode_and_puts_the_mode_back():
    with fork_global(stream(0, "init")):
        model = DecoderLM(DecoderConfig(num_layers=1, hidden_dim=16, vocab_size=12, max_length=16, dropout=0.5)).train()
    ids, state = some_ids(), torch.get_rng_state()
    for score in (token_logprobs, perplexity, lambda m, i: label_logprobs(m, i, torch.tensor([2]), [1, 2])):
        torch.testing.assert_close(score(model, ids), score(model, ids), rtol=0, atol=0)
        assert model.training
    assert torch.equal(state, torch.get_rng_state())


def test_transformers_models_score_alike():
    transformers = pytest.importorskip("transformers", reason="optional: transformers")
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=16, n_head=2, n_layer=1, n_positions=16, bos_token_id=0, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids, mask = some_ids(), torch.ones(3, 6, dtype=torch.bool)
    mask[0, :2] = False
    ours = DecoderLM.from_hf(model)
    torch.testing.assert_close(token_logprobs(model, ids, mask), token_logprobs(ours, ids, mask), atol=1e-4, rtol=1e-4)
    slots = [[1, 2], [3, 4, 5]]
    a, b = (enumerate_logprobs(m, slots, prefix=torch.tensor([0])) for m in (model, ours))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

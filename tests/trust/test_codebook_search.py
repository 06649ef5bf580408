"""Search by precision and recall, purity and the effect of forcing, on cases whose answer is known."""

import math

import pytest
import torch
from torch import nn

from etude.data.randomness import stream
from etude.data.tokens import train_tokenizer
from etude.trust import CodeIndex, best_unit, code_purity, codebook, forcing_effect, jensen_shannon, unit_purity


class Table(nn.Module):
    """Each token's state is a row of a table; the next token's logits are a fixed map of the state."""

    def __init__(self, vocab=6, dim=8):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.body = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, vocab)
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(vocab, dim, generator=stream(0, "e")))
            self.body.weight.copy_(torch.eye(dim))
            self.body.bias.zero_()
            self.head.weight.copy_(3 * torch.randn(vocab, dim, generator=stream(0, "h")))

    def forward(self, ids, mask=None):
        return self.head(self.body(self.embed(ids)))


def table_codes():
    """One code a token, exactly: codes are the tokens' states."""
    model = Table().eval()
    cb = codebook.wrap(model, "body", 6, generator=stream(0, "c")).eval()
    with torch.no_grad():
        states = cb.layers["body"].normalize(model.embed.weight)
        cb.layers["body"].quantizer.codes.copy_(states.transpose(0, 1))
    return cb


IDS = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 5, 1, 1, 0, 2]])


def test_search_finds_the_code_of_a_token():
    cb = table_codes()
    assert torch.equal(cb.codes(IDS)["body"][..., 0, 0], IDS)
    hits = cb.search(IDS, lambda ids: ids == 5)
    assert [(h.code, h.precision, h.recall, h.fired) for h in hits] == [(5, 1.0, 1.0, 3)]
    both = cb.search(IDS, (IDS == 5) | (IDS == 3), min_precision=0.5)
    assert [(h.code, h.recall) for h in both] == [(5, 0.75), (3, 0.25)]
    half = IDS.clone() == 1
    half[1, 3] = False
    assert cb.search(IDS, half) == []
    assert cb.search(IDS, half, min_precision=0.6)[0].precision == pytest.approx(2 / 3)


def test_an_index_knows_rows_and_contexts():
    index = table_codes().index(IDS, batch_size=1)
    assert index.where("body", 1).tolist() == [[0, 1], [1, 2], [1, 3]]
    assert index.contexts("body", 1, before=1) == [[0, 1], [5, 1], [1, 1]]
    assert index.labels(lambda ids: ids.numpy() == 1).equal(IDS == 1)
    for code, group in ((-1, 0), (1, -1), (1, 1)):  # -1 stands for padding
        with pytest.raises(IndexError, match=rf"groups of 'body' 0\.\.0, got {code} and {group}"):
            index.where("body", code, group)


def test_texts_are_searched_by_regular_expression_and_padding_counts_for_nothing():
    texts = ["in May we met", "May it be", "we met in June, in May"]
    tokenizer = train_tokenizer(texts, "word", 40)
    model = Table(tokenizer.vocab_size)
    cb = codebook.wrap(model, "body", tokenizer.vocab_size, generator=stream(0, "c")).eval()
    with torch.no_grad():
        cb.layers["body"].quantizer.codes.copy_(cb.layers["body"].normalize(model.embed.weight).transpose(0, 1))
    hits = cb.search(texts, r"May|June", tokenizer=tokenizer)
    assert [h.recall for h in hits] == [0.75, 0.25]
    index = cb.index(texts, tokenizer=tokenizer)
    assert index.contexts("body", hits[0].code, before=1)[0] == "in May"
    assert int(index.mask.sum()) == int((index.codes["body"] >= 0).sum())


def test_a_hugging_face_tokenizer_works_too():
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=16)).eval()
    cb = codebook.wrap(model, "*.mlp", 30, generator=stream(0, "c"))
    index = cb.index(["a b c", "b a"], tokenizer=tokenizer)
    assert index.labels("b").tolist() == [[False, True, False], [True, False, False]]
    assert int(index.mask.sum()) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cb: cb.search(IDS, "x"), "needs a corpus of texts"),
        (lambda cb: cb.search(IDS, lambda ids: ids == 9), "true of no token"),
        (lambda cb: cb.search(IDS, lambda ids: ids), "labels must be Boolean"),
        (lambda cb: cb.search(IDS, IDS == 1, min_precision=2), "min_precision"),
        (lambda cb: cb.search(IDS[:0], IDS[:0] == 1), "nothing in this corpus"),
        (lambda cb: cb.search(["a"], "a"), "texts with their tokenizer"),
        (lambda cb: cb.index(IDS).where("head", 1), "no codebook named"),
        (lambda cb: cb.index(IDS, batch_size=0), "batch_size"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(table_codes())


def test_purity_by_hand():
    codes = torch.tensor([[0]] * 6 + [[1]] * 6 + [[2]] * 3)
    labels = torch.tensor([4] * 6 + [4, 4, 4, 1, 1, 1] + [2] * 3)
    assert code_purity(codes, labels) == (0.5, 2, 1)  # code 2 fires too rarely to count
    assert code_purity(codes, labels, min_count=1) == (2 / 3, 3, 2)
    both = torch.tensor([[0, 1]] * 6)
    assert code_purity(both, torch.zeros(6, dtype=torch.long)) == (1.0, 2, 2)


def test_units_fire_above_their_quantile():
    labels = torch.arange(10).repeat_interleave(10)
    values = torch.rand(100, 2, generator=stream(0, "v"))
    values[:, 0] += 5 * (labels == 3)
    found = unit_purity(values, labels, quantile=0.9)
    assert (found.live, found.pure) == (2, 1)
    with pytest.raises(ValueError, match="quantile"):
        unit_purity(values, labels, quantile=1.0)


def test_the_best_cut_of_the_best_unit():
    labels = torch.tensor([True, True, True, False, False, False])
    values = torch.tensor([[9.0, 1, 5], [8, 5, 5], [1, 4, 5], [2, 3, 5], [0, 2, 5], [0, 0, 5]])
    assert best_unit(values, labels) == (0, 8.0)
    assert best_unit(values, labels, min_precision=0.75) == (0, 1.0)
    assert best_unit(values[:, 2:], labels) == (0, float("inf"))  # fires on all or on none


def test_jensen_shannon_of_known_cases():
    apart = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert jensen_shannon(*apart).item() == pytest.approx(math.log(2))
    assert jensen_shannon(apart[0], apart[0]).item() == pytest.approx(0)
    p, q = torch.rand(2, 7, 5, generator=stream(0, "p")).log_softmax(-1)
    assert torch.allclose(jensen_shannon(p, q), jensen_shannon(q, p))
    assert bool((jensen_shannon(p, q) > 0).all())


def test_forcing_a_state_that_is_all_there_is_removes_everything():
    cb = table_codes()
    ids = torch.arange(6)[:, None].expand(-1, 3)
    effect = forcing_effect(cb, ids, torch.arange(6), ["body"], stream(0, "f"))
    assert effect.removed == pytest.approx(1.0, abs=1e-6)
    assert effect.removed_none == pytest.approx(0.0, abs=1e-9)
    assert effect.removed_other < 0.5
    with pytest.raises(ValueError, match="no codebook named"):
        forcing_effect(cb, ids, torch.arange(6), ["head"], stream(0, "f"))
    with pytest.raises(ValueError, match="another label"):
        forcing_effect(cb, ids, torch.zeros(6), ["body"], stream(0, "f"))


def test_an_index_refuses_codes_that_are_not_one_set_a_token():
    with pytest.raises(ValueError, match="not one set a token"):
        CodeIndex.build(lambda batch: {"pool": torch.zeros(2, 1, 1, 1, dtype=torch.long)}, IDS)

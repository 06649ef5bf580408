"""Paragraph vectors: gradients of the binary bottleneck, inference, conventions, bad input, saving."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from etude.data.randomness import stream
from etude.data.topics import topic_documents
from etude.layers import hamming_distances
from etude.text import BinaryParagraphVector, ParagraphVector, SemanticHashing
from etude.text.count_loss import Counts
from etude.text.paragraph import Batch, Objective, RowOptimizer, build_model, new_documents
from etude.training.metrics import average_precision

ARCHITECTURES = ["dbow", "dm", "real-binary"]


@pytest.fixture(scope="module")
def corpus():
    return topic_documents(260, 0, n_topics=4, n_words=300, focus=0.5, mean_length=40)


def small(architecture="dbow", **changes):
    settings = {"n_bits": 24, "max_epochs": 6, "min_count": 2, "random_state": 0, "real_dim": 20, "word_dim": 8}
    return BinaryParagraphVector(architecture=architecture, **(settings | changes))


# -- the method ----------------------------------------------------------------------------------------------------


def test_gradient_of_a_row_is_the_straight_through_formula():
    """dL/dE = dL/db * h (1 - h), with dL/db of the plain softmax at the rounded code."""
    generator = stream(0, "g")
    dense = torch.randint(0, 3, (5, 9), generator=generator).float()
    model = build_model("dbow", dense.sum(0), generator, bits=6, dim=6)
    model.weight = torch.randn(9, 6, generator=generator)
    rows, columns = dense.nonzero(as_tuple=True)
    batch = Batch(torch.arange(5), Counts(rows, columns, dense[rows, columns]))
    objective = Objective(
        model, loss="exact", frequencies=dense.sum(0), n_negatives=1, product_dtype=None, generator=generator
    )
    documents = torch.randn(5, 6, generator=generator, requires_grad=True)
    loss, _ = objective(documents, batch)
    loss.backward()
    bits = (documents.detach() > 0).float().requires_grad_()
    plain = -(dense * (bits @ model.weight.T + model.bias).log_softmax(1)).sum()
    plain.backward()
    h = documents.detach().sigmoid()
    torch.testing.assert_close(loss.detach(), plain.detach())
    torch.testing.assert_close(documents.grad, bits.grad * h * (1 - h))


def test_real_binary_gradient_reaches_rows_and_projection():
    generator = stream(1, "g")
    model = build_model("real-binary", torch.ones(7), generator, bits=4, dim=10)
    assert model.projection is not None
    assert model.offset is not None
    model.projection.requires_grad_()
    documents = torch.randn(3, 10, generator=generator, requires_grad=True)
    weight = torch.randn(3, 4, generator=generator)
    (model.code(documents) * weight).sum().backward()
    h = (documents.detach() @ model.projection.detach().T + model.offset).sigmoid()
    inner = weight * h * (1 - h)
    torch.testing.assert_close(documents.grad, inner @ model.projection.detach())
    torch.testing.assert_close(model.projection.grad, inner.T @ documents.detach())


def test_row_optimizer_is_adam_on_the_rows_it_meets():
    table = torch.randn(6, 3, generator=stream(0, "t"))
    ours, theirs = table.clone(), table[[1, 4]].clone().requires_grad_()
    rows, peer = RowOptimizer(ours, "adam", 0.05), torch.optim.Adam([theirs], 0.05)
    for step in range(4):
        target = torch.full((2, 3), float(step))
        leaf = rows.leaf(torch.tensor([1, 4]))
        ((leaf - target) ** 3).sum().backward()
        rows.step(torch.tensor([1, 4]), leaf)
        peer.zero_grad()
        ((theirs - target) ** 3).sum().backward()
        peer.step()
    torch.testing.assert_close(ours[[1, 4]], theirs.detach())
    assert torch.equal(ours[[0, 2, 3, 5]], table[[0, 2, 3, 5]])


def test_row_optimizer_is_adagrad():
    table = torch.randn(4, 3, generator=stream(0, "t"))
    ours, theirs = table.clone(), table.clone().requires_grad_()
    rows, peer = RowOptimizer(ours, "adagrad", 0.1), torch.optim.Adagrad([theirs], 0.1)
    for _ in range(3):
        leaf = rows.leaf(torch.arange(4))
        (leaf**2).sum().backward()
        rows.step(torch.arange(4), leaf)
        peer.zero_grad()
        (theirs**2).sum().backward()
        peer.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_a_row_of_zero_gives_bits_of_zero():
    model = build_model("dbow", torch.ones(3), stream(0, "g"), bits=5, dim=5)
    assert not model.bits_of(torch.zeros(2, 5)).any()
    assert model.code(torch.zeros(2, 5)).abs().max() == 0


def test_new_rows_are_small():
    rows = new_documents(1000, 8, stream(0, "g"))
    assert rows.abs().max() <= 0.5 / 8
    assert rows.std() > 0.2 / 8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["exact", "sampled"])
def test_codes_find_documents_of_the_same_topic(corpus, architecture, loss):
    epochs = {"dm": 10, "real-binary": 15}.get(architecture, 8)
    model = small(architecture, loss=loss, max_epochs=epochs, n_negatives=128)
    codes = model.fit_transform(corpus.texts[:200])
    queries = model.transform(corpus.texts[200:])
    relevant = (corpus.labels[200:, None] == corpus.labels[:200]).numpy()
    score = average_precision(relevant, hamming_distances(queries, codes, 24))
    assert score.mean > score.chance + 0.1
    if loss == "exact":  # the sampled one is a noisy estimate
        assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    assert model.history_[0]["flips"] > 0


def test_mean_combination_and_adagrad_learn(corpus):
    model = small("dm", combine="mean", optimizer="adagrad", lr=0.1, document_lr=0.1).fit(corpus.texts[:120])
    assert model.history_[-1]["loss"] < model.history_[0]["loss"] - 0.05


def test_pv_dm_windows():
    """Targets and their windows, against a loop."""
    model = small("dm", window=2, min_count=1, subsample=None, max_epochs=1)
    texts = ["aa bb cc dd", "ee aa", "bb cc dd ee aa"]
    model.fit(texts)
    from etude.text.vocabulary import tokenize

    source = model._source(tokenize(texts), None)
    batch = source.take(torch.tensor([2, 0]), 2)
    terms = [*model.vocabulary_.terms(), "-"]
    got = [
        (int(d), terms[c], [terms[i] for i in around])
        for d, c, around in zip(batch.position, batch.counts.columns, batch.context.tolist(), strict=True)
    ]
    want = []
    for d, text in enumerate([texts[2], texts[0]]):
        words = ["-", "-", *text.split(), "-", "-"]
        want += [(d, words[i], words[i - 2 : i] + words[i + 1 : i + 3]) for i in range(2, len(words) - 2)]
    assert got == want


def test_subsampling_weighs_frequent_words_down():
    model = small(min_count=1, subsample=0.25, max_epochs=1).fit(["aa aa aa bb", "aa aa cc dd"])
    weights = dict(zip(model.vocabulary_.terms(), model._word_weight().tolist(), strict=True))
    assert weights["bb"] == 1
    assert weights["aa"] == pytest.approx((0.25 / (5 / 8)) ** 0.5)
    assert small(subsample=None, min_count=1, max_epochs=1).fit(["aa aa", "aa bb"])._word_weight().tolist() == [1, 1]


# -- use -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bits", [1, 8, 12, 28])
def test_codes_are_packed_and_padded(corpus, n_bits):
    model = small(n_bits=n_bits, max_epochs=2)
    codes = model.fit_transform(corpus.texts[:40])
    width = -(-n_bits // 8)
    assert codes.dtype == np.uint8
    assert codes.shape == (40, width)
    assert np.unpackbits(codes, axis=1)[:, n_bits:].sum() == 0
    assert model.transform(corpus.texts[40:43]).shape == (3, width)
    np.testing.assert_array_equal(codes, model.codes_)


def test_real_vectors_are_kept_and_code_is_their_projection(corpus):
    model = small("real-binary").fit(corpus.texts[:60])
    assert model.real_vectors_.shape == (60, 20)
    logits = model.real_vectors_ @ model._model.projection.numpy().T + model._model.offset.numpy()
    clear = np.abs(logits) > 1e-5
    bits = np.unpackbits(model.codes_, axis=1)[:, :24].astype(bool)
    assert (bits == (logits > 0))[clear].all()
    inferred = model.infer(corpus.texts[60:70])
    assert inferred.vectors.shape == (10, 20)
    assert not hasattr(small().fit(corpus.texts[:40]), "real_vectors_")


def test_a_second_fit_keeps_nothing_of_another_architecture(corpus):
    model = small("real-binary", max_epochs=1).fit(corpus.texts[:30])
    model.set_params(architecture="dbow").fit(corpus.texts[:40])
    assert not hasattr(model, "real_vectors_")


def test_documents_may_come_from_a_generator(corpus):
    codes = small(max_epochs=1).fit_transform(text for text in corpus.texts[:30])
    np.testing.assert_array_equal(codes, small(max_epochs=1).fit_transform(corpus.texts[:30]))


def test_same_seed_same_codes(corpus):
    a, b, c = (small(random_state=s).fit(corpus.texts[:80]) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.codes_, b.codes_)
    np.testing.assert_array_equal(a.transform(corpus.texts[80:]), b.transform(corpus.texts[80:]))
    np.testing.assert_array_equal(a.transform(corpus.texts[80:]), a.transform(corpus.texts[80:]))
    assert (a.codes_ != c.codes_).any()
    state = torch.random.get_rng_state()
    small(random_state=0).fit(corpus.texts[:20])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("loss", ["exact", "sampled"])
def test_inference_does_not_depend_on_the_other_documents(corpus, architecture, loss):
    model = small(architecture, loss=loss).fit(corpus.texts[:100])
    together = model.infer(corpus.texts[100:160]).vectors
    alone = np.concatenate([model.infer([t]).vectors for t in corpus.texts[100:110]])
    np.testing.assert_allclose(together[:10], alone, atol=2e-3)


def test_training_documents_are_inferred_anew(corpus):
    model = small(max_epochs=8).fit(corpus.texts[:100])
    again = hamming_distances(model.transform(corpus.texts[:100]), model.codes_, 24)
    assert again.diagonal().mean() > 0
    assert again.diagonal().mean() < again.mean() - 2


def test_bit_entropy_sees_dead_bits(corpus):
    model = small().fit(corpus.texts[:60])
    assert model.bit_entropy_.shape == (24,)
    share = np.unpackbits(model.codes_, axis=1)[:, :24].mean(0)
    dead = (share == 0) | (share == 1)
    assert (model.bit_entropy_[dead] == 0).all()
    alive = share[~dead]
    want = -(alive * np.log2(alive) + (1 - alive) * np.log2(1 - alive))
    np.testing.assert_allclose(model.bit_entropy_[~dead], want)


def test_clone_and_parameters():
    model = BinaryParagraphVector(n_bits=64, ngram_range=(1, 2), random_state=5)
    again = clone(model)
    assert again.get_params() == model.get_params()
    assert again.set_params(n_bits=32).n_bits == 32
    assert not hasattr(model, "n_features_in_")


def test_bigrams_enter_the_vocabulary(corpus):
    one = small(max_epochs=1).fit(corpus.texts[:60]).vocabulary_
    two = small(max_epochs=1, ngram_range=(1, 2)).fit(corpus.texts[:60]).vocabulary_
    assert len(two) > len(one)
    assert any(" " in term for term in two.terms())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_models_give_the_same_codes(corpus, architecture, tmp_path):
    model = small(architecture, ngram_range=(1, 1) if architecture == "dm" else (1, 2)).fit(corpus.texts[:60])
    model.save(tmp_path / "m.safetensors")
    again = BinaryParagraphVector.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.transform(corpus.texts[60:80]), model.transform(corpus.texts[60:80]))
    assert again.vocabulary_.terms() == model.vocabulary_.terms()
    with pytest.raises(ValueError, match="BinaryParagraphVector, not a ParagraphVector"):
        ParagraphVector.load(tmp_path / "m.safetensors")


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    model = small(n_bits=np.int64(8), lr=np.float32(0.01), max_epochs=1, min_count=1).fit(["aa bb", "bb cc"])
    model.save(tmp_path / "m")
    assert BinaryParagraphVector.load(tmp_path / "m").get_params()["n_bits"] == 8


def test_a_file_of_another_program_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, str(tmp_path / "x"))
    with pytest.raises(ValueError, match="does not hold a BinaryParagraphVector"):
        BinaryParagraphVector.load(tmp_path / "x")


def test_own_tokenizer_must_be_given_again(tmp_path):
    model = small(tokenizer=str.split, min_count=1, max_epochs=1).fit(["a b c", "b c d"])
    assert set(model.vocabulary_.terms()) == {"a", "b", "c", "d"}
    model.save(tmp_path / "m")
    with pytest.raises(ValueError, match="tokenizer"):
        BinaryParagraphVector.load(tmp_path / "m")
    again = BinaryParagraphVector.load(tmp_path / "m", tokenizer=str.split)
    np.testing.assert_array_equal(again.transform(["a a"]), model.transform(["a a"]))


def test_real_paragraph_vectors(corpus):
    model = ParagraphVector(16, max_epochs=6, min_count=2, document_lr=0.01, random_state=0)
    vectors = model.fit_transform(corpus.texts[:200])
    queries = model.transform(corpus.texts[200:])
    assert vectors.dtype == np.float32
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ).T
    relevant = (corpus.labels[200:, None] == corpus.labels[:200]).numpy()
    score = average_precision(relevant, -cosine)
    assert score.mean > score.chance + 0.2


def test_bfloat16_gives_nearly_the_same_codes(corpus):
    a, b = (small(precision=p).fit(corpus.texts[:100]).codes_ for p in ("fp32", "bf16"))
    assert hamming_distances(a, b, 24).diagonal().mean() < 3


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [
        (small(), ["only one"], "at least 2 documents, got 1"),
        (small(), [], "at least 2 documents, got 0"),
        (small(min_count=1), ["aa bb", "  ", "cc"], "document 1 is empty"),
        (small(min_count=2), ["aa aa", "aa bb", "cc dd"], "document 2 has no word of the vocabulary"),
        (small(), ["aa", 7], "document 1 is int"),
        (small(), "one string", r"pass \[text\]"),
        (small(n_bits=0), ["aa bb", "aa bb"], "n_bits"),
        (small(min_count=1, device="gpu"), ["aa bb", "aa bb"], "unknown device 'gpu'"),
        (small(n_bits=12.5), ["aa bb", "aa bb"], "n_bits must be an integer, got 12.5"),
        (small(n_bits=True), ["aa bb", "aa bb"], "n_bits must be an integer, got True"),
        (small(lr="0.1"), ["aa bb", "aa bb"], "lr must be positive, got '0.1'"),
        (small(max_epochs=None), ["aa bb", "aa bb"], "max_epochs must be positive, got None"),
        (small(batch_size=0), ["aa bb", "aa bb"], "batch_size must be positive or None, got 0"),
        (small(batch_size=-1), ["aa bb", "aa bb"], "batch_size must be positive or None, got -1"),
        (small(max_features=0), ["aa bb", "aa bb"], "max_features must be a positive integer"),
        (small("cbow"), ["aa bb", "aa bb"], "cbow"),
        (small(loss="hinge"), ["aa bb", "aa bb"], "loss must be one of.*hinge"),
        (small(max_epochs=0), ["aa bb", "aa bb"], "max_epochs must be positive"),
        (small(subsample=0), ["aa bb", "aa bb"], "subsample"),
        (small("dm", ngram_range=(1, 2)), ["aa bb", "aa bb"], "dm.*ngram_range"),
        (small("dm", ngram_range=1), ["aa bb", "aa bb"], "dm.*ngram_range"),
        (small(ngram_range=3), ["aa bb", "aa bb"], "ngram_range must be .*: 3"),
        (small(min_count=0), ["aa bb", "aa bb"], "min_count must be at least 1, got 0"),
        (small(min_count=1, lr=1e38, document_lr=1e38), ["aa bb", "bb cc"] * 9, "training diverged in epoch"),
        (small(min_count=99), ["aa bb", "aa bb"], "lower min_count"),
        (ParagraphVector(0), ["aa bb", "aa bb"], "dim"),
        (ParagraphVector(4.5), ["aa bb", "aa bb"], "dim must be an integer"),
        (ParagraphVector(4, "real-binary"), ["aa bb", "aa bb"], "real-binary"),
    ],
)
def test_bad_input_to_fit_is_named(model, texts, message):
    with pytest.raises(ValueError, match=message):
        model.fit(texts)


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "model",
    [*map(small, ARCHITECTURES), ParagraphVector(8, random_state=0, max_epochs=2), SemanticHashing(8, random_state=0)],
)
def test_fit_and_transform_learn_where_gradients_are_switched_off(model, corpus, switched_off):
    texts, new = corpus.texts[:40], corpus.texts[40:50]
    want = clone(model).fit(texts)
    with switched_off():
        np.testing.assert_array_equal(want.transform(new), clone(model).fit(texts).transform(new))


@pytest.mark.parametrize("model", [*map(small, ARCHITECTURES), SemanticHashing(8, random_state=0)])
def test_another_default_dtype_of_torch_changes_no_dtype_here(model, corpus):
    texts = corpus.texts[:40]
    torch.set_default_dtype(torch.float64)
    try:
        codes = clone(model).fit(texts).transform(texts)
    finally:
        torch.set_default_dtype(torch.float32)
    if not isinstance(model, SemanticHashing):  # its layers are drawn by torch itself
        np.testing.assert_array_equal(codes, clone(model).fit(texts).transform(texts))


@pytest.mark.parametrize(
    "model", [small(min_count=1), ParagraphVector(4, min_count=1), SemanticHashing(8, min_count=1)]
)
def test_a_warning_names_the_line_that_asked(model):
    model = clone(model).fit(["aa bb cc", "bb cc dd"])
    for call in (model.transform, model.infer) if hasattr(model, "infer") else (model.transform,):
        with pytest.warns(UserWarning, match="document 0 has no word") as caught:
            call(["zz"])
        assert [w.filename for w in caught] == [__file__]


def test_unknown_documents_get_zero_codes_and_a_warning():
    model = small(min_count=1, max_epochs=2).fit(["aa bb cc", "bb cc dd"])
    with pytest.warns(UserWarning, match=r"document 1 has no word .*1 others"):
        codes = model.transform(["aa bb", "zz", ""])
    assert codes[1:].sum() == 0
    np.testing.assert_array_equal(codes[0], model.transform(["aa bb"])[0])
    with pytest.raises(ValueError, match="document 0 has no word"):
        model.set_params(handle_unknown="error").transform(["zz"])
    assert model.set_params(handle_unknown="ignore").transform(["zz"]).sum() == 0
    assert model.transform([]).shape == (0, 3)


def test_unknown_documents_of_a_projected_code_are_zero_too(corpus):
    model = small("real-binary").fit(corpus.texts[:60])
    model._model.offset += 1.0
    assert model.set_params(handle_unknown="ignore").transform(["zz"]).sum() == 0


def test_transform_before_fit():
    with pytest.raises(NotFittedError):
        BinaryParagraphVector().transform(["aa"])
    with pytest.raises(NotFittedError):
        BinaryParagraphVector().save("nowhere")

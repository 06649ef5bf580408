"""Sense vectors in use: induction of pseudo-words, prediction, neighbours, pruning, saving, bad input."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score

from etude.data.randomness import numpy_stream
from etude.data.senses import pseudo_words
from etude.data.topics import topic_documents
from etude.text import DisambiguatedSkipGram, MultiSenseSkipGram
from etude.text.model_files import read_model, write_model


@pytest.fixture(scope="module")
def instances():
    drawn = topic_documents(500, 0, n_topics=6, n_words=200, focus=0.9, mean_length=40, words_per_topic=12)
    return pseudo_words([t.split() for t in drawn.texts], 8, 0, min_count=60, max_share=0.05)


def settings(**changes):
    return {
        "n_senses": 3, "dim": 16, "subsample": None, "random_state": 0, "max_epochs": 5, "batch_size": 128, **changes
    }  # fmt: skip


def induction(model, instances):
    predicted = model.predict_proba(instances.words, instances.contexts).argmax(1)
    rows = instances.by_word().values()
    return np.mean([adjusted_rand_score(instances.senses[r], predicted[r]) for r in rows])


@pytest.fixture(scope="module")
def fitted(instances):
    return DisambiguatedSkipGram(**settings()).fit(instances.documents)


def test_senses_of_pseudo_words_are_found(instances, fitted):
    assert induction(fitted, instances) > 0.4
    assert fitted.history_[-1]["loss"] < fitted.history_[0]["loss"]
    shuffled = numpy_stream(0, "s").permutation(len(instances.contexts))
    foreign = fitted.predict_proba(instances.words, [instances.contexts[i] for i in shuffled]).argmax(1)
    control = np.mean([adjusted_rand_score(instances.senses[r], foreign[r]) for r in instances.by_word().values()])
    assert abs(control) < 0.1


def test_hard_assignment_finds_them_too(instances):
    assert induction(MultiSenseSkipGram(**settings()).fit(instances.documents), instances) > 0.3


def test_senses_that_hard_assignment_never_chose_win_no_context(instances):
    model = MultiSenseSkipGram(**settings(n_senses=8, max_epochs=1)).fit(instances.documents)
    unused = (model._model.selector == 0).all(-1)
    assert unused.any()
    assert model.sense_priors_[unused.cpu().numpy()].max() == 0


def test_prediction_of_one_word(fitted, instances):
    word, context = instances.words[0], instances.contexts[0]
    p = fitted.predict_sense_proba(word, context)
    assert p.shape == (3,)
    assert p.sum() == pytest.approx(1)
    sense = fitted.predict_sense(word, context)
    assert isinstance(sense, int)
    assert sense == p.argmax()
    np.testing.assert_array_equal(fitted.sense_vector(word, context), fitted.sense_vectors_[fitted._of(word), sense])
    np.testing.assert_allclose(fitted.predict_sense_proba(word, [*context, "unheard-of"]), p)
    with pytest.warns(UserWarning, match=r"context 0 has no known word.*prior"):
        alone = fitted.predict_sense_proba(word, ["unheard-of"])
    np.testing.assert_allclose(alone, fitted.sense_priors_[fitted._of(word)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitted.predict_proba([], []).shape == (0, 3)


def test_neighbours_are_sorted_senses_of_other_words(fitted, instances):
    word = instances.words[0]
    own = int(np.flatnonzero(fitted.active_senses_[fitted._of(word)])[0])
    found = fitted.sense_neighbors(word, own, 7)
    assert len(found) == 7
    assert all(other != word for other, _, _ in found)
    assert [c for _, _, c in found] == sorted((c for _, _, c in found), reverse=True)
    first, second = (fitted.vocabulary_.index(w) for w in (word, found[0][0]))
    a, b = fitted.sense_vectors_[first, own], fitted.sense_vectors_[second, found[0][1]]
    assert found[0][2] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)


def test_pruning_drops_rare_senses_and_renormalises(instances):
    model = DisambiguatedSkipGram(**settings(n_senses=4, prune_below=0.3, max_epochs=2)).fit(instances.documents)
    assert (model.active_senses_.sum(1) >= 1).all()
    assert model.active_senses_.sum(1).max() <= 3
    np.testing.assert_allclose(model.sense_priors_.sum(1), 1, rtol=1e-5)
    assert (model.sense_priors_[~model.active_senses_] == 0).all()
    p = model.predict_proba(instances.words, instances.contexts)
    rows = [model._of(w) for w in instances.words]
    assert (p[~model.active_senses_[rows]] == 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    word = next(w for w in model.vocabulary_ if not model.active_senses_[model._of(w)].all())
    dead = int(np.flatnonzero(~model.active_senses_[model._of(word)])[0])
    with pytest.raises(ValueError, match=f"no sense {dead}"):
        model.sense_neighbors(word, dead)


def test_entropy_cost_makes_words_decide(instances):
    def spread(weight):
        model = DisambiguatedSkipGram(**settings(n_senses=4, entropy_weight=weight, max_epochs=2, prune_below=0.0))
        p = model.fit(instances.documents).sense_priors_
        return -(p * np.log(np.maximum(p, 1e-12))).sum(1).mean()

    assert spread(2.0) < spread(0.0) - 0.1


def test_one_sense_always_wins(instances):
    model = DisambiguatedSkipGram(**settings(n_senses=1, max_epochs=1)).fit(instances.documents)
    assert model.predict_sense(instances.words[0], instances.contexts[0]) == 0
    assert model.sense_priors_.tolist() == [[1.0]] * len(model.vocabulary_)


def test_seeds_and_clone(instances):
    a, b, c = (
        DisambiguatedSkipGram(**settings(max_epochs=1, random_state=s)).fit(instances.documents[:80]) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(a.sense_vectors_, b.sense_vectors_)
    assert (a.sense_vectors_ != c.sense_vectors_).any()
    assert clone(a).get_params() == a.get_params()


@pytest.mark.parametrize("kind", [DisambiguatedSkipGram, MultiSenseSkipGram])
def test_saved_models_predict_the_same(kind, instances, tmp_path):
    model = kind(**settings(max_epochs=1)).fit(instances.documents[:100])
    model.save(tmp_path / "m")
    again = kind.load(tmp_path / "m")
    words = [w for w in instances.words if w in model.vocabulary_][:20]
    contexts = instances.contexts[: len(words)]
    np.testing.assert_array_equal(model.predict_proba(words, contexts), again.predict_proba(words, contexts))
    other = MultiSenseSkipGram if kind is DisambiguatedSkipGram else DisambiguatedSkipGram
    with pytest.raises(ValueError, match="not a"):
        other.load(tmp_path / "m")


@pytest.mark.parametrize("kind", [DisambiguatedSkipGram, MultiSenseSkipGram])
def test_senses_without_mass_are_saved_and_numbers_of_numpy_too(kind, instances, tmp_path):
    sizes = {"n_senses": np.int64(3), "lr": np.float32(0.01), "prune_below": 0.0}
    model = kind(**settings(max_epochs=1, **sizes)).fit(instances.documents[:100])
    model.save(tmp_path / "m")
    again = kind.load(tmp_path / "m")
    np.testing.assert_array_equal(again.active_senses_, model.active_senses_)
    assert again.active_senses_.all()


def test_a_file_without_active_senses_is_read_as_before(fitted, tmp_path):
    fitted.save(tmp_path / "m")
    tensors, state = read_model(tmp_path / "m", "DisambiguatedSkipGram")
    del tensors["active"]
    write_model(tmp_path / "old", tensors, state)
    again = DisambiguatedSkipGram.load(tmp_path / "old")
    np.testing.assert_array_equal(again.active_senses_, fitted.sense_priors_ > 0)


def test_documents_may_come_from_a_generator(instances):
    documents, changes = instances.documents[:80], {"max_epochs": 1, "random_state": 1}
    a = DisambiguatedSkipGram(**settings(**changes)).fit(iter(words) for words in documents)
    b = DisambiguatedSkipGram(**settings(**changes)).fit(documents)
    np.testing.assert_array_equal(a.sense_priors_, b.sense_priors_)


@pytest.mark.parametrize(
    ("changes", "documents", "message"),
    [
        ({}, ["a string"], "token lists"),
        ({}, "a string", "token lists"),
        ({}, [["aa", "bb"]], "only 0 words occur at least 5 times"),
        ({}, [], "only 0 words"),
        ({"n_senses": 0}, [["aa"] * 9], "n_senses"),
        ({"temperature": (1.0, 0.0)}, [["aa"] * 9], "temperature"),
        ({"entropy_weight": -1.0}, [["aa"] * 9], "entropy_weight"),
        ({"lr": 0.0}, [["aa"] * 9], "lr must be positive"),
        ({"temperature": 0.5}, [["aa"] * 9], "temperature must be two positive numbers .* got 0.5"),
        ({"temperature": (1.0, float("nan"))}, [["aa"] * 9], "temperature"),
        ({"subsample": 0}, [["aa"] * 9], "subsample must be positive or None, got 0"),
        ({"prune_below": 2}, [["aa"] * 9], r"prune_below must lie in 0\.\.1, got 2"),
        ({"prune_below": -1}, [["aa"] * 9], "prune_below"),
        ({"prune_below": None}, [["aa"] * 9], r"prune_below must lie in 0\.\.1, got None"),
        ({"n_senses": 2.5}, [["aa"] * 9], "n_senses must be an integer, got 2.5"),
        ({"window": 2.5}, [["aa"] * 9], "window must be an integer, got 2.5"),
        ({"lr": 1e38}, [["aa", "bb", "cc"] * 99], "training diverged in epoch"),
    ],
)
def test_bad_input_to_fit_is_named(changes, documents, message):
    with pytest.raises(ValueError, match=message):
        DisambiguatedSkipGram(**settings(**changes)).fit(documents)


def test_a_generator_of_numpy_is_no_random_state(instances):
    with pytest.raises(TypeError, match="pass an int drawn from it"):
        DisambiguatedSkipGram(**settings(random_state=np.random.default_rng(0))).fit(instances.documents[:20])


def test_vectors_before_fit():
    with pytest.raises(NotFittedError):
        DisambiguatedSkipGram().sense_vectors_  # noqa: B018


def test_bad_input_to_predict_is_named(fitted, instances):
    with pytest.raises(ValueError, match="n_neighbors must be a whole number of at least 0, got -1"):
        fitted.sense_neighbors(fitted.vocabulary_[0], int(fitted.active_senses_[0].argmax()), -1)
    word = instances.words[0]
    with pytest.raises(ValueError, match="'nowhere' is not among"):
        fitted.predict_sense("nowhere", ["a"])
    with pytest.raises(ValueError, match=r"context\.split"):
        fitted.predict_sense(word, "a string")
    with pytest.raises(ValueError, match="1 words and 2 contexts"):
        fitted.predict_proba([word], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no sense 3"):
        fitted.sense_neighbors(word, 3)
    with pytest.raises(NotFittedError):
        DisambiguatedSkipGram().predict_sense("a", ["b"])
    with pytest.raises(NotFittedError):
        DisambiguatedSkipGram().sense_vector("a", ["b"])


@pytest.mark.parametrize("name", ["predict_sense", "predict_sense_proba", "sense_vector"])
def test_a_warning_names_the_line_that_asked(fitted, instances, name):
    with pytest.warns(UserWarning, match="no known word") as caught:
        getattr(fitted, name)(instances.words[0], ["nowhere"])
    with pytest.warns(UserWarning, match="no known word") as again:
        fitted.predict_proba([instances.words[0]], [["nowhere"]])
    assert {w.filename for w in (*caught, *again)} == {__file__}


@pytest.mark.parametrize("kind", [DisambiguatedSkipGram, MultiSenseSkipGram])
def test_fit_is_the_same_whatever_torch_was_told(kind, instances):
    documents = instances.documents[:60]
    want = kind(**settings(max_epochs=1)).fit(documents)
    for switched_off in (torch.no_grad, torch.inference_mode):
        with switched_off():
            found = kind(**settings(max_epochs=1)).fit(documents)
        np.testing.assert_array_equal(found.sense_vectors_, want.sense_vectors_)
    torch.set_default_dtype(torch.float64)
    try:
        found = kind(**settings(max_epochs=1)).fit(documents)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(found.sense_vectors_, want.sense_vectors_)
    assert found.sense_priors_.dtype == want.sense_priors_.dtype

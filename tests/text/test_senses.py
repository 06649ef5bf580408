"""The sense model's formulas: windows, loss, gradients, entropy cost, pruning."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.data.randomness import stream
from etude.text.senses import (
    RUN,
    Corpus,
    bands,
    build_senses,
    context_means,
    hard_senses,
    negative_sampling_loss,
    sense_loss,
    sense_probabilities,
)


def tensors(k=3, runs=2, length=4, window=2, m=5, n=6, dtype=torch.float64):
    g = stream(0, "senses")
    width = length + 2 * window
    words = torch.randint(0, 9, (runs, width), generator=g)
    words[1, -3:] = -1
    shapes = [(runs, length, k, m), (runs, length, k, m), (runs, width, m), (runs, width, m), (n, m)]
    parts = [torch.randn(s, generator=g, dtype=dtype).requires_grad_() for s in shapes]
    return parts, bands(words, window).to(dtype)


def loss_of(parts, band, seed=1, **changes):
    options = {"n_negatives": 3, "temperature": 0.7, "generator": stream(seed, "noise")}
    return sense_loss(*parts, band, **(options | changes))


def test_gradients_match_finite_differences():
    parts, band = tensors()
    prior = torch.rand(2, 4, 3, generator=stream(2, "p"), dtype=torch.float64)

    def total(*p):
        result = loss_of(p, band, entropy_weight=0.5, prior=prior)
        return result.skipgram + result.entropy

    assert torch.autograd.gradcheck(total, parts)
    gradients = torch.autograd.grad(total(*parts), parts)
    assert all(g.abs().max() > 0 for g in gradients)  # differentiable in all parameters


def test_one_sense_is_skip_gram_with_negative_sampling():
    """K = 1 against the textbook's loop over pairs."""
    parts, band = tensors(k=1)
    senses, _, _, output, negatives = parts
    loss = loss_of(parts, band)
    plain = torch.zeros((), dtype=torch.float64)
    for r in range(2):
        for i in range(4):
            for j in band[r, i].nonzero()[:, 0]:
                v = senses[r, i, 0]
                plain = plain - torch.sigmoid(v @ output[r, j]).log()
                for negative in negatives:
                    plain = plain - 3 / len(negatives) * torch.sigmoid(-(v @ negative)).log()
    torch.testing.assert_close(loss.skipgram, plain)
    ours = torch.autograd.grad(loss.skipgram, [senses, output, negatives])
    theirs = torch.autograd.grad(plain, [senses, output, negatives])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(loss.probabilities, torch.ones(2, 4, 1, dtype=torch.float64))


def test_probabilities_are_the_softmax_of_the_mean_context():
    parts, band = tensors()
    _, selector, context, _, _ = parts
    got = loss_of(parts, band).probabilities
    mean = context[0, band[0, 1].bool()].mean(0)
    torch.testing.assert_close(got[0, 1], (selector[0, 1] @ mean).softmax(0))
    torch.testing.assert_close(sense_probabilities(selector[0, 1], mean), got[0, 1])


def test_low_temperature_picks_one_sense():
    parts, band = tensors()
    with torch.no_grad():
        parts[1][..., 0, :] += 1000 * parts[2].mean()  # any selector
    soft = loss_of(parts, band, temperature=1e-4).skipgram
    generator = stream(1, "noise")
    p = loss_of(parts, band).probabilities
    g = -torch.empty(p.shape, dtype=torch.float32).exponential_(generator=generator).log()
    chosen = (p.clamp_min(1e-300).log() + g).argmax(-1)
    vector = parts[0].gather(2, chosen[..., None, None].expand(-1, -1, 1, 5))[:, :, 0]
    torch.testing.assert_close(soft, negative_sampling_loss(vector, parts[3], parts[4], band, 3))


def test_entropy_cost_has_the_gradient_of_the_entropy_of_the_mean():
    """n H(mean of p) over n occurrences of one word, with the prior at that mean."""
    parts, band = tensors()
    band[:] = (torch.rand(band.shape, generator=stream(0, "b")) < 0.6).double()
    band[..., 0] = 1
    selector, context = parts[1], parts[2]
    p = loss_of(parts, band).probabilities.reshape(-1, 3)
    mean = p.mean(0)
    exact = torch.autograd.grad(-(len(p) * mean * mean.log()).sum(), [selector, context])
    surrogate = loss_of(parts, band, entropy_weight=1.0, prior=mean.detach().expand(2, 4, 3)).entropy
    for a, b in zip(torch.autograd.grad(surrogate, [selector, context]), exact, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    window=st.integers(1, 5),
    seed=st.integers(0, 100),
    shift=st.integers(0, RUN - 1),
)
def test_runs_hold_every_pair_once_and_no_other(lengths, window, seed, shift):
    g = stream(seed, "corpus")
    total = sum(lengths)
    document = torch.repeat_interleave(torch.tensor(lengths))
    kept = torch.rand(total, generator=g) < 0.7
    if not kept.any():
        return
    corpus = Corpus(torch.arange(total), document, torch.ones(total), torch.ones(total))
    words, places = corpus.runs(window, kept, shift)
    band = bands(words, window)
    assert band.shape == (len(words), RUN, RUN + 2 * window)
    got = sorted(
        (int(words[r, i + window]), int(words[r, j])) for r, i, j in band.nonzero().tolist()
    )  # every word has its own number
    want = []
    for d in range(len(lengths)):
        line = [t for t in range(total) if document[t] == d and kept[t]]
        want += [
            (line[i], line[j])
            for i in range(len(line))
            for j in range(max(0, i - window), min(len(line), i + window + 1))
            if i != j
        ]
    assert got == sorted(want)
    centres = places[places >= 0]
    assert sorted(centres.tolist()) == kept.nonzero()[:, 0].tolist()


def test_context_means_weigh_words_as_sub_sampling_does():
    context, keep = torch.eye(3), torch.tensor([0.5, 1.0, 0.25])
    means = context_means(context, keep, torch.tensor([[0, 1, -1], [2, -1, -1], [-1, -1, -1]]))
    torch.testing.assert_close(means, torch.tensor([[1 / 3, 2 / 3, 0.0], [0, 0, 1], [0, 0, 0]]))


def test_a_sense_that_was_never_chosen_is_no_sense():
    model = build_senses(1, 3, 4, stream(0, "m"))
    centres = torch.tensor([[0.0, -1, 0, 0], [0, 0, 0, 0], [0, -1, 1, 0]])  # the middle one has no context
    away = torch.tensor([0.0, 1, 0, 0])
    assert hard_senses(model, centres, away) == 2  # the less unlike of the two
    assert hard_senses(model, centres, away, torch.tensor([False, True, False])) == 1  # in training it opens


def test_build_is_seeded():
    a, b = (build_senses(10, 3, 4, stream(s, "x")) for s in (0, 0))
    assert torch.equal(a.senses, b.senses)
    assert a.selector.std() == pytest.approx(0.5, abs=0.1)
    assert np.isclose(a.senses.abs().max(), 0.125, atol=0.01)

import numpy as np
import pytest
import torch

from etude.data.randomness import numpy_stream
from etude.training import TrainConfig
from etude.trust.fact_language import (
    bigram_probabilities,
    fact_corpus,
    fact_point,
    sentence_probabilities,
    train_fact_model,
    upweight,
)
from etude.trust.fact_worlds import (
    GENERATORS,
    fact_world,
    good_turing,
    memoriser,
    mixture,
    repeated_world,
    two_level,
    uniform,
)
from etude.trust.good_turing import GoodTuringGenerator
from etude.trust.miscalibration import miscalibration


def small(seed=0, exponent=1.0):
    return fact_world(2000, 300, 400, exponent, numpy_stream(seed, "world"))


@pytest.mark.parametrize("name", GENERATORS)
def test_entries_equal_the_whole_space_written_out(name):
    world = small()
    g = GENERATORS[name](world)
    full = np.concatenate([g.level[:-1], np.full(world.num_false, g.level[-1])])
    p = np.concatenate([world.p, np.zeros(world.num_false)])
    assert full.sum() == pytest.approx(1.0)
    assert g.hallucination_rate == pytest.approx(full[300:].sum())
    for bins in ("levels", 1, 7):
        assert g.miscalibration(bins) == pytest.approx(miscalibration(full, p, bins), abs=1e-9)


def test_the_shortcut_is_the_estimator():
    world = small()
    facts = np.repeat(np.arange(300), world.counts)
    gen = GoodTuringGenerator().fit(facts, space_size=2000)
    np.testing.assert_allclose(good_turing(world).level[:300], [gen.probability(i) for i in range(300)])
    two = GoodTuringGenerator(levels="two").fit(facts, space_size=2000)
    np.testing.assert_allclose(two_level(world).level[:300], [two.probability(i) for i in range(300)])


def test_known_generators():
    world = small()
    audit = world.audit()
    assert memoriser(world).hallucination_rate == 0.0
    assert memoriser(world).miscalibration() >= world.missing_mass - 0.1
    assert uniform(world).hallucination_rate == pytest.approx(0.85) and uniform(
        world
    ).miscalibration() == pytest.approx(0)
    unseen = (world.counts == 0).sum() + world.num_false
    assert two_level(world).hallucination_rate == pytest.approx(audit.monofact * world.num_false / unseen)
    assert mixture(world, 0.3).hallucination_rate == pytest.approx(0.3 * world.num_false / unseen)
    assert audit.n == 400 and world.fact_ratio == pytest.approx(300 / 1700)


def test_the_bound_holds_without_slack_in_sparse_worlds():
    for seed in range(5):
        world = fact_world(10**6, 5000, 5000, 0.6, numpy_stream(seed, "world"))
        for make in GENERATORS.values():
            g = make(world)
            assert world.audit().monofact - g.miscalibration() - g.hallucination_rate < 0.03


def test_no_floor_where_every_fact_is_seen_often():
    world = repeated_world(10**6, 500, 3)
    assert world.audit().monofact == 0 and world.missing_mass == 0
    assert memoriser(world).hallucination_rate + memoriser(world).miscalibration() == pytest.approx(0.0)


def test_bad_worlds():
    rng = numpy_stream(0, "w")
    for arguments, text in [
        ((10, 10, 5, 1.0), "num_facts=10"),
        ((10, 5, 0, 1.0), "n must"),
        ((10, 5, 5, -1.0), "exponent"),
    ]:
        with pytest.raises(ValueError, match=text):
            fact_world(*arguments, rng)
    with pytest.raises(ValueError, match="alpha"):
        mixture(small(), 1.5)


def corpus(rule="random", **options):
    options = {"sizes": (5, 6, 5), "num_facts": 20, "n": 60, "n_heldout": 40, **options}
    return fact_corpus(numpy_stream(0, "corpus"), rule=rule, **options)


def test_corpus_sentences_and_truth():
    c = corpus()
    assert (c.p > 0).sum() == 20 and c.p.sum() == pytest.approx(1.0) and (c.p[c.train] > 0).all()
    ids = c.ids(c.train)
    assert ids.shape == (60, 4) and (ids[:, 0] == 0).all() and c.vocab_size == 17
    assert [v[0] for v in c.vocabularies] == [1, 6, 12] and c.vocabularies[2][-1] == 16
    back = np.ravel_multi_index(tuple((ids[:, 1:] - torch.tensor([1, 6, 12])).numpy().T), c.sizes)
    assert (back == c.train).all()
    world = c.world()
    assert (
        world.n == 60
        and world.num_false == 130
        and world.missing_mass == pytest.approx(c.p[np.setdiff1d(np.arange(150), c.train)].sum())
    )


def test_the_rule_and_equal_counts():
    c = corpus("copy")
    true = np.stack(np.unravel_index(np.flatnonzero(c.p), c.sizes))
    assert (true[0] == true[2]).all() and true.shape[1] == 30
    thrice = corpus(times=3)
    assert set(np.bincount(thrice.train)[np.unique(thrice.train)]) == {3} and len(thrice.train) == 60
    for options, text in [
        ({"rule": "add"}, "rule"),
        ({"rule": "copy", "sizes": (5, 6, 4)}, "as many"),
        ({"num_facts": 150}, "num_facts"),
    ]:
        with pytest.raises(ValueError, match=text):
            corpus(**options)


def test_upweighting_repeats_a_share():
    rng = numpy_stream(0, "up")
    up = upweight(np.arange(100), 0.2, rng, times=10)
    counts = np.bincount(up)
    assert len(up) == 100 + 20 * 9 and sorted(set(counts)) == [1, 10] and (counts == 10).sum() == 20
    assert (upweight(np.arange(10), 0.0, rng) == np.arange(10)).all()
    with pytest.raises(ValueError, match="share"):
        upweight(np.arange(10), 1.2, rng)


def test_bigram_by_hand():
    c = corpus()
    g = bigram_probabilities(c)
    assert g.sum() == pytest.approx(1.0)
    i = c.train[0]
    a, b, d = np.unravel_index(c.train, c.sizes)
    x, y, z = np.unravel_index(i, c.sizes)
    expected = np.mean((a == x) & (b == y)) * ((b == y) & (d == z)).sum() / (b == y).sum()
    assert g[i] == pytest.approx(expected)


def test_a_trained_model_listed_whole():
    c = corpus("copy")
    seen = []

    class Watch:
        def on_eval(self, state):
            seen.append(fact_point(sentence_probabilities(state.model, c)[0], c).hallucination_rate)

    config = TrainConfig(steps=120, batch_size=20, lr=1e-2, eval_every=30)
    (done,) = train_fact_model({4: c}, num_layers=1, hidden_dim=16, num_heads=2, config=config, callbacks=[Watch()])
    cold, warm = sentence_probabilities(done.module, c, (0.5, 1.0))
    assert cold.shape == (150,) and cold.sum() == pytest.approx(1.0) and warm.sum() == pytest.approx(1.0)
    point = fact_point(warm, c)
    assert point.hallucination_rate == pytest.approx(warm[c.p == 0].sum()) and point.hallucination_rate < 0.8
    assert seen[-1] < seen[0] and len(seen) == 4
    assert point.levels >= point.miscalibration - 1e-9 and point.new_truth > 0

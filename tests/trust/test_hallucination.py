import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from etude.data.randomness import numpy_stream
from etude.layers.decoder import DecoderConfig, DecoderLM
from etude.layers.lm_scoring import token_logprobs
from etude.trust import hallucination as hl


def distribution(weights):
    weights = np.asarray(weights, dtype=float)
    return weights / weights.sum()


class TestCorpusAudit:
    def test_counts_and_estimates_by_hand(self):
        audit = hl.corpus_audit(["a", "b", "b", "c", "c", "c", "d", None])
        assert (audit.n, audit.distinct) == (7, 4) and audit.counts_of_counts == {1: 2, 2: 1, 3: 1}
        assert audit.monofact == audit.missing_mass == 2 / 7  # documents in the denominator, not distinct facts
        assert audit.chao1_unseen == pytest.approx(6 / 7 * 4 / 2)
        half = 1.959964 * math.sqrt(2 / 49 + 2 / 49 - 4 / 343)
        assert audit.interval == pytest.approx((max(0, 2 / 7 - half), 2 / 7 + half), abs=1e-6)
        assert audit.proof_interval == (0.0, 1.0)
        assert audit.N(2) == 1 and audit.N(9) == 0

    def test_strings_are_normalised_and_duplicates_lower_the_estimate(self):
        facts = ["Ada ate  RICE", "ada ate rice", "Bob ate ﬁsh", ("Ann", "Kyoto"), ("ann ", "KYOTO"), 7]
        audit = hl.corpus_audit(facts)
        assert audit.counts_of_counts == {2: 2, 1: 2} and audit.monofact == 2 / 6
        with pytest.warns(UserWarning, match="saturated"):
            raw = hl.corpus_audit(facts, normalize=False)
        assert raw.monofact == 1.0

    def test_everything_seen_once_is_valid_and_warns(self):
        with pytest.warns(UserWarning, match="saturated"):
            audit = hl.corpus_audit(range(50))
        assert audit.monofact == 1.0 and audit.chao1_unseen == pytest.approx(49 / 50 * 50 * 49 / 2)
        assert hl.corpus_audit(["once"]).monofact == 1.0

    def test_integer_arrays_are_counted_alike(self):
        facts = numpy_stream(0, "facts").integers(0, 50, 200)
        assert hl.corpus_audit(facts) == hl.corpus_audit(facts.tolist())

    def test_intervals_cover_the_missing_mass(self):
        rng = numpy_stream(0, "cover")
        p = distribution(np.arange(1, 401) ** -0.8)
        hits = 0
        for _ in range(100):
            counts = rng.multinomial(500, p)
            audit = hl.corpus_audit(np.repeat(np.arange(400), counts))
            missing = p[counts == 0].sum()
            low, high = audit.interval
            hits += low <= missing <= high
            assert audit.proof_interval[0] <= missing <= audit.proof_interval[1]
        assert 88 <= hits <= 99

    def test_bad_corpora(self):
        for facts in ([], [None, None]):
            with pytest.raises(ValueError, match="no facts"):
                hl.corpus_audit(facts)
        with pytest.raises(TypeError, match=r"fact 2 cannot be hashed: \['x'\]"):
            hl.corpus_audit(["a", "b", ["x"], {"y": 1}])
        with pytest.raises(TypeError, match="single str"):
            hl.corpus_audit("a fact")
        for delta in (0.0, 1.5, -1):
            with pytest.raises(ValueError, match="delta"):
                hl.corpus_audit(["a"], delta=delta)

    def test_json_and_plot(self):
        audit = hl.corpus_audit(["a", "b", "b", *["c"] * 4, *["d"] * 9])
        record = json.loads(json.dumps(audit.to_dict()))
        assert record["monofact"] == 1 / 16 and record["counts_of_counts"] == {"1": 1, "2": 1, "4": 1, "9": 1}
        spec = json.dumps(audit.plot())
        assert "3-5" in spec and '"documents": 0.5625' in spec


class TestLowerBound:
    def test_formula(self):
        audit = hl.corpus_audit(np.repeat(np.arange(9000), [1] * 6000 + [3] * 3000))
        bound = hl.lower_bound(audit, miscalibration=0.05, fact_ratio=1e-4, delta=0.01)
        assert bound.sparsity == pytest.approx(0.03) and bound.sampling == pytest.approx(
            6.195 / math.sqrt(15000), rel=1e-3
        )
        assert float(bound) == bound.value == pytest.approx(0.4 - 0.05 - 0.03 - bound.sampling)
        assert not bound.vacuous and json.loads(json.dumps(bound.to_dict()))["value"] == bound.value
        assert bound.plot(0.2)["layer"]

    def test_a_negative_floor_is_zero_and_says_so(self):
        bound = hl.lower_bound(hl.corpus_audit(["a", "b", "b"]), 0.5)
        assert bound.value == 0.0 and bound.vacuous and bound.raw < 0

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"delta": 0.0}, "delta"), ({"delta": 1.01}, "delta"), ({"miscalibration": 1.2}, "miscalibration"),
            ({"fact_ratio": -1.0}, "fact_ratio"),
        ],
    )  # fmt: skip
    def test_bad_settings(self, options, text):
        with pytest.raises(ValueError, match=text):
            hl.lower_bound(hl.corpus_audit(["a", "a"]), **options)
        with pytest.raises(TypeError, match="corpus_audit"):
            hl.lower_bound(0.3)


class TestMiscalibration:
    def test_by_hand(self):
        g, p = [0.1, 0.1, 0.3, 0.5], [0.2, 0.0, 0.2, 0.6]
        assert hl.miscalibration(g, p) == pytest.approx(0.5 * (0.0 + 0.1 + 0.1))  # the two of .1 are merged
        assert hl.miscalibration(g, p, bins=1) == pytest.approx(0.0)
        assert hl.miscalibration(g, p, bins=2) == pytest.approx(0.5 * (0.1 + 0.1))

    def test_a_level_is_calibrated_whatever_is_true_inside_it(self):
        g = np.full(100, 0.01)
        assert hl.miscalibration(g, distribution(np.arange(100))) == pytest.approx(0.0)

    def test_rounding_does_not_part_equal_probabilities(self):
        assert hl.miscalibration([0.1 + 0.2, 0.3, 0.4], [0.6, 0.0, 0.4]) == pytest.approx(0.0)

    def test_ties_are_never_split_by_adaptive_bins(self):
        g = distribution(np.repeat([1.0, 2.0], [50, 25]))
        for bins in (2, 3, 10, 1000):
            p = distribution(np.repeat([1.0, 2.0], [50, 25]) * numpy_stream(1, "t").random(75))
            expected = abs(p[:50].sum() - 0.5)
            assert hl.miscalibration(g, p, bins=bins) == pytest.approx(expected)

    @given(
        weights=arrays(float, st.integers(2, 30), elements=st.integers(1, 6).map(float)),
        bins=st.one_of(st.just("levels"), st.integers(1, 12)),
        seed=st.integers(0, 99),
    )
    def test_between_zero_and_total_variation_and_blind_to_order(self, weights, bins, seed):
        rng = numpy_stream(seed, "p")
        g, p = distribution(weights), distribution(rng.random(len(weights)) + 1e-3)
        value = hl.miscalibration(g, p, bins)
        assert -1e-12 <= value <= 0.5 * np.abs(g - p).sum() + 1e-12
        order = rng.permutation(len(g))
        assert hl.miscalibration(g[order], p[order], bins) == pytest.approx(value, abs=1e-12)
        assert value <= hl.miscalibration(g, p) + 1e-12  # merging levels can only lower it
        assert hl.miscalibration(g, g, bins) == pytest.approx(0.0, abs=1e-12)

    def test_mappings_are_aligned_by_fact(self):
        g, p = {"a": 0.5, "b": 0.5}, {"c": 0.25, "a": 0.75}
        assert hl.miscalibration(g, p) == pytest.approx(0.5 * (0.25 + 0.25))
        assert hl.miscalibration(p, g) == pytest.approx(0.5 * (0.25 + 0.25 + 0.5))

    @pytest.mark.parametrize(
        ("g", "p", "bins", "text"),
        [
            ([0.5, 0.6], [0.5, 0.5], "levels", r"g must sum to 1 .* its sum is 1\.1"),
            ([0.5, 0.5], [0.5, 0.4], "levels", r"p must sum to 1 .* its sum is 0\.9"),
            ([1.5, -0.5], [0.5, 0.5], "levels", r"g\[1\] is negative"),
            ([math.nan, 1.0], [0.5, 0.5], "levels", "not finite"),
            ([0.5, 0.5], [1.0], "levels", "g has 2 facts and p 1"),
            ([], [], "levels", "no facts"),
            ({"a": 1.0}, [1.0], "levels", "both"),
            ([1.0], [1.0], 0, "at least 1"),
            ([1.0], [1.0], "quantiles", "'levels' or a number"),
            ([1.0], [1.0], 2.5, "at least 1"),
        ],
    )
    def test_bad_input(self, g, p, bins, text):
        with pytest.raises(ValueError, match=text):
            hl.miscalibration(g, p, bins)

    def test_estimate_from_held_out_facts(self):
        rng = numpy_stream(0, "heldout")
        g, p = distribution(rng.random(300)), distribution(rng.random(300) ** 3)
        exact = hl.miscalibration(g, p, 5)
        found = hl.heldout_miscalibration(g, rng.choice(300, 20_000, p=p), 5, generator=rng)
        assert found.value == pytest.approx(exact, abs=0.02) and found.low <= found.value <= found.high
        by_name = hl.heldout_miscalibration({"a": 0.5, "b": 0.5}, ["a", "b", "z", "z"], 1, generator=rng)
        assert by_name.value == pytest.approx(0.5)  # half of the held-out documents hold facts of probability 0
        with pytest.raises(ValueError, match="held-out"):
            hl.heldout_miscalibration(g, [], generator=rng)

    def test_it_knows_its_bins(self):
        g, p = [0.1, 0.1, 0.3, 0.5], [0.2, 0.0, 0.2, 0.6]
        mis = hl.miscalibration(g, p)
        assert mis.to_dict() == {
            "value": float(mis),
            "bins": {"g": pytest.approx([0.2, 0.3, 0.5]), "p": [0.2, 0.2, 0.6]},
        }
        assert json.loads(json.dumps({"mis": mis})) == {"mis": float(mis)}
        assert pickle.loads(pickle.dumps(mis)).to_dict() == mis.to_dict()
        held = hl.heldout_miscalibration({"a": 0.5, "b": 0.5}, ["a", "c"], "levels", generator=numpy_stream(0, "m"))
        value, low, high = held
        assert low <= value == float(held) == 0.5 <= high
        assert held.to_dict()["masses"] == {"g": [1.0, 0.0], "p": [0.5, 0.5]}
        for made in (mis, held):
            rows = made.plot()["layer"][1]["data"]["values"]
            assert [row["generator"] for row in rows] == made.masses.g.tolist()


class TestGoodTuringGenerator:
    def test_probabilities_sum_to_one_and_leave_the_missing_mass(self):
        facts = numpy_stream(0, "facts").zipf(1.5, 2000) % 500
        gen = hl.GoodTuringGenerator().fit(facts, space_size=10**6)
        audit = hl.corpus_audit(facts)
        assert gen.unseen_mass_ == audit.monofact and gen.audit_.counts_of_counts == audit.counts_of_counts
        seen = sum(gen.probability(f) for f in gen.counts_)
        assert seen == pytest.approx(1 - audit.monofact)
        assert gen.probability(600) * (10**6 - audit.distinct) == pytest.approx(audit.monofact)
        assert gen.by_count(1) / gen.by_count(max(gen.counts_.values())) < 1 / max(gen.counts_.values())

    def test_adjusted_counts_by_hand(self):
        facts = ["a", "b", "c", "d", "e", "e", "f", "f", *["g"] * 9]
        gen = hl.GoodTuringGenerator().fit(facts, space_size=100)  # N_1 = 4, N_2 = 2, N_9 = 1
        raw = {1: 2 * 2 / 4, 2: 2.0, 9: 9.0}  # 3 N_3 / N_2 = 0 is a gap: r stays
        total = 4 * raw[1] + 2 * raw[2] + raw[9]
        for r, value in raw.items():
            assert gen.by_count(r) == pytest.approx((1 - 4 / 17) * value / total)
        two = hl.GoodTuringGenerator(levels="two").fit(facts, space_size=100)
        assert two.by_count(1) == two.by_count(9) == pytest.approx((1 - 4 / 17) / 7)

    def test_samples_have_these_shares_and_unseen_ones_are_new(self):
        gen = hl.GoodTuringGenerator(random_state=3).fit([1, 1, 2, 2, 3, 4], space_size=50)
        drawn = gen.sample(6000)
        assert drawn == gen.sample(6000) and all(0 <= f < 50 for f in drawn)
        new = np.mean([f not in (1, 2, 3, 4) for f in drawn])
        assert new == pytest.approx(2 / 6, abs=0.03)
        assert np.mean([f == 1 for f in drawn]) == pytest.approx(gen.probability(1), abs=0.02)
        assert gen.sample(0) == []

    def test_named_facts_need_a_way_to_draw_them(self):
        gen = hl.GoodTuringGenerator(random_state=0).fit(["Ann", "Bob", "Bob"], space_size=26)
        with pytest.raises(ValueError, match="draw="):
            gen.sample(50)
        letters = "abcdefghijklmnopqrstuvwxyz"

        def draw(generator):
            return letters[int(torch.randint(26, (1,), generator=generator))]

        gen.fit(["a", "B", "b"], space_size=26, draw=draw)
        drawn = gen.sample(200)
        assert set(drawn) - {"a", "b"} and gen.probability("A") == gen.probability("a") > 0

    def test_edges(self):
        with pytest.raises(ValueError, match="space_size=2 is less than the 3"):
            hl.GoodTuringGenerator().fit([1, 2, 3], space_size=2)
        with pytest.raises(ValueError, match="no facts"):
            hl.GoodTuringGenerator().fit([], space_size=2)
        with pytest.raises(ValueError, match="levels"):
            hl.GoodTuringGenerator(levels="three").fit([1], space_size=2)
        with pytest.raises(Exception, match="not fitted"):
            hl.GoodTuringGenerator().sample(1)
        full = hl.GoodTuringGenerator(random_state=0).fit([0, 1, 1], space_size=2)
        assert full.unseen_mass_ == 0 and set(full.sample(50)) == {0, 1}
        once = hl.GoodTuringGenerator(random_state=0).fit(range(10), space_size=1000)
        assert once.unseen_mass_ == 1.0 and min(once.sample(50)) >= 10

    def test_numbers_beyond_the_space_have_no_mass(self):
        gen = hl.GoodTuringGenerator().fit([1, 1, 2, 3], space_size=10)
        assert sum(gen.probability(fact) for fact in range(-5, 40)) == pytest.approx(1.0)
        assert gen.probability(10) == gen.probability(-1) == gen.probability("1") == 0.0


class TestAuditModel:
    truth = tuple(range(40))

    def audit(self, g, **options):
        facts = np.repeat(np.arange(30), [1] * 20 + [4] * 10).tolist()
        with np.errstate(divide="ignore"):
            scores = np.log(np.asarray(g, dtype=float))
        return hl.audit_model(
            lambda items: scores[list(items)], range(len(scores)), facts, list(range(40)), self.truth, **options
        )

    def test_rates_by_hand(self):
        g = np.zeros(1000)
        g[:30], g[30:40], g[40:] = 0.6 / 30, 0.1 / 10, 0.3 / 960
        report = self.audit(g)
        assert report.hallucination_rate == pytest.approx(0.3) and report.new_truth_mass == pytest.approx(0.1)
        assert report.audit.monofact == 20 / 60 and report.candidate_mass == pytest.approx(1.0)
        assert report.bound.sparsity == pytest.approx(3 * 40 / 960 / 0.05) and report.verdict == "vacuous"
        record = json.loads(json.dumps(report.to_dict()))
        assert record["floor"] == report.floor == 0.0 and report.plot()

    def test_mass_outside_the_candidates_is_left_out(self):
        g = np.zeros(1000)
        g[:30], g[40:] = 0.3 / 30, 0.1 / 960
        report = self.audit(g)
        assert report.candidate_mass == pytest.approx(0.4) and report.hallucination_rate == pytest.approx(0.25)

    def test_verdicts(self):
        rng = numpy_stream(0, "verdict")
        facts = list(range(20_000))
        facts += facts[:2000]
        wanted = dict(delta=1.0, bins=1)
        space = 10**5

        def score(shape):
            g = np.full(space, 0.0)
            g[:20_000] = shape / 20_000
            g[20_000:] = (1 - shape) / 80_000
            return lambda items: np.log(np.maximum(g, 1e-300))

        args = (range(space), facts, [0, 1], lambda f: f < 100)
        above = hl.audit_model(score(0.0), *args, **wanted, generator=rng)
        assert above.verdict == "above the floor" and above.hallucination_rate == pytest.approx(1.0)
        truthful = hl.audit_model(
            score(1.0), range(space), facts, [0, 1], lambda f: f < 20_000, **wanted, generator=rng
        )
        assert truthful.hallucination_rate == pytest.approx(0.0) and truthful.verdict in ("below the floor", "vacuous")

    def test_minus_infinity_is_no_nan(self):
        g = np.zeros(1000)
        g[:30] = 1 / 30
        report = self.audit(g)
        assert report.hallucination_rate == 0.0 and math.isfinite(report.miscalibration)

    @pytest.mark.parametrize(
        ("score", "text"),
        [
            (lambda items: np.zeros(3), "must return 5 log-probabilities"),
            (lambda items: np.full(5, np.nan), "NaN for candidate 'a'"),
            (lambda items: np.zeros(5), "their sum is 5"),
            (lambda items: np.full(5, -np.inf), "their sum is 0"),
        ],
    )
    def test_bad_scores(self, score, text):
        with pytest.raises(ValueError, match=text):
            hl.audit_model(score, list("abcde"), ["a", "a"], ["a"], {"a"})
        with pytest.raises(ValueError, match="no candidates"):
            hl.audit_model(score, [], ["a", "a"], ["a"], {"a"})

    def test_facts_are_matched_after_normalising(self):
        report = hl.audit_model(
            lambda items: np.log([0.5, 0.5]), ["Ann ate rice", "Ann ate soup"], ["ann  ate RICE"] * 3, ["ANN ate rice"],
            {"ann ate rice"},
        )  # fmt: skip
        assert report.hallucination_rate == 0.5 and report.new_truth_mass == 0.0


def test_sampled_rate_has_an_exact_interval():
    rate, low, high = hl.sampled_rate(["a", "b", None, "c", "A"], {"a"})
    assert rate == 0.5 and low == pytest.approx(0.0676, abs=1e-3) and high == pytest.approx(0.9324, abs=1e-3)
    assert hl.sampled_rate([1, 1], lambda f: True)[:2] == (0.0, 0.0)
    with pytest.raises(ValueError, match="no facts"):
        hl.sampled_rate([None], {"a"})


def test_knobs_that_break_calibration():
    g = np.array([0.5, 0.2, 0.2, 0.1])
    np.testing.assert_allclose(hl.top_p(g, 0.6), [5 / 9, 2 / 9, 2 / 9, 0])  # ties stay together
    np.testing.assert_allclose(hl.top_p(g, 0.5), [1, 0, 0, 0])
    np.testing.assert_allclose(hl.top_p(g, 1.0), g)
    np.testing.assert_allclose(hl.refuse_below(g, 0.3), [1, 0, 0, 0])
    with pytest.raises(ValueError, match="never answer"):
        hl.refuse_below(g, 0.7)
    with pytest.raises(ValueError, match="p must lie"):
        hl.top_p(g, 0.0)


def test_scorer_of_causal_language_models():
    class Tokenizer:
        bos_token_id, eos_token_id = 0, 0

        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [1 + ord(c) % 9 for c in text]}

    model = DecoderLM(DecoderConfig(num_layers=1, hidden_dim=8, num_heads=1, vocab_size=10, max_length=32)).eval()
    score = hl.hf_scorer(model, Tokenizer(), "{} in {}", batch_size=2)
    facts = [("ann", "rome"), ("b", "oslo"), ("carla", "ulm")]
    together = score(facts)
    np.testing.assert_allclose(together, [score([f])[0] for f in facts], rtol=1e-5)
    ids = torch.tensor([[0, *Tokenizer()("b in oslo", add_special_tokens=False)["input_ids"]]])
    assert together[1] == pytest.approx(float(token_logprobs(model, ids).sum()), rel=1e-5)
    assert hl.hf_scorer(model, Tokenizer())(["abc"]).shape == (1,)
    assert hl.hf_scorer(model, Tokenizer(), "{1} {0}")([("a", "b")]) == hl.hf_scorer(model, Tokenizer())(["b a"])
    for wrong, parts in ((("ann",), 1), (("ann", "rome", "rice"), 3), ("ann", 1)):
        with pytest.raises(ValueError, match=f"each of the {parts} parts of the fact .*, it has 2"):
            score([wrong])
    Tokenizer.bos_token_id = Tokenizer.eos_token_id = None
    with pytest.raises(ValueError, match="start nor an end token"):
        hl.hf_scorer(model, Tokenizer())


def test_a_truth_function_gets_facts_as_they_were_written():
    facts = ["Ann was born in Oslo", "Bob was born in Rome", "Cy was born in Bern", "Di was born in Lima"]
    true = set(facts[:3])
    scores = lambda items: [math.log(0.25)] * len(items)
    audit = [hl.audit_model(scores, facts, facts[:2], facts[:3], t) for t in (true, lambda f: f in true)]
    assert [a.hallucination_rate for a in audit] == pytest.approx([0.25, 0.25])
    assert hl.sampled_rate(facts, lambda f: f in true)[0] == hl.sampled_rate(facts, true)[0] == 0.25


def test_a_candidate_named_twice_counts_once():
    g = {"a": math.log(0.3), "b": math.log(0.2)}
    score = lambda items: [g[i] for i in items]
    rate = hl.audit_model(score, ["a", "b", "a"], ["a", "b"], ["b"], {"b"}).hallucination_rate
    assert rate == pytest.approx(0.6)


def test_very_improbable_candidates_keep_their_odds():
    score = lambda items: [-800.0, -801.0]
    report = hl.audit_model(score, ["a", "b"], ["a", "b"], ["b"], {"b"})
    assert report.hallucination_rate == pytest.approx(1 / (1 + math.exp(-1)))
    assert report.candidate_mass == 0.0


def test_rows_of_arrays_and_tensors_are_facts():
    assert hl.corpus_audit(torch.tensor([1, 1, 2, 3])).distinct == 3
    rows = np.array([[1, 2, 3], [1, 2, 3], [4, 5, 6]])
    assert (hl.corpus_audit(rows).n, hl.corpus_audit(rows).distinct) == (3, 2)
    assert hl.corpus_audit(torch.tensor(rows)).distinct == 2
    assert hl.corpus_audit(np.array([["a", "b"], ["A", "b"]])).distinct == 1


def test_a_scorer_looks_in_eval_mode_and_puts_modes_back():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=32)).train()
    model.transformer.drop.eval()

    class Tokenizer:
        bos_token_id = eos_token_id = 0

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(c) % 31 + 1 for c in text]}

    state = torch.get_rng_state()
    score = hl.hf_scorer(model, Tokenizer())
    assert (score(["ab", "c"]) == score(["ab", "c"])).all()
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not model.transformer.drop.training


@pytest.mark.parametrize("missing", [float("nan"), np.float32("nan"), np.datetime64("NaT"), "NA", "NaT"])
def test_missing_values_are_no_facts(missing):
    pandas = pytest.importorskip("pandas")
    missing = getattr(pandas, missing) if isinstance(missing, str) else missing
    assert hl.corpus_audit(["a", missing, "b", "b", None, missing]).counts_of_counts == {1: 1, 2: 1}
    assert hl.sampled_rate(["a", missing, "b"], {"a"})[0] == 0.5
    uniform = lambda items: np.log(np.full(2, 0.5))
    report = hl.audit_model(uniform, ["a", "b"], ["a", "a", missing], ["a", missing, "b"], {"a"})
    assert report.audit.n == 2 and report.miscalibration == 0


def test_missing_parts_of_rows_are_alike():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"name": ["a", "a", "b", None], "place": [math.nan, math.nan, 1.0, math.nan]})
    pairs = [("a", float("nan")), ("a", float("nan")), ("b", 1.0), (None, float("nan"))]
    for facts in (table, pairs, np.array([[0, math.nan], [0, math.nan], [1, 1], [math.nan, math.nan]])):
        for normalize in (True, False):
            assert hl.corpus_audit(facts, normalize=normalize).counts_of_counts == {2: 1, 1: 1}
        report = hl.audit_model(lambda items: np.log([2 / 3, 1 / 3]), facts, facts, facts, facts)
        assert (report.candidates, report.hallucination_rate, report.new_truth_mass) == (2, 0, 0)
        assert report.miscalibration == pytest.approx(0) and hl.sampled_rate(facts, facts)[0] == 0


def test_missing_values_of_arrays_and_facts_that_look_like_them():
    assert hl.corpus_audit(np.array([math.nan, math.nan, 1.0, 1.0])).n == 2
    tensors = [torch.zeros(3)] * 2  # compare to a tensor, not to a bool
    assert hl.corpus_audit([False, False, True, 0.5, *tensors]).counts_of_counts == {1: 2, 2: 2}


def test_facts_beyond_the_numbers_of_the_space_need_a_draw():
    gen = hl.GoodTuringGenerator(random_state=0).fit([10, 10, 2], space_size=10)
    with pytest.raises(ValueError, match="other than the numbers 0 to 9 need draw="):
        gen.sample(50)
    with pytest.raises(ValueError, match=r"space_size must be a whole number, got 10\.5"):
        gen.fit([1, 1], space_size=10.5)
    gaps = hl.GoodTuringGenerator(random_state=0).fit([1.0, float("nan"), 1.0, 2.0], space_size=10)
    whole = hl.GoodTuringGenerator(random_state=0).fit([1, 1, 2], space_size=10)
    assert gaps.sample(9) == whole.sample(9) and whole.probability(2.0) == whole.probability(2) > 0
    assert whole.probability(2.5) == whole.probability(math.inf) == 0
    for k in (-1, 2.5):
        with pytest.raises(ValueError, match=f"k must be a whole number, at least 0, got {k}"):
            gen.sample(k)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda score: hl.audit_model(score, ["a", ["b"]], ["a"] * 2, ["a"], {"a"}), r"candidate 1 .*\['b'\]"),
        (lambda score: hl.audit_model(score, ["a"], ["a"] * 2, ["a", ["b"]], {"a"}), r"held-out fact 1 .*\['b'\]"),
        (lambda score: hl.GoodTuringGenerator().fit(["a", "a"], 5).probability(["b"]), r"fact 0 .*\['b'\]"),
    ],
)
def test_what_cannot_be_hashed_is_named(call, text):
    with pytest.raises(TypeError, match=text):
        call(lambda items: np.zeros(len(items)))


def test_reports_are_strict_json_without_a_falsehood():
    report = hl.audit_model(lambda items: np.log([0.5, 0.5]), ["a", "b"], ["a", "a"], ["a"], {"a", "b"})
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["bound"]["sparsity"] is None and record["floor"] == 0.0


def test_tensors_of_any_precision_are_numbers():
    audit = hl.corpus_audit([1, 1, 2])
    assert hl.lower_bound(audit, fact_ratio=torch.tensor(0.5)) == hl.lower_bound(audit, fact_ratio=0.5)
    g, p = torch.tensor([0.5, 0.5], dtype=torch.bfloat16), torch.tensor([0.25, 0.75], dtype=torch.bfloat16)
    assert hl.miscalibration(g, p, bins=2) == 0 and hl.miscalibration(p, g) == 0.25


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ([0, 5], "held-out fact 1 has index 5, but g has 2 facts"),
        ([0, -2], "held-out fact 1 has index -2, but g has 2 facts; -1 stands"),
        ([0.5, 1.0], "must be indices of g"),
    ],
)
def test_heldout_indices_that_do_not_fit(facts, text):
    with pytest.raises(ValueError, match=text):
        hl.heldout_miscalibration(np.array([0.5, 0.5]), facts, generator=numpy_stream(0, "b"))


@pytest.mark.parametrize(
    ("g", "text"),
    [
        ([], "no facts"),
        ([math.nan, 1.0], r"g\[0\] is not finite"),
        ([0.5, -0.1], r"g\[1\] is negative"),
        ([0.0], "0 every"),
    ],
)
def test_masses_that_are_none(g, text):
    for cut in (hl.top_p, hl.refuse_below):
        with pytest.raises(ValueError, match=text):
            cut(g, 0.2)


def test_a_scorer_needs_a_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        hl.hf_scorer(None, None, batch_size=0)


def test_tables_are_rows_and_mappings_are_refused():
    pd = pytest.importorskip("pandas")
    facts = [("ann", "kyoto"), ("ann", "kyoto"), ("bob", "rome")]
    audit = hl.corpus_audit(pd.DataFrame(facts, columns=["person", "place"]))
    assert audit == hl.corpus_audit(facts) and audit.n == 3
    with pytest.raises(TypeError, match="elements"):
        hl.corpus_audit({"a": 2, "b": 1})


def test_an_audit_reads_tables_and_tensors_by_rows():
    pd = pytest.importorskip("pandas")
    odds = {("ann", "rome"): 0.5, ("bob", "rome"): 0.3, ("bob", "oslo"): 0.2}
    table = pd.DataFrame(list(odds), columns=["person", "place"])
    score = lambda items: np.log([odds[item] for item in items])
    report = hl.audit_model(score, table, table, table, table[:2])
    assert report == hl.audit_model(score, list(odds), list(odds), list(odds), set(list(odds)[:2]))
    assert report.hallucination_rate == pytest.approx(0.2)
    assert hl.sampled_rate(table, table[:2])[0] == pytest.approx(1 / 3)
    numbers = torch.arange(3)
    score = lambda items: np.log([list(odds.values())[item] for item in items])
    assert hl.audit_model(score, numbers, [0, 0], numbers, numbers[:2]).hallucination_rate == pytest.approx(0.2)
    assert hl.sampled_rate(numbers, numbers[:2])[0] == pytest.approx(1 / 3)


def test_series_are_aligned_by_their_index():
    pd = pytest.importorskip("pandas")
    g, p = pd.Series({"a": 0.2, "b": 0.8}), pd.Series({"b": 0.8, "a": 0.2})
    assert hl.miscalibration(g, p) == hl.miscalibration(g, dict(p)) == 0
    assert hl.miscalibration(g, p.to_numpy()) == pytest.approx(0.6)  # without names, by place


def test_good_turing_scores_tensors_as_lists():
    made = hl.GoodTuringGenerator().fit(torch.tensor([1, 1, 2]), 5)
    np.testing.assert_array_equal(made.score(torch.tensor([1, 2, 3])), made.score([1, 2, 3]))
    assert made.probability(torch.tensor(1)) == made.probability(1) > 0


def test_a_draw_that_finds_nothing_new_is_given_up():
    made = hl.GoodTuringGenerator(random_state=0).fit(["a", "a", "b"], 9, draw=lambda g: "a")
    with pytest.raises(ValueError, match="draw gave only facts that were seen"):
        made.sample(50)


def test_knobs_take_mappings_and_tables():
    g = {"a": 0.5, "b": 0.3, "c": 0.2}
    np.testing.assert_allclose(hl.top_p(g, 0.6), [0.625, 0.375, 0])
    np.testing.assert_allclose(hl.refuse_below(g, 0.4), [1, 0, 0])
    np.testing.assert_allclose(hl.top_p(np.array([[0.4, 0.3], [0.2, 0.1]]), 0.5), np.array([[4, 3], [0, 0]]) / 7)


def test_candidates_without_a_fact_and_truths_of_a_mapping():
    facts, truth = ["a", "a", "b"], {"a": True, "b": False, "c": False}
    score = lambda items: np.log(np.full(len(items), 1 / len(items)))
    report = hl.audit_model(score, ["a", "b", "c", None], facts, facts, truth)
    assert report.candidates == 3
    assert report.hallucination_rate == pytest.approx(2 / 3)
    assert hl.sampled_rate(["a", "b"], truth)[0] == 0.5
    with pytest.raises(TypeError, match="sample 1 cannot be hashed"):
        hl.sampled_rate(["a", ["b"]], {"a"})
